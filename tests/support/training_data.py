"""Small drawn data sets and recipes for the training tests."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastscnn.network.segment import torch_threads
from fastscnn.training.cli import add_evaluate_parser, add_train_parser
from fastscnn.training.data import open_data
from fastscnn.training.recipe import Recipe
from fastscnn.training.train import Options, Trainer

COLORS = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks on one thread: the same sums in the same order, and no threads to wait for."""
    with torch_threads(1):
        yield


def draw_pair(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture of a ground, a band and a box, and its mask (classes 0, 1, 2)."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 2 + int(rng.integers(-8, 8)) :] = 1
    y, x = int(rng.integers(0, height // 2)), int(rng.integers(0, width // 2))
    mask[y : y + height // 3, x : x + width // 3] = 2
    noise = rng.integers(-30, 30, (height, width, 3))
    image = np.clip(np.array(COLORS)[mask] + noise, 0, 255).astype(np.uint8)
    return image, mask


def write_folder(
    root: Path, train: int = 8, val: int = 4, size: tuple[int, int] = (64, 96), rgb: bool = False
) -> Path:
    """Own-masks layout: classes.json, <split>/images, <split>/masks."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    classes = {"classes": ["ground", "band", "box"], "colors": COLORS}
    (root / "classes.json").write_text(json.dumps(classes))
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            image, mask = draw_pair(rng, *size)
            Image.fromarray(image).save(root / split / "images" / f"{i:03d}.png")
            stored = np.array(COLORS, np.uint8)[mask] if rgb else mask
            Image.fromarray(stored).save(root / split / "masks" / f"{i:03d}.png")
    return root


def write_image_folders(root: Path, per_class: int = 4) -> Path:
    """ImageNet's layout: three classes of single colours."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, color in zip(("red", "green", "blue"), COLORS, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                image = np.clip(np.array(color) + rng.integers(-40, 40, (48, 56, 3)), 0, 255)
                Image.fromarray(image.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def tiny(**changes: Any) -> Recipe:
    """A recipe for the drawn data: 64x96 crops, batches of 4, 3 epochs."""
    values = {"epochs": 3, "batch": 4, "lr": 0.02, "crop": (64, 96), "val_every": 1}
    return Recipe(**{**values, **changes})


def command(*argv: object) -> int:
    """Runs `fastscnn train ...` or `fastscnn evaluate ...` in this process; errors are raised."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    add_train_parser(commands)
    add_evaluate_parser(commands)
    args = parser.parse_args([str(a) for a in argv])
    code: int = args.run(args)
    return code


def trainer(recipe: Recipe, data: Path, out: Path, **options: Any) -> Trainer:
    """A quiet run on one thread."""
    init = options.pop("init", None)
    chosen = Options(**{"threads": 1, "quiet": True, **options})
    return Trainer(
        recipe, open_data(data, "train"), open_data(data, "val"), out, options=chosen, init=init
    )


def read_state(run: Path) -> dict[str, Any]:
    """What a run's last.pth holds."""
    state: dict[str, Any] = torch.load(run / "last.pth", weights_only=True)
    return state


def environment(**more: str) -> dict[str, str]:
    """Of a process that imports this file."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **more}


def start_pair(code: str, *argv: str) -> list[subprocess.Popen[bytes]]:
    """Two processes of one group that run Python code."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    jobs = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, *argv]
        jobs.append(subprocess.Popen(command, env=environment(**group, **own)))
    return jobs
