"""`fastscnn verify`: equal files, planted slips named, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from export_networks import network
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.export import Dim

from fastscnn.checkpoints import convert, save
from fastscnn.cli import main
from fastscnn.export.onnx_graph import build
from fastscnn.export.verify import Report, verify
from fastscnn.export.write import export
from fastscnn.inference.fold import fold
from fastscnn.media.demo import street_scene
from fastscnn.network.model import FastSCNN


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "paper.safetensors"
    save(network("paper"), path)
    return path


def written(path: Path, edit: Callable[[onnx.ModelProto], None] | None = None, **how: Any) -> Path:
    """Our graph of the paper's network with changed config fields, options, or edited."""
    net = network("paper")
    fields = {k: how.pop(k) for k in list(how) if hasattr(net.config, k)}
    graph = build(fold(net), replace(net.config, **fields), 19, **how)
    if edit is not None:
        edit(graph)
    onnx.save(graph, path)
    return path


@pytest.mark.parametrize("output", ["labels", "probabilities", "logits", "scores"])
def test_equal_files(tmp_path: Path, weights: Path, output: str) -> None:
    report = verify(written(tmp_path / "a.onnx", output=output), str(weights))
    assert report.equal
    assert len(report.rows) == 6
    assert all(row.error is not None for row in report.rows)
    assert str(report).endswith("\nequal")


def test_converted_checkpoints_are_equal(tmp_path: Path, weights: Path) -> None:
    tramac = tmp_path / "tramac.safetensors"
    save(network("tramac"), tramac)
    convert(tramac, tmp_path / "theirs.pth", to="tramac")
    assert verify(tmp_path / "theirs.pth", str(tramac)).equal


def test_engine_files(tmp_path: Path, weights: Path) -> None:
    """Of the same weights, and of a network with another corner rule around them."""
    export(network("paper"), tmp_path / "a.fscnn")
    assert verify(tmp_path / "a.fscnn", str(weights)).equal
    other = FastSCNN(19, config=replace(network("paper").config, ffm_align_corners=True)).eval()
    other.load_state_dict(network("paper").state_dict())
    export(other, tmp_path / "b.fscnn")
    report = verify(tmp_path / "b.fscnn", str(weights))
    assert_named(report, "align_corners: ffm_align_corners True", None)


STEM = "learning_to_downsample.conv"
#: What is planted, what must be said of it, and the first convolution that it changes.
PLANTED: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "padding": ({"stem_padding": "same"}, "padding: stem_padding same in place of 1", STEM),
    "no padding": ({"stem_padding": 0}, "padding: stem_padding 0 in place of 1", STEM),
    "head": ({"head_align_corners": True}, "align_corners: head_align_corners True", None),
    "fusion": (
        {"ffm_align_corners": True},
        "align_corners: ffm_align_corners True",
        "feature_fusion.depthwise",
    ),
    "mean and std": (
        {"mean": (0.5,) * 3, "std": (0.5,) * 3},
        "normalisation: mean and std 0.5",
        STEM,
    ),
    "no normalisation": (
        {"mean": (0.0,) * 3, "std": (1.0,) * 3},
        "normalisation: none, values 0..1",
        STEM,
    ),
    "ReLU": (
        {"dsconv_relu": True},
        "ReLU: dsconv_relu",
        "learning_to_downsample.dsconv1.pointwise",
    ),
    "dilation": ({"ffm_dilation": 1}, "dilation: ffm_dilation 1", "feature_fusion.depthwise"),
    "order": ({"ppm_order": (1, 2, 3, 6, 0)}, "order:", "global_feature_extractor.ppm.join"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_planted_slips_are_named(tmp_path: Path, weights: Path, planted: str) -> None:
    how, said, where = PLANTED[planted]
    output = "logits" if planted == "head" else "labels"
    report = verify(written(tmp_path / "a.onnx", output=output, **how), str(weights))
    assert_named(report, said, where)


def assert_named(report: Report, said: str, where: str | None) -> None:
    assert not report.equal
    assert len(report.slips) == 1, str(report)
    assert said in str(report)
    assert report.where == where


def swap_channels(graph: onnx.ModelProto) -> None:
    """Frames are read as BGR: their channels are turned over before anything else."""
    for node in graph.graph.node:
        node.input[:] = [
            "rgb" if name == "frame" and node.op_type != "Shape" else name for name in node.input
        ]
    turn = helper.make_node("Gather", ["frame", "turned"], ["rgb"], axis=3)
    graph.graph.node.insert(0, turn)
    index = onnx.numpy_helper.from_array(np.array([2, 1, 0]), "turned")
    graph.graph.initializer.append(index)


def drop_relu(graph: onnx.ModelProto) -> None:
    """The ReLU after one bottleneck's depthwise convolution is lost."""
    name = "global_feature_extractor.bottleneck2.1.depthwise"
    (node,) = [n for n in graph.graph.node if n.op_type == "Relu" and n.output[0] == name]
    node.op_type = "Identity"


def test_channel_order_and_a_missing_relu(tmp_path: Path, weights: Path) -> None:
    report = verify(written(tmp_path / "a.onnx", swap_channels), str(weights))
    assert_named(report, "channel order: BGR in place of RGB", STEM)
    report = verify(written(tmp_path / "b.onnx", drop_relu), str(weights))
    block = "global_feature_extractor.bottleneck2.1"
    assert_named(report, f"ReLU: missing after {block}.depthwise", f"{block}.project")


def drop_the_sums_relu(graph: onnx.ModelProto) -> None:
    (node,) = [n for n in graph.graph.node if n.output[0] == "feature_fusion"]
    assert node.op_type == "Relu"
    node.op_type = "Identity"


def activate_a_residual_sum(graph: onnx.ModelProto) -> None:
    """What a first version of the bottleneck had: a ReLU after the sum too."""
    name = "global_feature_extractor.bottleneck1.1"
    (index,) = [i for i, n in enumerate(graph.graph.node) if n.output[0] == name]
    graph.graph.node[index].output[0] = "sum"
    graph.graph.node.insert(index + 1, helper.make_node("Relu", ["sum"], [name]))


def test_activations_of_sums(tmp_path: Path, weights: Path) -> None:
    report = verify(written(tmp_path / "a.onnx", drop_the_sums_relu), str(weights))
    said = "ReLU: missing after the sum of feature_fusion"
    assert_named(report, said, "classifier.dsconv1.depthwise")
    report = verify(written(tmp_path / "b.onnx", activate_a_residual_sum), str(weights))
    block = "global_feature_extractor.bottleneck1"
    said = f"ReLU: one too many after the sum of {block}.1"
    assert_named(report, said, f"{block}.2.expand")


def half_tensors(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def channels_last_tensors(graph: onnx.ModelProto) -> None:
    """Floats N x H x W x 3 in, logits N x H x W x classes out."""
    dims = graph.graph.input[0].type.tensor_type.shape.dim
    dims[1].CopyFrom(dims[2])
    dims[2].CopyFrom(dims[3])
    dims[3].Clear()
    dims[3].dim_value = 3
    graph.graph.input[0].name = "image"
    graph.graph.node.insert(
        0, helper.make_node("Transpose", ["image"], ["tensor"], perm=[0, 3, 1, 2])
    )
    graph.graph.node.append(helper.make_node("Transpose", ["logits"], ["out"], perm=[0, 2, 3, 1]))
    del graph.graph.output[:]
    graph.graph.output.append(onnx.ValueInfoProto(name="out"))


@pytest.mark.parametrize("slip", [False, True], ids=["equal", "slip"])
@pytest.mark.parametrize("kind", ["half", "channels_last"])
def test_foreign_inputs(tmp_path: Path, weights: Path, kind: str, slip: bool) -> None:
    """16-bit floats, held against wider bounds, and frames as other frameworks lay them."""
    how: dict[str, Any] = {"ffm_align_corners": True} if slip else {}
    if kind == "half":
        path = written(tmp_path / "a.onnx", half_tensors, input="tensor", half=True, **how)
    else:
        edit, output = channels_last_tensors, "logits"
        path = written(tmp_path / "a.onnx", edit, input="tensor", output=output, **how)
    report = verify(path, str(weights))
    if slip:
        said = "align_corners: ffm_align_corners True"
        assert_named(report, said, "feature_fusion.depthwise")
    else:
        assert report.equal, str(report)


def test_two_slips_at_once(tmp_path: Path, weights: Path) -> None:
    how = {"stem_padding": "same", "head_align_corners": True, "output": "logits"}
    report = verify(written(tmp_path / "a.onnx", **how), str(weights))
    assert {slip.kind for slip in report.slips} == {"padding", "align_corners"}


class Foreign(nn.Module):
    """Another's export: normalised inside although it takes a normalised tensor, as logits."""

    def __init__(self, net: FastSCNN) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (
            x.new_tensor(v).reshape(3, 1, 1) for v in (self.net.config.mean, self.net.config.std)
        )
        return self.net((x - mean) / std)


@pytest.mark.filterwarnings("ignore")
def test_foreign_graphs_are_seen_by_the_order_of_their_convolutions(
    tmp_path: Path, weights: Path
) -> None:
    """torch's own export, at one size, under other names."""
    net = FastSCNN(19, config=replace(network("paper").config, ppm_align_corners=True)).eval()
    net.load_state_dict(network("paper").state_dict())
    x = torch.randn(1, 3, 64, 96)
    how: dict[str, Any] = {"dynamo": False, "input_names": ["data"], "verbose": False}
    torch.onnx.export(net, (x,), tmp_path / "a.onnx", **how)
    report = verify(tmp_path / "a.onnx", str(weights))
    assert [row.shape for row in report.rows] == [(1, 64, 96)]
    said = "align_corners: ppm_align_corners True"
    assert_named(report, said, "global_feature_extractor.ppm.join")
    torch.onnx.export(Foreign(network("paper")).eval(), (x,), tmp_path / "b.onnx", **how)
    report = verify(tmp_path / "b.onnx", str(weights))
    assert_named(report, "normalisation: done a second time inside", STEM)


class Ending(nn.Module):
    """A network and what others do to its logits."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.end = network("paper"), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.net(x))


#: What other programs give in place of logits.
ENDINGS: dict[str, Callable[[Tensor], Any]] = {
    "a tuple": lambda y: (y, y[:, :1]),
    "labels of one frame": lambda y: y.argmax(1).squeeze(0),
    "labels as channels": lambda y: y.argmax(1)[..., None].to(torch.int32),
    "labels as floats": lambda y: y.argmax(1).float(),
    "float16": lambda y: y.half(),
    "bfloat16": lambda y: y.bfloat16(),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_foreign_outputs(tmp_path: Path, weights: Path, ending: str) -> None:
    module = Ending(ENDINGS[ending]).eval()
    program = torch.export.export(module, (torch.randn(1, 3, 64, 96),))
    torch.export.save(program, tmp_path / "a.pt2")
    report = verify(tmp_path / "a.pt2", str(weights))
    assert report.equal, str(report)
    assert report.rows[0].half == ending.endswith("float16")


@pytest.mark.filterwarnings("ignore")
def test_files_that_were_made_for_one_size(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Free axes in name only: the output keeps its size, or another one cannot be run at all."""
    fixed: dict[str, Callable[[Tensor], Any]] = {
        "sampled": lambda y: F.interpolate(y, (64, 96), mode="bilinear"),
        "reshaped": lambda y: y.reshape(1, 19, 64 * 96).reshape(1, 19, 64, 96),
    }
    how: dict[str, Any] = {"dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}}, "dynamo": False}
    x = torch.randn(1, 3, 64, 96)
    for name, end in fixed.items():
        path = tmp_path / f"{name}.onnx"
        torch.onnx.export(Ending(end).eval(), (x,), path, input_names=["x"], **how)
    assert main(["verify", str(tmp_path / "sampled.onnx"), "--against", str(weights)]) == 1
    out = capsys.readouterr().out
    assert out.endswith("different\nit gives 64x96 for frames of every size: it was made for one\n")
    assert main(["verify", str(tmp_path / "reshaped.onnx"), "--against", str(weights)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "100.0000% labels equal" in lines[0]
    assert ["does not run" in line for line in lines[:6]] == [False, True, True, True, True, True]
    assert lines[6].startswith("different: it does not run on all of these frames")


def test_a_program_for_multiples_of_32(tmp_path: Path, weights: Path) -> None:
    """Its own condition does not end in a traceback; nothing runs it at 33x33."""
    sizes = {2: 32 * Dim("h", min=2), 3: 32 * Dim("w", min=2)}
    x = torch.randn(1, 3, 64, 96)
    program = torch.export.export(network("paper"), (x,), dynamic_shapes=(sizes,))
    torch.export.save(program, tmp_path / "a.pt2")
    report = verify(tmp_path / "a.pt2", str(weights))
    assert [row.shape[1:] for row in report.rows if row.passed] == [(64, 96), (96, 256)]
    assert "1 x 101x139   does not run: " in str(report)
    assert not report.equal


def test_other_weights_are_told_from_slips(tmp_path: Path, weights: Path) -> None:
    other = FastSCNN(19).eval()
    other.load_state_dict(network("paper").state_dict())
    with torch.no_grad():
        other.classifier.dsconv1.pointwise.conv.weight *= 1.5
    save(other, tmp_path / "other.safetensors")
    report = verify(tmp_path / "other.safetensors", str(weights))
    assert not report.equal
    assert not report.slips
    assert report.where == "classifier.dsconv1.pointwise"
    assert "weights differ, first: classifier.dsconv1.pointwise.conv.weight" in str(report)


def test_the_command(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.fromarray(street_scene(80, 120)).save(tmp_path / "frame.png")
    good, bad = (
        str(written(tmp_path / name, head_align_corners=align))
        for name, align in (("good.onnx", False), ("bad.onnx", True))
    )
    against = ["--against", str(weights)]
    assert main(["verify", good, str(tmp_path / "frame.png"), *against]) == 0
    assert capsys.readouterr().out.endswith("equal\n")
    assert main(["verify", bad, *against]) == 1
    assert "it looks like align_corners" in capsys.readouterr().out
    assert main(["verify", good]) == 2
    assert "give others with --against" in capsys.readouterr().err


def other_inputs(graph: onnx.ModelProto) -> None:
    extra = helper.make_tensor_value_info("threshold", TensorProto.FLOAT, [1])
    graph.graph.input.append(extra)


def other_layout(graph: onnx.ModelProto) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 64, 96]) for n in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph.graph.CopyFrom(helper.make_graph([node], "other", ends[:1], ends[1:]))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (other_inputs, "expected one input"),
        (other_layout, "expected one input"),
        (None, "readable"),
    ],
)
def test_what_cannot_be_compared(
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[onnx.ModelProto], None] | None,
    said: str,
) -> None:
    path = tmp_path / "a.onnx"
    if edit is None:
        path.write_bytes(b"no graph")
    else:
        written(path, edit)
    assert main(["verify", str(path), "--against", str(weights)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
