"""The area under the ROC curve against its definition, and its interval against repeated draws."""

import numpy as np
import pytest
from scipy.stats import norm

from pfgm_jax.errors import UserError
from pfgm_jax.metrics.detection import auc


def test_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    usual, unusual = rng.integers(0, 8, 40), rng.integers(2, 10, 30)  # with ties
    above = unusual[:, None] > usual
    equal = unusual[:, None] == usual
    assert auc(usual, unusual).value == pytest.approx(np.mean(above + 0.5 * equal))
    assert auc(unusual, usual).value == pytest.approx(1 - np.mean(above + 0.5 * equal))


def test_interval_holds_the_truth_as_often_as_it_says():
    truth, rng, held = norm.cdf(1 / np.sqrt(2)), np.random.default_rng(1), 0
    for _ in range(400):
        area = auc(rng.normal(size=50), 1 + rng.normal(size=40))
        held += area.low <= truth <= area.high
    assert abs(held / 400 - 0.95) < 3.5 * np.sqrt(0.95 * 0.05 / 400)


def test_sets_told_apart_without_fail():
    area = auc(np.arange(30), 100 + np.arange(60))
    assert (area.value, area.low, area.high) == (1.0, 0.9, 1.0)
    assert auc(100 + np.arange(60), np.arange(30)).value == 0


@pytest.mark.parametrize("usual", [[1.0], [1.0, np.nan]])
def test_refusals(usual):
    with pytest.raises(UserError, match="2 finite scores"):
        auc(usual, [1.0, 2.0])
