"""Segmentation data on disk: Cityscapes, CamVid, and any folder of images with index masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fastscnn.classes import CAMVID, CITYSCAPES, CITYSCAPES_LABEL_IDS, IGNORE, Classes
from fastscnn.frames import IMAGE_SUFFIXES, read_image


@dataclass
class SegmentationData(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of image and mask. Item: (uint8 3 x H x W, uint8 H x W with 255 = ignore).

    `table` maps the 256 values of a mask file to class indices or 255; None marks values that
    must not occur (reading one raises ValueError with the file's name).
    """

    name: str
    classes: Classes
    images: list[Path]
    masks: list[Path]
    table: np.ndarray = field(repr=False)
    allowed: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = read_image(self.images[index])
        mask = self.read_mask(index)
        if image.shape[:2] != mask.shape:
            h, w = mask.shape
            raise ValueError(
                f"{self.masks[index]} is {w}x{h} but {self.images[index].name} is "
                f"{image.shape[1]}x{image.shape[0]}: image and mask must have the same size"
            )
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)

    def read_mask(self, index: int) -> np.ndarray:
        """Class indices H x W, uint8."""
        path = self.masks[index]
        try:
            with Image.open(path) as im:
                if im.mode not in ("L", "P", "1", "I", "I;16"):
                    raise ValueError(
                        f"{path} is {im.mode}: expected a single-channel mask of class indices; "
                        "convert colours to indices first"
                    )
                raw = np.array(im)
        except OSError as e:
            raise ValueError(f"{path} cannot be read as a mask: {e}") from None
        if raw.max(initial=0) > 255:
            raise ValueError(f"{path} has value {raw.max()}: expected class indices up to 255")
        raw = raw.astype(np.uint8)
        if not self.allowed[raw].all():
            bad = sorted({int(v) for v in np.unique(raw) if not self.allowed[v]})
            raise ValueError(
                f"{path} has values {bad[:8]}: expected class indices below {len(self.classes)} "
                "or 255 (ignore)"
            )
        return self.table[raw]


def _tables(pairs: dict[int, int], others: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Mask value table and the values that may occur; `others` maps the rest, None forbids it."""
    table = np.full(256, IGNORE, np.uint8)
    allowed = np.full(256, others is not None)
    for value, index in {**pairs, IGNORE: IGNORE}.items():
        table[value] = index
        allowed[value] = True
    return table, allowed


def camvid(root: Path, split: str) -> SegmentationData:
    """CamVid, 11 classes: <root>/<split>/*.jpg|png with <root>/<split>annot/*.png."""
    images, masks = _pair(root / split, root / f"{split}annot", "", "")
    pairs = {i: i for i in range(len(CAMVID))} | {len(CAMVID): IGNORE}
    return SegmentationData("camvid", CAMVID, images, masks, *_tables(pairs, None))


def cityscapes(root: Path, split: str, *, coarse: bool = False) -> SegmentationData:
    """Cityscapes, 19 classes: <root>/leftImg8bit/<split>/<city>, gtFine (or gtCoarse) beside it.

    Uses *_labelTrainIds.png where they exist, else *_labelIds.png.
    """
    kind = "gtCoarse" if coarse else "gtFine"
    image_dir, label_dir = root / "leftImg8bit" / split, root / kind / split
    train_ids = any(label_dir.glob("*/*_labelTrainIds.png"))
    suffix = f"_{kind}_label{'TrainIds' if train_ids else 'Ids'}"
    images, masks = _pair(image_dir, label_dir, "_leftImg8bit", suffix, pattern="*/*")
    values = range(19) if train_ids else CITYSCAPES_LABEL_IDS
    tables = _tables({v: i for i, v in enumerate(values)}, IGNORE)
    return SegmentationData("cityscapes", CITYSCAPES, images, masks, *tables)


def folder(root: Path, split: str) -> SegmentationData:
    """Own data: <root>/classes.json, <root>/<split>/images/*, <root>/<split>/masks/*.png.

    A mask has its image's name and holds class indices; 255 is ignored.
    """
    classes = Classes.read(root / "classes.json")
    images, masks = _pair(root / split / "images", root / split / "masks", "", "")
    tables = _tables({i: i for i in range(len(classes))}, None)
    return SegmentationData(root.name, classes, images, masks, *tables)


def open_data(root: str | Path, split: str) -> SegmentationData:
    """The data set below `root`, its kind recognised by its folders."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"data {root}: no such folder")
    if (root / "leftImg8bit").is_dir():
        return cityscapes(root, split)
    if (root / f"{split}annot").is_dir():
        return camvid(root, split)
    if (root / "classes.json").is_file():
        return folder(root, split)
    raise ValueError(
        f"data {root}, split {split!r}: expected Cityscapes (leftImg8bit/), CamVid "
        f"({split}/ and {split}annot/) or a folder with classes.json and {split}/images, "
        f"{split}/masks"
    )


def _pair(
    image_dir: Path, mask_dir: Path, image_suffix: str, mask_suffix: str, pattern: str = "*"
) -> tuple[list[Path], list[Path]]:
    """Images and their masks by name; raises ValueError for an empty folder or a missing mask."""
    for d in (image_dir, mask_dir):
        if not d.is_dir():
            raise ValueError(f"data: folder {d} is missing")
    images = sorted(p for p in image_dir.glob(pattern) if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise ValueError(f"data: no images in {image_dir}")
    masks = []
    for image in images:
        stem = image.stem.removesuffix(image_suffix) + mask_suffix
        mask = mask_dir / image.relative_to(image_dir).parent / f"{stem}.png"
        if not mask.is_file():
            raise ValueError(f"data: image {image} has no mask {mask}")
        masks.append(mask)
    return images, masks


def class_shares(data: SegmentationData, indices: Sequence[int] | None = None) -> np.ndarray:
    """Share of the labelled pixels per class, from the masks (all, or those at `indices`)."""
    counts = np.zeros(256, np.int64)
    for i in range(len(data)) if indices is None else indices:
        counts += np.bincount(data.read_mask(i).ravel(), minlength=256)
    labelled = counts[: len(data.classes)]
    return labelled / max(1, labelled.sum())
