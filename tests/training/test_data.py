"""Data readers, masks by value and by colour, the order of samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import COLORS, draw_pair, write_folder, write_image_folders

from fastscnn.classes import CITYSCAPES_LABEL_IDS, IGNORE
from fastscnn.media.frames import ImageError
from fastscnn.training.augment import Augment
from fastscnn.training.data import check_bad, class_shares, image_folders, open_data, scan
from fastscnn.training.loading import Order, Samples, ahead, derive


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "own")


def test_own_masks_are_read_with_their_images(root: Path) -> None:
    data = open_data(root, "train")
    image, mask = data[3]
    assert (len(data), data.name, data.classes.names) == (8, "own", ("ground", "band", "box"))
    rng = np.random.default_rng(0)
    for _ in range(4):
        drawn, truth = draw_pair(rng, 64, 96)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), drawn)
    assert np.array_equal(mask.numpy(), truth)


def test_rgb_masks_are_converted_by_the_classes_colours(root: Path, tmp_path: Path) -> None:
    colored = open_data(write_folder(tmp_path / "rgb", rgb=True), "train")
    plain = open_data(root, "train")
    for i in range(len(plain)):
        assert torch.equal(colored[i][1], plain[i][1])


def test_rgb_masks_may_have_ignored_colours(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "rgb", rgb=True)
    text = (data / "classes.json").read_text()
    (data / "classes.json").write_text(text[:-1] + ', "ignore_colors": [[0, 0, 0]]}')
    path = data / "train/masks/000.png"
    mask = np.array(Image.open(path))
    mask[:5] = 0
    Image.fromarray(mask).save(path)
    labels = open_data(data, "train")[0][1]
    assert (labels[:5] == IGNORE).all()
    assert (labels[5:] < 3).all()


def _edit_mask(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = root / "train/masks/002.png"
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def _add_color(mask: np.ndarray) -> np.ndarray:
    picture = np.array(COLORS, np.uint8)[mask]
    picture[0, :4] = (1, 2, 3)
    return picture


BAD_MASKS = {
    "unknown index": (lambda m: np.where(m == 2, 7, m).astype(np.uint8), r"002\.png has values 7"),
    "unknown colour": (_add_color, r"002\.png has colours #010203 .*ignore_colors"),
    "other size": (lambda m: m[:60], r"002\.png is 96x60 but 002\.png is 96x64"),
    "16 bit": (lambda m: m.astype(np.uint16) + 256, r"002\.png has value 258"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_a_wrong_mask_is_refused_by_name(root: Path, case: str) -> None:
    change, message = BAD_MASKS[case]
    _edit_mask(root, change)
    with pytest.raises(ValueError, match=message):
        scan(open_data(root, "train"))


def test_pairs_that_do_not_match_are_named(root: Path) -> None:
    (root / "train/masks/004.png").rename(root / "train/masks/other.png")
    with pytest.raises(ValueError, match=r"004\.png has no mask"):
        open_data(root, "train")
    (root / "train/images/004.png").unlink()
    assert "1 masks have no image, such as" in open_data(root, "train").notes[0]
    Image.new("RGB", (96, 64)).save(root / "train/images/003.jpg")
    with pytest.raises(ValueError, match=r"share the mask .*003\.png"):
        open_data(root, "train")


def test_a_mask_that_is_no_png_is_pointed_out(root: Path) -> None:
    mask = root / "train/masks/001.png"
    Image.open(mask).save(mask.with_suffix(".jpg"))
    mask.unlink()
    with pytest.raises(ValueError, match=r"has no mask .*001\.jpg is no PNG"):
        open_data(root, "train")


def test_empty_and_missing_folders_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        open_data(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match=r"test.images is missing"):
        open_data(root, "test")
    for image in (root / "val/images").iterdir():
        image.unlink()
    with pytest.raises(ValueError, match=r"no images in .*val.images"):
        open_data(root, "val")


def test_scan_counts_every_pixel(root: Path) -> None:
    data = open_data(root, "train")
    found = scan(data, workers=2)
    masks = torch.stack([data[i][1] for i in range(len(data))]).numpy()
    assert found.counts.tolist() == [int((masks == c).sum()) for c in range(3)]
    assert found.sizes == {(64, 96): 8}
    assert class_shares(data, [1]) == pytest.approx([(masks[1] == c).mean() for c in range(3)])
    assert found.ignored == 0


def test_ignored_pixels_have_no_share(root: Path) -> None:
    _edit_mask(root, lambda m: np.where(np.arange(64)[:, None] < 40, np.uint8(IGNORE), m))
    data = open_data(root, "train")
    found = scan(data)
    rest = data[2][1][40:].numpy()
    assert found.ignored == 40 * 96
    assert int(found.counts.sum()) == 8 * 64 * 96 - 40 * 96
    assert float(found.shares.sum()) == pytest.approx(1)
    assert class_shares(data, [2]) == pytest.approx([(rest == c).mean() for c in range(3)])


def test_a_limit_takes_images_from_all_of_them(root: Path) -> None:
    data = open_data(root, "train")
    assert [p.image.stem for p in data.limited(3).pairs] == ["000", "002", "005"]
    assert data.limited(0).pairs == data.limited(9).pairs == data.pairs


def test_joined_data_keep_both_parts_and_their_notes(root: Path) -> None:
    one, other = open_data(root, "train"), open_data(root, "val")
    one.notes.append("a")
    other.notes.append("b")
    both = one.joined(other)
    assert both.pairs == one.pairs + other.pairs
    assert both.notes == ["a", "b"]


def test_rotated_photos_fit_their_masks(root: Path) -> None:
    """EXIF says that the stored 64x96 pixels are seen as 96x64; the mask is as seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = root / "train/images/001.png", root / "train/masks/001.png"
    Image.open(image).save(image.with_suffix(".jpg"), exif=exif)
    image.unlink()
    Image.fromarray(np.rot90(np.array(Image.open(mask)), -1).copy()).save(mask)
    data = open_data(root, "train")
    assert scan(data).sizes == {(64, 96): 7, (96, 64): 1}
    assert data[1][0].shape == (3, 96, 64)


def test_many_unreadable_files_are_refused(root: Path) -> None:
    (root / "train/images/001.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 8 images cannot be read.*001\.png"):
        scan(open_data(root, "train"))


def test_one_unreadable_file_in_a_hundred_is_borne() -> None:
    check_bad(["a"], 100, "own")
    check_bad([], 3, "own")
    for bad, total in ((1, 99), (2, 100)):
        with pytest.raises(ValueError, match=f"{bad} of {total} images cannot be read"):
            check_bad(["a"] * bad, total, "own")


def test_cityscapes_fine_and_coarse(tmp_path: Path) -> None:
    raw = np.array([[0, *CITYSCAPES_LABEL_IDS, 33, 4, 29]], np.uint8).repeat(40, 0)
    for split, kind in (("train", "gtFine"), ("train_extra", "gtCoarse")):
        (tmp_path / "leftImg8bit" / split / "town").mkdir(parents=True)
        (tmp_path / kind / split / "town").mkdir(parents=True)
        frame = Image.new("RGB", raw.shape[::-1])
        frame.save(tmp_path / f"leftImg8bit/{split}/town/town_1_2_leftImg8bit.png")
        Image.fromarray(raw).save(tmp_path / f"{kind}/{split}/town/town_1_2_{kind}_labelIds.png")
    fine, coarse = open_data(tmp_path, "train"), open_data(tmp_path, "train_extra")
    for data in (fine, coarse):
        assert data[0][1][0].tolist() == [255, *range(19), 18, 255, 255]
    both = fine.joined(coarse)
    assert [p.mask.parts[-4] for p in both.pairs] == ["gtFine", "gtCoarse"]
    train_ids = np.array([[*range(19), 255, 255, 0, 1]], np.uint8).repeat(40, 0)
    Image.fromarray(train_ids).save(
        tmp_path / "gtFine/train/town/town_1_2_gtFine_labelTrainIds.png"
    )
    assert open_data(tmp_path, "train")[0][1][0].tolist() == [*range(19), 255, 255, 0, 1]
    coarse_too = tmp_path / "gtCoarse/train/town"  # as the real data set has
    coarse_too.mkdir(parents=True)
    Image.fromarray(raw).save(coarse_too / "town_1_2_gtCoarse_labelIds.png")
    assert open_data(tmp_path, "train").pairs[0].mask.parts[-4] == "gtFine"


def test_camvid_ignores_its_twelfth_value(tmp_path: Path) -> None:
    for name in ("train", "trainannot"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (12, 40)).save(tmp_path / "train/a.jpg")
    mask = np.arange(12, dtype=np.uint8)[None].repeat(40, 0)
    Image.fromarray(mask).save(tmp_path / "trainannot/a.png")
    assert open_data(tmp_path, "train")[0][1][0].tolist() == [*range(11), 255]


def test_image_folders_are_the_classes(tmp_path: Path) -> None:
    data = image_folders(write_image_folders(tmp_path / "in"), "train")
    assert data.names == ("blue", "green", "red")
    assert [label for _, label in data.files] == [0] * 4 + [1] * 4 + [2] * 4
    assert data[0][0].float().mean((1, 2)).argmax() == 2
    with pytest.raises(ValueError, match=r"test is missing"):
        image_folders(tmp_path / "in", "test")


# The order of samples


def test_every_epoch_is_another_permutation() -> None:
    steps = list(Order(10, 4, 3, seed=5))
    assert [len(s) for s in steps] == [4] * 6
    for epoch in range(3):
        indices = [i for step in steps[2 * epoch : 2 * epoch + 2] for e, i in step if e == epoch]
        assert len(set(indices)) == 8
    assert [i for _, i in steps[0]] != [i for _, i in steps[2]]
    assert steps == list(Order(10, 4, 3, seed=5))
    assert steps != list(Order(10, 4, 3, seed=6))


def test_an_order_continues_from_any_step_and_splits_by_process() -> None:
    whole = list(Order(10, 4, 3, seed=5))
    late = Order(10, 4, 3, seed=5)
    late.first_step = 3
    assert list(late) == whole[3:]
    parts = [list(Order(10, 4, 3, seed=5, rank=r, world=2)) for r in range(2)]
    for step, (a, b) in zip(whole, zip(*parts, strict=True), strict=True):
        assert sorted(a + b) == sorted(step)


def test_samples_depend_on_nothing_but_seed_epoch_and_index(root: Path) -> None:
    data = open_data(root, "train")
    augment = Augment((64, 96))

    def batches(workers: int, first_step: int) -> list[torch.Tensor]:
        order = Order(len(data), 4, 2, seed=1)
        order.first_step = first_step
        samples = Samples(lambda i, g: augment(*data[i], g), len(data), 1)
        return [b.images for b in samples.loader(order, workers, torch.device("cpu"))]

    alone, workers = batches(0, 0), batches(2, 0)
    assert all(torch.equal(a, b) for a, b in zip(alone, workers, strict=True))
    assert torch.equal(batches(0, 3)[0], alone[3])
    samples = Samples(lambda i, g: augment(*data[i], g), len(data), 1)
    assert torch.equal(samples[0, 3][0][0], samples[0, 3][0][0])
    assert not torch.equal(samples[0, 3][0][0], samples[1, 3][0][0])


def test_a_batch_may_hold_all_images() -> None:
    (only,) = Order(8, 8, 1, seed=1)
    assert sorted(only) == [(0, i) for i in range(8)]


def test_a_seed_follows_from_all_of_its_parts() -> None:
    seeds = [derive(1, 23), derive(12, 3), derive(123), derive(1, 2, 3), derive(3, 2, 1)]
    assert len(set(seeds)) == 5
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive(1, 23) == seeds[0]


def test_an_unreadable_last_image_gives_way_to_the_first() -> None:
    def make(index: int, _: torch.Generator) -> int:
        if index == 4:
            raise ImageError("4.png: cut short")
        assert 0 <= index < 4
        return index

    samples = Samples(make, 5, seed=0)
    assert samples[0, 4] == (0, ["4.png: cut short"], "")
    assert samples[0, 3] == (3, [], "")


def test_ahead_keeps_the_order() -> None:
    assert list(ahead(lambda i: i * i, range(20), 3)) == [i * i for i in range(20)]
    assert list(ahead(lambda i: i * i, range(20), 0)) == [i * i for i in range(20)]
