"""Random light and camera: each change by value, and that the defaults change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastscnn.training.augment import Augment, uniform
from fastscnn.training.photometric import LUMA, Photometric, color_matrix, gamma_table
from fastscnn.training.recipe import Recipe
from fastscnn.training.tasks import augmentation


def picture(height: int = 48, width: int = 64) -> Tensor:
    """Smooth colours with a bright box, uint8 3 x H x W."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    image = torch.stack([20 + 150 * x + 0 * y, 40 + 120 * y + 0 * x, 90 + 60 * x * y]).byte()
    image[:, 10:20, 10:30] += 60
    return image


def changed(light: Photometric, seed: int = 0, image: Tensor | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return light(picture() if image is None else image, uniform(generator), generator)


def test_the_defaults_change_nothing_and_draw_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    image = picture()
    assert Photometric()(image, uniform(generator), generator) is image
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gamma_is_a_power_of_the_values(gamma: float) -> None:
    image = picture()
    expected = (255 * (image.double() / 255) ** gamma).round()
    difference = changed(Photometric(gamma=(gamma, gamma))).double() - expected
    assert difference.abs().max() <= 1
    assert difference.abs().mean() < 0.01  # float32's rounding at a tie, no more
    assert torch.equal(gamma_table(gamma)[image.long()].double(), expected)


def test_gamma_is_drawn_evenly_in_its_logarithm() -> None:
    half = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    light = Photometric(gamma=(0.5, 2.0))
    values = [float(changed(light, s, half)[0, 0, 0]) / 255 for s in range(200)]
    drawn = np.log2(np.log(values) / math.log(128 / 255))
    assert -1.02 < drawn.min() < -0.95
    assert 0.95 < drawn.max() < 1.02
    assert abs(drawn.mean()) < 0.1


def test_contrast_keeps_the_mean() -> None:
    image = picture()
    spread = [changed(Photometric(contrast=0.5), s) for s in range(40)]
    ratios = [float(x.float().std() / image.float().std()) for x in spread]
    assert 0.5 <= min(ratios) < 0.6
    assert 1.3 < max(ratios) <= 1.51
    assert max(abs(float(x.float().mean() - image.float().mean())) for x in spread) < 2


def test_colours_turn_about_grey_and_keep_their_brightness() -> None:
    red, green, blue = torch.eye(3)
    assert LUMA.tolist() == pytest.approx([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert torch.allclose(color_matrix(1, 0), torch.eye(3), atol=1e-6)
    assert torch.allclose(color_matrix(1, 120) @ red, green, atol=1e-6)
    assert torch.allclose(color_matrix(1, 240) @ red, blue, atol=1e-6)
    assert torch.allclose(color_matrix(0, 0) @ red, LUMA[0].expand(3), atol=1e-6)
    assert torch.allclose(color_matrix(1.7, 40) @ torch.ones(3), torch.ones(3), atol=1e-6)
    assert float(LUMA @ (color_matrix(1.4, 0) @ blue)) == pytest.approx(float(LUMA[2]), abs=1e-6)


def test_saturation_and_hue_leave_grey_pictures_alone() -> None:
    grey = picture()[:1].expand(3, -1, -1)
    difference = changed(Photometric(saturation=1.0, hue=180), 1, grey).int() - grey.int()
    assert difference.abs().max() <= 1


def test_hue_turns_both_ways() -> None:
    """A red turns to yellow (more green) as often as to magenta (more blue)."""
    red = torch.tensor([150, 60, 60], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    turned = [changed(Photometric(hue=30.0), s, red)[:, 0, 0].int() for s in range(100)]
    ways = [int(x[1] - x[2]) for x in turned]
    assert 35 <= sum(w > 0 for w in ways) <= 65
    assert abs(max(ways) + min(ways)) < 6


def test_jpeg_qualities_begin_at_the_lowest(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    write = Image.Image.save

    def save(self: Image.Image, file: Any, kind: str, quality: int) -> None:
        drawn.append(quality)
        write(self, file, kind, quality=quality)

    monkeypatch.setattr(Image.Image, "save", save)
    for seed in range(100):
        changed(Photometric(jpeg=60), seed)
    assert 35 <= len(drawn) <= 65
    assert 60 <= min(drawn) < 66
    assert 89 < max(drawn) <= 95


def test_noise_is_as_strong_as_said_and_on_half_of_the_images() -> None:
    grey = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    spreads = np.array(
        [float(changed(Photometric(noise=20), s, grey).float().std()) for s in range(80)]
    )
    noisy = spreads[spreads > 0]
    assert 25 <= len(noisy) <= 55
    assert 17 < noisy.max() < 20.5
    assert noisy.min() < 3


def test_blur_and_jpeg_lose_detail_on_half_of_the_images() -> None:
    checks = ((torch.arange(64)[:, None] + torch.arange(64)[None]) % 2 * 255).byte()
    image = checks.expand(3, -1, -1)
    for light, most in ((Photometric(blur=3.0), 20), (Photometric(jpeg=1), 10)):
        lost = [float((changed(light, s, image).float() - image).abs().mean()) for s in range(40)]
        assert 10 <= sum(x > 0 for x in lost) <= 30, light
        assert max(lost) > most, light


def test_a_shadow_darkens_one_side_of_an_edge() -> None:
    white = torch.full((3, 64, 64), 250, dtype=torch.uint8)
    shadows = [changed(Photometric(shadow=1.0), s, white).float() / 250 for s in range(30)]
    assert all(0.29 < float(x.min()) <= 1 for x in shadows)
    assert sum(float(x.min()) < 0.82 and float(x.max()) > 0.98 for x in shadows) >= 15
    assert all(torch.equal(x[0], x[2]) for x in shadows)
    untouched = [torch.equal(changed(Photometric(shadow=0.3), s, white), white) for s in range(100)]
    assert 55 <= sum(untouched) <= 85


def test_the_recipe_reaches_the_crops_and_leaves_masks_alone() -> None:
    recipe = Recipe(crop=(48, 64), scale=(1.0, 1.0), flip=False, gamma=(2.0, 2.0), brightness=0.0,
                    channel_noise=0.0)  # fmt: skip
    augment = augmentation(recipe)
    assert augment.photometric == Photometric(gamma=(2.0, 2.0))
    image, mask = picture(), torch.arange(48 * 64).view(48, 64).remainder(3).byte()
    x, y, factors = augment(image, mask, torch.Generator().manual_seed(0))
    assert (x.int() - gamma_table(2.0)[image.long()].int()).abs().max() <= 1
    assert torch.equal(y, mask)
    assert torch.equal(factors, torch.ones(3))


def test_one_seed_gives_one_picture() -> None:
    light = Photometric((0.5, 2.0), 0.4, 0.5, 15.0, 10.0, 1.5, 30, 0.5)
    augment = Augment((32, 32), photometric=light)
    mask = torch.zeros(48, 64, dtype=torch.uint8)

    def crop(seed: int, augment: Augment = augment) -> Tensor:
        return augment(picture(), mask, torch.Generator().manual_seed(seed))[0]

    assert torch.equal(crop(5), crop(5))
    assert not torch.equal(crop(5), crop(6))
    assert not torch.equal(crop(5), crop(5, replace(augment, photometric=Photometric())))
    assert (crop(5).shape, crop(5).dtype) == ((3, 32, 32), torch.uint8)
