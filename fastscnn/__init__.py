"""Fast-SCNN: real-time semantic segmentation with fused kernels (Poudel et al. 2019)."""

import sys
from pathlib import Path

try:
    from fastscnn.checkpoints import convert, save
    from fastscnn.classes import CAMVID, CITYSCAPES, Classes
    from fastscnn.config import PRESETS, FastSCNNConfig
    from fastscnn.engine import Engine
    from fastscnn.fold import fold
    from fastscnn.fused import FusedFastSCNN
    from fastscnn.info import __version__, info
    from fastscnn.load import load, load_backbone
    from fastscnn.model import FastSCNN, FastSCNNClassifier
    from fastscnn.visualize import colorize, overlay
except KeyboardInterrupt:  # torch takes seconds to load, and here no command can catch it yet
    if Path(sys.argv[0]).name in ("-m", "fastscnn"):
        sys.exit(130)
    raise

__all__ = [
    "CAMVID",
    "CITYSCAPES",
    "PRESETS",
    "Classes",
    "Engine",
    "FastSCNN",
    "FastSCNNClassifier",
    "FastSCNNConfig",
    "FusedFastSCNN",
    "__version__",
    "colorize",
    "convert",
    "fold",
    "info",
    "load",
    "load_backbone",
    "overlay",
    "save",
]
