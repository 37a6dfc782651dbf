"""Fast-SCNN as an ONNX graph of any frame size: what `fastscnn export` writes and others run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from onnx import ModelProto, TensorProto, helper

from fastscnn.export.onnx_nodes import Graph
from fastscnn.export.onnx_resize import resize_frame
from fastscnn.inference.fold import BOTTLENECKS, Conv
from fastscnn.network.config import Activation, FastSCNNConfig

Size = tuple[int, int]
Input = Literal["frame", "tensor"]
Output = Literal["labels", "probabilities", "logits", "scores"]

OPSET = 17
IR_VERSION = 8  # of the file; every reader of that opset knows it


def build(
    folded: Mapping[str, Conv],
    config: FastSCNNConfig,
    num_classes: int,
    *,
    input: Input = "frame",
    output: Output = "labels",
    size: Size | None = None,
    batch: int | None = None,
    working_side: int | None = None,
    half: bool = False,
    tensorrt: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> ModelProto:
    """The network of `config` as one graph for every frame size, or for `size` (H, W) alone.

    `folded` is `fold(model)`, float32 on the CPU. The input is `frame`, uint8 RGB N x H x W x 3,
    normalised inside, or `tensor`, normalised float32 N x 3 x H x W; H and W of 32 or more, odd
    ones too. The output, of the same name as the argument's value, is

    - `labels`: uint8 N x H x W;
    - `logits`, or `probabilities` (their softmax): float N x num_classes x H x W;
    - `scores`: float N x num_classes x h x w at 1/8 of the network's input, where the head begins.

    `size` and `batch` fix what is free otherwise. With `working_side` frames are first resized to
    that shorter side, as `segment` does where the card names a working size; labels, logits and
    probabilities have the frame's size all the same. `half` computes in float16 from the normalised
    frame on. `tensorrt` keeps to what TensorRT knows of bytes: they are cast to floats before
    anything else, and labels are cast from floats.
    Values and weights are named as the model's modules are.
    """
    g = Graph(folded, np.float16 if half else np.float32)
    n, (h, w) = batch or "batch", size or ("height", "width")
    if input == "frame":
        inlet = helper.make_tensor_value_info("frame", TensorProto.UINT8, [n, h, w, 3])
        x = g.node("Cast", "frame", to=TensorProto.FLOAT) if tensorrt else "frame"
        out_size = g.node("Shape", x, start=1, end=3)
        if working_side is None:  # bytes are turned over, which is a quarter of the traffic
            x = g.node("Transpose", x, perm=[0, 3, 1, 2])
            x = x if tensorrt else g.node("Cast", x, to=TensorProto.FLOAT)
        else:
            x = resize_frame(g, x, out_size, working_side)
        x = _normalize(g, x, config)
    else:
        inlet = helper.make_tensor_value_info("tensor", TensorProto.FLOAT, [n, 3, h, w])
        x = g.node("Cast", "tensor", to=TensorProto.FLOAT16) if half else "tensor"
        out_size = g.size_of(x)
    high = _learning_to_downsample(g, x, config)
    low = _global_features(g, high, config)
    scores = _classifier(g, _feature_fusion(g, high, low, config), config, output == "scores")
    if output != "scores":
        _head(g, scores, out_size, config, output, tensorrt)
    dims = {
        "labels": [n, h, w],
        "scores": [n, num_classes, "score_rows", "score_columns"],
    }.get(output, [n, num_classes, h, w])
    kind = TensorProto.UINT8 if output == "labels" else g.float_type
    outlet = helper.make_tensor_value_info(output, kind, dims)
    graph = helper.make_graph(g.nodes, "fastscnn", [inlet], [outlet], g.weights)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fastscnn",
    )
    helper.set_model_props(model, dict(metadata or {}))
    return model


def _normalize(g: Graph, x: str, config: FastSCNNConfig) -> str:
    """Float planes of 0..255 to normalised values of the weights' type."""
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (config.mean, config.std))
    x = g.node("Sub", x, g.constant(mean * 255, "mean", np.float32))
    x = g.node("Mul", x, g.constant(1 / (std * 255), "scale", np.float32), name="normalized")
    return x if g.dtype == np.float32 else g.node("Cast", x, to=g.float_type)


def _learning_to_downsample(g: Graph, x: str, config: FastSCNNConfig) -> str:
    name = "learning_to_downsample"
    x = g.conv(x, f"{name}.conv", stride=2, padding=config.stem_padding)
    for i in (1, 2):
        x = _dsconv(g, x, f"{name}.dsconv{i}", config, stride=2)
    return x


def _dsconv(g: Graph, x: str, name: str, config: FastSCNNConfig, *, stride: int = 1) -> str:
    between: Activation = "relu" if config.dsconv_relu else "none"
    x = g.conv(x, f"{name}.depthwise", stride=stride, activation=between)
    return g.conv(x, f"{name}.pointwise")


def _global_features(g: Graph, x: str, config: FastSCNNConfig) -> str:
    f = config.bottleneck_activation
    for i, (name, stride) in enumerate(BOTTLENECKS):
        y = g.conv(x, f"{name}.expand", activation=f)
        y = g.conv(y, f"{name}.depthwise", stride=stride, activation=f)
        y = g.conv(y, f"{name}.project", activation="none")
        x = g.node("Add", x, y, name=name) if i % 3 else y
    return _pyramid(g, x, config)


def _pyramid(g: Graph, x: str, config: FastSCNNConfig) -> str:
    """All pools at once: rows, then columns, into a square of bins with the pools as its diagonal.

    Adaptive average pooling is a product with a matrix of shares, which is exact for every size.
    """
    name = "global_feature_extractor.ppm"
    size = g.size_of(x)
    rows, columns = (
        _shares(g, g.node("Gather", size, g.integers(axis)), config.ppm_bins) for axis in (0, 1)
    )
    pooled = g.node("MatMul", x, g.node("Transpose", columns, perm=[1, 0]))
    pooled = g.node("MatMul", rows, pooled)
    maps = {0: x}
    start = 0
    for i, b in enumerate(config.ppm_bins):
        begin, end, axes = [start] * 2, [start + b] * 2, [2, 3]
        pool = g.node(
            "Slice", pooled, *(g.integers(*v) for v in (begin, end, axes)), name=f"{name}.pools.{i}"
        )
        branch = g.conv(pool, f"{name}.branches.{i}")
        maps[b] = g.resize(branch, size, config.ppm_align_corners)
        start += b
    joined = g.node("Concat", *(maps[b] for b in config.ppm_order), axis=1)
    return g.conv(joined, f"{name}.join")


def _shares(g: Graph, size: str, bins: tuple[int, ...]) -> str:
    """What each of an axis's cells gives to each bin of all pools: a matrix sum(bins) x size.

    Bin i of b has the cells from floor(i size / b) to ceil((i + 1) size / b), in equal shares.
    """
    index, count = np.array([(i, b) for b in bins for i in range(b)]).T[..., None]
    of, one = g.constant(count, dtype=np.int64), g.constant(1, dtype=np.int64)
    begin = g.node("Div", g.node("Mul", size, g.constant(index, dtype=np.int64)), of)
    upper = g.node("Mul", size, g.constant(index + 1, dtype=np.int64))
    end = g.node("Div", g.node("Add", upper, g.constant(count - 1, dtype=np.int64)), of)
    cell = g.node("Range", g.constant(0, dtype=np.int64), g.node("Squeeze", size), one)
    inside = g.node("And", g.node("Not", g.node("Less", cell, begin)), g.node("Less", cell, end))
    length = g.node("Sub", end, begin)
    return g.node("Div", *(g.node("Cast", v, to=g.float_type) for v in (inside, length)))


def _feature_fusion(g: Graph, high: str, low: str, config: FastSCNNConfig) -> str:
    name = "feature_fusion"
    low = g.resize(low, g.size_of(high), config.ffm_align_corners)
    dilation = 1 if config.ffm_kernel == "dense" else config.ffm_dilation
    y = g.conv(low, f"{name}.depthwise", dilation=dilation)
    y = g.conv(y, f"{name}.low", activation="none")
    skip = g.conv(high, f"{name}.high", activation="none")
    return g.node("Relu", g.node("Add", y, skip), name=name)


def _classifier(g: Graph, x: str, config: FastSCNNConfig, is_output: bool) -> str:
    for i in (1, 2):
        x = _dsconv(g, x, f"classifier.dsconv{i}", config)
    return g.conv(x, "classifier.conv", activation="none", out="scores" if is_output else "")


def _head(
    g: Graph, scores: str, size: str, config: FastSCNNConfig, output: str, tensorrt: bool
) -> None:
    """Scores sampled to the frame's size, and what `output` makes of them."""
    name = "logits" if output == "logits" else ""
    logits = g.resize(scores, size, config.head_align_corners, name)
    if output == "probabilities":
        g.node("Softmax", logits, name="probabilities", axis=1)
    elif output == "labels":
        best = g.node("ArgMax", logits, axis=1, keepdims=0)
        if tensorrt:
            best = g.node("Cast", best, to=g.float_type)
        g.node("Cast", best, name="labels", to=TensorProto.UINT8)
