"""Charges to look at: points [n, 2] float64 whose coordinates reach to about 1, their mean at 0."""

import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pfgm_jax.data import toys


def heart(n):
    """n points at equal distances on the outline of a heart."""
    t = np.linspace(0, 2 * np.pi, 4001)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    at = np.arange(n) / n * length[-1]
    return _centred(np.stack([np.interp(at, length, x), np.interp(at, length, y)], axis=1) / 17)


def letters(n, word="PFGM"):
    """n random points inside the letters of a word, 1 to either side."""
    from matplotlib import get_data_path

    font = ImageFont.truetype(pathlib.Path(get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf"), 120)
    left, top, right, bottom = font.getbbox(word)
    canvas = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(canvas).text((-left, -top), word, 255, font)
    row, column = np.nonzero(np.asarray(canvas) > 127)
    random = np.random.RandomState(0)
    chosen = random.choice(len(row), n, replace=n > len(row))
    points = np.stack([column[chosen], -row[chosen]], axis=1) + random.uniform(size=(n, 2))
    return _centred(points / (canvas.width / 2))


def moons(n):
    """n points of the data set `moons`."""
    return _centred(toys.TOYS["moons"][0](np.random.RandomState(0), n)[0])


def disk(n):
    """n points that fill the unit disk evenly, on a sunflower's spiral (Vogel 1979)."""
    i = np.arange(n)
    angle = np.pi * (3 - np.sqrt(5)) * i
    return np.sqrt((i + 0.5) / n)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def hemisphere(n, radius):
    """n points that cover the hemisphere z > 0 of a sphere in (x, y, z) evenly, [n, 3], in a random order.

    Equal steps of z are equal areas of a sphere (Archimedes).
    """
    i = np.random.RandomState(0).permutation(n)
    z, angle = (i + 0.5) / n, np.pi * (3 - np.sqrt(5)) * i
    around = np.sqrt(1 - z**2)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return radius * np.concatenate([around, z[:, None]], axis=1)


def _centred(points):
    return points - points.mean(axis=0)
