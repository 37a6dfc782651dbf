"""An ONNX graph under construction, with the few kinds of nodes that the network needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fastscnn.inference.fold import Conv
from fastscnn.network.config import Activation


class Graph:
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
