"""Other people's checkpoints: recognised, mapped key by key, computed as their authors do."""

from __future__ import annotations

import collections
import json
import pickle
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import CheckpointError, convert, read_checkpoint, save
from fastscnn.checkpoints.formats import write_tensors
from fastscnn.checkpoints.layouts import LAYOUTS
from fastscnn.load import load, load_backbone
from fastscnn.network.config import PRESETS, FastSCNNConfig
from fastscnn.network.model import FastSCNN, FastSCNNClassifier

# File of key names, the layout that it must be recognised as, the format that carries it.
FOREIGN = [
    ("tramac", "tramac", ".pth"),
    ("tramac_aux", "tramac", ".pth"),
    ("xiaoyufenfei", "tramac", ".pth"),
    ("lxtgh_aux", "tramac", ".pth"),
    ("zacario_aux", "zacario", ".pth"),
    ("mmseg_1.2.2", "mmseg", ".pth"),
    ("paddleseg", "paddleseg", ".pdparams"),
    ("paddleseg", "paddleseg", ".npz"),
    ("segmentron_aux", "segmentron", ".pth"),
    ("leftthomas", "leftthomas", ".pth"),
    ("gluoncv", "gluoncv", ".npz"),
]


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hundreds of small tensors: starting threads for each costs more than they save."""
    before = torch.get_num_threads()
    if "golden" not in request.node.name:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def keys_of(data_dir: Path, name: str) -> dict[str, Any]:
    info: dict[str, Any] = json.loads((data_dir / "checkpoint-keys" / f"{name}.json").read_text())
    return info


def random_state(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, Tensor]:
    """Seeded tensors that keep activations near 1, every value of its own."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(len(state))
        elif key.endswith(("running_var", "_variance")):
            state[key] = torch.rand(shape, generator=g) + 0.5
        elif len(shape) == 4:
            fan_in = shape[1] * shape[2] * shape[3]
            state[key] = torch.randn(shape, generator=g) * (2 / fan_in) ** 0.5
        elif key.endswith(("weight", "gamma")):
            state[key] = torch.rand(shape, generator=g) + 0.5
        else:
            state[key] = torch.randn(shape, generator=g) * 0.2
    return state


@pytest.fixture
def tramac(tmp_path: Path) -> Path:
    """A small stand-in that needs no data: our random weights under Tramac's names."""
    torch.manual_seed(0)
    own = tmp_path / "own.safetensors"
    save(FastSCNN(5, config=PRESETS["tramac"]), own)
    convert(own, tmp_path / "tramac.pth", to="tramac")
    return tmp_path / "tramac.pth"


@pytest.mark.parametrize(("name", "layout", "suffix"), FOREIGN, ids=lambda v: str(v).strip("."))
def test_every_layout_loads_and_returns(
    data_dir: Path, tmp_path: Path, name: str, layout: str, suffix: str
) -> None:
    info = keys_of(data_dir, name)
    state = random_state(info["keys"])
    path = tmp_path / f"theirs{suffix}"
    write_tensors(path, state)
    model = load(path, fused=False)
    config = PRESETS["tramac" if layout == "zacario" else layout]
    assert (model.card.source, model.config) == (layout, config)
    assert sum(p.numel() for p in model.parameters()) == info["inference_params"]

    back = tmp_path / f"back{suffix}"
    convert(path, back, to=layout)
    convert(path, tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / f"again{suffix}", to=layout)
    wanted = {k: v for k, v in state.items() if not k.startswith(("aux", "auxiliary_head"))}
    for written in (back, tmp_path / f"again{suffix}"):
        found = raw(written)
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert torch.equal(found[key], wanted[key]), key


def raw(path: Path) -> dict[str, Tensor]:
    """A file's tensors, read by other means than ours."""
    if path.suffix == ".pth":
        content = torch.load(path, weights_only=True)
        state: dict[str, Tensor] = content.get("state_dict", content)
        return state
    arrays = dict(np.load(path)) if path.suffix == ".npz" else pickle.loads(path.read_bytes())
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


class Foreign:
    """Runs an implementation's own layers as recorded: their names, order, padding, activations."""

    def __init__(self, info: dict[str, Any], state: dict[str, Tensor]) -> None:
        self.layers = info["layers"]
        self.state = state

    def __call__(self, prefix: str, x: Tensor) -> Tensor:
        """All layers whose name starts with `prefix`, one after the other."""
        layers = [layer for layer in self.layers if (layer["name"] + ".").startswith(prefix + ".")]
        assert layers, prefix
        for layer in layers:
            x = self._apply(layer, x)
        return x

    def _apply(self, layer: dict[str, Any], x: Tensor) -> Tensor:
        s, name, op = self.state, layer["name"], layer["op"].lower()
        if op.startswith("conv"):
            pad = layer["p"]
            if pad == "same" and layer["k"] == [3, 3]:
                rows, columns = (max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[2:])
                x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            pad = 0 if pad == "same" else int(pad) if isinstance(pad, str) else pad
            dilation = layer.get("dil") or 1
            bias = s.get(f"{name}.bias")
            assert (bias is not None) == layer["bias"]
            weight = s[f"{name}.weight"]
            return F.conv2d(x, weight, bias, layer["s"], pad, dilation, layer["g"])
        if op.startswith("batchnorm"):
            mean, var = (
                ("_mean", "_variance")
                if op.endswith("2d") and f"{name}._mean" in s
                else (
                    "running_mean",
                    "running_var",
                )
            )
            return F.batch_norm(
                x,
                s[f"{name}.{mean}"],
                s[f"{name}.{var}"],
                s[f"{name}.weight"],
                s[f"{name}.bias"],
                eps=layer["eps"],
            )
        if op.startswith("adaptive"):
            return F.adaptive_avg_pool2d(x, layer["out"][1:])
        return {"relu": F.relu, "relu6": F.relu6}.get(op, lambda x: x)(x)


# Names of learning to downsample, the nine bottlenecks, the pyramid (branches, join), the fusion
# (low, high) and the classifier; the order of the join's inputs; corners of the three upsamplings.
_GFE = "global_feature_extractor"
FORWARDS: dict[str, dict[str, Any]] = {
    "tramac": {
        "low": ("dwconv", "conv_lower_res"),
        "high": "conv_higher_res",
        "bins": [f"{_GFE}.ppm.conv{n}" for n in (1, 2, 3, 4)],
        "join": f"{_GFE}.ppm.out",
        "corners": (True, True, True),
    },
    "mmseg_1.2.2": {
        "prefix": "backbone.",
        "low": ("dwconv", "conv_lower_res"),
        "high": "conv_higher_res",
        "bins": [f"{_GFE}.ppm.{k}" for k in range(4)],
        "join": f"{_GFE}.out",
        "classifier": "decode_head",
        "corners": (False, False, False),
    },
    "paddleseg": {
        "low": ("dwconv", "conv_low_res"),
        "high": "conv_high_res",
        "bins": [f"{_GFE}.ppm.stages.{k}" for k in range(4)],
        "join": f"{_GFE}.ppm.conv_bn_relu2",
        "order": (0, 4, 3, 2, 1),
        "corners": (True, False, False),
    },
    "segmentron_aux": {
        "low": ("dwconv", "conv_lower_res"),
        "high": "conv_higher_res",
        "bins": [f"{_GFE}.ppm.convs.{k}" for k in range(4)],
        "join": f"{_GFE}.out",
        "corners": (True, True, True),
    },
    "leftthomas": {
        "downsample": "learning_to_down_sample",
        "stages": ("first_block", "second_block", "third_block"),
        "low": ("dwconv", "conv_low_res"),
        "high": "conv_high_res",
        "bins": [f"{_GFE}.ppm.stages.{k}" for k in range(4)],
        "join": f"{_GFE}.ppm.conv",
        "order": (1, 2, 3, 4, 0),
        "corners": (True, True, True),
    },
}


def foreign_forward(run: Foreign, x: Tensor, how: dict[str, Any]) -> Tensor:
    """Logits as the other implementation computes them, from its own names."""
    p = how.get("prefix", "")
    size = x.shape[2:]
    at_ppm, at_fusion, at_head = how["corners"]

    def resize(y: Tensor, to: torch.Size, corners: bool) -> Tensor:
        return F.interpolate(y, to, mode="bilinear", align_corners=corners)

    high = y = run(p + how.get("downsample", "learning_to_downsample"), x)
    for stage in how.get("stages", ("bottleneck1", "bottleneck2", "bottleneck3")):
        for block in range(3):
            z = run(f"{p}{_GFE}.{stage}.{block}", y)
            y = y + z if block else z
    maps = [y]
    for bins, name in zip((1, 2, 3, 6), how["bins"], strict=True):
        pooled = run(p + name, F.adaptive_avg_pool2d(y, bins))
        maps.append(resize(pooled, y.shape[2:], at_ppm))
    y = run(p + how["join"], torch.cat([maps[i] for i in how.get("order", range(5))], 1))
    y = resize(y, high.shape[2:], at_fusion)
    for name in how["low"]:
        y = run(f"{p}feature_fusion.{name}", y)
    y = F.relu(y + run(f"{p}feature_fusion.{how['high']}", high))
    return resize(run(how.get("classifier", "classifier"), y), size, at_head)


@pytest.mark.parametrize("name", FORWARDS)
def test_forward_equals_the_original_layers(data_dir: Path, tmp_path: Path, name: str) -> None:
    info = keys_of(data_dir, name)
    state = random_state(info["keys"], seed=1)
    suffix = ".npz" if name == "paddleseg" else ".pth"
    write_tensors(tmp_path / f"theirs{suffix}", state)
    model = load(tmp_path / f"theirs{suffix}", fused=False, device="cpu")
    for size in ((97, 161), (128, 192)):  # odd sizes inside; sizes where "same" pads one side
        x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
        expected = foreign_forward(Foreign(info, state), x, FORWARDS[name])
        with torch.no_grad():
            logits = model(x)
        assert float((logits - expected).abs().max()) < 1e-5 * float(expected.abs().max()), size


def test_mmseg_before_pull_606_is_told_by_its_shapes(data_dir: Path, tmp_path: Path) -> None:
    shapes = keys_of(data_dir, "mmseg_1.2.2")["keys"]
    shapes["backbone.feature_fusion.dwconv.conv.weight"] = [128, 128, 1, 1]
    shapes["backbone.global_feature_extractor.out.conv.weight"] = [128, 256, 1, 1]
    write_tensors(tmp_path / "old.pth", random_state(shapes), wrapper="state_dict")
    model = load(tmp_path / "old.pth", fused=False)
    c = model.config
    assert (c.stem_padding, c.dsconv_relu, c.bottleneck_activation) == (0, True, "relu6")
    assert (c.ffm_kernel, c.ppm_join_kernel, c.head_align_corners) == ("dense", 1, False)
    assert sum(p.numel() for p in model.parameters()) == 1153283 - 256


@pytest.mark.parametrize("fused", [False, True], ids=["reference", "fused"])
def test_golden_tramac(data_dir: Path, fused: bool) -> None:
    folder = data_dir / "golden" / "tramac"
    stem = next(folder.glob("*__meta.json")).name.removesuffix("__meta.json")
    model = load(folder / "weights.pth", fused=fused, device="cpu")
    frame = np.asarray(Image.open(folder / f"{stem}_leftImg8bit.png").convert("RGB"))
    stored = np.load(folder / f"{stem}__logits_s8_f16.npz")
    golden = torch.from_numpy(stored[stored.files[0]].astype(np.float32)).reshape(1, 19, 128, 256)
    labels = np.asarray(Image.open(folder / f"{stem}__argmax.png"))
    with torch.no_grad():
        scores = model.scores(model.preprocess(frame))
        if fused:
            found = model.segment(frame)
        else:
            up = F.interpolate(scores, frame.shape[:2], mode="bilinear", align_corners=True)
            found = up.max(dim=1)[1][0].numpy()
    assert float((scores - golden).abs().max()) <= 5e-3
    assert (found == labels).mean() >= 0.9995


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


CARD = Card(
    num_classes=3,
    classes=("road", "car", "sky"),
    colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)),
    size=(360, 480),
    data="CamVid",
    metrics={"miou": 0.5},
    epochs=4,
    extra={"note": "x"},
)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("aux", [False, True], ids=["plain", "aux"])
def test_own_file_keeps_weights_config_and_card(tmp_path: Path, suffix: str, aux: bool) -> None:
    model = FastSCNN(3, config=PRESETS["leftthomas"], aux=aux)
    path = tmp_path / f"own{suffix}"
    save(model, path, CARD)
    found = load(path, fused=False)
    assert (found.config, found.num_classes, found.training) == (model.config, 3, False)
    expected = Card(**{**vars(CARD), "config": model.config})
    assert found.card == expected
    assert Card.from_dict(json.loads(path.with_suffix(".json").read_text())) == expected
    for key, value in found.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 3


def test_half_precision_file_loads_as_float32(tmp_path: Path) -> None:
    model = FastSCNN(3)
    save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    found = load(tmp_path / "half.safetensors", fused=False)
    assert (tmp_path / "half.safetensors").stat().st_size < 2.5e6
    for key, value in model.state_dict().items():
        rounded = value.half().float() if value.is_floating_point() else value
        assert torch.equal(found.state_dict()[key], rounded), key
        assert found.state_dict()[key].dtype == value.dtype
    model.classifier.conv.bias.data[0] = 1e6
    with pytest.raises(CheckpointError, match=r"classifier\.conv\.bias has values up to 1e\+06"):
        save(model, tmp_path / "large.safetensors", dtype=torch.float16)
    assert not (tmp_path / "large.safetensors").exists()


def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.safetensors"
    save(FastSCNN(3), path)
    before = path.read_bytes()

    def interrupted(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(FastSCNN(3), path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.json", "own.safetensors"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 0),
        ("classes", ["road"]),
        ("colors", [[0, 0, 256]] * 3),
        ("size", [480]),
        ("size", [16, 480]),
        ("metrics", 3),
        ("config", 3),
        ("format", 99),
    ],
)
def test_a_wrong_card_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"card {field}"):
        Card.from_dict({**CARD.to_dict(), field: value})


def test_convert_refuses_what_would_change_results(tmp_path: Path, tramac: Path) -> None:
    own = tmp_path / "paper.safetensors"
    save(FastSCNN(3), own)
    with pytest.raises(
        CheckpointError, match=r"stem_padding 1, there 0; .*ffm_dilation 4, there 1"
    ):
        convert(own, tmp_path / "out.pth", to="tramac")
    with pytest.raises(CheckpointError, match=r"mean .* there \[0.5, 0.5, 0.5\]"):
        convert(tramac, tmp_path / "out.npz", to="paddleseg")
    with pytest.raises(CheckpointError, match=r"written as \.pth or \.pt; use out\.pth"):
        convert(tramac, tmp_path / "out.npz", to="tramac")
    with pytest.raises(CheckpointError, match="expected one of fastscnn, "):
        convert(tramac, tmp_path / "out.pth", to="keras")
    with pytest.raises(FileExistsError, match="--force"):
        convert(tramac, own)
    assert not list(tmp_path.glob("out*"))
    convert(tramac, own, force=True)
    assert load(own, fused=False).config == PRESETS["tramac"]
    convert(own, tmp_path / "gluon.npz", to="gluoncv")
    assert load(tmp_path / "gluon.npz", fused=False).card.source == "gluoncv"


def test_a_card_is_not_overwritten_by_another_checkpoints(tmp_path: Path) -> None:
    """x.pth and x.safetensors have one x.json between them."""
    card = tmp_path / "x.json"
    save(FastSCNN(3), tmp_path / "x.pth", CARD)
    before = card.read_text()
    with pytest.raises(FileExistsError, match=r"x\.json is the card of x\.pth"):
        save(FastSCNN(4), tmp_path / "x.safetensors")
    save(FastSCNN(4), tmp_path / "other.safetensors")
    with pytest.raises(FileExistsError, match=r"x\.json .*--force"):
        convert(tmp_path / "other.safetensors", tmp_path / "x.safetensors")
    assert card.read_text() == before
    assert not (tmp_path / "x.safetensors").exists()
    convert(tmp_path / "x.pth", tmp_path / "x.safetensors")  # the same card serves both
    save(FastSCNN(3), tmp_path / "x.pth", CARD)
    assert card.read_text() == before
    convert(tmp_path / "other.safetensors", tmp_path / "x.safetensors", force=True)
    assert json.loads(card.read_text())["num_classes"] == 4
    save(FastSCNN(5), tmp_path / "other.safetensors")  # one's own card is replaced


def test_shipped_weights_are_converted_by_name(tmp_path: Path) -> None:
    convert("camvid", tmp_path / "theirs.pth")
    ours, theirs = load("camvid", fused=False), load(tmp_path / "theirs.pth", fused=False)
    assert theirs.card == ours.card
    for key, value in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], value), key


def test_fine_tuning_takes_all_but_the_last_layer(tmp_path: Path, tramac: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has 5 classes, but num_classes=3 .*load_backbone"):
        load(tramac, num_classes=3)
    model = FastSCNN(3, config=PRESETS["tramac"])
    assert load_backbone(model, tramac) == ["classifier.conv.weight", "classifier.conv.bias"]
    state = read_checkpoint(tramac).state
    for key, value in model.state_dict().items():
        assert key.startswith("classifier.conv.") or torch.equal(value, state[key]), key
    with pytest.raises(CheckpointError, match="stem_padding 0, there 1"):
        load_backbone(FastSCNN(3), tramac)


def test_pretrained_classifier_gives_its_backbone(tmp_path: Path) -> None:
    classifier = FastSCNNClassifier(100)
    save(classifier, tmp_path / "imagenet.safetensors")
    model = FastSCNN(3)
    kept = load_backbone(model, tmp_path / "imagenet.safetensors")
    assert {key.split(".")[0] for key in kept} == {"feature_fusion", "classifier"}
    for key, value in classifier.state_dict().items():
        assert key.startswith("linear.") or torch.equal(value, model.state_dict()[key]), key
    with pytest.raises(CheckpointError, match="load_backbone"):
        load(tmp_path / "imagenet.safetensors")


def test_load_options(tramac: Path) -> None:
    fresh = load(None, fused=False, device="cpu")
    assert (fresh.num_classes, fresh.config) == (19, FastSCNNConfig.paper())
    assert load(None, device="cpu", num_classes=3).classifier.conv.out_channels == 3
    model = load(tramac, fused=False, device="cpu", dtype=torch.float16, num_classes=5)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert not any(m.training for m in (*fresh.modules(), *model.modules()))
    assert load(None, fused=False, device="cpu", num_classes=7).num_classes == 7
    with pytest.raises(ValueError, match="expected one of cpu"):
        load(None, fused=False, device="cuda:99")
    with pytest.raises(ValueError, match="'gpu' cannot be used"):
        load(None, fused=False, device="gpu")
    with pytest.raises(ValueError, match=r"dtype=torch\.int8: expected torch\.float32"):
        load(None, fused=False, dtype=torch.int8)


def test_every_layout_names_every_tensor_once() -> None:
    for layout in LAYOUTS.values():
        shapes = layout.shapes(19, layout.config)
        names = layout.names(shapes)
        assert len(set(names.values())) == len(names)
        assert all(k in names or k.endswith("num_batches_tracked") for k in shapes)
