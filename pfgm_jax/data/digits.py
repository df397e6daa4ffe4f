"""scikit-learn's handwritten digits: 1797 grey images of 8x8, inside the package, so it needs no network."""

import numpy as np

from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.errors import UserError

SIZE = 8


def load(data_config) -> Dataset:
    """1437 / 180 / 180 digits, split with equal class shares, the same on every machine.

    data_config: `name` and `size`, which must be 8 (UserError); other fields are not read.
    """
    if data_config.size != SIZE:
        raise UserError(f"digits are {SIZE}x{SIZE}, not {data_config.size}: write --config.data.size={SIZE}")
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]  # raw values are 0..16
    labels = raw.target.astype(np.int32)

    # Shuffled within each class (numpy has frozen RandomState's stream), then dealt out in turns of ten.
    shuffled = np.random.RandomState(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    part = np.empty(len(labels), int)
    part[by_class] = np.arange(len(labels)) % 10

    def split(chosen):
        return Split(images[chosen], labels[chosen])

    return Dataset(
        name=data_config.name,
        train=split((part != 0) & (part != 5)),
        val=split(part == 0),
        test=split(part == 5),
        classes=tuple(str(digit) for digit in range(10)),
        licence="CC BY 4.0",
        source="scikit-learn load_digits: test part of UCI Optical Recognition of Handwritten Digits",
    )
