"""A street scene drawn from simple shapes, for trying things out where no photo is at hand."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def street_scene(height: int = 720, width: int = 960, seed: int = 0) -> np.ndarray:
    """uint8 RGB height x width x 3: sky, buildings, trees, pavement, road, cars, a pole."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    horizon = int(0.48 * height)

    for y in range(horizon):  # sky, brighter toward the horizon
        t = y / horizon
        draw.line(
            [(0, y), (width, y)], fill=(int(165 + 65 * t), int(190 + 45 * t), int(225 + 20 * t))
        )
    draw.rectangle([0, horizon, width, height], fill=(150, 142, 132))  # pavement
    _buildings(draw, rng, width, height, horizon)
    for side in (0.10, 0.86):
        _tree(draw, rng, int(side * width), horizon, height)
    road = [(0.46, 0.0), (0.54, 0.0), (1.02, 1.0), (-0.02, 1.0)]
    points = [(x * width, horizon + y * (height - horizon)) for x, y in road]
    draw.polygon(points, fill=(84, 84, 88))
    for a, b in ((0.10, 0.18), (0.30, 0.42), (0.58, 0.76)):  # centre line
        ya, yb = (horizon + t * (height - horizon) for t in (a, b))
        draw.polygon(
            [
                (width * (0.5 - 0.004 * a * 3), ya),
                (width * (0.5 + 0.004 * a * 3), ya),
                (width * (0.5 + 0.004 * b * 3), yb),
                (width * (0.5 - 0.004 * b * 3), yb),
            ],
            fill=(215, 215, 205),
        )
    _car(draw, 0.36, 0.66, 0.16, (150, 24, 28), width, height)
    _car(draw, 0.60, 0.57, 0.075, (210, 212, 216), width, height)
    pole = int(0.80 * width)
    draw.rectangle(
        [pole, int(0.16 * height), pole + width // 120, int(0.72 * height)], fill=(70, 72, 74)
    )

    image = image.filter(ImageFilter.GaussianBlur(max(height, width) / 900))
    noise = rng.normal(0, 5, (height, width, 1)) + rng.normal(0, 2, (height, width, 3))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def _buildings(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int
) -> None:
    for left, right in ((0.0, 0.42), (0.57, 1.0)):
        x = left
        while x < right:
            w = min(float(rng.uniform(0.08, 0.16)), right - x)
            closeness = abs(x + w / 2 - 0.5) * 2
            top = int(horizon * (0.75 - 0.65 * closeness * float(rng.uniform(0.7, 1.0))))
            bottom = horizon + int(0.16 * closeness * (height - horizon))
            base = np.array([126, 104, 88]) + rng.integers(-25, 25, 3)
            x0, x1 = int(x * width), int((x + w) * width)
            draw.rectangle([x0, top, x1, bottom], fill=tuple(int(v) for v in base))
            step = max(8, (x1 - x0) // 4)
            for wy in range(top + step // 2, horizon - step, step):
                for wx in range(x0 + step // 3, x1 - step // 2, step):
                    shade = tuple(int(v) for v in base * 0.45)
                    draw.rectangle([wx, wy, wx + step // 2, wy + int(0.6 * step)], fill=shade)
            x += w


def _tree(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: int, horizon: int, height: int
) -> None:
    r = int(0.10 * height)
    draw.rectangle([x - r // 10, horizon - r, x + r // 10, horizon + r // 2], fill=(72, 54, 40))
    for _ in range(60):
        dx, dy = rng.normal(0, 0.5, 2) * r
        green = int(rng.uniform(60, 110))
        s = r * float(rng.uniform(0.2, 0.4))
        cx, cy = x + dx, horizon - 1.5 * r + dy
        draw.ellipse([cx - s, cy - s, cx + s, cy + s], fill=(green // 2, green, green // 3))


def _car(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    size: float,
    color: tuple[int, int, int],
    width: int,
    height: int,
) -> None:
    """A car from behind, its middle at (x, y), its width `size` of the picture."""
    w, cx, cy = size * width, x * width, y * height
    draw.ellipse([cx - 0.52 * w, cy + 0.30 * w, cx + 0.52 * w, cy + 0.42 * w], fill=(50, 50, 53))
    for side in (-1, 1):
        draw.rectangle(
            [
                cx + side * 0.38 * w - 0.07 * w,
                cy + 0.2 * w,
                cx + side * 0.38 * w + 0.07 * w,
                cy + 0.38 * w,
            ],
            fill=(22, 22, 22),
        )
    draw.rounded_rectangle(
        [cx - 0.5 * w, cy - 0.08 * w, cx + 0.5 * w, cy + 0.3 * w], 0.06 * w, fill=color
    )
    roof = [(-0.34, -0.34), (0.34, -0.34), (0.45, -0.06), (-0.45, -0.06)]
    draw.polygon([(cx + a * w, cy + b * w) for a, b in roof], fill=color)
    glass = [(-0.29, -0.29), (0.29, -0.29), (0.36, -0.08), (-0.36, -0.08)]
    draw.polygon([(cx + a * w, cy + b * w) for a, b in glass], fill=(40, 48, 56))
    for side in (-1, 1):
        draw.rectangle(
            [cx + side * 0.42 * w - 0.05 * w, cy, cx + side * 0.42 * w + 0.05 * w, cy + 0.09 * w],
            fill=(225, 40, 30),
        )
