"""The order of training examples: permutations, fair, balanced where asked, and the same for ever."""

import itertools
import math

import numpy as np
import pytest

from pfgm_jax.data import balanced_order, epoch_order


def epochs(seed, n, count):
    return epoch_order(seed, np.arange(count * n), n).reshape(count, n)


@pytest.mark.parametrize("n", [*range(1, 10), 16, 17, 100, 1437, 4096, 11959])
def test_every_epoch_is_a_permutation(n):
    orders = epochs(n, n, 3)
    assert orders.dtype == np.int32
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(n), (3, 1)))
    if n > 16:
        assert all((orders[i] != orders[j]).any() for i, j in [(0, 1), (0, 2), (1, 2)])
        assert (orders[0] != epochs(n + 1, n, 1)[0]).any()


def test_the_largest_set_stays_in_range_without_repeats():
    n = 2**31 - 1
    first = np.arange(50_000)
    index = epoch_order(0, np.concatenate([first, first + n]), n)  # epochs 0 and 1
    assert index.min() >= 0 and index.max() < n
    for epoch in (index[:50_000], index[50_000:]):
        assert len(np.unique(epoch)) == 50_000
        assert abs(epoch.mean() / n - 0.5) < 5 / math.sqrt(12 * 50_000)
    assert (index[:50_000] != index[50_000:]).any()


@pytest.mark.parametrize("n", [0, -1, 2**31])
def test_impossible_sizes_are_refused(n):
    with pytest.raises(ValueError, match="n = "):
        epoch_order(0, np.arange(3), n)


def test_an_example_does_not_depend_on_what_else_is_asked_for():
    positions = np.arange(2**32 - 600, 2**32 + 600)  # beyond what 32 bits count
    whole = epoch_order((3, 1), positions, 1437)
    np.testing.assert_array_equal(epoch_order((3, 1), positions.reshape(12, 100), 1437).ravel(), whole)
    np.testing.assert_array_equal([epoch_order((3, 1), p, 1437) for p in positions[:50]], whole[:50])
    assert (epoch_order((3, 2), positions, 1437) != whole).any()


def test_order_is_pinned():
    """A run resumed after an upgrade must see the same images: these numbers may not change."""
    np.testing.assert_array_equal(epoch_order(0, np.arange(8), 1000), [714, 920, 942, 74, 240, 943, 324, 699])
    labels = np.repeat([0, 2, 3], [50, 7, 500])
    np.testing.assert_array_equal(balanced_order(0, np.arange(8), labels), [57, 51, 26, 53, 465, 1, 56, 263])


def chi_square_is_plausible(counts, expected):
    """Within 5 sigma; chi-square of k cells has mean k - 1 and variance 2 (k - 1)."""
    freedom = counts.size - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_small_sets_take_every_order_equally_often(n):
    trials = 12_000
    names = {order: i for i, order in enumerate(itertools.permutations(range(n)))}
    over_epochs = epochs(1, n, trials)
    over_seeds = np.stack([epoch_order((2, seed), np.arange(n), n) for seed in range(trials // 12)])
    for orders in (over_epochs, over_seeds):
        counts = np.bincount([names[tuple(order)] for order in orders.tolist()], minlength=len(names))
        chi_square_is_plausible(counts, len(orders) / len(names))


@pytest.mark.parametrize("n", [37, 64])
def test_images_are_equally_likely_everywhere(n):
    trials = 4000
    orders = epochs(4, n, trials)
    counts = np.zeros((n, n))
    np.add.at(counts, (np.arange(n)[None], orders), 1)
    # Rows and columns of the table sum to `trials`, which leaves (n - 1)^2 degrees of freedom.
    chi_square = ((counts - trials / n) ** 2 / (trials / n)).sum()
    assert abs(chi_square - (n - 1) ** 2) < 5 * math.sqrt(2) * (n - 1)
    steps = np.bincount(((orders[:, 1:] - orders[:, :-1]) % n).ravel(), minlength=n)[1:]
    chi_square_is_plausible(steps, trials)  # the step to the next image, never 0, is any of n - 1 alike


def test_successive_epochs_are_uncorrelated():
    n, count = 1437, 400
    ranks = (epochs(5, n, count + 1) - (n - 1) / 2) / math.sqrt((n**2 - 1) / 12)
    for a, b in [(ranks[1:], ranks[:-1]), (ranks[:, 1:], ranks[:, :-1])]:  # the same place, the next place
        correlation = (a * b).mean(axis=1)
        assert np.abs(correlation).max() < 5 / math.sqrt(n)
        assert abs(correlation.mean()) < 5 / math.sqrt(correlation.size * n) + 1 / n
    fixed = (epochs(5, n, count) == np.arange(n)).sum(axis=1)  # Poisson of mean 1
    assert abs(fixed.mean() - 1) < 5 / math.sqrt(count)


def test_balanced_order_visits_classes_and_their_images_equally_often():
    counts = {0: 50, 2: 7, 3: 500, 4: 7}  # class 1 has no images
    labels = np.random.default_rng(0).permutation(np.repeat(list(counts), list(counts.values())))
    turns = 1000
    order = balanced_order(7, np.arange(4 * turns), labels)
    assert order.dtype == np.int32
    by_turn = labels[order].reshape(turns, 4)
    np.testing.assert_array_equal(np.sort(by_turn, axis=1), np.tile([0, 2, 3, 4], (turns, 1)))
    first = np.bincount(by_turn[:, 0], minlength=5)[[0, 2, 3, 4]]
    chi_square_is_plausible(first, turns / 4)  # no class has a place of its own
    for label, count in counts.items():
        mine = order[labels[order] == label]
        epochs_ = mine[: turns // count * count].reshape(-1, count)
        assert (np.sort(epochs_, axis=1) == np.flatnonzero(labels == label)).all()
        assert count == 500 or len({tuple(epoch) for epoch in epochs_[:20].tolist()}) > 15
    a, b = (np.searchsorted(np.flatnonzero(labels == c), order[labels[order] == c]) for c in (2, 4))
    assert 0.05 < (a == b).mean() < 0.25  # two classes of seven images do not move in step (1/7 by chance)
