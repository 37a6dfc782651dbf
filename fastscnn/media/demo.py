"""A street drawn in perspective, with its true labels, for trying things out without a photo.

Everything is computed: rays from a camera 1.6 m above a road meet the ground or a row of houses,
whose textures are noise and arithmetic; trees, cars and a lamp post stand before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Color = tuple[int, int, int]

#: Camera: eye height in metres, focal length in picture widths, horizon in picture heights.
EYE, FOCAL, HORIZON = 1.6, 0.95, 0.46
#: Half widths in metres: of the road, and of the street between the houses.
ROAD, STREET = 3.7, 7.4
SKY, BUILDING, POLE, PAVED_ROAD, PAVEMENT, TREE, CAR = 0, 1, 2, 3, 4, 5, 8


def street_scene(height: int = 720, width: int = 960, seed: int = 0) -> np.ndarray:
    """uint8 RGB height x width x 3: sky, houses, trees, pavements, a road, cars, a lamp post."""
    return labelled_street_scene(height, width, seed)[0]


def labelled_street_scene(
    height: int = 720, width: int = 960, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`street_scene` and what was drawn: uint8 height x width in CamVid's classes, 255 where pixels
    of two classes meet."""
    rng = np.random.default_rng(seed)
    scale = 2  # what stands in the street is drawn at twice the size, for smooth edges
    canvas = _Canvas(*_surfaces(rng, height, width), scale)
    for x, z, tall in ((5.2, 36.0, 7.0), (-5.6, 24.0, 7.0)):
        canvas.tree(rng, x, z, tall)
    for x, z, color in (
        (2.75, 23.0, (58, 66, 84)), (-2.8, 16.5, (176, 178, 180)), (2.7, 11.5, (122, 26, 30)),
        (-0.9, 30.0, (36, 40, 44)),
    ):  # fmt: skip
        canvas.car(x, z, color)
    canvas.lamp(-4.2, 14.0)
    image = canvas.image.resize((width, height), Image.Resampling.BOX)
    truth = np.asarray(canvas.labels).reshape(height, scale, width, scale)
    same = (truth == truth[:, :1, :, :1]).all((1, 3))
    frame = np.asarray(image.filter(ImageFilter.GaussianBlur(width / 1600)), np.float64)
    frame += rng.normal(0, 3, (height, width, 1)) + rng.normal(0, 1.5, frame.shape)
    return (
        np.clip(frame, 0, 255).astype(np.uint8),
        np.where(same, truth[:, 0, :, 0], 255).astype(np.uint8),
    )


def _noise(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, octaves: int = 4) -> np.ndarray:
    """Smooth noise of mean 0 and deviation about 1 at points u, v, one cell a unit and finer."""
    total = np.zeros(u.shape)
    for octave in range(octaves):
        table = rng.normal(0, 1, (64, 64))
        a, b = u * 2**octave, v * 2**octave
        i, j = np.floor(a).astype(int), np.floor(b).astype(int)
        p, q = a - i, b - j
        p, q = p * p * (3 - 2 * p), q * q * (3 - 2 * q)
        i0, i1, j0, j1 = i % 64, (i + 1) % 64, j % 64, (j + 1) % 64
        near = table[i0, j0] * (1 - q) + table[i0, j1] * q
        far = table[i1, j0] * (1 - q) + table[i1, j1] * q
        total += (near * (1 - p) + far * p) * 0.7**octave
    return total


def _surfaces(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours (float) and classes of sky, ground and houses, by one ray a pixel."""
    x = (np.arange(width) + 0.5 - width / 2) / (FOCAL * width)
    y = (np.arange(height) + 0.5 - HORIZON * height) / (FOCAL * width)
    x, y = np.broadcast_arrays(x, y[:, None])  # ray (x, y, 1), y downwards
    colors = _sky(rng, x, y)
    labels = np.full(x.shape, SKY, np.uint8)

    wall = STREET / np.maximum(np.abs(x), 1e-6)  # metres along the street to either row of houses
    floor = np.where(y > 0, EYE / np.maximum(y, 1e-6), 1e9)
    up = EYE - y * wall
    along = wall + np.where(x < 0, 1000, 0)  # each side has houses of its own
    house, tall = _houses(rng, along)
    built = (wall < floor) & (up < tall) & (wall < 90)
    colors[built] = _haze(
        _facade(rng, along[built], up[built], house[built], tall[built], x[built] < 0), wall[built]
    )
    labels[built] = BUILDING

    ground = (floor <= wall) & (floor < 400)
    across, depth = (x * floor)[ground], floor[ground]
    colors[ground] = _haze(_ground(rng, across, depth), depth)
    labels[ground] = np.where(np.abs(across) < ROAD, PAVED_ROAD, PAVEMENT)
    closing = ~built & ~ground & (np.abs(x) * 90 < STREET + 4) & (y > -0.055)
    hill = closing & (y > -0.04 - 0.006 * _noise(rng, x * 90, y * 0, 3))
    colors[hill] = _haze(_leaves(rng, x[hill] * 400, y[hill] * 400), np.full(hill.sum(), 70.0))
    labels[hill] = TREE
    return colors, labels


def _haze(color: np.ndarray, distance: np.ndarray) -> np.ndarray:
    far = 1 - np.exp(-np.minimum(distance, 1e3) / 260)[:, None]
    return color * (1 - far) + np.array([205, 210, 214]) * far


def _sky(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    low = np.clip(1 + y / 0.45, 0, 1)[..., None]  # 1 at the horizon
    clear = np.array([222, 234, 244]) * (1 - low) + np.array([244, 250, 252]) * low
    cloud = np.clip(0.5 + 0.35 * _noise(rng, x * 4 + 9, y * 9 + 9, 4), 0, 1)[..., None]
    return clear * (1 - 0.5 * cloud) + np.array([250, 251, 252]) * 0.5 * cloud


def _houses(rng: np.random.Generator, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number and height (metres) of the house at each place along the street."""
    number = np.floor(along / 9.5).astype(int)
    return number % 64, rng.uniform(8.0, 11.5, 64)[number % 64]


def _facade(
    rng: np.random.Generator,
    along: np.ndarray,
    up: np.ndarray,
    house: np.ndarray,
    tall: np.ndarray,
    left: np.ndarray,
) -> np.ndarray:
    """Brick or render, windows with frames and reflections, shops below, a cornice above."""
    walls = np.array(
        [[150, 128, 116], [178, 172, 164], [136, 118, 110], [196, 192, 186], [160, 148, 140]], float
    )
    paints = np.array([[58, 62, 72], [112, 48, 44], [150, 144, 136], [66, 58, 54]], float)
    base = (walls[rng.integers(0, len(walls), 64)] + rng.normal(0, 7, (64, 1)))[house]
    course = up / 0.15
    mortar = (course % 1 < 0.14) | ((along / 0.45 + np.floor(course) / 2) % 1 < 0.06)
    color = base * (1 + 0.045 * _noise(rng, along * 1.2, up * 1.2, 5)[:, None])
    color = np.where(mortar[:, None], color * 0.9 + 10, color)

    u, v = np.abs((along % 9.5) % 2.375 - 1.19), up % 3.1
    upper, shop = up >= 3.1, (up < 3.1) & (rng.uniform(0, 1, 64) < 0.4)[house]
    sky = np.clip(0.35 + 0.3 * _noise(rng, along * 0.6, up * 0.6, 3), 0, 1)[:, None]
    pane = np.array([22, 24, 27]) * (1 - sky) + np.array([84, 90, 96]) * sky
    paint = paints[rng.integers(0, len(paints), 64)][house]

    def put(where: np.ndarray, what: np.ndarray) -> None:
        nonlocal color
        color = np.where(where[:, None], what, color)

    tall_window = ~shop & (u < 0.56) & (v > 0.85) & (v < 2.5) & (up < tall - 0.8)
    put(~shop & (u < 0.68) & (v > 0.72) & (v <= 0.85), np.array([182, 176, 166]))
    put(tall_window, np.array([226, 226, 222]))
    put(tall_window & (u < 0.47) & (np.abs(v - 1.68) < 0.74) & (u > 0.03)
        & (np.abs(v - 1.68) > 0.04), pane)  # fmt: skip
    door = ~upper & ~shop & (np.abs(along % 9.5 - 5.94) < 0.5) & (up < 2.3)
    put(door, paint * 0.8)
    put(shop & (u < 1.02) & (up > 0.35) & (up < 2.35), paint)
    put(shop & (u < 0.92) & (up > 0.6) & (up < 2.25), pane)
    put(shop & (up > 2.45) & (up < 2.95), paint)
    top = tall - up
    put((top < 0.45) & (top > 0.1), base * 1.08 + 15)
    put(top <= 0.1, base * 0.55)
    put(np.minimum(along % 9.5, 9.5 - along % 9.5) < 0.07, color * 0.6)
    light = np.where(left, 0.84, 0.96) * (0.74 + 0.26 * np.clip(up / 4, 0, 1))
    return np.asarray(color * light[:, None])


def _ground(rng: np.random.Generator, across: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Asphalt with worn tracks and lines; kerbs; pavements of slabs."""
    side = np.abs(across)
    grain = _noise(rng, across * 14, depth * 14, 3) * np.clip(8 / depth, 0.1, 1)
    stains = _noise(rng, across * 0.7, depth * 0.25, 4)
    track = np.exp(-(((side - 1.9) ** 2 - 0.5) ** 2) * 6)
    asphalt = 98 + 4.5 * stains + 5 * grain - 5 * track
    color = asphalt[:, None] * np.array([1.0, 1.0, 1.015])
    dash = (side < 0.06) & (depth % 6 < 3.5)
    double = (np.abs(side - ROAD + 0.35) < 0.05) | (np.abs(side - ROAD + 0.55) < 0.05)
    color = np.where(dash[:, None], np.array([206, 206, 200]) + 6 * stains[:, None], color)
    color = np.where(double[:, None], np.array([172, 158, 92]) + 6 * stains[:, None], color)

    slab_u, slab_v = (side - ROAD) / 0.75, depth / 0.75 + (np.floor((side - ROAD) / 0.75) % 2) / 2
    tint = rng.normal(0, 5, (64, 64))[np.floor(slab_u).astype(int) % 64,
                                      np.floor(slab_v).astype(int) % 64]  # fmt: skip
    joint = np.minimum(slab_u % 1, slab_v % 1) < 0.035
    paving = 158 + tint + 4 * stains + 4 * grain - np.where(joint, 26, 0)
    pavement = paving[:, None] * np.array([1.02, 1.0, 0.96])
    color = np.where((side >= ROAD)[:, None], pavement, color)
    kerb = (side >= ROAD) & (side < ROAD + 0.16)
    color = np.where(kerb[:, None], np.array([182, 180, 174]) + 5 * stains[:, None], color)
    gutter = (side < ROAD) & (side > ROAD - 0.14)
    return np.asarray(np.where(gutter[:, None], color * 0.72, color))


def _leaves(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    shade = np.clip(0.5 + 0.28 * _noise(rng, u, v, 4), 0.05, 1)[..., None]
    return np.array([38, 46, 30]) * (1 - shade) + np.array([116, 128, 78]) * shade


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float


def _shade(color: Color, gain: float, offset: int) -> Color:
    r, g, b = (min(255, int(gain * v + offset)) for v in color)
    return r, g, b


class _Canvas:
    """A picture and its labels, on which things that stand on the ground are drawn."""

    def __init__(self, colors: np.ndarray, labels: np.ndarray, scale: int) -> None:
        size = (labels.shape[1] * scale, labels.shape[0] * scale)
        picture = Image.fromarray(np.clip(colors, 0, 255).astype(np.uint8))
        self.image = picture.resize(size, Image.Resampling.NEAREST)
        self.labels = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
        self.draw, self.mark = ImageDraw.Draw(self.image), ImageDraw.Draw(self.labels)

    def at(self, x: float, up: float, z: float) -> tuple[float, float]:
        """Pixel of a point x metres to the right, `up` above the ground, z ahead."""
        w, h = self.image.size
        return w / 2 + FOCAL * w * x / z, HORIZON * h + FOCAL * w * (EYE - up) / z

    def polygon(
        self, points: Sequence[tuple[float, float, float]], color: Color, label: int | None
    ) -> None:
        corners = [self.at(*p) for p in points]
        self.draw.polygon(corners, fill=color)
        if label is not None:
            self.mark.polygon(corners, fill=label)

    def plate(self, z: float, box: _Box, color: Color, label: int | None) -> None:
        """An upright rectangle facing the camera, in metres."""
        a, b, c, d = box
        self.polygon([(a, b, z), (c, b, z), (c, d, z), (a, d, z)], color, label)

    def tree(self, rng: np.random.Generator, x: float, z: float, tall: float) -> None:
        """A trunk and a crown of some thousand leaves, dark inside and light on top."""
        self.plate(z, _Box(x - 0.16, 0.42 * tall, x + 0.16, 0), (70, 60, 50), TREE)
        count = 1200
        for ring in range(3):
            angle, r = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0, 1, count))
            bumps = 1 + 0.14 * np.sin(5 * angle + x) + 0.08 * np.sin(11 * angle)
            px = x + 0.29 * tall * r * bumps * np.cos(angle)
            py = 0.64 * tall + 0.33 * tall * r * bumps * np.sin(angle)
            light = 0.35 + 0.3 * ring + 0.3 * (py / tall - 0.5) + rng.normal(0, 0.14, count)
            green = np.clip(np.array([84, 98, 56]) * light[:, None], 12, 200).astype(int).tolist()
            sizes = rng.uniform(0.05, 0.16, count)
            for a, b, s, color in zip(px, py, sizes, map(tuple, green), strict=True):
                (x0, y0), (x1, y1) = self.at(a - s, b + s, z), self.at(a + s, b - s, z)
                self.draw.ellipse([x0, y0, x1, y1], fill=color)
                self.mark.ellipse([x0, y0, x1, y1], fill=TREE)

    def car(self, x: float, z: float, color: Color) -> None:
        """A car from behind: side towards the middle of the road, back, glass, lamps, wheels."""
        w, long = 0.88, 4.2
        shadow = [(x - w - 0.15, 0, z - 0.1), (x + w + 0.15, 0, z - 0.1),
                  (x + w + 0.15, 0, z + long), (x - w - 0.15, 0, z + long)]  # fmt: skip
        self.polygon(shadow, (46, 46, 49), None)
        dark, light = _shade(color, 0.62, 0), _shade(color, 1.12, 18)
        s = x - w if x > 0 else x + w  # the side that is seen
        side = [(s, 0.3, z), (s, 0.95, z), (s, 0.95, z + long), (s, 0.3, z + long)]
        self.polygon(side, dark, CAR)
        cabin = [(s, 0.95, z + 0.1), (s, 1.45, z + 0.6), (s, 1.45, z + 2.2), (s, 0.95, z + 3.1)]
        self.polygon(cabin, (38, 44, 50), CAR)
        for depth in (0.75, 3.3):
            wheel = [(s, 0, z + depth - 0.33), (s, 0.62, z + depth - 0.33),
                     (s, 0.62, z + depth + 0.33), (s, 0, z + depth + 0.33)]  # fmt: skip
            self.polygon(wheel, (24, 24, 25), CAR)
        for edge in (-0.66, 0.66):
            self.plate(z, _Box(x + edge - 0.12, 0.4, x + edge + 0.12, 0), (20, 20, 21), CAR)
        self.plate(z, _Box(x - w, 0.95, x + w, 0.26), color, CAR)
        roof = [(x - 0.8, 0.95, z), (x + 0.8, 0.95, z), (x + 0.66, 1.46, z), (x - 0.66, 1.46, z)]
        self.polygon(roof, color, CAR)
        glass = [(x - 0.7, 0.97, z), (x + 0.7, 0.97, z), (x + 0.58, 1.37, z), (x - 0.58, 1.37, z)]
        self.polygon(glass, (44, 52, 58), CAR)
        self.plate(z, _Box(x - w, 0.9, x + w, 0.84), light, CAR)
        self.plate(z, _Box(x - w, 0.42, x + w, 0.26), (52, 52, 54), CAR)
        self.plate(z, _Box(x - 0.26, 0.6, x + 0.26, 0.48), (208, 186, 70), CAR)
        for edge in (-0.72, 0.72):
            self.plate(z, _Box(x + edge - 0.13, 0.82, x + edge + 0.13, 0.62), (168, 30, 26), CAR)

    def lamp(self, x: float, z: float) -> None:
        """A lamp post with an arm over the road."""
        self.plate(z, _Box(x - 0.06, 6.5, x + 0.06, 0), (108, 111, 113), POLE)
        self.plate(z, _Box(x, 6.5, x + 1.1, 6.38), (108, 111, 113), POLE)
        self.plate(z, _Box(x + 0.8, 6.42, x + 1.4, 6.24), (108, 111, 113), POLE)
