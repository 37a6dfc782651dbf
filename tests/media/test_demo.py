"""The drawn street: what a person sees in it, the shipped weights see too."""

from __future__ import annotations

import numpy as np

import fastscnn
from fastscnn.media.demo import labelled_street_scene, street_scene


def test_the_shipped_weights_find_every_class_that_is_drawn() -> None:
    frame, truth = labelled_street_scene()
    assert frame.shape == (720, 960, 3)
    labels = fastscnn.load(device="cpu").segment(frame)
    found = {
        name: float((labels[truth == c] == c).mean())
        for c, name in enumerate(fastscnn.CAMVID.names)
        if (truth == c).any()
    }
    assert set(found) == {"Sky", "Building", "Pole", "Road", "Pavement", "Tree", "Car"}
    assert min(found.values()) >= 0.7, found


def test_labels_are_where_the_colours_are() -> None:
    """At any size, the same for the same seed: sky bright above, asphalt grey below."""
    frame, truth = labelled_street_scene(96, 129, seed=3)
    assert (street_scene(96, 129, seed=3) == frame).all()
    assert (street_scene(96, 129, seed=4) != frame).any()
    names = fastscnn.CAMVID.names
    drawn = {n: truth == names.index(n) for n in ("Sky", "Road", "Tree", "Building")}
    mean = {n: frame[where].mean(0) for n, where in drawn.items()}
    assert mean["Sky"].min() > 215
    assert 80 < mean["Road"].mean() < 125
    assert np.ptp(mean["Road"]) < 8
    assert mean["Tree"][1] > mean["Tree"][2] + 15  # green
    rows = {n: np.nonzero(where)[0].mean() for n, where in drawn.items()}
    assert rows["Sky"] < rows["Building"] < rows["Road"]
