"""scikit-learn's handwritten digits: 1797 grey images of 8x8, inside the package, so it needs no network."""

import importlib.util
import pathlib

import numpy as np

from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.data.splits import TEST, TRAIN, VAL, stratified
from pfgm_jax.errors import UserError

SIZE = 8


def load(data_config) -> Dataset:
    """1437 / 180 / 180 digits, split with equal class shares, the same on every machine.

    data_config: `name` and `size`, which must be 8 (UserError); other fields are not read.
    """
    if data_config.size != SIZE:
        raise UserError(f"digits are {SIZE}x{SIZE}, not {data_config.size}: write data.size={SIZE}")
    raw, labels = _raw()
    images = np.round(raw * (255 / 16)).astype(np.uint8)[..., None]

    parts = stratified(labels, 0.1, 0.1, seed=0)
    train, val, test = (Split(images[parts == part], labels[parts == part]) for part in (TRAIN, VAL, TEST))
    return Dataset(
        name=data_config.name,
        train=train,
        val=val,
        test=test,
        classes=tuple(str(digit) for digit in range(10)),
        licence="CC BY 4.0",
        source="scikit-learn load_digits: test part of UCI Optical Recognition of Handwritten Digits",
    )


def _raw():
    """(values 0 to 16, [1797, 8, 8]; labels [1797]) of scikit-learn's file.

    It is read where it lies: importing `sklearn.datasets` takes a third of the time in which a command starts.
    """
    spec = importlib.util.find_spec("sklearn")
    path = pathlib.Path(spec.origin).parent / "datasets/data/digits.csv.gz" if spec and spec.origin else None
    if path is not None and path.exists():
        table = np.loadtxt(path, delimiter=",")
        return table[:, :-1].reshape(-1, SIZE, SIZE), table[:, -1].astype(np.int32)
    from sklearn.datasets import load_digits  # a version that keeps the file elsewhere

    bunch = load_digits()
    return bunch.images, bunch.target.astype(np.int32)
