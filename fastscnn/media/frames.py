"""Image files and PIL images to uint8 RGB frames."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif", ".avif")
}


class ImageError(ValueError):
    """A file that is not a readable image; the message names the file and the reason."""


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB H x W x 3, EXIF rotation applied.

    Grayscale, palette, RGBA (alpha dropped), CMYK and 16-bit files are converted; of several frames
    (GIF, AVIF) it is the first. Raises ImageError
    for a file that cannot be read, and for floating-point pixels, which have no known white.
    """
    return read_image_noted(path)[0]


def read_image_noted(path: Path) -> tuple[np.ndarray, str | None]:
    """`read_image` and a note on the conversion that was needed, or None."""
    try:
        with Image.open(path) as im:
            im.load()
            mode = im.mode
            rgb = to_rgb(ImageOps.exif_transpose(im))
    except UnidentifiedImageError:
        reason = "it is empty" if path.stat().st_size == 0 else "not an image format known here"
        kinds = "JPEG, PNG, BMP, WebP, TIFF, GIF or AVIF (Pillow 11.3 or newer)"
        raise ImageError(f"{path}: {reason}; expected a {kinds}") from None
    except Image.DecompressionBombError as e:
        raise ImageError(f"{path}: {e}") from None
    except (OSError, SyntaxError, ValueError) as e:
        raise ImageError(f"{path}: cannot be read as an image ({e})") from None
    return np.array(rgb), None if mode == "RGB" else f"{mode} converted to RGB"


def to_rgb(im: Image.Image) -> Image.Image:
    """A PIL image of any mode as RGB; ValueError for pixels that have no known white."""
    if im.mode == "F":
        _refuse_range(im, "floating-point pixels")
    if im.mode.startswith("I;16") or im.mode == "I":  # Pillow's own convert would clip at 255
        deep = np.asarray(im)
        if deep.min() < 0 or deep.max() > 65535:
            _refuse_range(im, "pixels")
        return Image.fromarray((deep.astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return im if im.mode == "RGB" else im.convert("RGB")


def _refuse_range(im: Image.Image, what: str) -> NoReturn:
    """Only 8 and 16 bits say which value is white."""
    low, high = im.getextrema()
    raise ValueError(f"{what} from {low:g} to {high:g}: save it with 8 or 16 bits a channel")
