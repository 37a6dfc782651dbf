"""Frames in, labels out: kinds of arrays, sizes, and real frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import pair, randomize
from PIL import Image

from fastscnn.checkpoints.card import Card
from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.media.frames import read_image
from fastscnn.network.config import FastSCNNConfig
from fastscnn.network.model import FastSCNN


@pytest.fixture(scope="module")
def models() -> tuple[FastSCNN, FusedFastSCNN]:
    return pair(11)


def frame(h: int = 70, w: int = 101, seed: int = 0) -> np.ndarray:
    """A smooth picture with some noise."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.uniform(0, 255, (1, 3, 6, 8)))
    x = F.interpolate(small, (h, w), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return np.clip(x + rng.normal(0, 4, (h, w, 3)), 0, 255).astype(np.uint8)


def assert_labels(model: FastSCNN, image: np.ndarray, labels: np.ndarray) -> None:
    """Equal to the float64 reference except where its top-2 margin is below 1e-4."""
    exact = FastSCNN(model.num_classes, config=model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        x = model._normalize(torch.from_numpy(image)[None]).double()
        logits = exact(x)[0]
    top = logits.topk(2, dim=0)
    wrong = top.indices[0].numpy() != labels
    margin = (top.values[0] - top.values[1]).numpy() / float(logits.abs().max())
    assert not wrong.any() or margin[wrong].max() < 1e-4
    assert wrong.mean() < 0.001


@pytest.mark.parametrize("which", [0, 1], ids=["reference", "fused"])
@pytest.mark.parametrize("size", [(32, 32), (70, 101), (128, 64)])
def test_labels_equal_float64(
    models: tuple[FastSCNN, ...], which: int, size: tuple[int, int]
) -> None:
    image = frame(*size)
    labels = models[which].segment(image)
    assert labels.dtype == np.uint8
    assert labels.shape == size
    assert_labels(models[which], image, labels)


def test_kinds_of_frames(models: tuple[FastSCNN, ...]) -> None:
    model, image = models[1], frame()
    expected = model.segment(image)
    assert len(np.unique(expected)) > 2  # a constant answer would prove nothing
    tensor = model.segment(torch.from_numpy(image))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.uint8
    assert np.array_equal(tensor.numpy(), expected)
    assert np.array_equal(model.segment(image[..., ::-1], channels="bgr"), expected)
    fortran = np.asfortranarray(image)
    assert np.array_equal(model.segment(fortran), expected)
    planar = torch.from_numpy(image).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(model.segment(planar), tensor)
    wide = np.zeros((70, 150, 3), np.uint8)
    wide[:, 20:121] = image
    assert np.array_equal(model.segment(wide[:, 20:121]), expected)
    read_only = image.copy()
    read_only.setflags(write=False)
    assert np.array_equal(model.segment(read_only), expected)


def test_batch_equals_single_frames(models: tuple[FastSCNN, ...]) -> None:
    batch = np.stack([frame(seed=s) for s in range(3)])
    labels = models[1].segment(batch)
    assert labels.shape == batch.shape[:3]
    for one, expected in zip(batch, labels, strict=True):
        assert np.array_equal(models[1].segment(one), expected)


def test_dlpack_objects_come_back_as_their_kind(
    models: tuple[FastSCNN, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Foreign:
        def __init__(self, data: torch.Tensor) -> None:
            self.data = data

        def __dlpack__(self, **options: object) -> object:
            return self.data.__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.data.__dlpack_device__()

    monkeypatch.setitem(globals(), "from_dlpack", lambda t: Foreign(torch.from_dlpack(t)))
    labels = models[1].segment(Foreign(torch.from_numpy(frame())))
    assert isinstance(labels, Foreign)
    assert np.array_equal(labels.data.numpy(), models[1].segment(frame()))


def test_pictures_and_lists(models: tuple[FastSCNN, ...], tmp_path: Path) -> None:
    """Files and PIL images give arrays, a list of any sizes a list."""
    model, image, other = models[1], frame(), frame(50, 64, seed=1)
    expected, picture = model.segment(image), Image.fromarray(image)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(model.segment(picture), expected)
    gray = picture.convert("L")
    assert np.array_equal(model.segment(gray), model.segment(np.stack([np.array(gray)] * 3, -1)))
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(model.segment(path), expected)
    found = model.segment([image, torch.from_numpy(other), tmp_path / "a.png"])
    assert isinstance(found, list)
    assert isinstance(found[1], torch.Tensor)
    assert np.array_equal(found[0], expected)
    assert np.array_equal(found[1].numpy(), model.segment(other))
    assert np.array_equal(found[2], expected)
    assert model.segment([]) == []
    swapped = model.segment([image[..., ::-1], other[..., ::-1]], channels="bgr")
    assert np.array_equal(swapped[0], expected)
    assert np.array_equal(swapped[1], model.segment(other))
    assert not np.array_equal(model.segment(other[..., ::-1]), swapped[1])
    with pytest.raises(ValueError, match="of arrays"):
        model.segment(picture, channels="bgr")


def test_preprocess_normalises_rgb_of_either_order(models: tuple[FastSCNN, ...]) -> None:
    image, (mean, std) = frame(), (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
    expected = ((image / 255 - mean) / std).transpose(2, 0, 1)[None]
    for model in models:
        rgb = model.preprocess(image).numpy()
        assert np.allclose(rgb, expected, atol=1e-5)
        assert np.array_equal(model.preprocess(image[..., ::-1], channels="bgr").numpy(), rgb)
        assert not np.allclose(model.preprocess(image, channels="bgr").numpy(), rgb, atol=0.1)


def test_probabilities_are_shares_of_the_classes(models: tuple[FastSCNN, ...]) -> None:
    for model in models:
        x = model.preprocess(frame(40, 48))
        with torch.no_grad():
            weights = model(x).double().exp()
        expected = weights / weights.sum(1, keepdim=True)
        assert torch.allclose(model.probabilities(x).double(), expected, atol=1e-5)


def test_a_list_is_segmented_as_its_frames_are(models: tuple[FastSCNN, ...]) -> None:
    model, frames = models[1], [frame(), frame(50, 64, seed=1)]
    for how in ({"size": (64, 96)}, {"channels": "bgr"}):
        found = model.segment(frames, **how)
        for one, labels in zip(frames, found, strict=True):
            assert np.array_equal(labels, model.segment(one, **how))
            assert not np.array_equal(labels, model.segment(one))


@pytest.mark.parametrize("aligned", [False, True])
def test_labels_are_sampled_as_the_heads_corners_say(aligned: bool) -> None:
    for model in pair(11, config=FastSCNNConfig(head_align_corners=aligned)):
        image = frame(64, 96)
        with torch.no_grad():
            scores = model.scores(model.preprocess(image))
            logits = F.interpolate(scores, (64, 96), mode="bilinear", align_corners=aligned)
            other = F.interpolate(scores, (64, 96), mode="bilinear", align_corners=not aligned)
        labels = torch.from_numpy(model.segment(image))
        assert float((labels != logits.argmax(1)[0]).float().mean()) < 1e-3
        assert float((labels != other.argmax(1)[0]).float().mean()) > 1e-2


def test_size_is_the_networks_input(models: tuple[FastSCNN, ...]) -> None:
    """Labels come back at the frame's size, sampled from scores of the resized frame."""
    model, image = models[0], frame()
    x = model.preprocess(image, size=(140, 202))
    assert x.shape == (1, 3, 140, 202)
    with torch.no_grad():
        logits = F.interpolate(model.scores(x), (70, 101), mode="bilinear")
    expected = logits.max(dim=1)[1][0].numpy()
    for m in models:
        labels = m.segment(image, size=(140, 202))
        assert (labels != expected).mean() < 0.001
    assert (models[1].segment(image) != expected).mean() > 0.01


def test_working_size_follows_the_card_and_the_aspect() -> None:
    model = FastSCNN(11).eval()
    assert model.input_size((70, 101)) == (70, 101)
    model.card = Card(num_classes=11, size=(540, 720))
    assert model.input_size((360, 480)) == (540, 720)
    assert model.input_size((1024, 2048)) == (540, 1080)
    assert model.input_size((1920, 1080)) == (960, 540)
    assert model.input_size((360, 480), (96, 128)) == (96, 128)
    ties = [model.input_size((360, w))[1] for w in (479, 481)]  # 718.5 and 721.5, to even
    assert ties == [718, 722]


def test_preprocess_by_hand() -> None:
    """One colour in other normalisations than the paper's, and in OpenCV's order."""
    config = FastSCNNConfig(mean=(0.5, 0.25, 0), std=(0.5, 1, 2), head_align_corners=True)
    model = FastSCNN(3, config=config)
    randomize(model)
    model.eval()
    image = np.full((32, 40, 3), (255, 51, 102), np.uint8)
    for x in (model.preprocess(image), model.preprocess(image[..., ::-1], channels="bgr")):
        assert x.shape == (1, 3, 32, 40)
        for plane, value in zip(x[0], (1.0, -0.05, 0.2), strict=True):
            torch.testing.assert_close(plane, torch.full((32, 40), value), rtol=0, atol=1e-6)
    with torch.no_grad():
        noise = torch.randn(1, 3, 32, 40)
        logits = model(noise)
        expected = F.interpolate(model.scores(noise), (32, 40), mode="bilinear", align_corners=True)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(model.probabilities(noise), logits.softmax(1))
        model.classifier.conv.weight *= 1e-3  # near one another: every bit of the scores counts
        model.classifier.conv.bias.fill_(1)
        image = frame(64, 80)
        found = model.segment(image)
        expected = F.interpolate(
            model.scores(model.preprocess(image)), (64, 80), mode="bilinear", align_corners=True
        )
    assert np.array_equal(found, expected.max(dim=1)[1][0].numpy())
    assert len(np.unique(found)) > 1


def test_a_rounded_model_gets_its_dtype_and_gives_exact_shares() -> None:
    model = FastSCNN(3).to(torch.bfloat16).eval()
    x = model.preprocess(frame())
    assert x.dtype == torch.bfloat16
    shares = model.probabilities(x)
    assert shares.dtype == torch.float32
    assert (shares.sum(1) - 1).abs().max() < 1e-5


def test_threads_give_the_same_labels(
    models: tuple[FastSCNN, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    for model in models:
        a, b = (model.segment(frame(), threads=t) for t in (1, 2))
        assert np.array_equal(a, b)
    assert torch.get_num_threads() == before
    asked: list[int | None] = []
    given = models[0]._labels
    monkeypatch.setattr(models[0], "_labels", lambda *args: asked.append(args[3]) or given(*args))
    models[0].segment([frame(), frame()], threads=3)
    assert asked == [3, 3]
    with pytest.raises(ValueError, match="threads=0"):
        models[0].segment(frame(), threads=0)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (np.zeros((64, 64, 3), np.float32), TypeError, "float32.*uint8"),
        (np.zeros((64, 64), np.uint8), ValueError, "grayscale"),
        (np.zeros((64, 64, 4), np.uint8), ValueError, "alpha"),
        (np.zeros((3, 64, 64), np.uint8), ValueError, "channels last"),
        (np.zeros((31, 64, 3), np.uint8), ValueError, r"31x64.*at least 32.*\(32, 64\)"),
        (np.zeros((0, 64, 64, 3), np.uint8), ValueError, "at least one pixel"),
        ("photo.jpg", ValueError, "photo.jpg: cannot be read"),
        (3, TypeError, "int.*numpy array"),
        ([[1, 2], [3, 4]], TypeError, "list of lists"),
        (torch.zeros(64, 64, 3), TypeError, "float32.*uint8"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_bad_frames(
    models: tuple[FastSCNN, ...], bad: object, error: type[Exception], words: str
) -> None:
    for model in models:
        with pytest.raises(error, match=words):
            model.segment(bad)


def test_bad_channels(models: tuple[FastSCNN, ...]) -> None:
    with pytest.raises(ValueError, match="channels='hsv'"):
        models[0].segment(frame(), channels="hsv")


def test_real_frames_equal_the_reference(data_dir: Path) -> None:
    """Shipped weights on a real street frame at full size."""
    import fastscnn

    image = read_image(sorted((data_dir / "street" / "images").glob("*.png"))[0])
    size = image.shape[:2]
    reference = fastscnn.load(fused=False)
    expected = reference.segment(image, size=size)
    labels = fastscnn.load().segment(image, size=size)
    assert (labels != expected).mean() < 1e-4


@pytest.mark.parametrize("count", [1, 2, 19, 255])
def test_class_counts(count: int) -> None:
    """From one class to the 255 that fit beside the ignore label."""
    reference, fused = pair(count)
    image = frame(40, 56)
    labels = fused.segment(image)
    assert labels.max() < count
    assert (labels != reference.segment(image)).mean() < 0.005


def test_segmenting_in_training_mode_is_refused() -> None:
    model = FusedFastSCNN(3).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"model\.eval\(\)"):
        model.segment(np.stack([frame(), frame()]))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("size", [64, "64x64", (64.5, 64), (64,), (16, 64), (64, 10**6)])
def test_bad_sizes(models: tuple[FastSCNN, ...], size: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"size.*expected"):
        models[1].segment(frame(), size=size)


def test_a_size_beyond_the_largest_names_the_largest() -> None:
    model = FastSCNN(3)
    with pytest.raises(ValueError, match=r"64x40000: .*at most 32768; use \(64, 32768\)"):
        model.input_size((64, 80), (64, 40000))
    with pytest.raises(ValueError, match=r"40000x64: .*at most 32768; use \(32768, 64\)"):
        model.input_size((64, 80), (40000, 64))


def test_another_default_dtype_changes_nothing(models: tuple[FastSCNN, ...]) -> None:
    expected = models[1].segment(frame(70, 99))
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(models[1].segment(frame(70, 99)), expected)
        new_size = models[1].segment(frame(71, 99))
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(models[1].segment(frame(71, 99)), new_size)
