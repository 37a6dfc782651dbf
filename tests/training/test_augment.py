"""Augmentation by value: where crops lie, how they are resized and coloured, image with mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from training_data import draw_pair

from fastscnn.classes import IGNORE
from fastscnn.training.augment import (
    Augment,
    WindowAugment,
    center_crop,
    normalize,
    smooth_resize,
    uniform,
)

# The drawn images' colours say the class, so image and mask must stay together.


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0), (0.5, 2.0)], ids=str)
def test_image_and_mask_move_together(scale: tuple[float, float]) -> None:
    rng = np.random.default_rng(1)
    for seed in range(6):
        image, mask = draw_pair(rng, 97, 131)
        generator = torch.Generator().manual_seed(seed)
        augment = Augment((64, 80), scale)
        x, y, _ = augment(
            torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask), generator
        )
        assert x.shape == (3, 64, 80)
        assert x.dtype == y.dtype == torch.uint8
        outside = y == IGNORE
        assert bool((x[:, outside] == 127).all())
        if scale == (0.5, 0.5):
            assert float(outside.float().mean()) == pytest.approx(1 - 48 * 66 / 64 / 80, abs=0.03)
        same = x.argmax(0) == y
        assert float(same[~outside].float().mean()) > 0.97  # but for mixed pixels at the borders


def places(image: Tensor, augment: Augment, count: int = 60) -> Tensor:
    """Crops of many seeds, N x 3 x h x w."""
    mask = torch.zeros(image.shape[1:], dtype=torch.uint8)
    seeds = (torch.Generator().manual_seed(s) for s in range(count))
    return torch.stack([augment(image, mask, seed)[0] for seed in seeds])


def test_every_part_of_the_image_is_cropped_and_half_are_flipped() -> None:
    """Red counts the columns, green the rows: the crop says where it lies and which way round."""
    columns = torch.arange(60, dtype=torch.uint8).expand(40, 60)
    rows = torch.arange(40, dtype=torch.uint8)[:, None].expand(40, 60)
    image = torch.stack([columns, rows, rows])
    crops = places(image, Augment((32, 32), (1.0, 1.0), flip=False), 200).int()
    assert set(crops[:, 0, 0, 0].tolist()) == {*range(29)}
    assert set(crops[:, 1, 0, 0].tolist()) == {*range(9)}
    assert len(set(map(tuple, crops[:, :2, 0, 0].tolist()))) > 80  # each by itself
    assert bool((crops[:, 0, :, 1:] - crops[:, 0, :, :-1] == 1).all())
    flipped = places(image, Augment((32, 32), (1.0, 1.0)), 200).int()
    ways = flipped[:, 0, 0, 1] - flipped[:, 0, 0, 0]
    assert set(ways.tolist()) == {1, -1}
    assert 75 <= int((ways == 1).sum()) <= 125


def test_the_scale_is_uniform_in_its_logarithm() -> None:
    """By the share of a large crop that a small image fills; half of the scales are below 1."""
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    crops = places(image, Augment((64, 64), (0.5, 2.0)), 300)
    sides = (crops[:, 0] == 255).any(2).sum(1)  # rows that the image covers
    scales = (sides.double() / 32).log2()
    assert sides.min() <= 17
    assert sides.max() >= 62
    assert abs(float(scales.mean())) < 0.1
    assert 120 <= int((sides < 32).sum()) <= 180


def test_a_small_image_lies_anywhere_in_the_crop() -> None:
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    crops = places(image, Augment((48, 40), (1.0, 1.0)), 200)
    assert set((crops[:, 0] == 255).any(2).int().argmax(1).tolist()) == {*range(17)}
    assert set((crops[:, 0] == 255).any(1).int().argmax(1).tolist()) == {*range(9)}


def test_colour_factors_go_both_ways() -> None:
    """Brightness changes all channels alike, noise each by itself; both about 1."""
    generators = [torch.Generator().manual_seed(s) for s in range(400)]
    for brightness, noise, together in ((0.3, 0.0, True), (0.0, 0.1, False)):
        augment = Augment((32, 32), brightness=brightness, channel_noise=noise)
        factors = torch.stack([augment.factors(uniform(g), g) for g in generators])
        most = brightness + noise
        assert torch.allclose(factors.mean(0), torch.ones(3), atol=0.1 * most)
        assert bool((factors.amin(0) < 1 - 0.95 * most).all())
        assert bool((factors.amin(0) >= 1 - most).all())
        assert bool((factors.amax(0) > 1 + 0.95 * most).all())
        assert bool((factors.amax(0) <= 1 + most).all())
        assert torch.allclose(factors[:, :1].expand(-1, 3), factors) is together


def noise(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(24, 20), (96, 140), (31, 90)], ids=str)
def test_resizing_is_pillows(size: tuple[int, int]) -> None:
    """Bilinear, with the wider filter that keeps a smaller picture from aliasing."""
    image = noise(48, 70)
    theirs = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    ours = smooth_resize(tensor(image), size)
    assert (ours.int() - tensor(np.array(theirs)).int()).abs().max() <= 1


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_masks_are_resized_by_their_nearest_pixel(scale: float) -> None:
    """As Pillow: the pixel whose middle is nearest, so that mask and image stay together."""
    side = round(48 * scale)
    mask = noise(48, 48)[..., 0] % 19
    theirs = np.array(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))
    augment = Augment((side, side), (scale, scale), flip=False)
    image, generator = tensor(noise(48, 48)), torch.Generator().manual_seed(0)
    assert np.array_equal(augment(image, torch.from_numpy(mask), generator)[1].numpy(), theirs)


def test_normalize_applies_the_factors_first() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    factors = torch.tensor([[1.0, 0.5, 2.0], [1.2, 1.0, 0.9]])
    x = normalize(images, factors, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    for c, (mean, std) in enumerate(zip((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), strict=True)):
        colored = (images[:, c].double() * factors[:, c, None, None]).clamp(0, 255)
        assert torch.allclose(x[:, c].double(), (colored / 255 - mean) / std, atol=1e-5)


def test_the_middle_crop_is_seven_eighths_of_the_short_side() -> None:
    image = noise(80, 70)
    resized = Image.fromarray(image).resize((64, 73), Image.Resampling.BILINEAR)
    theirs = tensor(np.array(resized.crop((4, 8, 60, 64))))
    assert (center_crop(tensor(image), (56, 56)).int() - theirs.int()).abs().max() <= 1
    wide = torch.arange(200, dtype=torch.uint8).expand(3, 40, 200)
    crop = center_crop(wide, (32, 48))
    assert crop.shape == (3, 32, 48)
    assert abs(float(crop[0, 0].float().mean()) - 99.5) <= 1


def test_windows_for_classification_lie_anywhere_and_half_are_flipped() -> None:
    columns = torch.arange(200, dtype=torch.uint8).expand(120, 200)
    rows = torch.arange(120, dtype=torch.uint8)[:, None].expand(120, 200)
    image = torch.stack([columns, rows, rows])
    augment = WindowAugment(Augment((32, 48), (0.5, 0.5)))
    seeds = (torch.Generator().manual_seed(s) for s in range(200))
    crops = torch.stack([augment(image, seed)[0] for seed in seeds]).int()
    assert crops.shape == (200, 3, 32, 48)
    ends = crops[:, 0, 0, [0, -1]]
    assert ends.min() < 5
    assert ends.max() > 194
    assert crops[:, 1].min() < 5
    assert crops[:, 1].max() > 114
    assert 75 <= int((ends[:, 0] < ends[:, 1]).sum()) <= 125
    aspects = (ends[:, 0] - ends[:, 1]).abs() / (crops[:, 1, -1, 0] - crops[:, 1, 0, 0]) * 120 / 200
    assert 0.7 < float(aspects.min()) < 0.82
    assert 1.22 < float(aspects.max()) < 1.42
