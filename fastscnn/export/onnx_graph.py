"""Fast-SCNN as an ONNX graph of any frame size: what `fastscnn export` writes and others run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

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
    labels_from_floats: bool = False,
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
    frame on; `labels_from_floats` makes labels of floats, as TensorRT casts nothing else to uint8.
    Values and weights are named as the model's modules are.
    """
    g = _Graph(folded, np.float16 if half else np.float32)
    n, (h, w) = batch or "batch", size or ("height", "width")
    if input == "frame":
        inlet = helper.make_tensor_value_info("frame", TensorProto.UINT8, [n, h, w, 3])
        x = g.node("Transpose", "frame", name="planes", perm=[0, 3, 1, 2])
        out_size = g.size_of(x)
        if working_side is not None:
            x = _resize_frame(g, x, out_size, working_side)
        else:
            x = g.node("Cast", x, to=TensorProto.FLOAT)
        x = _normalize(g, x, config)
    else:
        inlet = helper.make_tensor_value_info("tensor", TensorProto.FLOAT, [n, 3, h, w])
        x = g.node("Cast", "tensor", to=TensorProto.FLOAT16) if half else "tensor"
        out_size = g.size_of(x)
    high = _learning_to_downsample(g, x, config)
    low = _global_features(g, high, config)
    scores = _classifier(g, _feature_fusion(g, high, low, config), config, output == "scores")
    if output != "scores":
        _head(g, scores, out_size, config, output, labels_from_floats)
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


class _Graph:
    """Nodes and weights under construction; every method appends nodes and returns a value's name.

    `dtype` is that of the weights: float32 or float16.
    """

    def __init__(self, folded: Mapping[str, Conv], dtype: type[np.floating]) -> None:
        self.folded = folded
        self.dtype = dtype
        self.float_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def constant(self, value: Any, name: str = "", dtype: Any = None) -> str:
        name = name or f"constant_{len(self.weights)}"
        array = np.ascontiguousarray(value, dtype or self.dtype)
        self.weights.append(numpy_helper.from_array(array.reshape(np.shape(value)), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, dtype=np.int64)

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def size_of(self, x: str) -> str:
        """Two integers: height and width of N x C x H x W."""
        return self.node("Shape", x, start=2, end=4)

    def conv(
        self,
        x: str,
        name: str,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: int | str | None = None,
        activation: Activation = "relu",
        out: str = "",
    ) -> str:
        """The folded convolution of that module and its activation; `padding` None keeps sizes."""
        weight, bias = (t.numpy() for t in self.folded[name])
        outputs, inputs, k, _ = weight.shape
        pads: dict[str, Any] = {"pads": [padding] * 4}
        if padding is None:
            pads = {"pads": [k // 2 * dilation] * 4}
        elif padding == "same":
            pads = {"auto_pad": "SAME_UPPER"}
        out = out or name
        y = self.node(
            "Conv",
            x,
            self.constant(weight, f"{name}.weight"),
            self.constant(bias, f"{name}.bias"),
            name=out if activation == "none" else f"{out}.linear",
            kernel_shape=[k, k],
            strides=[stride] * 2,
            dilations=[dilation] * 2,
            group=outputs if inputs == 1 else 1,
            **pads,
        )
        if activation == "relu":
            y = self.node("Relu", y, name=out)
        elif activation == "relu6":
            y = self.node("Clip", y, self.constant(0.0), self.constant(6.0), name=out)
        return y

    def resize(self, x: str, size: str, align_corners: bool, name: str = "") -> str:
        """Bilinear sampling of N x C x h x w to `size`, two integers."""
        whole = self.node("Concat", self.node("Shape", x, start=0, end=2), size, axis=0)
        rule = "align_corners" if align_corners else "half_pixel"
        return self.node(
            "Resize",
            *(x, "", "", whole),
            name=name,
            mode="linear",
            coordinate_transformation_mode=rule,
        )


def _resize_frame(g: _Graph, planes: str, size: str, side: int) -> str:
    """uint8 planes to that shorter side, as whole numbers in float32.

    As torch does with bytes: columns first, then rows, each rounded. The size is that of
    `Segmenter.input_size`: size * side / shorter, rounded with ties to even, in integers.
    """
    shorter = g.node("ReduceMin", size, keepdims=1)
    double = g.node("Add", shorter, shorter)
    shifted = g.node("Add", g.node("Mul", size, g.integers(2 * side)), shorter)
    rounded = g.node("Div", shifted, double)
    tie = g.node("Equal", g.node("Mod", shifted, double), g.integers(0))
    odd = g.node("Mod", rounded, g.integers(2))
    excess = g.node("Mul", g.node("Cast", tie, to=TensorProto.INT64), odd)
    target = g.node("Sub", rounded, excess, name="working_size")
    height, width = g.node("Gather", size, g.integers(0)), g.node("Gather", target, g.integers(1))
    x = g.node("Cast", planes, to=TensorProto.FLOAT)
    half = g.constant(0.5, dtype=np.float32)
    for to in (g.node("Concat", height, width, axis=0), target):
        x = g.node("Floor", g.node("Add", g.resize(x, to, align_corners=False), half))
    return x


def _normalize(g: _Graph, x: str, config: FastSCNNConfig) -> str:
    """Float planes of 0..255 to normalised values of the weights' type."""
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (config.mean, config.std))
    x = g.node("Sub", x, g.constant(mean * 255, "mean", np.float32))
    x = g.node("Mul", x, g.constant(1 / (std * 255), "scale", np.float32), name="normalized")
    return x if g.dtype == np.float32 else g.node("Cast", x, to=g.float_type)


def _learning_to_downsample(g: _Graph, x: str, config: FastSCNNConfig) -> str:
    name = "learning_to_downsample"
    x = g.conv(x, f"{name}.conv", stride=2, padding=config.stem_padding)
    for i in (1, 2):
        x = _dsconv(g, x, f"{name}.dsconv{i}", config, stride=2)
    return x


def _dsconv(g: _Graph, x: str, name: str, config: FastSCNNConfig, *, stride: int = 1) -> str:
    between: Activation = "relu" if config.dsconv_relu else "none"
    x = g.conv(x, f"{name}.depthwise", stride=stride, activation=between)
    return g.conv(x, f"{name}.pointwise")


def _global_features(g: _Graph, x: str, config: FastSCNNConfig) -> str:
    f = config.bottleneck_activation
    for i, (name, stride) in enumerate(BOTTLENECKS):
        y = g.conv(x, f"{name}.expand", activation=f)
        y = g.conv(y, f"{name}.depthwise", stride=stride, activation=f)
        y = g.conv(y, f"{name}.project", activation="none")
        x = g.node("Add", x, y, name=name) if i % 3 else y
    return _pyramid(g, x, config)


def _pyramid(g: _Graph, x: str, config: FastSCNNConfig) -> str:
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


def _shares(g: _Graph, size: str, bins: tuple[int, ...]) -> str:
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


def _feature_fusion(g: _Graph, high: str, low: str, config: FastSCNNConfig) -> str:
    name = "feature_fusion"
    low = g.resize(low, g.size_of(high), config.ffm_align_corners)
    dilation = 1 if config.ffm_kernel == "dense" else config.ffm_dilation
    y = g.conv(low, f"{name}.depthwise", dilation=dilation)
    y = g.conv(y, f"{name}.low", activation="none")
    skip = g.conv(high, f"{name}.high", activation="none")
    return g.node("Relu", g.node("Add", y, skip), name=name)


def _classifier(g: _Graph, x: str, config: FastSCNNConfig, is_output: bool) -> str:
    for i in (1, 2):
        x = _dsconv(g, x, f"classifier.dsconv{i}", config)
    return g.conv(x, "classifier.conv", activation="none", out="scores" if is_output else "")


def _head(
    g: _Graph, scores: str, size: str, config: FastSCNNConfig, output: str, from_floats: bool
) -> None:
    """Scores sampled to the frame's size, and what `output` makes of them."""
    name = "logits" if output == "logits" else ""
    logits = g.resize(scores, size, config.head_align_corners, name)
    if output == "probabilities":
        g.node("Softmax", logits, name="probabilities", axis=1)
    elif output == "labels":
        best = g.node("ArgMax", logits, axis=1, keepdims=0)
        if from_floats:
            best = g.node("Cast", best, to=g.float_type)
        g.node("Cast", best, name="labels", to=TensorProto.UINT8)
