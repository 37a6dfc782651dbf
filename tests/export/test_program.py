"""`fastscnn export` to .pt2: ATen operations, every size; files that hold more are refused."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_networks import frames, network

from fastscnn.checkpoints.card import Card
from fastscnn.cli import main
from fastscnn.export.program import build_program, load_program
from fastscnn.export.subject import of_program
from fastscnn.export.write import Options, export
from fastscnn.network.model import FastSCNN


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one size, which torch traces in seconds, and of any batch."""
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    rows = export(network("paddleseg"), path, Options(size=(32, 64)))
    assert [row.shape for row in rows] == [(1, 32, 64), (2, 32, 64)]
    assert all(row.passed and row.error is not None for row in rows)
    return path


def test_labels_operations_and_what_else_is_in_the_file(program: Path) -> None:
    """ATen alone, and no name of a source file of this machine."""
    loaded, known = load_program(program)
    net, x = network("paddleseg"), torch.from_numpy(frames(3, 32, 64))
    assert known["mean"] == list(net.config.mean)
    got = loaded.module()(x)
    assert got.dtype == torch.uint8
    assert (got == net.segment(x)).float().mean() > 0.9995
    assert not any("batch_norm" in str(n.target) for n in loaded.graph.nodes)
    called = {n.target for n in loaded.graph.nodes if n.op == "call_function"}
    assert {t.namespace for t in called if isinstance(t, torch._ops.OpOverload)} == {"aten"}
    with zipfile.ZipFile(program) as archive:
        for name in archive.namelist():
            assert b".py" not in archive.read(name), name


@pytest.mark.slow
@pytest.mark.parametrize("output", ["labels", "probabilities", "logits"])
def test_every_size(tmp_path: Path, output: str) -> None:
    net, path = network("paper"), tmp_path / "net.pt2"
    export(net, path, Options(input="tensor", output=output))
    module = load_program(path)[0].module()
    for n, h, w in ((1, 32, 32), (2, 33, 34), (3, 50, 71), (1, 32, 333)):
        x = net.preprocess(frames(n, h, w))
        logits, got = net(x), module(x)
        if output == "labels":
            assert (got == logits.argmax(1)).float().mean() > 0.9995
        else:
            values = logits if output == "logits" else logits.softmax(1)
            assert torch.allclose(got, values, atol=1e-4)


@pytest.mark.slow
def test_the_working_size_is_that_of_segment() -> None:
    net = FastSCNN(19)
    net.load_state_dict(network("paper").state_dict())
    net.eval().card = Card(net.config, 19, size=(54, 72))
    built = build_program(net, input="frame", output="labels", size=None, working_side=54)
    run = of_program(built, 54, "built").run
    for h, w in ((60, 80), (36, 51), (36, 49), (75, 100), (200, 119), (54, 70)):
        x = frames(1, h, w)
        assert (run(x) == net.segment(x)).mean() > 0.9995, (h, w)


def rewritten(source: Path, target: Path, edit: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))


class Dangerous:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "how", ["pickled", "member", "twice", "target", "expression", "guard", "inputs", "spec"]
)
def test_what_torch_would_run_is_refused(program: Path, tmp_path: Path, how: str) -> None:
    """Each way in which torch.export.load unpickles or evaluates what a file holds."""
    mark, bad = tmp_path / "was_run", tmp_path / "bad.pt2"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"

    def edit(name: str, data: bytes) -> bytes:
        if how == "pickled" and name.endswith("weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        if how == "inputs" and name.endswith("sample_inputs/model.pt"):
            return pickle.dumps(Dangerous(mark))
        if not name.endswith("models/model.json"):
            return data
        if how == "expression":
            quoted = json.dumps(code).encode()
            assert b'"expr_str": ' in data
            return re.sub(rb'"expr_str": "[^"]*"', lambda _: b'"expr_str": ' + quoted, data)
        model = json.loads(data)
        if how == "target":
            model["graph_module"]["graph"]["nodes"][-1]["target"] = "os.system"
        elif how == "spec":
            place = model["graph_module"]["module_call_graph"][0]["signature"]
            place["in_spec"] = place["in_spec"].replace("builtins.tuple", "collections.namedtuple")
        elif how == "guard":
            model["guards_code"].append(code)
        return json.dumps(model).encode()

    rewritten(program, bad, edit)
    if how == "member":
        with zipfile.ZipFile(bad, "a") as archive:
            archive.writestr("net/data/constants/opaque_obj_0", pickle.dumps(Dangerous(mark)))
    if how == "twice":
        with zipfile.ZipFile(bad, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(archive.namelist()[0], b"")
    with pytest.raises(ValueError, match="refused, nothing was run"):
        load_program(bad)
    assert not mark.exists()


def test_bad_programs_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.pt2").write_bytes(b"PK no archive")
    assert main(["verify", str(tmp_path / "cut.pt2")]) == 2
    assert "no .pt2 archive" in capsys.readouterr().err
    assert main(["export", "camvid", "-o", str(tmp_path / "a.pt2"), "--size", "31x64"]) == 2
    assert "31x64" in capsys.readouterr().err
    assert main(["export", "camvid", "-o", str(tmp_path / "a.pt2"), "--for", "tensorrt"]) == 2
    assert "--for tensorrt" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["cut.pt2"]
