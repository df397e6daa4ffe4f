"""Points in the plane whose distribution can be seen: Poisson flow models learn them in a minute on a CPU.

They are float32 [n, 1, 1, 2], images of one pixel whose two channels are the coordinates, already in the unit scale.
"""

import numpy as np

from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.errors import UserError

SIZE = 1
SPLITS = {"train": 8_000, "val": 1_000, "test": 1_000}


def _circle(angle, radius):
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _swissroll(random, n):
    """A spiral of one and a half turns, scikit-learn's make_swiss_roll seen from the side."""
    angle = 1.5 * np.pi * (1 + 2 * random.uniform(size=n))
    points = _circle(angle, 0.9 * angle / (4.5 * np.pi))
    return points + 0.015 * random.normal(size=(n, 2)), np.zeros(n)


def _moons(random, n):
    """Two half circles that reach into each other."""
    lower = random.randint(2, size=n)
    angle = np.pi * random.uniform(size=n)
    upwards = _circle(angle, 1.0) + [-0.5, -0.25]
    points = 0.58 * np.where(lower[:, None] == 0, upwards, -upwards)
    return points + 0.02 * random.normal(size=(n, 2)), lower


def _rings(random, n):
    """Three circles around one centre, each with a third of the points."""
    ring = random.randint(3, size=n)
    points = _circle(2 * np.pi * random.uniform(size=n), np.array([0.25, 0.55, 0.85])[ring])
    return points + 0.02 * random.normal(size=(n, 2)), ring


def _checkerboard(random, n):
    """Eight of a board's sixteen fields, the points uniform in them."""
    row, half = random.randint(4, size=n), random.randint(2, size=n)
    corner = np.stack([2 * half + row % 2, row], axis=1)
    return (corner + random.uniform(size=(n, 2))) / 2 - 1, np.zeros(n)


def _gaussians(random, n):
    """Eight normal distributions on a circle."""
    which = random.randint(8, size=n)
    return _circle(np.pi / 4 * which, 0.75) + 0.04 * random.normal(size=(n, 2)), which


# name: (points float64 [n, 2] and labels [n] from a random state, names of the classes)
TOYS = {
    "swissroll": (_swissroll, ("roll",)),
    "moons": (_moons, ("upper", "lower")),
    "rings": (_rings, ("inner", "middle", "outer")),
    "checkerboard": (_checkerboard, ("board",)),
    "gaussians": (_gaussians, tuple(str(i) for i in range(8))),
}


def load(data_config) -> Dataset:
    """8000 / 1000 / 1000 points, the same on every machine.

    data_config: `name` and `size`, which must be 1 (UserError); other fields are not read.
    """
    if data_config.size != SIZE:
        raise UserError(f"{data_config.name} holds points, not images: write data.size={SIZE}")
    draw, classes = TOYS[data_config.name]
    points, labels = draw(np.random.RandomState(0), sum(SPLITS.values()))  # numpy has frozen this stream
    points, labels = points.astype(np.float32).reshape(-1, 1, 1, 2), labels.astype(np.int32)
    splits, start = {}, 0
    for name, n in SPLITS.items():
        splits[name] = Split(points[start : start + n], labels[start : start + n])
        start += n
    return Dataset(data_config.name, **splits, classes=classes, licence="generated", source="drawn with seed 0")
