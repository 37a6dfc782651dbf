"""Names and colours of classes: what a file says, and what stands in where it says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastscnn.classes import CAMVID, CITYSCAPES, CITYSCAPES_LABEL_IDS, Classes


@pytest.mark.parametrize("count", [3, 11, 19])
def test_given_names_and_colours_are_kept(count: int) -> None:
    names = [f"n{i}" for i in range(count)]
    colors = [[i, 2 * i, 3 * i] for i in range(count)]
    both = Classes.for_count(count, names, colors)
    assert both.names == tuple(names)
    assert both.colors == tuple((i, 2 * i, 3 * i) for i in range(count))
    known = {11: CAMVID, 19: CITYSCAPES}.get(count, Classes.numbered(count))
    assert Classes.for_count(count, names).names == tuple(names)
    assert Classes.for_count(count, names).colors == known.colors
    assert Classes.for_count(count, colors=colors).names == known.names
    assert len(set(known.colors)) == count


@pytest.mark.parametrize("word", ["colors", "colours"])
def test_a_file_may_spell_its_colours_either_way(tmp_path: Path, word: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"classes": ["a", "b"], word: [[1, 2, 3], [4, 5, 6]]}))
    assert Classes.read(path) == Classes(("a", "b"), ((1, 2, 3), (4, 5, 6)))


def test_cityscapes_is_the_published_one() -> None:
    """A few of its labels, by train id: name, label id, colour, category."""
    category = {c: name for name, members in CITYSCAPES.categories for c in members}
    for index, *about in (
        (0, "road", 7, (128, 64, 128), "flat"),
        (5, "pole", 17, (153, 153, 153), "object"),
        (10, "sky", 23, (70, 130, 180), "sky"),
        (12, "rider", 25, (255, 0, 0), "human"),
        (13, "car", 26, (0, 0, 142), "vehicle"),
        (16, "train", 31, (0, 80, 100), "vehicle"),
        (18, "bicycle", 33, (119, 11, 32), "vehicle"),
    ):
        found = (CITYSCAPES.names[index], CITYSCAPES_LABEL_IDS[index], CITYSCAPES.colors[index])
        assert [*found, category[index]] == about
