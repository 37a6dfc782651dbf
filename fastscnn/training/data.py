"""Data on disk: Cityscapes, CamVid, any folder of images with masks, folders of images by class."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fastscnn.classes import CAMVID, CITYSCAPES, CITYSCAPES_LABEL_IDS, IGNORE, Classes
from fastscnn.media.frames import IMAGE_SUFFIXES, ImageError, read_image
from fastscnn.training.masks import LOSSLESS, MaskFormat, decide_reading

_T = TypeVar("_T")

#: Largest share of a data set's files that may be unreadable.
BAD_SHARE = 0.01


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file."""

    image: Path
    mask: Path
    format: MaskFormat

    def read(self) -> tuple[Tensor, Tensor]:
        """uint8 image 3 x H x W (stored channels last) and uint8 mask H x W, 255 = ignore."""
        image, mask = read_image(self.image), self.format.read(self.mask)
        self._check_size(image.shape[:2], mask.shape)
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)

    def check(self) -> np.ndarray:
        """The mask, after its size was compared with that in the image's header."""
        mask = self.format.read(self.mask)
        try:
            with Image.open(self.image) as im:
                turned = "exif" in im.info and im.getexif().get(0x0112, 1) >= 5
                w, h = im.size[::-1] if turned else im.size
        except (OSError, SyntaxError) as error:
            raise ImageError(f"{self.image}: cannot be read as an image ({error})") from None
        self._check_size((h, w), mask.shape)
        return mask

    def _check_size(self, image: Sequence[int], mask: Sequence[int]) -> None:
        if tuple(image) != tuple(mask):
            raise ValueError(
                f"{self.mask} is {mask[1]}x{mask[0]} but {self.image.name} is "
                f"{image[1]}x{image[0]}: image and mask must have the same size"
            )


@dataclass
class SegmentationData(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of image and mask. Item: (uint8 3 x H x W, uint8 H x W with 255 = ignore)."""

    name: str
    classes: Classes
    pairs: list[Pair] = field(repr=False)
    #: What a person should know about these files.
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pairs[index].read()

    def limited(self, count: int) -> SegmentationData:
        """That many of the pairs, evenly spread; all of them for 0."""
        return replace(self, pairs=_spread(self.pairs, count))

    def sequences(self, pattern: str) -> dict[str, list[int]]:
        """Indices of the images by sequence: what `pattern` matches where their names begin.

        A name that it does not match raises ValueError.
        """
        found: dict[str, list[int]] = {}
        for index, pair in enumerate(self.pairs):
            match = re.match(pattern, pair.image.name)
            if not match:
                raise ValueError(
                    f"data {self.name}: sequence {pattern!r} does not match the name "
                    f"{pair.image.name}; give a regular expression of what names a sequence"
                )
            found.setdefault(match[0], []).append(index)
        return dict(sorted(found.items()))

    def divided(self, names: Sequence[str], pattern: str) -> tuple[SegmentationData, ...]:
        """Two data sets: without the sequences of these names, and of these alone.

        Raises ValueError naming the sequences where one is not there.
        """
        found = self.sequences(pattern)
        listed = ", ".join(f"{n} ({len(i)})" for n, i in list(found.items())[:20])
        for name in names:
            if name not in found:
                raise ValueError(f"data {self.name}: no sequence {name!r}; there are {listed}")
        held = {i for name in names for i in found[name]}
        parts = ([p for i, p in enumerate(self.pairs) if (i in held) == x] for x in (False, True))
        return tuple(replace(self, pairs=pairs) for pairs in parts)

    def joined(self, other: SegmentationData) -> SegmentationData:
        """The pairs of both, under this one's name."""
        return replace(self, pairs=self.pairs + other.pairs, notes=self.notes + other.notes)


@dataclass(frozen=True)
class Scan:
    """What all masks of a data set hold together."""

    #: Pixels per class, and pixels without one.
    counts: np.ndarray
    ignored: int
    #: Images by (height, width).
    sizes: Counter[tuple[int, int]]
    bad: list[str]

    @property
    def shares(self) -> np.ndarray:
        """Share of the labelled pixels per class."""
        return self.counts / max(1, int(self.counts.sum()))


def scan(data: SegmentationData, workers: int = 0) -> Scan:
    """Reads all masks and all image headers; a pair that does not fit raises ValueError.

    Unreadable files are listed, and refused where they are over 1 % of the data.
    """

    def look(pair: Pair) -> tuple[np.ndarray, tuple[int, int]] | str:
        try:
            mask = pair.check()
        except ImageError as error:
            return str(error)
        return np.bincount(mask.ravel(), minlength=256), (mask.shape[0], mask.shape[1])

    counts = np.zeros(256, np.int64)
    sizes: Counter[tuple[int, int]] = Counter()
    bad = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for seen in pool.map(look, data.pairs):
            if isinstance(seen, str):
                bad.append(seen)
                continue
            counts += seen[0]
            sizes[seen[1]] += 1
    check_bad(bad, len(data), data.name)
    n = len(data.classes)
    if not counts[:n].any():
        raise ValueError(f"data {data.name}: no pixel of {len(data)} masks has a class")
    return Scan(counts[:n], int(counts[n:].sum()), sizes, bad)


def check_classes(data: SegmentationData, seen: Scan) -> None:
    """Raises ValueError where masks that nobody explained seem to hide a class from training.

    That is: one class alone has pixels, or some class has none while a third of all is ignored.
    """
    absent = [n for n, c in zip(data.classes.names, seen.counts, strict=True) if not c]
    ignored = seen.ignored / max(1, seen.ignored + int(seen.counts.sum()))
    alone = len(absent) == len(data.classes) - 1 > 0
    if absent and (alone or ignored >= 1 / 3) and any(p.format.guessed for p in data.pairs):
        raise ValueError(
            f"data {data.name}: no training pixel is {', '.join(absent)}, while "
            f"{100 * ignored:.3g} % of the pixels are ignored; mend the masks or the colours in "
            'classes.json, or, if that is right, write "masks": "indices" (or "colors") there'
        )


def check_bad(bad: Sequence[str], total: int, name: str) -> None:
    """Raises ValueError where more than 1 % of the files are unreadable."""
    if len(bad) > BAD_SHARE * total:
        raise ValueError(
            f"data {name}: {len(bad)} of {total} images cannot be read, more than 1 %; "
            f"mend or remove them; first: {bad[0]}"
        )


def class_shares(data: SegmentationData, indices: Sequence[int] | None = None) -> np.ndarray:
    """Share of the labelled pixels per class, from the masks (all, or those at `indices`)."""
    chosen = data if indices is None else replace(data, pairs=[data.pairs[i] for i in indices])
    return scan(chosen).shares


def camvid(root: Path, split: str) -> SegmentationData:
    """CamVid, 11 classes: <root>/<split>/*.jpg|png with <root>/<split>annot/*.png."""
    values = {i: i for i in range(len(CAMVID))} | {len(CAMVID): IGNORE}
    masks = MaskFormat(CAMVID, values, ignored_colors=[(0, 0, 0)])
    pairs, notes = _pair(root / split, root / f"{split}annot", masks)
    return SegmentationData("camvid", CAMVID, pairs, notes)


def cityscapes(root: Path, split: str, *, coarse: bool = False) -> SegmentationData:
    """Cityscapes, 19 classes: <root>/leftImg8bit/<split>/<city>, gtFine (or gtCoarse) beside it.

    Uses *_labelTrainIds.png where they exist, else *_labelIds.png.
    """
    kind = "gtCoarse" if coarse else "gtFine"
    image_dir, label_dir = root / "leftImg8bit" / split, root / kind / split
    train_ids = any(label_dir.glob("*/*_labelTrainIds.png"))
    suffix = f"_{kind}_label{'TrainIds' if train_ids else 'Ids'}"
    values = range(19) if train_ids else CITYSCAPES_LABEL_IDS
    masks = MaskFormat(CITYSCAPES, {v: i for i, v in enumerate(values)}, others=IGNORE)
    pairs, notes = _pair(image_dir, label_dir, masks, "_leftImg8bit", suffix, pattern="*/*")
    return SegmentationData("cityscapes", CITYSCAPES, pairs, notes)


def folder(root: Path, split: str) -> SegmentationData:
    """Own data: <root>/classes.json, <root>/<split>/images/*, <root>/<split>/masks/*.png.

    A mask has its image's name and holds class indices (255 is ignored) or the classes' colours.
    "ignore_colors" in classes.json lists colours without a class; "masks" says "indices" or
    "colors" where the masks of all splits together do not tell.
    """
    file = root / "classes.json"
    classes = Classes.read(file)
    about = json.loads(file.read_text("utf-8"))
    colors = [(int(r), int(g), int(b)) for r, g, b in about.get("ignore_colors", [])]
    said = about.get("masks", "")
    if said not in ("", "indices", "colors"):
        raise ValueError(f'{file}: "masks" is {said!r}: expected "indices" or "colors"')
    masks = MaskFormat(classes, {i: i for i in range(len(classes))}, None, colors, said)
    if not said:
        read = decide_reading(sorted(root.glob("*/masks/*.png")), masks)
        masks = replace(masks, reading=read if read == "colors" else "", guessed=True)
    pairs, notes = _pair(root / split / "images", root / split / "masks", masks)
    return SegmentationData(root.resolve().name, classes, pairs, notes)


def open_data(root: str | Path, split: str) -> SegmentationData:
    """The data set below `root`, its kind recognised by its folders.

    A split of Cityscapes that has coarse labels only, such as "train_extra", is read with those.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"data {root}: no such folder")
    if (root / "leftImg8bit").is_dir():
        fine, rough = root / "gtFine" / split, root / "gtCoarse" / split
        return cityscapes(root, split, coarse=rough.is_dir() and not fine.is_dir())
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
    image_dir: Path,
    mask_dir: Path,
    masks: MaskFormat,
    image_suffix: str = "",
    mask_suffix: str = "",
    pattern: str = "*",
) -> tuple[list[Pair], list[str]]:
    """Images with their masks by name, and notes; a missing folder or mask raises ValueError."""
    for d in (image_dir, mask_dir):
        if not d.is_dir():
            raise ValueError(f"data: folder {d} is missing")
    images = sorted(p for p in image_dir.glob(pattern) if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise ValueError(f"data: no images in {image_dir}")
    pairs = []
    for image in images:
        stem = image.stem.removesuffix(image_suffix) + mask_suffix
        mask = mask_dir / image.relative_to(image_dir).parent / f"{stem}.png"
        if not mask.is_file():
            others = [p.name for p in mask.parent.glob(f"{stem}.*")]
            hint = f" ({others[0]} is no PNG: {LOSSLESS})" if others else ""
            raise ValueError(f"data: image {image} has no mask {mask}{hint}")
        pairs.append(Pair(image, mask, masks))
    used = {p.mask for p in pairs}
    if len(used) < len(pairs):
        names = [p.mask for p in pairs]
        twice = next(p for p in pairs if names.count(p.mask) > 1)
        raise ValueError(f"data: two images in {image_dir} share the mask {twice.mask}")
    left = sorted(p for p in mask_dir.glob(f"{pattern}{mask_suffix}.png") if p not in used)
    return pairs, [f"{len(left)} masks have no image, such as {left[0]}"] if left else []


@dataclass
class ImageFolders(Dataset[tuple[Tensor, int]]):
    """Images by class, <root>/<split>/<class>/*. Item: (uint8 3 x H x W, class index)."""

    name: str
    names: tuple[str, ...]
    files: list[tuple[Path, int]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return torch.from_numpy(read_image(path)).permute(2, 0, 1), label

    def limited(self, count: int) -> ImageFolders:
        """That many of the images, evenly spread; all of them for 0."""
        return replace(self, files=_spread(self.files, count))


def image_folders(root: str | Path, split: str) -> ImageFolders:
    """ImageNet's layout: one folder per class below <root>/<split>."""
    base = Path(root) / split
    if not base.is_dir():
        raise ValueError(f"data: folder {base} is missing; expected {base}/<class>/*.jpg")
    names = sorted(p.name for p in base.iterdir() if p.is_dir())
    files = []
    for label, name in enumerate(names):
        found = sorted(p for p in (base / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise ValueError(f"data: no images in {base / name}")
        files += [(p, label) for p in found]
    if len(names) < 2:
        raise ValueError(f"data: {base} has {len(names)} class folders; expected two or more")
    return ImageFolders(Path(root).resolve().name, tuple(names), files)


def _spread(items: list[_T], count: int) -> list[_T]:
    if not 0 < count < len(items):
        return items
    return [items[i * len(items) // count] for i in range(count)]
