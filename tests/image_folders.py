"""Folders of images for the tests of the source "folder"."""

import csv
import types

import pytest
from PIL import Image

from pfgm_jax import data
from pfgm_jax.data import images
from pfgm_jax.errors import UserError

RED = (250, 10, 20)


def config(folder, **fields):
    given = dict(name="folder", size=8, dir=str(folder), channels=0, pages="first", window="", group="")
    return types.SimpleNamespace(**given | dict(val=0.1, test=0.1, split_seed=0) | fields)


def put(path, pixels=RED, size=(8, 8), mode="RGB", **options):
    """An image file of one colour, or of an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size, pixels) if isinstance(pixels, tuple | int) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def classes(folder, counts, suffix=".png"):
    """Subfolders of `counts` images, each image of another grey in red."""
    for i, (name, count) in enumerate(counts.items()):
        for j in range(count):
            put(folder / name / f"{j}{suffix}", (10 * i + j % 10, 99, 3 * j % 256))


def fails(folder, *words, **fields):
    with pytest.raises(UserError) as caught:
        data.load(config(folder, **fields))
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    assert [word for word in words if str(word) not in line] == [], line


def counts(made):
    return [len(split) for split in (made.train, made.val, made.test)]


def table(folder, rows, columns=("file", "label"), **options):
    with open(folder / "labels.csv", "w", newline="", **options) as stream:
        csv.writer(stream).writerows([columns, *rows])


def one(path, size=8, **options):
    return images.decode(path, images.Square(size, **options)).pixels
