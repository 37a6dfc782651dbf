"""Fast-SCNN as an ONNX graph (uint8 frame in, labels out) for the runtimes we compare with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fastscnn.inference.fold import Conv
from fastscnn.network.config import FastSCNNConfig

Size = tuple[int, int]


class _Graph:
    """Nodes and weights under construction; every method appends and returns a name.

    `dtype` is that of the weights: float32 or float16.
    """

    def __init__(self, folded: Mapping[str, Conv], batch: int, dtype: type[np.floating]) -> None:
        self.folded = folded
        self.batch = batch
        self.dtype = dtype
        self.nodes: list = []
        self.weights: list = []

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def conv(
        self, x: str, name: str, *, stride: int = 1, dilation: int = 1, relu: bool = True
    ) -> str:
        weight, bias = (t.numpy().astype(self.dtype) for t in self.folded[name])
        out, inside, k, _ = weight.shape
        y = self.node(
            "Conv",
            x,
            self.constant(weight),
            self.constant(bias),
            kernel_shape=[k, k],
            strides=[stride] * 2,
            dilations=[dilation] * 2,
            pads=[(k // 2) * dilation] * 4,
            group=out if inside == 1 else 1,
        )
        return self.node("Relu", y) if relu else y

    def resize(self, x: str, channels: int, size: Size) -> str:
        return self.node(
            "Resize",
            x,
            "",
            "",
            self.constant(np.array([self.batch, channels, *size], np.int64)),
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )

    def pool(self, x: str, bins: int, size: Size) -> str:
        """Adaptive average pooling as two small matrix products: exact for every size."""
        rows, cols = (_pooling_matrix(bins, n).astype(self.dtype) for n in size)
        return self.node(
            "MatMul", self.constant(rows), self.node("MatMul", x, self.constant(cols.T))
        )


def _pooling_matrix(bins: int, size: int) -> np.ndarray:
    matrix = np.zeros((bins, size), np.float32)
    for b in range(bins):
        begin, end = b * size // bins, -(-(b + 1) * size // bins)
        matrix[b, begin:end] = 1 / (end - begin)
    return matrix


def build(
    folded: Mapping[str, Conv],
    config: FastSCNNConfig,
    num_classes: int,
    size: Size,
    *,
    batch: int = 1,
    half: bool = False,
) -> ModelProto:
    """The paper's network for frames of one size: uint8 `frame` N x H x W x 3 to `labels`.

    `folded` holds float32 tensors on the CPU. `half` computes in float16 from the normalised frame
    on, and takes the labels through float16 to uint8, as TensorRT casts to uint8 from floats only.
    """
    if config != FastSCNNConfig.paper():
        raise ValueError("the comparison graph exists for the paper's config only")
    g = _Graph(folded, batch, np.float16 if half else np.float32)
    halved = lambda s: ((s[0] + 1) // 2, (s[1] + 1) // 2)  # noqa: E731
    high_size = halved(halved(halved(size)))
    low_size = halved(halved(high_size))

    x = g.node("Cast", "frame", to=TensorProto.FLOAT)
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    x = g.node("Mul", g.node("Sub", x, g.constant(mean * 255)), g.constant(1 / (std * 255)))
    if half:
        x = g.node("Cast", x, to=TensorProto.FLOAT16)
    x = g.node("Transpose", x, perm=[0, 3, 1, 2])
    x = g.conv(x, "learning_to_downsample.conv", stride=2)
    for i in (1, 2):
        name = f"learning_to_downsample.dsconv{i}"
        x = g.conv(g.conv(x, f"{name}.depthwise", stride=2, relu=False), f"{name}.pointwise")
    high = x

    for stage, first_stride in ((1, 2), (2, 2), (3, 1)):
        for i in range(3):
            name = f"global_feature_extractor.bottleneck{stage}.{i}"
            y = g.conv(x, f"{name}.expand")
            y = g.conv(y, f"{name}.depthwise", stride=first_stride if i == 0 else 1)
            y = g.conv(y, f"{name}.project", relu=False)
            x = g.node("Add", x, y) if i else y

    maps = [x]
    for i, bins in enumerate(config.ppm_bins):
        branch = g.conv(g.pool(x, bins, low_size), f"global_feature_extractor.ppm.branches.{i}")
        maps.append(g.resize(branch, 32, low_size))
    low = g.conv(g.node("Concat", *maps, axis=1), "global_feature_extractor.ppm.join")

    y = g.conv(
        g.resize(low, 128, high_size), "feature_fusion.depthwise", dilation=config.ffm_dilation
    )
    y = g.conv(y, "feature_fusion.low", relu=False)
    y = g.node("Relu", g.node("Add", y, g.conv(high, "feature_fusion.high", relu=False)))
    for i in (1, 2):
        name = f"classifier.dsconv{i}"
        y = g.conv(g.conv(y, f"{name}.depthwise", relu=False), f"{name}.pointwise")
    scores = g.conv(y, "classifier.conv", relu=False)
    logits = g.resize(scores, num_classes, size)
    best = g.node("ArgMax", logits, axis=1, keepdims=0)
    if half:
        best = g.node("Cast", best, to=TensorProto.FLOAT16)
    g.nodes.append(helper.make_node("Cast", [best], ["labels"], to=TensorProto.UINT8))

    graph = helper.make_graph(
        g.nodes,
        "fastscnn",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [batch, *size, 3])],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, [batch, *size])],
        g.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
