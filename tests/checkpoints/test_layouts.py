"""Other people's checkpoints: recognised, mapped key by key, computed as their authors do."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastscnn.checkpoints.files import convert
from fastscnn.checkpoints.formats import write_tensors
from fastscnn.checkpoints.layouts import LAYOUTS
from fastscnn.load import load
from fastscnn.network.config import PRESETS

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


def test_every_layout_names_every_tensor_once() -> None:
    for layout in LAYOUTS.values():
        shapes = layout.shapes(19, layout.config)
        names = layout.names(shapes)
        assert len(set(names.values())) == len(names)
        assert all(k in names or k.endswith("num_batches_tracked") for k in shapes)
