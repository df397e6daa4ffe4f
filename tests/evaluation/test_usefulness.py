"""Real images are useful, images with wrong labels are not."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from pfgm_jax import data
from pfgm_jax.data.dataset import Split, empty_split
from pfgm_jax.errors import UserError
from pfgm_jax.metrics import classifier
from pfgm_jax.metrics import usefulness as module


@pytest.fixture(scope="module")
def digits():
    return data.load(SimpleNamespace(name="digits", size=8))


@pytest.mark.slow
def test_real_halves_are_told_from_shuffled_labels(digits, monkeypatch):
    monkeypatch.setattr(classifier, "BATCH", 16)
    images, labels = digits.train.images[700:], digits.train.labels[700:]
    first = dataclasses.replace(digits, train=Split(digits.train.images[:700], digits.train.labels[:700]))
    run = lambda labels, arms: module.usefulness(first, images, labels, seeds=2, steps=50, arms=arms)
    good = run(labels, ("real", "synthetic"))
    bad = run(np.random.default_rng(0).permutation(labels), ("synthetic",))
    # 0.74 was seen of either half after so short a training, seeds 0.03 apart. Shuffled labels carry nothing: chance is
    # 0.1, and 5 deviations of 180 images 0.11.
    assert min(arm.accuracy.min() for arm in good.arms.values()) > 0.55
    assert bad.arms["synthetic"].accuracy.max() < 0.3
    text = module.table(good)
    assert "50 steps of 16 for every row" in text and "180 test images of digits 8×8×1" in text
    assert f"{good.arms['real'].accuracy.mean():.3f} ±" in text and "synthetic  " in text


def test_figures_of_an_arm():
    arm = module.Arm(
        np.array([5, 5, 5]), np.array([[[3, 1, 0], [0, 2, 0], [0, 0, 0]], [[4, 0, 0], [1, 1, 0], [0, 0, 0]]])
    )
    np.testing.assert_allclose(arm.accuracy, [5 / 6, 5 / 6])
    np.testing.assert_allclose(arm.balanced, [(3 / 4 + 1) / 2, (1 + 1 / 2) / 2])  # the third class has no test images
    np.testing.assert_allclose(arm.recall, [[3 / 4, 1, np.nan], [1, 1 / 2, np.nan]])
    table = module.table(module.Usefulness({"real": arm}, ("a", "b", "c"), "protocol"))
    # mean and standard error of 0.875 and 0.75: half their difference
    assert "0.812 ± 0.062" in table and table.endswith("protocol")


def test_rare_classes_are_filled():
    real_labels = np.array([0] * 6 + [1] * 2 + [2] * 4 + [4] * 5)
    more_labels = np.array([0] * 9 + [1] * 7 + [2] * 1 + [3] * 3)
    real, more = np.arange(17), 100 + np.arange(20)
    images, labels = module.joined(real, real_labels, more, more_labels)
    np.testing.assert_array_equal(images[:17], real)
    added, classes = images[17:] - 100, labels[17:]
    np.testing.assert_array_equal(more_labels[added], classes)
    # class 2 has one image, taken twice; of class 3 there are no real ones, of class 4 no others
    np.testing.assert_array_equal(np.bincount(labels), [6, 6, 6, 0, 5])
    assert len(set(added[classes == 1])) == 4 and len(set(added[classes == 2])) == 1


def test_what_cannot_be_measured(digits):
    images, labels = digits.train.images[:20], digits.train.labels[:20]
    nothing = dataclasses.replace(digits, val=empty_split((8, 8, 1)), test=empty_split((8, 8, 1)))
    for dataset, given, classes, says in (
        (nothing, images, labels, "neither test nor validation"),
        (digits, images[:, :4], labels, "synthetic images are"),
        (digits, images, labels - 1, "each synthetic image needs a class"),
        (digits, images, labels[:5], "each synthetic image needs a class"),
    ):
        with pytest.raises(UserError, match=says):
            module.usefulness(dataset, given, classes)
