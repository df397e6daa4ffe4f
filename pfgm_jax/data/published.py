"""What is known of a published set without its files, the file NAME.npz, and random images for a dry run."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.data.npz import read_splits
from pfgm_jax.data.splits import NAMES
from pfgm_jax.errors import UserError
from pfgm_jax.storage import atomic

STAND_INS = 256  # random images in place of an absent file


class Facts(NamedTuple):
    """What is known of a set without its file."""

    size: int
    train_images: int
    classes: tuple[str, ...]
    licence: str

    def check(self, data_config):
        """UserError for another size than the set's."""
        if data_config.size != self.size:
            raise UserError(f"{data_config.name} is {self.size} px: write data.size={self.size}")


def folder(data_config) -> Path | None:
    """`data.dir` as a path, None where it is not given."""
    return atomic.expanded(data_config.dir) if data_config.dir else None


def from_npz(data_config, path, facts, splits=NAMES) -> dict[str, Split]:
    """The `splits` of a file with MedMNIST's arrays, in colours and with labels of the set's classes, or UserError."""
    parts = read_splits(path, facts.size, splits)
    if parts["train"].images.shape[-1] != 3:
        raise UserError(
            f"{path} has grey images, but those of {data_config.name} are in colour: save them as [n, s, s, 3]"
        )
    highest = max(int(split.labels.max()) for split in parts.values())
    if highest >= len(facts.classes):
        last = len(facts.classes) - 1
        raise UserError(f"{path} has a label {highest}; those of {data_config.name} are 0 to {last}")
    return parts


def dataset(data_config, facts, splits, source) -> Dataset:
    """The Dataset of a published set."""
    return Dataset(data_config.name, **splits, classes=facts.classes, licence=facts.licence, source=source)


def stand_in(data_config, facts) -> Dataset:
    """Uniform noise of the set's shape and number of images: for a dry run where its files are absent."""
    facts.check(data_config)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (STAND_INS, facts.size, facts.size, 3), dtype=np.uint8)
    split = Split(images, (np.arange(STAND_INS) % len(facts.classes)).astype(np.int32))
    source = f"{STAND_INS} images of uniform noise"
    name, count = data_config.name, facts.train_images
    return Dataset(name, split, split, split, facts.classes, facts.licence, source, stands_for=count)
