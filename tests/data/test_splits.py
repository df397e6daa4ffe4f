"""Splits by seed: groups stay whole, shares are met, and what held without groups holds with groups of one."""

import numpy as np
import pytest

from pfgm_jax.data.splits import in_order, shared_groups, stratified


@pytest.mark.parametrize("val, test", [(0.1, 0.1), (0.25, 0), (0, 0), (0.3, 0.2)])
def test_groups_of_one_change_nothing(val, test):
    labels = np.random.default_rng(0).integers(0, 5, 200)
    alone = stratified(labels, val, test, 3, np.arange(200))
    np.testing.assert_array_equal(alone, stratified(labels, val, test, 3))


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_whole_and_shares_are_met(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 20, 150)
    groups = in_order(random.permutation(np.repeat(np.arange(150), sizes)))
    labels = random.integers(0, 3, 150)[groups]
    parts = stratified(labels, 0.2, 0.1, seed, groups)
    assert all(len(set(parts[groups == group])) == 1 for group in range(150))
    counts = np.bincount(parts, minlength=3)
    # val and test together are within half of the largest group of their share, and each of the two again.
    assert abs(counts[1:].sum() - 0.3 * len(groups)) <= 10 and abs(counts[1] - 0.2 * len(groups)) <= 20
    for label in range(3):
        held = (parts[labels == label] > 0).mean()
        assert abs(held - 0.3) <= 20 / (labels == label).sum()  # half a group at either end of the class


def test_a_class_of_one_patient_stays_in_training():
    groups = np.repeat([0, 1, 2, 3], 5)
    labels = np.repeat([0, 0, 0, 1], 5)
    assert (stratified(labels, 0.4, 0.4, 0, groups)[15:] == 0).all()


def test_numbers_in_order_of_appearance():
    assert in_order(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_shared_groups():
    splits = {"train": np.array([1, 2, 2]), "val": np.array([2, 3]), "test": np.array([4])}
    assert shared_groups(splits) == {("train", "val"): 1}
