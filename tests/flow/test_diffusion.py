"""Noise at every D: τ against automatic differentiation of the density, exact churn against the law at its level."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.stats

from pfgm_jax import parallel
from pfgm_jax.errors import UserError
from pfgm_jax.flow import diffusion, field

RNG = np.random.default_rng(3)
POINTS = np.array([[1.0, 0], [-1, 0.5], [0, -1], [0.1, 0.1]])


def direct(x, sigma, points, D):
    """E[‖x − y‖² | x, σ] in NumPy float64: [B]."""
    x, points = np.asarray(x, np.float64).reshape(len(x), -1), np.asarray(points, np.float64).reshape(len(points), -1)
    squared = np.sum((x[:, None] - points) ** 2, axis=2)
    level = np.asarray(sigma, np.float64)[:, None]
    N = x.shape[1]
    log_weight = -squared / (2 * level**2) if math.isinf(D) else -(N + D) / 2 * np.log(squared / level**2 + D)
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    return np.sum(weight * squared, axis=1) / weight.sum(axis=1)


# ---- the second moment


@functools.cache
def images(n=600, N=192):
    points = np.random.default_rng(0).uniform(-1, 1, (n, N)).astype(np.float32)
    points[100:200] = points[0] + 1e-3 * np.random.default_rng(1).normal(size=(100, N)).astype(np.float32)
    return points


def queries(D):
    sigma = np.repeat(np.array([0.002, 0.02, 0.3, 1, 5, 80], np.float32), 2)
    rng = np.random.default_rng(2)
    scale = np.ones(12) if math.isinf(D) else np.sqrt(D / rng.chisquare(D, 12))
    noise = (sigma * scale)[:, None] * rng.normal(size=(12, 192))
    return (images()[np.tile([0, 5], 6)] + noise).astype(np.float32), sigma


@pytest.mark.parametrize("D", [1, 3.5, 128, 1e6, math.inf])
@pytest.mark.parametrize("chunk", [None, 7, 256])
def test_second_moment_against_float64(D, chunk):
    x, sigma = queries(D)
    ours = jax.jit(field.second_moment, static_argnames=("D", "chunk"))(x, sigma, images(), D=D, chunk=chunk)
    # Squares of float32 numbers summed over 192 of them: 1e-6 is 8 roundings.
    np.testing.assert_allclose(ours, direct(x, sigma, images(), D), rtol=1e-6)


def test_second_moment_of_allowed_points_and_over_devices():
    x, sigma = queries(128)
    allowed = np.arange(600) % 3 == np.arange(12)[:, None] % 3
    ours = field.second_moment(x, sigma, images(), 128, allowed=allowed, chunk=100)
    expected = [direct(x[i : i + 1], sigma[i : i + 1], images()[allowed[i]], 128)[0] for i in range(12)]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    spread = parallel.pmap(
        lambda part: field.second_moment(x, sigma, part, 128, axis_name=parallel.AXIS), in_axes=(0,)
    )(parallel.shard(images()))
    np.testing.assert_allclose(spread[0], direct(x, sigma, images(), 128), rtol=1e-6)


def test_second_moment_of_what_is_not_finite():
    x = np.array([[np.nan, 0], [1, 1]], np.float32)
    first, second = field.second_moment(x, 1.0, POINTS.astype(np.float32), 1)
    assert np.isnan(first) and second > 0


def test_one_point_is_its_distance():
    x = np.array([[3.0, 4.0]], np.float32)
    np.testing.assert_allclose(field.second_moment(x, 2.0, np.zeros((1, 2), np.float32), 3.5), [25])


# ---- τ


@pytest.mark.parametrize("D", [1, 3.5, 128])
@pytest.mark.parametrize("N", [2, 5])
def test_the_gradient_of_tau_p_is_the_field(x64, D, N):
    """∇(τ p)/p = (d − x)/σ², differentiated by JAX; and at D → ∞, τ → 1."""
    points, sigma = RNG.normal(size=(4, N)), 0.7
    x = RNG.normal(size=(6, N))
    second = oracles.second_moment(points, D)

    def density(x):
        return jnp.sum((1 + jnp.sum((x - points) ** 2, axis=1) / (D * sigma**2)) ** (-(N + D) / 2))

    def tau_density(x):
        return diffusion.tau(second(x[None], np.full(1, sigma)), sigma, N, D)[0] * density(x)

    score = jax.vmap(lambda x: jax.grad(tau_density)(x) / density(x))(x)
    mean = oracles.posterior_mean(x, np.full(6, sigma), points, D)
    np.testing.assert_allclose(score, (mean - x) / sigma**2, rtol=1e-9, atol=1e-10)


def test_tau_of_the_limit():
    second = np.array([0.5, 3e4], np.float32)
    np.testing.assert_array_equal(diffusion.tau(second, 2.0, 4, math.inf), [1, 1])
    np.testing.assert_allclose(diffusion.tau(second, 2.0, 4, 1e9), [1, 1], rtol=1e-5)
    np.testing.assert_allclose(diffusion.tau(second, 2.0, 4, 2), (2 + second / 4) / 4)


def test_tau_needs_two_dimensions_more():
    with pytest.raises(UserError, match="needs N \\+ D > 2, got N = 1, D = 1"):
        diffusion.tau(np.ones(1, np.float32), 1.0, 1, 1.0)
    with pytest.raises(UserError, match="D must be inf or at least 0.5"):
        diffusion.tau(np.ones(1, np.float32), 1.0, 3, 0.1)


# ---- draws of the posterior, and exact churn


@pytest.mark.parametrize("D", [1, 128, math.inf])
def test_posterior_draws_have_the_posterior_s_weights(D):
    n, x, sigma = 20_000, np.array([0.2, -0.1], np.float32), 0.6
    y, squared = jax.jit(field.posterior_draw, static_argnames="D")(
        jax.random.split(jax.random.key(0), n), np.tile(x, (n, 1)), sigma, POINTS.astype(np.float32), D=D
    )
    np.testing.assert_allclose(squared, np.sum((x - np.asarray(y)) ** 2, axis=1), rtol=1e-5)
    distance = np.sum((x - POINTS) ** 2, axis=1)
    log_weight = -distance / (2 * sigma**2) if math.isinf(D) else -(2 + D) / 2 * np.log(distance / sigma**2 + D)
    p = np.exp(log_weight - log_weight.max())
    p /= p.sum()
    share = np.mean(np.all(np.abs(np.asarray(y)[:, None] - POINTS) < 1e-6, axis=2), axis=0)
    np.testing.assert_array_less(np.abs(share - p), 5 * np.sqrt(p * (1 - p) / n))


def churned(D, N, low, high, lift):
    """KS distances of lifted draws from the law at σ̂: of two projections, and of the norm."""
    n, rng = 20_000, np.random.default_rng(5)
    points = POINTS if N == 2 else rng.normal(size=(4, N))
    x = oracles.noised(points, D, n, low, seed=1).astype(np.float32)
    lifted = np.asarray(lift(jax.random.split(jax.random.key(1), n), x, low, high, points.astype(np.float32), D))
    directions = rng.normal(size=(2, N))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    along = [scipy.stats.kstest(lifted @ u, oracles.cumulative(points, D, high, u)).statistic for u in directions]
    fresh = np.linalg.norm(oracles.noised(points, D, 200_000, high, seed=2), axis=1)
    return max(*along, scipy.stats.ks_2samp(np.linalg.norm(lifted, axis=1), fresh).statistic)


# 1 % of Kolmogorov-Smirnov: 1.63 √(1/n + 1/m), and 0.1 % 1.95.
KS = math.sqrt(1 / 20_000 + 1 / 200_000)


@pytest.mark.parametrize("N", [2, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("D", [1, 3.5, 128, math.inf])
@pytest.mark.parametrize("high", [0.6, 5.0])
def test_churn_has_the_law_of_its_level(D, N, high):
    lift = jax.jit(field.churn, static_argnums=5)
    assert churned(D, N, 0.5, high, lift) < 1.63 * KS


def test_a_frozen_tau_has_not():
    """Gaussian noise of variance τ (σ̂² − σ²) is another law: 0.145 was measured at D = 1, N = 2, from 0.5 to 1."""

    def frozen(keys, x, sigma, sigma_hat, points, D):
        tau = diffusion.tau(field.second_moment(x, sigma, points, D), sigma, 2, D)
        return x + np.sqrt((sigma_hat**2 - sigma**2) * tau)[:, None] * RNG.normal(size=x.shape)

    assert churned(1, 2, 0.5, 1.0, frozen) > 0.1


def test_churn_by_nothing_is_nothing():
    x = RNG.normal(size=(3, 2)).astype(np.float32)
    lifted = field.churn(jax.random.split(jax.random.key(0), 3), x, 0.5, 0.5, POINTS.astype(np.float32), 1)
    np.testing.assert_array_equal(lifted, x)


def test_churn_of_another_shape():
    with pytest.raises(UserError, match="queries of shape \\(3,\\) need data points of that shape"):
        field.churn(jax.random.split(jax.random.key(0), 1), np.zeros((1, 3), np.float32), 1.0, 2.0, POINTS, 1)
