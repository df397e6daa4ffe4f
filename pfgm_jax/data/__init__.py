"""Data sets by name: `load(config.data)` gives a `Dataset`.

A new source is one file here and one entry in SOURCES.
"""

from pfgm_jax.data import digits, medmnist, prepared, toys
from pfgm_jax.data.dataset import Dataset, Moments, Split, diameter, moments, to_uint8, to_unit
from pfgm_jax.data.order import epoch_order
from pfgm_jax.errors import UserError, nearest

__all__ = [
    "SOURCES",
    "Dataset",
    "Moments",
    "Split",
    "diameter",
    "epoch_order",
    "load",
    "moments",
    "to_uint8",
    "to_unit",
]

SOURCES = {
    "digits": digits.load,
    **dict.fromkeys(medmnist.NAMES, medmnist.load),
    **dict.fromkeys(prepared.SETS, prepared.load),
    **dict.fromkeys(toys.TOYS, toys.load),
}


def load(data_config, stand_in=False) -> Dataset:
    """The data set `data_config.name`; UserError for anything a person can fix.

    With `stand_in`, random images take the place of a prepared file that is absent: enough for a dry run.
    """
    name = data_config.name
    if name not in SOURCES:
        hint = nearest(name, SOURCES) or ";"
        raise UserError(f"--config.data.name={name} is not known{hint} it is one of {', '.join(SOURCES)}")
    random = prepared.stand_in(data_config) if stand_in and name in prepared.SETS else None
    return random or SOURCES[name](data_config)
