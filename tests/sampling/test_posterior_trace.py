"""The trace of Cov(y | x) measured through a denoiser, against that of the exact field; noise that uses it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.stats
from oracles import keys, solve

from pfgm_jax.errors import UserError
from pfgm_jax.flow import diffusion, process
from pfgm_jax.sampling import posterior_trace

N, LOW, HIGH = 6, 0.05, 5.0
POINTS = np.random.default_rng(0).normal(size=(300, N)).astype(np.float32)


def curve(D, images=POINTS, denoise=None, **options):
    flow = process.pfgmpp(D, LOW, HIGH)
    denoise = denoise or oracles.denoiser(images, D)
    labels = np.zeros(len(images), np.int32)
    return posterior_trace.estimate(flow, lambda labels: denoise, images, labels, jax.random.key(0), **options)


@pytest.mark.parametrize("D", [1, 128])
def test_the_curve_gives_the_exact_field_s_second_moment(D):
    """τ with it, on draws of several levels: right on average, which it is not without the trace."""
    found, missed = curve(D, draws=256), []
    assert np.all(np.diff(found.log_scale) > 0) and found.D == D
    for i, sigma in enumerate((0.2, 0.5, 1.0, 2.0)):
        x = jnp.asarray(oracles.noised(POINTS, D, 2000, sigma, seed=i), jnp.float32)
        level = jnp.full(len(x), sigma, jnp.float32)
        mean = oracles.denoiser(POINTS, D)(x, level)
        tau = lambda moment, level=level: np.asarray(diffusion.tau(moment, level, N, D), np.float64)
        exact = tau(oracles.second_moment(POINTS, D)(x, level))
        usual = exact < 10 * np.median(exact)  # at D = 1 the mean of all is that of a few
        average = lambda values, usual=usual: np.mean(values[usual])
        missed.append(1 - average(tau(jnp.sum((x - mean) ** 2, axis=1))) / average(exact))
        assert average(tau(found(x, level, mean))) / average(exact) == pytest.approx(1, abs=0.05)
    assert max(missed) > (0.2 if D == 1 else 0.015)


def test_the_curve_of_infinite_D_is_over_sigma():
    found = curve(math.inf, levels=8, draws=64)
    np.testing.assert_allclose(found.log_scale, np.log(np.geomspace(LOW, HIGH, 8)), atol=1e-6)
    assert np.all(np.diff(found.log_trace) > -0.1)  # the noisier, the less is known of y


def test_uint8_images_are_taken_in_the_unit_scale():
    images = np.random.default_rng(1).integers(0, 256, (30, 2, 2, 1)).astype(np.uint8)
    unit = (images / np.float32(127.5) - 1).astype(np.float32)
    identity = lambda x, sigma: x
    a, b = (curve(3.0, given, identity, levels=4, draws=8) for given in (images, unit))
    np.testing.assert_allclose(a.log_trace, b.log_trace, rtol=1e-6)


def test_labels_reach_the_denoiser():
    """A denoiser that is told the image gives no trace; told another one, a large one."""
    labels, points = np.arange(len(POINTS), dtype=np.int32), jnp.asarray(POINTS)
    flow = process.pfgmpp(8.0, LOW, HIGH)
    told = lambda labels: lambda x, sigma: points[labels]
    found = posterior_trace.estimate(flow, told, POINTS, labels, jax.random.key(0), levels=4, draws=8)
    assert max(found.log_trace) < -60
    found = posterior_trace.estimate(flow, told, POINTS, labels[::-1].copy(), jax.random.key(0), levels=4, draws=8)
    assert min(found.log_trace) > 0


def test_weights_that_give_nan():
    with pytest.raises(UserError, match="NaN or inf: the denoiser's weights are unusable"):
        curve(3.0, denoise=lambda x, sigma: x * jnp.nan, levels=2, draws=4)


def end(solver, D, second_moment, **options):
    """Draws of the law at σ = 3, taken down to 0.5."""
    flow, n = process.pfgmpp(D, 0.5, 3.0), 4000
    x = oracles.noised(POINTS, D, n, 3.0, seed=1).astype(np.float32)
    options |= dict(second_moment=second_moment, last_denoise=False)
    x, _ = solve(solver, flow, oracles.denoiser(POINTS, D), x, keys(n, 1), **options)
    return np.asarray(x, np.float64)


@pytest.mark.parametrize("solver, options", [
    ("sde", dict(steps=60, noise=2.0, grid="log")),
    pytest.param("heun", dict(steps=60, S_churn=3.0, grid="log"), marks=pytest.mark.slow),
])  # fmt: skip
def test_noise_by_the_curve_is_nearly_that_of_the_exact_field(solver, options):
    """Kolmogorov-Smirnov on norms at D = 1, where the trace matters most, against fresh draws.

    The curve is an approximation, which six dimensions show; without the trace the law is far off.
    """
    fresh = np.linalg.norm(oracles.noised(POINTS, 1, 100_000, 0.5, seed=9), axis=1)
    moments = dict(exact=oracles.second_moment(POINTS, 1), curve=curve(1, draws=256),
                   none=lambda x, sigma, mean: jnp.sum((x - mean) ** 2, axis=1))  # fmt: skip
    distance = {
        name: scipy.stats.ks_2samp(np.linalg.norm(end(solver, 1, moment, **options), axis=1), fresh).statistic
        for name, moment in moments.items()
    }
    assert distance["none"] > 0.1 and distance["curve"] < distance["none"] / 3
