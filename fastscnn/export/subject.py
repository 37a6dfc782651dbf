"""What a file computes: any .onnx, .pt2, .fscnn or checkpoint as one thing that takes frames."""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastscnn.checkpoints.formats import check_readable
from fastscnn.export.program import load_program
from fastscnn.load import load
from fastscnn.network.blocks import ConvBN
from fastscnn.network.model import FastSCNN
from fastscnn.network.segment import Size, working_size
from fastscnn_kernels import extension

#: A convolution's weight shape, and what comes out of it and of its batch norm.
Map = tuple[tuple[int, ...], np.ndarray]
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Subject:
    """A file that can be run.

    `input` is "frame" (uint8 N x H x W x 3) or "tensor" (normalised float32 N x 3 x H x W); `size`
    and `batch` are what it is fixed to; `working_side` is the shorter side that it resizes frames
    to. `run` gives the output, `maps` every convolution's in the order of execution.
    """

    input: str
    size: Size | None
    batch: int | None
    working_side: int | None
    run: Callable[[np.ndarray], np.ndarray]
    maps: Callable[[np.ndarray], list[Map]]
    #: It computes in 16 bits somewhere, which is held against wider bounds.
    half: bool = False
    #: Of a checkpoint: the network itself.
    net: FastSCNN | None = None


def open_subject(path: Path) -> Subject:
    """The file by its ending. Raises ValueError, OSError or ImportError naming the fix."""
    suffix = path.suffix.lower()
    if suffix not in (".onnx", ".pt2", ".fscnn"):
        return of_network(load(str(path), fused=False, device="cpu"))
    check_readable(path)
    if suffix == ".pt2":
        program, known = load_program(path)
        return of_program(program, known.get("working_side"), str(path))
    if suffix == ".fscnn":
        return _of_engine_file(path)
    onnx = need("onnx")
    try:
        model = onnx.load(path)
    except Exception as error:  # a damaged file makes the parser raise almost anything
        raise ValueError(f"{path} is no readable ONNX file: {str(error)[:120]}") from None
    return of_onnx(model, str(path))


def need(package: str) -> Any:
    """An optional package, or the ImportError that names the extra."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ImportError(
            f"export needs the package {package}: pip install 'fastscnn[export]'"
        ) from None


def of_network(net: FastSCNN) -> Subject:
    """A checkpoint's network: frames in its own normalisation to logits."""

    def logits(frames: np.ndarray) -> np.ndarray:
        size = (frames.shape[1], frames.shape[2])
        with torch.no_grad():
            return net(net.preprocess(frames, size=size)).numpy()

    def maps(frames: np.ndarray) -> list[Map]:
        size = (frames.shape[1], frames.shape[2])
        found = network_maps(net, net.preprocess(frames, size=size))
        return [(shape, value) for _, shape, value in found]

    return Subject("frame", None, None, None, logits, maps, net=net)


def network_maps(net: FastSCNN, x: Tensor) -> list[tuple[str, tuple[int, ...], np.ndarray]]:
    """Name, weight shape and output before the activation of every convolution, in order."""
    found: list[tuple[str, tuple[int, ...], np.ndarray]] = []

    def watch(name: str, conv: nn.Conv2d, last: nn.Module) -> Any:
        shape = tuple(conv.weight.shape)
        return last.register_forward_hook(
            lambda _, args, out: found.append((name, shape, out.detach().numpy()))
        )

    hooks = [
        watch(name, block.conv, block.bn or block.conv)
        for name, block in net.named_modules()
        if isinstance(block, ConvBN) and not name.startswith("aux")
    ]
    hooks.append(watch("classifier.conv", net.classifier.conv, net.classifier.conv))
    try:
        with torch.no_grad():
            net.scores(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _of_engine_file(path: Path) -> Subject:
    """A .fscnn, run by the C++ engine to logits."""
    data = path.read_bytes()
    try:
        engine = extension.load().Network.from_file(data)
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None
    classes, *_, side = struct.unpack("<16i", data[24:88])  # model_file.h has the format

    def logits(frames: np.ndarray) -> np.ndarray:
        frames = np.ascontiguousarray(frames)
        n, h, w = frames.shape[:3]
        found = np.empty((n, classes, h, w), np.float32)
        inside = working_size((h, w), side) if side else (h, w)
        source = (frames.ctypes.data, True, n, h, w, 3 * w, False)
        engine.run(source, inside, (h, w), {"logits": found.ctypes.data}, 0.0, 1)
        return found

    half = engine.precision == "bfloat16"
    return Subject("frame", None, None, side or None, logits, lambda frames: [], half=half)


def of_onnx(model: Any, name: str) -> Subject:
    """Any ONNX graph with one input of frames or tensors; its first output counts."""
    runtime, onnx = need("onnxruntime"), need("onnx")
    try:
        session = runtime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # of the runtime's own kinds
        raise ValueError(f"{name} cannot be run: {str(error).splitlines()[0][:160]}") from None
    inputs, output = session.get_inputs(), session.get_outputs()[0].name
    inlet = _inlet(
        name,
        [(i.name, i.type, [d if isinstance(d, int) else None for d in i.shape]) for i in inputs],
    )
    feed = inputs[0].name
    weights = model.graph.initializer
    shapes = {w.name: tuple(w.dims) for w in weights}
    normed = {
        n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "BatchNormalization"
    }
    convs = [
        (shapes.get(n.input[1], ()), normed.get(n.output[0], n.output[0]))
        for n in model.graph.node
        if n.op_type == "Conv"
    ]

    @cache
    def watched() -> Any:
        """A session with the convolutions' values as outputs."""
        other = onnx.ModelProto()
        other.CopyFrom(model)
        del other.graph.output[:]
        other.graph.output.extend(onnx.ValueInfoProto(name=value) for _, value in convs)
        return runtime.InferenceSession(
            other.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    def maps(x: np.ndarray) -> list[Map]:
        values = watched().run(None, {feed: inlet.taken(x)}) if convs else []
        return [(shape, value) for (shape, _), value in zip(convs, values, strict=True)]

    known = {p.key: p.value for p in model.metadata_props}
    side = json.loads(known.get("working_side") or "null")

    def run(x: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run([output], {feed: inlet.taken(x)})[0]
        return found

    half = session.get_outputs()[0].type == "tensor(float16)" or any(
        w.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) for w in weights
    )
    return Subject(inlet.kind, inlet.size, inlet.batch, side, run, maps, half=half)


def of_program(program: Any, side: int | None, name: str) -> Subject:
    """A `torch.export` program with one input of frames or tensors."""
    module = program.module(check_guards=False)
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    shapes = [
        (
            n.name,
            str(n.meta["val"].dtype).replace("torch.", ""),
            list(n.meta["val"].shape),
        )
        for n in placeholders
    ]
    inlet = _inlet(name, shapes)

    def run(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return _array(module(torch.from_numpy(inlet.taken(x))))

    def maps(x: np.ndarray) -> list[Map]:
        watcher = _Watcher(module)
        with torch.no_grad():
            watcher.run(torch.from_numpy(inlet.taken(x)))
        return watcher.found

    values = (n.meta.get("val") for n in module.graph.nodes)
    half = any(isinstance(v, Tensor) and v.dtype in _HALF for v in values)
    return Subject(inlet.kind, inlet.size, inlet.batch, side, run, maps, half=half)


class _Watcher(torch.fx.Interpreter):
    """Keeps what comes out of every convolution, or of the batch norm after it."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.found: list[Map] = []
        self.shapes: dict[Any, tuple[int, ...]] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value, target, args = super().run_node(n), str(n.target), list(n.args)
        if target.startswith(("aten.conv2d", "aten.convolution")):
            self.shapes[n] = tuple(self.env[cast(torch.fx.Node, args[1])].shape)
            if not any("batch_norm" in str(user.target) for user in n.users):
                self.found.append((self.shapes[n], _array(value)))
        elif "batch_norm" in target and args[0] in self.shapes:
            self.found.append((self.shapes[args[0]], _array(value)))
        return value


def _array(value: Any) -> np.ndarray:
    """A tensor, or the first of several; numpy has no bfloat16."""
    tensor: Tensor = value[0] if isinstance(value, (tuple, list)) else value
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


@dataclass(frozen=True)
class _Inlet:
    """A graph's one input: "frame" or "tensor", what it is fixed to, and how it lies."""

    kind: str
    batch: int | None
    size: Size | None
    dtype: type[np.generic] = np.uint8
    channels_last: bool = False

    def taken(self, x: np.ndarray) -> np.ndarray:
        """A frame, or a tensor N x 3 x H x W of float32, as the graph takes it."""
        if self.kind == "tensor" and self.channels_last:
            x = x.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(x, self.dtype)


def _inlet(name: str, inputs: list[tuple[str, str, list[Any]]]) -> _Inlet:
    """`inputs` are names, types and shapes, in which only whole numbers are fixed."""
    floats: dict[str, type[np.generic]] = {
        **dict.fromkeys(("tensor(float)", "float32"), np.float32),
        **dict.fromkeys(("tensor(float16)", "float16"), np.float16),
    }
    if len(inputs) == 1 and len(inputs[0][2]) == 4:
        _, dtype, shape = inputs[0]
        n, a, b, c = (d if isinstance(d, int) else None for d in shape)
        if dtype in ("tensor(uint8)", "uint8") and c in (3, None):
            return _Inlet("frame", n, _fixed(name, a, b))
        if dtype in floats and a in (3, None) and (a, c) != (None, 3):
            return _Inlet("tensor", n, _fixed(name, b, c), floats[dtype])
        if dtype in floats and c == 3:
            return _Inlet("tensor", n, _fixed(name, a, b), floats[dtype], channels_last=True)
    told = ", ".join(f"{n} {d} {s}" for n, d, s in inputs)
    raise ValueError(
        f"{name} takes {told}: expected one input, uint8 N x H x W x 3, or float32 or float16 "
        "N x 3 x H x W or N x H x W x 3"
    )


def _fixed(name: str, h: int | None, w: int | None) -> Size | None:
    if (h is None) != (w is None):
        raise ValueError(f"{name} fixes one of height and width: expected both or none")
    return None if h is None or w is None else (h, w)
