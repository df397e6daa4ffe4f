"""The reverse SDE at every D: marginals by Kolmogorov-Smirnov, its weak order, and its limits λ = 0 and D = ∞."""

import functools
import math

import jax
import numpy as np
import oracles
import pytest
import scipy.stats
from oracles import draw, keys, solve
from scipy.integrate import quad

from pfgm_jax import sampling
from pfgm_jax.errors import UserError
from pfgm_jax.flow import field
from pfgm_jax.flow.process import edm, pfgmpp, vp

HIGH, LOW, n = 3.0, 0.5, 20_000
# 1 % of Kolmogorov-Smirnov is 1.63 of this, with 200 000 draws to compare with.
KS = math.sqrt(1 / n + 1 / 200_000)
RNG = np.random.default_rng(0)


@functools.cache
def points_of(N):
    return np.random.default_rng(1).normal(size=(4, N))


def end(D, N, steps, noise, count=n, second_moment=None, seed=1):
    """Draws of the law at σ = 3, taken to 0.5 by the solver."""
    process, points = pfgmpp(D, LOW, HIGH), points_of(N)
    x = oracles.noised(points, D, count, HIGH, seed=seed).astype(np.float32)
    second = second_moment or oracles.second_moment(points, D)
    options = dict(steps=steps, noise=noise, second_moment=second, last_denoise=False, grid="log")
    x, stats = solve("sde", process, oracles.denoiser(points, D), x, keys(count, seed), **options)
    assert stats.completed and int(stats.nfe) == steps - 1
    return np.asarray(x, np.float64)


def distance(x, D, N):
    """The largest KS distance from the law at 0.5: of two projections, of the norm and of the distance to a point."""
    points = points_of(N)
    directions = np.random.default_rng(2).normal(size=(2, N))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    along = [scipy.stats.kstest(x @ u, oracles.cumulative(points, D, LOW, u)).statistic for u in directions]
    fresh = oracles.noised(points, D, 200_000, LOW, seed=9)
    for centre in (np.zeros(N), points[0]):
        norms = [np.linalg.norm(a - centre, axis=1) for a in (x, fresh)]
        along.append(scipy.stats.ks_2samp(*norms).statistic)
    return max(along)


@pytest.mark.parametrize("noise", [2.0, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("D", [1, 3.5, 128, math.inf])
def test_marginals(D, noise):
    few, many = (distance(end(D, 2, steps, noise), D, 2) for steps in (5, 200))
    assert few > 2 * many and many < 1.63 * KS


@pytest.mark.slow
@pytest.mark.parametrize("D", [1, 3.5, 128, math.inf])
@pytest.mark.parametrize("N", [20, 200])
def test_marginals_of_more_dimensions(D, N):
    few, many = (distance(end(D, N, steps, 1.0), D, N) for steps in (4, 200))
    # Where few steps are within the scatter already (N = 200, D = 1), there is nothing left to fall.
    assert many < 1.63 * KS and (few > many or few < 1.63 * KS)


def test_without_the_posterior_s_variance_they_are_others():
    """‖x − d‖² in the place of E‖x − y‖²: the trace of Cov(y | x) is missing."""
    short = lambda x, sigma, mean: jax.numpy.sum((x - mean) ** 2, axis=1)
    assert distance(end(1, 2, 200, 2.0, second_moment=short), 1, 2) > 3 * KS


@pytest.mark.slow
@pytest.mark.parametrize("D", [1, 3.5, 128, math.inf])
def test_weak_order(D):
    """The errors of E tanh(3 u·x − 1), E cos(u·x) and E exp(−(u·x)²), all bounded, fall as the step: order 1."""
    u, points, count = np.array([0.6, 0.8]), points_of(2), 1_000_000
    functions = (lambda c: np.tanh(3 * c - 1), np.cos, lambda c: np.exp(-(c**2)))
    law = scipy.stats.norm() if math.isinf(D) else scipy.stats.t(D)

    def exact(f):
        mean = lambda y: quad(lambda z: f(u @ y + LOW * z) * law.pdf(z), -np.inf, np.inf, limit=400)[0]
        return np.mean([mean(y) for y in points])

    counts = [4, 7, 13]
    ends = [end(D, 2, steps, 1.0, count) @ u for steps in counts]
    errors = np.abs([[np.mean(f(along)) - exact(f) for f in functions] for along in ends])
    slopes = -np.polyfit(np.log(np.array(counts) - 1), np.log(errors), 1)[0]
    np.testing.assert_allclose(slopes, 1, rtol=0, atol=0.35)


# ---- limits and the exact field


@pytest.mark.parametrize("D", [1, 128, math.inf])
def test_no_noise_is_euler(x64, D):
    process, denoise = pfgmpp(D, LOW, HIGH), oracles.denoiser(points_of(2), D)
    x = draw(process, 5, (2,))
    ours, _ = solve("sde", process, denoise, x, steps=9, noise=0.0)
    euler, _ = solve("euler", process, denoise, x, steps=9)
    np.testing.assert_allclose(ours, euler, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", [edm(), vp()], ids=lambda p: p.name)
def test_one_at_infinite_D_is_the_ancestral_sampler(x64, process):
    data = oracles.Gaussian()
    x, drawn = draw(process, 5, (3,)), keys(5, 2)
    ours, _ = solve("sde", process, data.denoise, x, drawn, steps=9, noise=1.0)
    options = dict(steps=9, grid="edm", variance="small", clip=math.inf)
    ancestral, _ = solve("ancestral", process, data.denoise, x, drawn, **options)
    np.testing.assert_allclose(ours, ancestral, rtol=0, atol=1e-9)


def test_second_moment_of_the_exact_field():
    """The field's own second moment gives what the direct one gives."""
    process, points, D = pfgmpp(3.5, LOW, HIGH), points_of(20).astype(np.float32), 3.5
    x = draw(process, 6, (20,))
    options = dict(steps=7, last_denoise=False)
    denoise = field.exact_denoiser(points, D)
    one, _ = solve("sde", process, denoise, x, keys(6), second_moment=field.exact_second_moment(points, D), **options)
    two, _ = solve("sde", process, denoise, x, keys(6), second_moment=oracles.second_moment(points, D), **options)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


REFUSALS = [
    (pfgmpp(128), dict(noise=-1.0), "sde needs noise >= 0 and finite, got -1"),
    (pfgmpp(128), dict(noise=math.inf), "sde needs noise >= 0 and finite, got inf"),
    (pfgmpp(128), dict(noise=math.nan), "sde needs noise >= 0 and finite, got nan"),
    (pfgmpp(128), {}, "D = 128 needs second_moment, .*field.exact_second_moment.* use no noise, or D = inf"),
    (pfgmpp(1), dict(second_moment=oracles.second_moment(np.zeros((1, 1)), 1)), "N \\+ D > 2, got N = 1, D = 1"),
]


@pytest.mark.parametrize("process, options, message", REFUSALS)
def test_refusals(process, options, message):
    with pytest.raises(UserError, match=message):
        sampling.sde(process, lambda x, sigma: x, np.zeros((2, 1), np.float32), keys=keys(2), **options)
