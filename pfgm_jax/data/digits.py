"""scikit-learn's handwritten digits: 1797 grey images of 8x8, inside the package, so it needs no network."""

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
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]  # raw values are 0..16
    labels = raw.target.astype(np.int32)

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
