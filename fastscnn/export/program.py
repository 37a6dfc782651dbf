"""Fast-SCNN as a `torch.export` program of any frame size, and its file read with care."""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config as symbolic_shapes
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fastscnn.inference.fold import fold
from fastscnn.network.blocks import ConvBN, resize
from fastscnn.network.model import FastSCNN
from fastscnn.network.segment import MIN_SIZE, Size

EXAMPLE = (2, 64, 96)


class Exportable(nn.Module):
    """Frames or normalised tensors to one output, in operations that `torch.export` follows.

    With `working_side` frames are first resized to that shorter side, as `segment` does.
    """

    def __init__(self, net: FastSCNN, input: str, output: str, working_side: int | None) -> None:
        super().__init__()
        self.net, self.input, self.output, self.side = net, input, output, working_side
        self.mean, self.std = (
            nn.Buffer(torch.tensor(v).reshape(3, 1, 1)) for v in (net.config.mean, net.config.std)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.input == "frame":
            x = x.permute(0, 3, 1, 2).contiguous()  # or torch asks whether a side is 1
        out = (x.shape[2], x.shape[3])
        if self.side is not None:
            x = resize(x, self._working_size(*out), align_corners=False)
        if self.input == "frame":
            x = (x.float() / 255 - self.mean) / self.std
        logits = resize(self.net.scores(x), out, self.net.config.head_align_corners)
        if self.output == "probabilities":
            return logits.softmax(1)
        return logits.max(dim=1)[1].to(torch.uint8) if self.output == "labels" else logits

    def _working_size(self, h: int, w: int) -> Size:
        """As `Segmenter.input_size` rounds it, ties to even, in integers."""
        shorter = torch.sym_min(h, w)

        def scaled(side: int) -> int:
            doubled = 2 * self.side * side + shorter  # type: ignore[operator]
            rounded = doubled // (2 * shorter)
            tie = 1 - torch.sym_min(doubled % (2 * shorter), 1)
            return rounded - tie * (rounded % 2)

        return scaled(h), scaled(w)


def build_program(
    model: FastSCNN, *, input: str, output: str, size: Size | None, working_side: int | None
) -> ExportedProgram:
    """A program of ATen operations, batch norm folded; `size` fixes the frame's (default: free).

    With a working size torch takes a minute to prove what holds for all sizes.
    """
    n, h, w = EXAMPLE if size is None else (2, *size)
    frame = input == "frame"
    shape, dtype = ((n, h, w, 3), torch.uint8) if frame else ((n, 3, h, w), torch.float32)
    free: dict[int, Any] = {0: Dim("batch")}
    if size is None:
        first = 1 if frame else 2
        free |= {first: Dim("height", min=MIN_SIZE), first + 1: Dim("width", min=MIN_SIZE)}
    net = Exportable(_folded(model), input, output, working_side).eval()
    # A map of 32 pixels ends 1 wide: torch takes that for another program unless told not to.
    patched = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), patched:
        example = torch.zeros(shape, dtype=dtype)
        program = torch.export.export(net, (example,), dynamic_shapes=(free,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def _folded(model: FastSCNN) -> FastSCNN:
    """The same network without batch norm and auxiliary heads."""
    with torch.device("meta"):
        net = FastSCNN(model.num_classes, config=model.config)
    for name, conv in fold(model).items():
        block = net.get_submodule(name)
        if isinstance(block, ConvBN):
            block.bn = None
        layer = block.conv if isinstance(block, ConvBN) else block
        layer.weight, layer.bias = (nn.Parameter(t, requires_grad=False) for t in conv)
    return net


def load_program(path: Path) -> tuple[ExportedProgram, dict[str, Any]]:
    """The program of a .pt2 file that holds plain numbers and known names, and its metadata.

    torch reads parts of such a file by unpickling and evaluating them. A file that has more than
    tensors as bytes, ATen operations and arithmetic of sizes is refused with a ValueError.
    """
    _check_archive(path)
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    return program, json.loads(extra["metadata.json"] or "{}")


_MEMBERS = re.compile(
    r"[^/]+/(data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    r"|models/model\.json|extra/metadata\.json|archive_(format|version)|byteorder|\.data/\w+)"
)
_TARGETS = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|_operator\.\w+|torch\.sym_\w+|math\.\w+"
)
_SPECS = re.compile(
    r'(null|type|context|children_spec|builtins\.(tuple|dict|list)|[\s\d\[\]{}:,"\\])*'
)
#: What expressions of sizes call, in the program and in its guards.
_FUNCTIONS = {
    *("Add", "Mul", "Pow", "Integer", "Symbol", "Min", "Max", "Mod", "PythonMod", "FloorDiv"),
    *("CleanDiv", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Not", "And", "Or", "Equality"),
    *("Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
    *("min", "max", "size"),
}
_SYNTAX = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Constant, ast.BinOp, ast.Compare),
    *(ast.BoolOp, ast.UnaryOp, ast.Subscript, ast.operator, ast.cmpop, ast.boolop, ast.unaryop),
    *(ast.Attribute, ast.expr_context),
)


def _check_archive(path: Path) -> None:
    def refuse(what: str) -> None:
        raise ValueError(f"{path} holds {what}: refused, nothing was run")

    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is no .pt2 archive (damaged or cut short?)") from None
    with archive:
        texts = {}
        if len(set(archive.namelist())) < len(archive.namelist()):
            refuse("two members of one name")
        for name in archive.namelist():
            if not _MEMBERS.fullmatch(name):
                refuse(f"{name}, which no program of tensors needs")
            if name.endswith(".json"):
                texts[name] = json.loads(archive.read(name))
            if name.endswith("sample_inputs/model.pt"):
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except Exception:  # whatever the unpickler makes of it
                    refuse("an example of the input that is no tensor")
    for key, value in _strings(texts):
        if key == "use_pickle" and value is not False:
            refuse("pickled tensors")
        elif key in ("target", "as_operator") and value and not _TARGETS.fullmatch(str(value)):
            refuse(f"the operation {value}, which is none of ATen's")
        elif key in ("in_spec", "out_spec") and not _SPECS.fullmatch(str(value)):
            refuse("inputs or outputs that are no tensors")
        elif key in ("expr_str", "guards_code") and not _is_arithmetic(str(value)):
            refuse(f"code that is no arithmetic of sizes ({str(value)[:60]})")


def _strings(value: Any, key: str = "") -> Any:
    """Every plain value of a JSON tree with the nearest key above it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)
    else:
        yield key, value


def _is_arithmetic(text: str) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    for node in nodes:
        if not isinstance(node, _SYNTAX):
            return False
        if isinstance(node, ast.Attribute) and node.attr != "size":
            return False
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name not in _FUNCTIONS:
                return False
    return True
