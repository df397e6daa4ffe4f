"""The flow map against SciPy, and consistency sampling by the exact one: it keeps the laws of data and noise."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.stats
from oracles import CHARGES, FREQUENCIES, keys, solve

from pfgm_jax import sampling
from pfgm_jax.errors import UserError
from pfgm_jax.flow.process import edm, pfgmpp

HIGH, LOW, n = 20.0, 1.5, 10_000
SLOW = pytest.mark.slow
DIMENSIONS = [1, pytest.param(128, marks=SLOW), pytest.param(math.inf, marks=SLOW)]


@pytest.mark.parametrize("D", DIMENSIONS)
def test_flow_map_is_that_of_scipy(x64, D):
    # Two solvers at tolerances of 1e-8 and 1e-12: 1e-6 is room for what their errors grow by.
    process, denoise = pfgmpp(D, 0.01, HIGH), oracles.denoiser(CHARGES, D)
    x = oracles.noised(CHARGES, D, 4, 5.0, seed=2)
    half = sampling.flow_map(process, denoise, x, 5.0, 1.0, tolerance=1e-8)
    np.testing.assert_allclose(half, oracles.flow(x, 5.0, 1.0, CHARGES, D), rtol=1e-6, atol=1e-6)
    # From there on it is the map to the end, which is E[y | x, σ_min] at the end of the flow.
    low = oracles.flow(x, 5.0, 0.01, CHARGES, D)
    end = oracles.posterior_mean(low, np.full(4, 0.01), CHARGES, D)
    np.testing.assert_allclose(sampling.flow_map(process, denoise, x, 5.0, tolerance=1e-8), end, atol=1e-6)
    np.testing.assert_allclose(sampling.flow_map(process, denoise, half, 1.0, tolerance=1e-8), end, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("D", [1, 128, math.inf])
def test_two_time_denoiser_lies_between_mean_and_end(x64, D):
    process, denoise = pfgmpp(D, 0.01, HIGH), oracles.denoiser(CHARGES, D)
    x = oracles.noised(CHARGES, D, 4, 3.0, seed=2)

    def two_time(low):
        return sampling.two_time_denoiser(x, sampling.flow_map(process, denoise, x, 3.0, low, 1e-9), 3.0, low)

    mean = oracles.posterior_mean(x, np.full(4, 3.0), CHARGES, D)
    near, nearer = (np.abs(two_time(3.0 - step) - mean).max() for step in (0.02, 0.01))
    assert nearer < 0.05 and near / nearer == pytest.approx(2, rel=0.05)  # first order in the step
    np.testing.assert_allclose(two_time(0.0), sampling.flow_map(process, denoise, x, 3.0, tolerance=1e-9), atol=1e-12)


def exact_end(points, D, steps=60):
    """The consistency function of points by classical Runge-Kutta in ln σ, for levels that are traced."""
    mean = oracles.denoiser(points, D)

    def end(x, sigma):
        shrink = (0.02 / sigma) ** (1 / steps)
        h = jnp.log(shrink)[:, None]
        slope = lambda x, sigma: x - mean(x, sigma)

        def step(i, x):
            s = sigma * shrink**i
            k1 = slope(x, s)
            k2 = slope(x + h / 2 * k1, s * shrink**0.5)
            k3 = slope(x + h / 2 * k2, s * shrink**0.5)
            return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, s * shrink))

        x = jax.lax.fori_loop(0, steps, step, x)
        return mean(x, jnp.full(len(x), 0.02, x.dtype))

    return end


@functools.cache
def sampled(D, steps, again_D):
    """(samples, state before the last evaluation) of the exact consistency function, from the law at σ = HIGH."""
    x = oracles.noised(CHARGES, D, n, HIGH, seed=1).astype(np.float32)
    levels = ",".join(map(str, np.geomspace(6.0, LOW, steps - 1) if steps > 2 else [LOW]))
    process = pfgmpp(again_D, 0.02, HIGH)
    x, stats = solve(
        "consistency", process, exact_end(CHARGES, D), x, keys(n, 3), steps=steps, levels=levels, frames=steps
    )
    assert stats.completed and int(stats.nfe) == steps
    return np.asarray(x), np.asarray(stats.trajectory[-1], np.float64)


def distances(D, steps, again_D):
    """Kolmogorov-Smirnov distance of the last state's projections from the law at LOW; χ² of the ends' frequencies."""
    x, state = sampled(D, steps, again_D)
    directions = np.random.default_rng(2).normal(size=(3, 4))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    along = [scipy.stats.kstest(state @ u, oracles.cumulative(CHARGES, D, LOW, u)).statistic for u in directions]
    charges = np.unique(CHARGES, axis=0)
    nearest = np.linalg.norm(x[:, None] - charges, axis=2).argmin(1)
    expected = np.array([np.mean((CHARGES == charge).all(1)) for charge in charges])
    assert sorted(expected) == pytest.approx(sorted(FREQUENCIES))
    return max(along), scipy.stats.chisquare(np.bincount(nearest, minlength=3), n * expected).statistic


@pytest.mark.parametrize(
    ("D", "steps"), [(1, 2), (128, 2), (math.inf, 2), *(pytest.param(D, 4, marks=SLOW) for D in (1, 128, math.inf))]
)
def test_every_evaluation_keeps_the_laws(D, steps):
    # 1.95/√n is the 0.1 % value of Kolmogorov-Smirnov, 13.8 that of χ² with two degrees of freedom.
    apart, chi_square = distances(D, steps, D)
    assert apart < 1.95 / math.sqrt(n) and chi_square < 13.8


@pytest.mark.slow
def test_gaussian_noise_at_finite_D_would_not():
    apart, _ = distances(1, 2, math.inf)
    assert apart > 5 / math.sqrt(n)


def test_one_evaluation_needs_no_noise_and_is_the_network(x64):
    x = np.random.default_rng(0).normal(size=(3, 2))
    reached, stats = sampling.consistency(edm(0.01, 5.0), lambda x, sigma: x * sigma[:, None], x, steps=1)
    np.testing.assert_allclose(reached, 5 * x)
    assert stats.nfe == 1


def test_two_evaluations_by_hand(x64):
    # The noise of a sample is a function of its key alone, and full: 3 times a draw of the kernel.
    process, x = edm(0.01, 5.0), np.random.default_rng(0).normal(size=(3, 2))
    denoise = lambda x, sigma: x / (1 + sigma[:, None])
    reached, _ = sampling.consistency(process, denoise, x, keys=keys(3), steps=2, levels="3,1")
    noise = 4 * np.asarray(reached) - x / 6
    again, _ = sampling.consistency(process, denoise, x[1:2], keys=keys(3)[1:2], steps=2, levels="3")
    np.testing.assert_allclose(again, reached[1:2])
    other, _ = sampling.consistency(process, lambda x, sigma: x * 0 + 1, x, keys=keys(3), steps=2, levels="3", frames=2)
    np.testing.assert_allclose(other, 1)
    assert np.abs(noise).max() > 0.1
    np.testing.assert_allclose(_.trajectory[1], 1 + noise)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"steps": 0}, "1 to 1,000 steps"),
        ({"levels": "low"}, "numbers like"),
        ({"steps": 3, "levels": "0.8"}, "needs 2 levels"),
        ({"levels": "90"}, "fall from below"),
        ({"steps": 3, "levels": "0.3,0.8"}, "fall from below"),
        ({"levels": "0.0001"}, "no less than"),
    ],
)
def test_bad_options_are_one_line(options, word):
    with pytest.raises(UserError, match=word) as refused:
        sampling.check("consistency", edm(), options)
    assert "\n" not in str(refused.value)


def test_the_flow_map_leads_down():
    with pytest.raises(UserError, match="leads down"):
        sampling.flow_map(edm(), lambda x, sigma: x, np.zeros((1, 2)), 1.0, 2.0)


def test_default_levels_are_even_in_the_logarithm():
    x = np.zeros((1, 2), np.float32)
    _, stats = sampling.consistency(edm(0.01, 100.0), lambda x, sigma: x, x, keys=keys(1), steps=4, frames=4)
    np.testing.assert_allclose(stats.sigmas, [100, 10, 1, 0.1], rtol=1e-6)
