"""Which images of a source without splits of its own are held out, the same on every machine."""

import sys
from fractions import Fraction

import numpy as np

from pfgm_jax.errors import counted

TRAIN, VAL, TEST = 0, 1, 2
NAMES = ("train", "val", "test")
# What folders and the column split of labels.csv may call them, in upper or lower case.
SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "tests", "testing", "eval", "evaluation"), TEST),
}


def stratified(labels: np.ndarray, val: float, test: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """The split of every image, int [n]: TRAIN, VAL or TEST, each with nearly the same share of every class.

    labels: int [n]. val, test: shares of all images. Images are shuffled within their class and dealt out in turn; a
    class too small to spare one stays in training whole. groups: int [n], such as patients, numbered in the order of
    their first images; those of a group stay together, and it counts as of its most frequent class.
    """
    if groups is None:
        return _stratified(labels, np.ones(len(labels), np.int64), (val, test), seed)
    number = groups.max(initial=-1) + 1
    # Of (group, label) pairs the most frequent of each group, the lowest label among equals.
    pairs, counts = np.unique(np.stack([groups, labels], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))
    first = order[np.unique(pairs[order, 0], return_index=True)[1]]
    return _stratified(pairs[first, 1], np.bincount(groups, minlength=number), (val, test), seed)[groups]


def _stratified(labels, sizes, shares, seed):
    """`stratified` of n groups of `sizes` images, none of them empty: the split of every group, int [n]."""
    # In exact numbers: 0.1 is a tenth, and the turns come round alike wherever this runs.
    val, test = (Fraction(str(share)).limit_denominator(10**6) for share in shares)
    held = val + test
    shuffled = np.random.RandomState(seed).permutation(len(labels))  # numpy has frozen RandomState's stream
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held_out = by_class[_turns(sizes[by_class], held)]
    parts = np.full(len(labels), TRAIN)
    if len(held_out):
        parts[held_out] = np.where(_turns(sizes[held_out], val / held), VAL, TEST)
    kept = np.bincount(labels[parts == TRAIN], minlength=labels.max(initial=0) + 1)
    parts[kept[labels] == 0] = TRAIN
    return parts


def _turns(sizes, share):
    """bool [n]: in order, those that bring the images taken nearest to `share` of the images so far.

    For sizes of 1 that is every 1/share-th, the first among them.
    """
    if (sizes == 1).all():
        ends = -(-np.arange(len(sizes) + 1, dtype=np.int64) * share.numerator // share.denominator)
        return np.diff(ends).astype(bool)
    taken, so_far, turns = 0, 0, np.zeros(len(sizes), bool)
    for i, size in enumerate(map(int, sizes)):
        so_far += size
        # taken + size / 2 < share · so_far + 1 / 2
        turns[i] = (2 * taken + size) * share.denominator < 2 * so_far * share.numerator + share.denominator
        taken += size * turns[i]
    return turns


def hold_out(parts, labels, data_config, wanted=(VAL, TEST), groups=None) -> np.ndarray:
    """`parts` with images of TRAIN moved to those of the `wanted` splits, by data.val, data.test and split_seed.

    groups: int [n], of which each stays in one split; None: every image by itself.
    """
    shares = [share if split in wanted else 0 for split, share in ((VAL, data_config.val), (TEST, data_config.test))]
    parts, train = parts.copy(), np.flatnonzero(parts == TRAIN)
    own = None if groups is None else in_order(groups[train])
    parts[train] = stratified(labels[train], *shares, data_config.split_seed, own)
    return parts


def in_order(keys) -> np.ndarray:
    """int [n]: equal keys, numbers or words, become equal numbers, in the order of their first appearance."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse.reshape(-1)]


def shared_groups(splits) -> dict[tuple[str, str], int]:
    """{(split, other): groups with images in both}, of {name: groups int [n]}, where there are any."""
    pairs = [(a, b) for i, a in enumerate(splits) for b in list(splits)[i + 1 :]]
    shared = {(a, b): len(np.intersect1d(splits[a], splits[b])) for a, b in pairs}
    return {pair: number for pair, number in shared.items() if number}


def warn_missing(dataset) -> None:
    """Says on stderr which classes a split lacks, in a line a split."""
    for name in NAMES:
        split = getattr(dataset, name)
        lacking = np.flatnonzero(np.bincount(split.labels, minlength=dataset.num_classes) == 0)
        if len(split) and len(lacking):
            some = ", ".join(dataset.classes[i] for i in lacking[:5]) + (", …" if len(lacking) > 5 else "")
            print(f"{dataset.name}: no {name} image of {counted(len(lacking), 'class')} ({some})", file=sys.stderr)
