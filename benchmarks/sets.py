"""The real images that benchmarks measure on, by name."""

import numpy as np

import pfgm_jax
from pfgm_jax import data

SIZES = {"digits": 8, "bloodmnist": 28, "cifar10": 32}


def load(name, folder=""):
    """The Dataset called `name`, one of SIZES, whose file is in `folder` or is downloaded."""
    config = pfgm_jax.default_config().data
    if name != "digits":  # which come with scikit-learn
        config.update(name=name, size=SIZES[name], dir=folder)
    return data.load(config)


def training_points(name, folder, number):
    """`number` training images of a set, drawn at random, always the same ones: [number, H, W, C] in the unit scale."""
    images = load(name, folder).train.images
    return data.to_unit(images[np.sort(np.random.default_rng(0).permutation(len(images))[:number])])
