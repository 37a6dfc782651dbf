"""From a model to the one file from which C and C++ programs run it (docs/cpp.md).

csrc/cpu/model_file.h has the format, field by field.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.formats import write_atomically
from fastscnn.classes import Classes
from fastscnn.export.compare import SIZES, ExportError, Row
from fastscnn.inference.cpu_runtime import CpuRuntime
from fastscnn.inference.fold import fold
from fastscnn.inference.ranges import Ranges, check_ranges, int8_inputs
from fastscnn.media.demo import street_scene
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import extension
from fastscnn_kernels.cpu import pack as cpu_pack

MAGIC = b"FASTSCNN"
VERSION = 2


def export_fscnn(model: FastSCNN, path: Path, *, force: bool = False) -> list[Row]:
    """Write a model on the CPU, with the int8 ranges of its card if it has some.

    One that was loaded with `dtype=torch.bfloat16` runs so from the file, too, and without ranges.

    Before the file gets its name it is read by what will read it, whose labels of drawn frames must
    equal the model's; those checks are returned. Raises FileExistsError, ValueError naming what
    cannot be written, or ExportError where the labels differ.
    """
    if path.suffix.lower() != ".fscnn":
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; expected .fscnn")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: use --force (force=True) to overwrite it")
    data = encode(model)
    rows = check(model, data)
    failed = [row for row in rows if row.labels < 1]
    if failed:
        raise ExportError(f"{path} was not written: it differs from the model ({failed[0]})")
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
    return rows


def encode(model: FastSCNN) -> bytes:
    """The bytes of the file."""
    config, card = model.config, model.card or Card(num_classes=model.num_classes)
    classes = Classes.for_count(model.num_classes, card.classes, card.colors)
    spans = _ranges(model)
    ranges = [spans[name] for name in int8_inputs(config)] if spans else []
    names = b"".join(name.replace("\0", "").encode() + b"\0" for name in classes.names)
    weights = [t for conv in _convs(model) for t in conv]
    for t in weights:
        if not np.isfinite(t).all():
            raise ValueError("the model has weights that are no finite numbers: train it anew")
    body = b"".join(
        [
            _config(model, min(card.size) if card.size else 0),
            struct.pack("<2i", len(ranges), len(names)),
            *(struct.pack("<2d", *span) for span in ranges),
            bytes(v for color in classes.colors for v in color),
            names,
            *(t.astype("<f4").tobytes() for t in weights),
        ]
    )
    header = MAGIC + struct.pack("<2IQ", VERSION, zlib.crc32(body), 24 + len(body))
    return header + body


def check(model: FastSCNN, data: bytes) -> list[Row]:
    """Labels of drawn frames by the file's reader, against the model's on this machine's CPU."""
    file = extension.load().Network.from_file(data)
    isa = cpu_pack.bf16_instruction_set() if is_bfloat16(model) else ""
    own = CpuRuntime(fold(model), model.config, model.num_classes, isa=isa, ranges=_ranges(model))
    rows = []
    for h, w in SIZES:
        frame = torch.from_numpy(street_scene(h, w, 0)).contiguous()
        labels = torch.empty((1, h, w), dtype=torch.uint8)
        source = (frame.data_ptr(), True, 1, h, w, 3 * w, False)
        file.run(source, (h, w), (h, w), {"labels": labels.data_ptr()}, 0.0, 1)
        equal = (own.labels(frame[None], threads=1) == labels).double().mean()
        rows.append(Row((1, h, w), float(equal), None))
    return rows


def is_bfloat16(model: FastSCNN) -> bool:
    """Whether it was loaded to multiply bfloat16 on a CPU."""
    return getattr(model, "cpu_products", torch.float32) == torch.bfloat16


def _ranges(model: FastSCNN) -> Ranges:
    """Those that the file holds; as in Python, products of bfloat16 need none."""
    if is_bfloat16(model) or not model.card or not model.card.ranges:
        return {}
    check_ranges(model.card.ranges, model.config)
    return model.card.ranges


def _config(model: FastSCNN, working_side: int) -> bytes:
    config = model.config
    numbers = (
        model.num_classes,
        -1 if config.stem_padding == "same" else config.stem_padding,
        config.dsconv_relu,
        config.bottleneck_activation == "relu6",
        *config.ppm_order,
        config.ppm_join_kernel,
        config.ppm_align_corners,
        config.ffm_align_corners,
        config.head_align_corners,
        config.ffm_kernel == "dense",
        config.ffm_dilation,
        working_side,
        is_bfloat16(model),
    )
    return struct.pack("<17i6d", *(int(v) for v in numbers), *config.mean, *config.std)


def _convs(model: FastSCNN) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folded weights and biases, in the order of the file."""
    folded = fold(model)
    names = extension.load().conv_names(model.config.to_dict())
    return [
        (folded[name].weight.float().numpy(), folded[name].bias.float().numpy()) for name in names
    ]
