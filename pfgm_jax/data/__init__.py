"""Data sets by name: `load(config.data)` gives a `Dataset`.

A new source is one file here and one entry in SOURCES. `tfds:NAME` is any prepared set of TensorFlow Datasets.
"""

from pfgm_jax.data import celeba, cifar10, digits, folder, lsun, medmnist, npz, published, tfds, toys
from pfgm_jax.data.dataset import Dataset, LazyImages, Moments, Split, diameter, moments, to_uint8, to_unit
from pfgm_jax.data.pipeline import Examples, Indices, take
from pfgm_jax.data.shuffle import balanced_order, epoch_order
from pfgm_jax.errors import UserError, nearest

__all__ = [
    "SOURCES",
    "Dataset",
    "Examples",
    "Indices",
    "LazyImages",
    "Moments",
    "Split",
    "balanced_order",
    "diameter",
    "epoch_order",
    "load",
    "moments",
    "take",
    "to_uint8",
    "to_unit",
    "unused",
]

PUBLISHED = {name: source for source in (cifar10, celeba, lsun) for name in source.SETS}
SOURCES = {
    "digits": digits.load,
    "folder": folder.load,
    "npz": npz.load,
    **dict.fromkeys(medmnist.NAMES, medmnist.load),
    **{name: source.load for name, source in PUBLISHED.items()},
    **dict.fromkeys(toys.TOYS, toys.load),
}
# Settings of the source "folder" alone, and what they are when nothing is asked.
FOLDER_ONLY = {"pages": "first", "window": "", "group": ""}
# Settings of some sources that mean nothing to others, and those that have them; tfds:NAME has all of them.
_SOME = {"channels": ("folder",), "val": ("folder", "npz"), "test": ("folder", "npz")}
_SOME |= {"split_seed": ("folder", "npz", *lsun.SETS)}
_WITHOUT_FILES = ("digits", *toys.TOYS)


def unused(name: str) -> list[str]:
    """Names of the fields of config.data that mean nothing to the set called `name`."""
    if name.startswith(tfds.PREFIX):
        return []
    return [field for field, names in _SOME.items() if name not in names] + ["dir"] * (name in _WITHOUT_FILES)


def load(data_config, stand_in=False) -> Dataset:
    """The data set `data_config.name`; UserError for anything the user can fix.

    With `stand_in`, random images replace a published set whose files are absent: enough for a dry run.
    """
    name = data_config.name
    for field, unset in FOLDER_ONLY.items() if name != "folder" else ():
        requested = getattr(data_config, field, unset)
        if requested != unset:
            raise UserError(f"data.{field}={requested} is for data.name=folder, not for {name}: leave it out")
    if name.startswith(tfds.PREFIX):
        return tfds.load(data_config)
    if name not in SOURCES:
        there = ", ".join(SOURCES)
        raise UserError(f"data.name={name} is not one of {there}, tfds:NAME{nearest(name, SOURCES)}")
    if stand_in and name in PUBLISHED and PUBLISHED[name].find(data_config) is None:
        return published.stand_in(data_config, PUBLISHED[name].SETS[name])
    return SOURCES[name](data_config)
