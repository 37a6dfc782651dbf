"""Files as people have them: wrapped, of other networks, damaged or malicious."""

from __future__ import annotations

import collections
import json
import pickle
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import CheckpointError, convert, read_checkpoint, save
from fastscnn.load import load
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN


def wrap(state: dict[str, Tensor], how: str) -> Any:
    if how == "module":
        return {f"module.{k}": v for k, v in state.items()}
    if how == "compiled DDP":
        return {"model": {f"_orig_mod.module.{k}": v for k, v in state.items()}, "epoch": 3}
    if how == "float64":
        return {"net": {k: v.double() if v.dim() else v for k, v in state.items()}}
    if how == "no batch counters":
        return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if how == "ema beside others":
        momentum = {"state": {0: {"exp_avg": torch.ones(8, 3, 3, 3)}}, "param_groups": []}
        metrics = {"iou": torch.ones(19)}
        return {"ema": state, "optimizer": momentum, "metrics": metrics, "step": torch.tensor(3)}
    if how == "nested":
        return {"params": {"weights": state, "decay": 0.9}, "model": {"name": "fast-scnn"}}
    if how in ("net.", "model.module.", "student.", "_orig_mod.module.net."):
        return {f"{how}{k}": v for k, v in state.items()}
    if how == "several, one of them known":
        return {"ema": {k: v + 1 for k, v in state.items()}, "model": state}
    return {"state_dict": collections.OrderedDict(state), "optimizer": {"state": {}}}


@pytest.mark.parametrize(
    "how",
    [
        *("module", "compiled DDP", "float64", "no batch counters", "state_dict"),
        *("ema beside others", "nested", "several, one of them known"),
        *("net.", "model.module.", "student.", "_orig_mod.module.net."),
    ],
)
def test_wrappers_and_prefixes_are_peeled(tmp_path: Path, tramac: Path, how: str) -> None:
    state = torch.load(tramac, weights_only=True)
    torch.save(wrap(state, how), tmp_path / "wrapped.pth")
    expected, found = read_checkpoint(tramac).state, read_checkpoint(tmp_path / "wrapped.pth").state
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_several_state_dicts_are_not_chosen_from(tmp_path: Path, tramac: Path) -> None:
    state = torch.load(tramac, weights_only=True)
    torch.save({"student": state, "teacher": state}, tmp_path / "both.pth")
    with pytest.raises(CheckpointError, match=r"both\.pth.*student, teacher.*that is meant"):
        read_checkpoint(tmp_path / "both.pth")


class HistoryBuffer:
    """What mmengine's training leaves in a checkpoint beside the weights."""

    def __init__(self) -> None:
        self.values = np.ones(3)
        self.method = self.mean

    def mean(self) -> None: ...


def test_training_leftovers_are_read_as_blanks(
    tmp_path: Path, tramac: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("mmengine.history")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    monkeypatch.setattr(HistoryBuffer, "__module__", "mmengine.history")
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.history", module)
    state = torch.load(tramac, weights_only=True)
    torch.save({"state_dict": state, "message_hub": HistoryBuffer()}, tmp_path / "iter.pth")
    assert read_checkpoint(tmp_path / "iter.pth").layout.name == "tramac"


def test_a_file_that_fits_nothing_is_refused_with_keys(tmp_path: Path, tramac: Path) -> None:
    state = torch.load(tramac, weights_only=True)
    state["stranger.weight"] = state.pop("feature_fusion.dwconv.conv.0.weight")
    state["classifier.conv.1.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "odd.pth")
    message = str(caught.value)
    for part in (
        "nearest is tramac",
        "1 keys missing (first: feature_fusion.dwconv.conv.0.weight)",
        "1 unexpected (first: stranger.weight)",
        "classifier.conv.1.bias is [7], expected [5]",
    ):
        assert part in message
    assert "\n" not in message


def test_a_file_of_another_network_is_told_by_its_own_keys(tmp_path: Path) -> None:
    torch.save({f"features.{i}.weight": torch.zeros(3) for i in range(9)}, tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "vgg.pth")
    message = str(caught.value)
    assert "none of its 9 keys (features.0.weight, features.1.weight, ...) is known" in message
    assert "classifier" not in message.partition("layouts:")[0]
    assert "mmseg" in message


def test_what_the_backbone_alone_fits_is_nearest_to_a_segmentation(tmp_path: Path) -> None:
    state = FastSCNN(5).state_dict()
    half = {k: v for k, v in state.items() if not k.startswith(("feature_fusion", "classifier"))}
    torch.save(half, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match=r"nearest is fastscnn \("):
        load(tmp_path / "half.pth")


def test_torchscript_is_no_state_dict(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.jit.trace(torch.nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8)).save(tmp_path / "net.pt")
    recwarn.clear()
    with pytest.raises(CheckpointError, match=r"net\.pt is a TorchScript program: save"):
        load(tmp_path / "net.pt")
    assert not recwarn.list


def test_more_classes_than_labels_hold_are_refused(tmp_path: Path, tramac: Path) -> None:
    state = torch.load(tramac, weights_only=True)
    state["classifier.conv.1.weight"] = torch.zeros(300, 128, 1, 1)
    state["classifier.conv.1.bias"] = torch.zeros(300)
    torch.save(state, tmp_path / "many.pth")
    with pytest.raises(CheckpointError, match=r"many\.pth has 300 classes: expected at most 255"):
        load(tmp_path / "many.pth")
    state["classifier.conv.1.weight"] = torch.zeros(255, 128, 1, 1)
    state["classifier.conv.1.bias"] = torch.zeros(255)
    torch.save(state, tmp_path / "most.pth")
    assert load(tmp_path / "most.pth", fused=False).num_classes == 255


@pytest.mark.parametrize("named", [2, 4])
def test_a_card_of_other_weights_is_refused(tmp_path: Path, named: int) -> None:
    model, path = FastSCNN(3), tmp_path / "x.pth"
    card = json.loads(Card(num_classes=named).to_json())
    torch.save({"model": model.state_dict(), "card": card}, path)
    with pytest.raises(CheckpointError, match=rf"names {named} classes but its weights have 3"):
        read_checkpoint(path)


class Evil:
    """Pickles as an order to remove a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return shutil.rmtree, (str(self.folder),)


@pytest.mark.parametrize(
    ("suffix", "protocol"), [(".pth", 2), (".pdparams", 2), (".pdparams", 4), (".npz", 4)]
)
def test_pickled_code_never_runs(tmp_path: Path, tramac: Path, suffix: str, protocol: int) -> None:
    (tmp_path / "folder").mkdir()
    evil, path = Evil(tmp_path / "folder"), tmp_path / f"evil{suffix}"
    if suffix == ".pth":  # beside weights that fit
        torch.save({"state_dict": torch.load(tramac, weights_only=True), "evil": evil}, path)
    elif suffix == ".npz":
        np.savez(path, evil=np.array([evil], dtype=object))
    else:
        path.write_bytes(pickle.dumps({"evil": evil}, protocol=protocol))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert (tmp_path / "folder").exists()
    assert "\n" not in str(caught.value)
    assert suffix == ".npz" or "shutil.rmtree" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
        pickle.dumps({"w": np.array([{}, []], dtype=object)}, protocol=4),
        pickle.dumps({"w": np.array(["text"])}, protocol=4),
        pickle.dumps({"w": np.float64(3)}, protocol=2),
    ],
    ids=["dotted", "getattr", "dotted-method", "objects", "text", "scalar"],
)
def test_paddle_reader_takes_arrays_only(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pdparams").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pdparams"):
        read_checkpoint(tmp_path / "x.pdparams")


class PaddleTensor:
    """Pickles as paddle's tensors do: a tuple of name and array."""

    def __init__(self, name: str, value: np.ndarray) -> None:
        self.pair = (name, value)

    def __reduce__(self) -> Any:
        return tuple, (self.pair,)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("pairs", [False, True], ids=["arrays", "name-array"])
def test_pdparams_as_paddle_saves_them(tmp_path: Path, protocol: int, pairs: bool) -> None:
    torch.manual_seed(0)
    model = FastSCNN(7, config=PRESETS["paddleseg"])
    save(model, tmp_path / "own.safetensors")
    convert(tmp_path / "own.safetensors", tmp_path / "x.npz", to="paddleseg")
    arrays: dict[str, Any] = dict(np.load(tmp_path / "x.npz"))
    fortran = "classifier.conv.weight"
    arrays[fortran] = np.asfortranarray(arrays[fortran])
    table = {key: f"conv2d_{i}.w_0" for i, key in enumerate(arrays)}
    content = {k: PaddleTensor(table[k], v) if pairs else v for k, v in arrays.items()}
    content["StructuredToParameterName@@"] = table
    (tmp_path / "model.pdparams").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_checkpoint(tmp_path / "model.pdparams")
    assert found.config == PRESETS["paddleseg"]
    for key, value in model.state_dict().items():
        assert torch.equal(found.state[key], value), key


def test_bad_files_are_named_in_one_line(tmp_path: Path, tramac: Path) -> None:
    own = tmp_path / "own.safetensors"
    for name, source in (("cut.pth", tramac), ("cut.safetensors", own)):
        (tmp_path / name).write_bytes(source.read_bytes()[:5000])
    for name in ("empty.pth", "odd.h5"):
        (tmp_path / name).touch()
    for name in ("text.pth", "text.pt", "text.npz", "text.pdparams", "text.safetensors"):
        (tmp_path / name).write_text("not a checkpoint")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    (tmp_path / "folder.pth").mkdir()
    cases = [
        path for path in tmp_path.iterdir() if path not in (own, tramac, own.with_suffix(".json"))
    ]
    assert len(cases) == 11
    for path in [*cases, tmp_path / "missing.pth"]:
        with pytest.raises((CheckpointError, OSError)) as caught:
            load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="shipped names"):
        load("no-such-name")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        convert(tramac, tmp_path / "nowhere" / "out.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, tramac: Path, value: float
) -> None:
    state = torch.load(tramac, weights_only=True)
    state["feature_fusion.conv_lower_res.1.bias"][3] = value
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(CheckpointError, match=r"conv_lower_res\.1\.bias holds 1 NaN or infinite"):
        load(tmp_path / "nan.pth")
