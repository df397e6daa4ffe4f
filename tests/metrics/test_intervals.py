"""Intervals cover what they should, where the answer is known."""

import numpy as np
import pytest

from pfgm_jax.metrics import frechet, kernel_distance, neighbours
from pfgm_jax.metrics.intervals import compare, estimate

mean = lambda x: {"mean": float(x.mean())}


def test_the_standard_error_of_a_mean():
    """Closed form s / √n; 2000 halves give it to 1 / √4000, and 5 of that are allowed."""
    x = np.random.default_rng(0).normal(size=101)  # an odd number: halves are not quite halves
    found = estimate(mean, x, replicates=2000)["mean"]
    np.testing.assert_allclose(found.error, x.std(ddof=1) / np.sqrt(101), rtol=5 / np.sqrt(4000))
    assert found.value == x.mean()
    np.testing.assert_allclose(found.high - found.value, found.value - found.low, rtol=1e-9)
    np.testing.assert_allclose(found.high - found.value, 1.96 * found.error, rtol=2e-3)  # 1.961 at 1999 degrees


@pytest.mark.parametrize("against, d, scale", [
    (frechet.against, 2, 1.3), (kernel_distance.against, 8, 1.0), (neighbours.against, 2, 1.3),
])  # fmt: skip
def test_intervals_cover_what_the_metric_gives_on_average(against, d, scale):
    """The share of 200 intervals at 95 % that hold the mean figure of n samples: 5 sigma of it are 0.077."""
    rng = np.random.default_rng(0)
    metric = against(rng.normal(size=(120, d)))
    found = [estimate(metric, scale * rng.normal(size=(120, d)) + 0.5, seed=i) for i in range(200)]
    for name in found[0]:
        target = np.mean([f[name].value for f in found])
        share = np.mean([f[name].low <= target <= f[name].high for f in found])
        assert share >= 0.95 - 0.077, (name, share)
        # and is no wider than it has to be: the errors are those seen, at most half as large again
        spread = np.std([f[name].value for f in found])
        assert np.median([f[name].error for f in found]) < 1.5 * spread, name


def test_a_bootstrap_of_the_frechet_distance_would_miss():
    """Why there is none: of 200 resamples with duplicates every one lies above the figure."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 20))
    metric = frechet.against(rng.normal(size=(500, 20)))
    value = metric(x)["fid"]
    assert min(metric(x[rng.integers(0, 60, 60)])["fid"] for _ in range(200)) > value
    assert estimate(metric, x)["fid"].low < value < estimate(metric, x)["fid"].high


def test_equal_models_are_not_resolved_and_different_ones_are():
    rng = np.random.default_rng(0)
    metric = frechet.against(rng.normal(size=(200, 3)))
    draw = lambda shift: rng.normal(size=(120, 3)) + shift
    same = [compare(metric, draw(0.5), draw(0.5), seed=i)["fid"] for i in range(60)]
    assert np.mean([d.resolved for d in same]) < 0.05 + 5 * np.sqrt(0.05 * 0.95 / 60)
    far = compare(metric, draw(0.5), draw(1.5))["fid"]
    assert far.resolved and far.difference.high < 0 and far.a < far.b
    assert not str(far).startswith("not resolved")
    assert [str(d).startswith("not resolved: ") for d in same] == [not d.resolved for d in same]


def test_pairs_share_what_drops_out():
    """b is a with a small constant shift: the difference of the means is exactly that."""
    a = np.random.default_rng(0).normal(size=100)
    paired = compare(mean, a, a + 0.01, paired=True)["mean"]
    np.testing.assert_allclose([paired.difference.value, paired.difference.error], [-0.01, 0], atol=1e-12)
    assert paired.resolved and not compare(mean, a, a + 0.01)["mean"].resolved


def test_what_does_not_compare_is_refused():
    with pytest.raises(ValueError, match="equally many"):
        compare(mean, np.ones(5), np.ones(6))
    with pytest.raises(ValueError, match="4 samples and 2 replicates"):
        estimate(mean, np.ones(3))
