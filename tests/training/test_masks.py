"""Masks as people really have them: nothing that a class could vanish by goes unsaid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_data import COLORS, draw_pair, tiny, trainer, write_folder

from fastscnn.classes import IGNORE
from fastscnn.training.data import check_classes, open_data, scan

BLACK, WHITE, GREY = [0, 0, 0], [255, 255, 255], [128, 128, 128]


def write_masks(root: Path, files: list[Image.Image], **classes: object) -> Path:
    """Own data whose training and validation masks are `files`; `classes` is classes.json."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i, mask in enumerate(files):
            Image.new("RGB", mask.size).save(root / split / "images" / f"{i}.png")
            mask.save(root / split / "masks" / f"{i}.png")
    (root / "classes.json").write_text(json.dumps(classes))
    return root


def box(low: int, high: int, mode: str = "L") -> Image.Image:
    """16 rows of `low` above 16 rows of `high`, 32 x 32."""
    values = np.full((32, 32), low, np.uint8)
    values[16:] = high
    return Image.fromarray(values).convert(mode)


def counts(root: Path) -> list[int]:
    found: list[int] = scan(open_data(root, "train")).counts.tolist()
    return found


def test_black_and_white_grey_masks_must_be_explained(tmp_path: Path) -> None:
    """What most annotation tools write: 255 is the second class's colour, or ignored."""
    both = {"classes": ["ground", "object"], "colors": [BLACK, WHITE]}
    masks = [box(0, 0), box(0, 255)]
    root = write_masks(tmp_path / "a", masks, **both)
    with pytest.raises(ValueError, match=r"value 255 is ignored as a class index but class 'obj"):
        open_data(root, "train")
    with pytest.raises(ValueError, match='write "masks": "indices" or "masks": "colors"'):
        open_data(root, "val")
    assert counts(write_masks(tmp_path / "b", masks, **both, masks="colors")) == [1536, 512]
    assert counts(write_masks(tmp_path / "c", masks, **both, masks="indices")) == [1536, 0]


@pytest.mark.parametrize("mode", ["RGB", "1"])
def test_black_and_white_masks_of_another_kind_need_no_word(tmp_path: Path, mode: str) -> None:
    root = write_masks(tmp_path, [box(0, 255, mode)], classes=["a", "b"], colors=[BLACK, WHITE])
    assert counts(root) == [512, 512]


def test_one_bit_masks_are_black_and_white(tmp_path: Path) -> None:
    """Their values 0 and 1 are classes, or the classes of those colours in another order."""
    about = {"classes": ["a", "b"], "colors": [WHITE, BLACK]}
    masks = [box(0, 255, "1")]
    with pytest.raises(ValueError, match=r"value 0 is class 'a' as a class index but class 'b'"):
        open_data(write_masks(tmp_path / "unsaid", masks, **about), "train")
    for said, rows in (("indices", [0, 1]), ("colors", [1, 0])):
        root = write_masks(tmp_path / said, masks, **about, masks=said)
        assert open_data(root, "train")[0][1][[0, 31], 0].tolist() == rows


def test_a_value_that_is_no_index_decides_for_all_masks_of_all_splits(tmp_path: Path) -> None:
    about = {"classes": ["a", "b", "c"], "colors": [WHITE, BLACK, GREY]}
    root = write_masks(tmp_path, [box(0, 255), box(255, 255)], **about)
    box(128, 0).save(root / "val/masks/1.png")
    assert counts(root) == [1536, 512, 0]  # 255 is the white class, not ignored


def test_a_value_that_is_no_colour_makes_all_masks_indices(tmp_path: Path) -> None:
    about = {"classes": ["a", "b"], "colors": [BLACK, WHITE]}
    root = write_masks(tmp_path, [box(0, 255), box(0, 1)], **about)
    assert counts(root) == [1024, 512]


def test_a_palette_in_another_order_must_be_explained(tmp_path: Path) -> None:
    """An image editor orders a palette as it likes; the colours are the classes' all the same."""
    mask = box(0, 1, "L").convert("P")
    mask.putpalette([*COLORS[1], *COLORS[0]])
    about = {"classes": ["a", "b"], "colors": COLORS[:2]}
    with pytest.raises(ValueError, match=r"value 0 is class 'a' as a class index but class 'b'"):
        open_data(write_masks(tmp_path / "a", [mask], **about), "train")
    root = write_masks(tmp_path / "b", [mask], **about, masks="colors")
    mask = open_data(root, "train")[0][1]
    assert (mask[:16] == 1).all()
    assert (mask[16:] == 0).all()


def test_a_palette_of_other_colours_holds_indices(tmp_path: Path) -> None:
    """Such as PASCAL's, which labelling tools put into every mask."""
    mask = box(0, 2).convert("P")
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    root = write_masks(tmp_path, [mask], classes=["a", "b", "c"], colors=COLORS)
    assert counts(root) == [512, 0, 512]


def test_an_rgb_mask_says_which_colours_are_unknown(tmp_path: Path) -> None:
    """Also one above all that are known, and one that differs in blue or green alone."""
    colors = [[0, 0, 10], [0, 0, 200], [0, 7, 10]]
    about = {"classes": ["a", "b", "c"], "colors": colors, "ignore_colors": [[9, 9, 9]]}
    picture = np.array([*colors, [9, 9, 9]], np.uint8)[:, None].repeat(32, 0).repeat(128, 1)
    root = write_masks(tmp_path / "known", [Image.fromarray(picture)], **about)
    data = open_data(root, "train")
    assert data[0][1][::32, 0].tolist() == [0, 1, 2, IGNORE]
    assert counts(root) == [4096] * 3
    for i, color in enumerate(([255, 255, 255], [0, 0, 0], [0, 0, 11], [0, 8, 10], [1, 0, 10])):
        picture[5, 5] = color
        root = write_masks(tmp_path / str(i), [Image.fromarray(picture)], **about)
        with pytest.raises(ValueError, match="has colours #{:02x}{:02x}{:02x} that".format(*color)):
            counts(root)


def test_indices_in_the_red_channel(tmp_path: Path) -> None:
    """A driving simulator's masks: RGB, the class in red, nothing in green and blue."""
    red = Image.merge("RGB", [box(0, 2), box(0, 0), box(0, 0)])
    about = {"classes": ["a", "b", "c"], "colors": COLORS}
    root = write_masks(tmp_path / "a", [red], **about)
    with pytest.raises(ValueError, match=r'red channel looks like .* write "masks": "indices"'):
        counts(root)
    root = write_masks(tmp_path / "b", [red, box(0, 2).convert("RGB")], **about, masks="indices")
    assert counts(root) == [1024, 0, 1024]
    Image.fromarray(np.array(COLORS, np.uint8)[np.array(box(0, 2))]).save(
        root / "train/masks/0.png"
    )
    with pytest.raises(ValueError, match=r'RGB mask with colours, but .* "masks": "indices"'):
        counts(root)


def test_a_wrong_word_for_the_masks_is_refused(tmp_path: Path) -> None:
    root = write_masks(tmp_path, [box(0, 1)], classes=["a", "b"], masks="gray")
    with pytest.raises(ValueError, match='"masks" is \'gray\': expected "indices" or "colors"'):
        open_data(root, "train")


def test_jpeg_masks_are_refused_as_lossy(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    mask = root / "train/masks/001.png"
    image = Image.open(mask).copy()
    image.save(mask, "JPEG")  # a JPEG that is named .png
    with pytest.raises(ValueError, match=r"001\.png is a JPEG, .*losslessly, as PNG"):
        scan(open_data(root, "train"))
    mask.unlink()
    image.save(mask.with_suffix(".jpg"))
    with pytest.raises(ValueError, match=r"001\.jpg is no PNG: export the masks losslessly"):
        open_data(root, "train")


def test_one_class_alone_is_no_training(tmp_path: Path) -> None:
    """Grey 0 and 255 without colours: the second class has no pixel, whatever the ignored share."""
    masks = np.zeros((32, 32), np.uint8)
    masks[:2] = IGNORE
    root = write_masks(tmp_path, [Image.fromarray(masks)], classes=["ground", "object"])
    with pytest.raises(ValueError, match=r"no training pixel is object, while 6.25 % .* ignored"):
        trainer(tiny(batch=2), root, tmp_path / "run")


def test_a_class_that_hides_behind_ignored_pixels_is_an_error(tmp_path: Path) -> None:
    masks = [draw_pair(np.random.default_rng(i), 64, 96)[1] for i in range(4)]
    about = {"classes": ["ground", "band", "box"]}

    def check(root: Path) -> None:
        data = open_data(root, "train")
        check_classes(data, scan(data))

    some = [np.where(m == 2, IGNORE, m).astype(np.uint8) for m in masks]
    check(write_masks(tmp_path / "few", [Image.fromarray(m) for m in some], **about))
    many = [np.where(np.arange(64)[:, None] < 24, np.uint8(IGNORE), m) for m in some]
    pictures = [Image.fromarray(m) for m in many]
    with pytest.raises(ValueError, match="no training pixel is box, while"):
        check(write_masks(tmp_path / "many", pictures, **about))
    check(write_masks(tmp_path / "said", pictures, **about, masks="indices"))
