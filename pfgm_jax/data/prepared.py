"""Published data sets that a person prepares: `data.dir`/NAME.npz with MedMNIST's six arrays."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.data.medmnist import read_npz
from pfgm_jax.errors import UserError

STAND_INS = 256  # random images in place of an absent file


class Facts(NamedTuple):
    """What is known of a set without its file."""

    size: int
    train_images: int
    classes: tuple[str, ...]
    licence: str


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SETS = {
    "cifar10": Facts(32, 50_000, CIFAR10, "none stated; cite Krizhevsky 2009"),
    "celeba64": Facts(64, 162_770, ("face",), "non-commercial research only"),
    "lsun_bedroom256": Facts(256, 3_033_042, ("bedroom",), "none stated; cite arXiv 1506.03365"),
}


def load(data_config) -> Dataset:
    """The set `data_config.name` from its file in `dir`; UserError where that is absent or of another format."""
    name, facts = data_config.name, _facts(data_config)
    path = _path(data_config)
    if path is None or not path.is_file():
        where = "with --config.data.dir=FOLDER" if path is None else f"in {path.parent}"
        raise UserError(
            f"{name} is not downloaded: put {name}.npz {where}, as numpy.savez writes it, with train_images uint8 "
            f"[n, {facts.size}, {facts.size}, 3], train_labels [n] from 0 to {len(facts.classes) - 1}, and val_images, "
            "val_labels, test_images, test_labels like them"
        )
    splits = read_npz(path, facts.size)
    if splits[0].images.shape[-1] != 3:
        raise UserError(f"{path} has grey images and those of {name} are coloured: save them as [n, s, s, 3]")
    highest = max(int(split.labels.max()) for split in splits)
    if highest >= len(facts.classes):
        raise UserError(f"{path} has a label {highest}; those of {name} are 0 to {len(facts.classes) - 1}")
    return Dataset(name, *splits, classes=facts.classes, licence=facts.licence, source=f"{path.name}, not checked")


def stand_in(data_config) -> Dataset | None:
    """Uniform noise of the set's shape and number of images where its file is absent, else None: for a dry run."""
    name, facts = data_config.name, _facts(data_config)
    path = _path(data_config)
    if path is not None and path.is_file():
        return None
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (STAND_INS, facts.size, facts.size, 3), dtype=np.uint8)
    labels = (np.arange(STAND_INS) % len(facts.classes)).astype(np.int32)
    split = Split(images, labels)
    source = f"{STAND_INS} images of uniform noise"
    return Dataset(name, split, split, split, facts.classes, facts.licence, source, stands_for=facts.train_images)


def _facts(data_config):
    facts = SETS[data_config.name]
    if data_config.size != facts.size:
        raise UserError(f"{data_config.name} is {facts.size} px: write --config.data.size={facts.size}")
    return facts


def _path(data_config):
    return Path(data_config.dir).expanduser() / f"{data_config.name}.npz" if data_config.dir else None
