"""The Fréchet distance against closed forms and SciPy's matrix square root, in float64."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from pfgm_jax.metrics import frechet
from pfgm_jax.metrics.frechet import Statistics, accumulate, fid, statistics

RNG = np.random.default_rng(0)


def mixed(n, d, seed=0):
    """Features whose covariance is no diagonal one."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d) + rng.normal(size=d)


def test_gaussians_with_common_axes():
    """Closed form: |m1 - m2|² + Σ (s1 - s2)² over the axes."""
    axes, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    m1, m2, s1, s2 = RNG.normal(size=6), RNG.normal(size=6), RNG.uniform(0.1, 2, 6), RNG.uniform(0.1, 2, 6)
    make = lambda n, m, s: Statistics(n, axes @ m, (n - 1) * (axes * s**2) @ axes.T)
    want = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    np.testing.assert_allclose(fid(make(11, m1, s1), make(90, m2, s2)), want, rtol=1e-12)


@pytest.mark.parametrize("n", [9, 40, 300])  # fewer features than the width, as many, more
def test_against_the_matrix_square_root(n):
    a, b = mixed(300, 40), mixed(n, 40, seed=1)
    c1, c2 = np.cov(a.T), np.cov(b.T)
    # sqrtm of a singular matrix is good to the root of the rounding, 1e-8, in each of 40 directions
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    np.testing.assert_allclose(fid(a, b), want, rtol=1e-10 if n == 300 else 1e-6)
    np.testing.assert_allclose(fid(b, a), fid(a, b), rtol=1e-12)


@pytest.mark.parametrize("n", [5, 30])
def test_few_images_of_wide_features(n):
    """Features of 4 numbers, written into 50: their distance stays, though the covariances become singular."""
    basis, _ = np.linalg.qr(RNG.normal(size=(50, 4)))
    a, b = mixed(n, 4), mixed(80, 4, seed=1)
    want = fid(statistics(a), statistics(b))
    np.testing.assert_allclose(fid(a @ basis.T, b @ basis.T), want, rtol=1e-10)  # rows, and a singular covariance
    np.testing.assert_allclose(fid(statistics(a @ basis.T), b @ basis.T), want, rtol=1e-10)


def test_a_set_against_itself_is_zero():
    a = mixed(30, 40)
    assert fid(a, a) < 1e-12 * np.trace(np.cov(a.T))
    assert fid(np.ones((3, 5)), np.ones((8, 5))) == 0
    assert frechet.against(a)(a) == {"fid": fid(a, a)}


def test_statistics_of_batches_are_those_of_the_whole():
    a = mixed(100, 5) + 1000  # a common offset, where sums of squares would lose six digits
    whole, batches = statistics(a), accumulate(a[i : i + 17] for i in range(0, 100, 17))
    assert whole.n == batches.n == 100
    np.testing.assert_allclose(batches.mean, a.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(batches.covariance, np.cov(a.T), rtol=1e-9)


@pytest.mark.parametrize("a, b", [(np.ones((1, 3)), np.ones((4, 3))), (np.ones((4, 2)), np.ones((4, 3)))])
def test_what_has_no_distance_is_refused(a, b):
    with pytest.raises(ValueError, match="at least 2 images|differ in width"):
        fid(a, b)
