"""Image files and PIL images to uint8 RGB frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif", ".avif")
}


class ImageError(ValueError):
    """A file that is not a readable image; the message names the file and the reason."""


class UnknownFormat(ImageError):
    """Not an image, or in a format that is not read here."""


class TooManyPixels(ImageError):
    """More pixels than asked for, or than Pillow deems safe."""


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
        return decode_image(path, str(path))
    except UnknownFormat:
        reason = "it is empty" if path.stat().st_size == 0 else "not an image format known here"
        kinds = "JPEG, PNG, BMP, WebP, TIFF, GIF or AVIF (Pillow 11.3 or newer)"
        raise ImageError(f"{path}: {reason}; expected a {kinds}") from None


def decode_image(
    source: Path | BinaryIO,
    name: str,
    *,
    formats: Sequence[str] | None = None,
    max_pixels: int | None = None,
) -> tuple[np.ndarray, str | None]:
    """As `read_image_noted`, from a file or what acts like one; `name` stands in the messages.

    Only `formats` (Pillow's names) are tried. A picture of more than `max_pixels` is refused by its
    header, before any pixel is decoded. Raises ImageError.
    """
    try:
        with Image.open(source, formats=None if formats is None else list(formats)) as im:
            if max_pixels is not None and im.width * im.height > max_pixels:
                raise TooManyPixels(
                    f"{name}: {im.height}x{im.width} pixels; expected at most "
                    f"{max_pixels / 1e6:g} million: scale it down"
                )
            im.load()
            mode = im.mode
            rgb = to_rgb(ImageOps.exif_transpose(im))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise UnknownFormat(f"{name}: not an image format known here") from None
    except Image.DecompressionBombError:  # at twice the size that Pillow warns of
        most = max_pixels or 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise TooManyPixels(
            f"{name}: too many pixels; expected at most {most / 1e6:.0f} million: scale it down"
        ) from None
    except (OSError, SyntaxError, ValueError) as e:
        raise ImageError(f"{name}: cannot be read as an image ({e})") from None
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
