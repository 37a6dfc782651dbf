"""Fast-SCNN: real-time semantic segmentation with fused kernels (Poudel et al. 2019)."""

import sys
from pathlib import Path

try:
    from fastscnn.checkpoints.files import convert, save
    from fastscnn.classes import CAMVID, CITYSCAPES, Classes
    from fastscnn.inference.engine import Engine
    from fastscnn.inference.fold import fold
    from fastscnn.inference.fused import FusedFastSCNN
    from fastscnn.info import __version__, info
    from fastscnn.load import load, load_backbone
    from fastscnn.media.visualize import colorize, overlay
    from fastscnn.network.config import PRESETS, FastSCNNConfig
    from fastscnn.network.model import FastSCNN, FastSCNNClassifier
    from fastscnn.predict.clips import video
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
    "video",
]
