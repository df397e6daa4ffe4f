"""Which images of a source without splits of its own are held out, the same on every machine."""

import sys
from fractions import Fraction

import numpy as np

TRAIN, VAL, TEST = 0, 1, 2
NAMES = ("train", "val", "test")


def stratified(labels: np.ndarray, val: float, test: float, seed: int) -> np.ndarray:
    """The split of every image, int [n]: TRAIN, VAL or TEST, each with nearly the same share of every class.

    labels: int [n]. val, test: shares of all images. Images are shuffled within their class and dealt out in turn; a
    class too small to spare one stays in training whole.
    """
    # In exact numbers: 0.1 is a tenth, and the turns come round alike wherever this runs.
    val, test = (Fraction(str(share)).limit_denominator(10**6) for share in (val, test))
    held = val + test

    def turns(count, share):
        """Every 1/share-th of `count`, the first among them: bool [count]."""
        ends = -(-np.arange(count + 1, dtype=np.int64) * share.numerator // share.denominator)
        return np.diff(ends).astype(bool)

    shuffled = np.random.RandomState(seed).permutation(len(labels))  # numpy has frozen RandomState's stream
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held_out = by_class[turns(len(labels), held)]
    parts = np.full(len(labels), TRAIN)
    if len(held_out):
        parts[held_out] = np.where(turns(len(held_out), val / held), VAL, TEST)
    kept = np.bincount(labels[parts == TRAIN], minlength=labels.max(initial=0) + 1)
    parts[kept[labels] == 0] = TRAIN
    return parts


def hold_out(parts: np.ndarray, labels: np.ndarray, data_config, wanted=(VAL, TEST)) -> np.ndarray:
    """`parts` with images of TRAIN moved to those of the `wanted` splits, by data.val, data.test and split_seed."""
    shares = [share if split in wanted else 0 for split, share in ((VAL, data_config.val), (TEST, data_config.test))]
    parts, train = parts.copy(), np.flatnonzero(parts == TRAIN)
    parts[train] = stratified(labels[train], *shares, data_config.split_seed)
    return parts


def warn_missing(dataset) -> None:
    """Says on stderr which classes a split lacks, in a line a split."""
    for name in NAMES:
        split = getattr(dataset, name)
        lacking = np.flatnonzero(np.bincount(split.labels, minlength=dataset.num_classes) == 0)
        if len(split) and len(lacking):
            some = ", ".join(dataset.classes[i] for i in lacking[:5]) + (", …" if len(lacking) > 5 else "")
            print(f"{dataset.name}: no {name} image of {len(lacking)} classes ({some})", file=sys.stderr)
