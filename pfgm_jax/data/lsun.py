"""LSUN (Yu et al. 2015, arXiv 1506.03365) at 256 px: bedrooms and churches.

`data.dir` holds NAME.npz with MedMNIST's six arrays, or image files, exported from LSUN's databases, in any depth of
folders: the training images in train (or bedroom_train, church_outdoor_train) and the 300 validation images in val (or
…_val); or all in one, from which 300 are held out by data.split_seed. LSUN publishes no test images with names, so test
is empty. As score_sde and PFGM have them, images are cut to their central square and resized with antialiasing: the
cubic filter with a = −1/2, Pillow's BICUBIC. Where they do not fit in memory they are decoded as they are needed.
"""

import os

import numpy as np
from PIL import Image

from pfgm_jax.data import images, published
from pfgm_jax.data.dataset import Dataset, Split, empty_split
from pfgm_jax.errors import UserError

UNNAMED = "none stated; cite arXiv 1506.03365"
SETS = {
    "lsun_bedroom256": published.Facts(256, 3_033_042, ("bedroom",), UNNAMED),
    "lsun_church256": published.Facts(256, 126_227, ("church",), UNNAMED),
}
CATEGORY = {"lsun_bedroom256": "bedroom", "lsun_church256": "church_outdoor"}
HELD_OUT = 300  # as many as LSUN holds out


def load(data_config) -> Dataset:
    """An LSUN set from `data.dir`; UserError where its files are absent or damaged."""
    name, facts = data_config.name, SETS[data_config.name]
    facts.check(data_config)
    path = find(data_config)
    if path is None:
        where = f"in {published.folder(data_config)}" if data_config.dir else "with data.dir=FOLDER"
        raise UserError(
            f"{name} is not downloaded automatically: put its image files {where}, in the folders train and val, "
            f"or {name}.npz with MedMNIST's six arrays; https://github.com/fyu/lsun downloads LSUN and exports "
            "its images"
        )
    if path.suffix == ".npz":
        splits = published.from_npz(data_config, path, facts)
        return published.dataset(data_config, facts, splits, f"{path.name}, not checked")
    category = CATEGORY[name]
    folders = {
        split: next((path / found for found in (split, f"{category}_{split}") if (path / found).is_dir()), None)
        for split in ("train", "val")
    }
    files = _files(folders["train"] or path)
    if folders["val"] and folders["train"]:
        val = _files(folders["val"])
    else:
        order = np.random.RandomState(data_config.split_seed).permutation(len(files))
        count = min(HELD_OUT, len(files) // 10)
        files, val = ([files[i] for i in sorted(chosen)] for chosen in (order[count:], order[:count]))
    shape = (facts.size, facts.size, 3)
    keep = images.fits(len(files) + len(val), shape)
    splits = {"test": empty_split(shape)}
    for split, paths in (("train", files), ("val", val)):
        lazy = images.lazily(paths, images.Square(facts.size, resample=Image.Resampling.BICUBIC))
        pixels = images.in_memory(lazy, f"{name} {split}") if keep else lazy
        splits[split] = Split(pixels, np.zeros(len(paths), np.int32))
    return published.dataset(data_config, facts, splits, f"{len(files)} image files, not checked")


def find(data_config):
    """NAME.npz in `data.dir`, or that folder where it holds image files, or None."""
    given = published.folder(data_config)
    if given is not None and given.suffix == ".npz" and given.is_file():
        return given
    if given is None or not given.is_dir():
        return None
    if (given / f"{data_config.name}.npz").is_file():
        return given / f"{data_config.name}.npz"
    return given if next(_walk(given), None) else None


def _files(folder):
    """Paths of the image files below a folder, sorted; UserError if there are none."""
    files = sorted(_walk(folder))
    if not files:
        raise UserError(f"{folder} holds no image files: export LSUN's database into it")
    return files


def _walk(folder):
    for parent, _, names in os.walk(folder):
        yield from (os.path.join(parent, name) for name in names if name.lower().endswith(images.SUFFIXES))
