"""The loss of consistency tuning, against NumPy and the known flow map of Gaussian data."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pfgm_jax.flow import losses


@pytest.mark.parametrize(("q", "stage"), [(2.0, 0), (2.0, 3), (256.0, 0)])
def test_lower_level_is_as_published(x64, q, stage):
    t = np.geomspace(0.002, 80, 50)
    r = t * np.maximum(0, 1 - q ** -(stage + 1) * (1 + 8 / (1 + np.exp(t))))
    r[r < 0.01] = 0
    np.testing.assert_allclose(losses.lower_level(t, q, stage, 0.01), r, rtol=1e-12)
    if (q, stage) == (2.0, 0):
        assert (r[t < 1] == 0).all() and r[-1] == pytest.approx(40, rel=1e-6)


def pair(D, count=5, N=3):
    rng = np.random.default_rng(0)
    y, t = rng.normal(size=(count, N)), np.linspace(0.5, 2, count)
    scale = 1 if math.isinf(D) else np.sqrt(D / rng.chisquare(D, (count, 1)))
    return y + t[:, None] * scale * rng.normal(size=(count, N)), y, t


@pytest.mark.parametrize("D", [1, math.inf])
@pytest.mark.parametrize("c", [0.0, 0.3])
def test_error_by_hand(x64, D, c):
    x, y, t = pair(D)
    r = np.where(np.arange(5) % 2, 0.8 * t, 0)
    lower = y + (r / t)[:, None] * (x - y)
    denoise = lambda x, sigma: np.tanh(x) / (1 + sigma[:, None])
    target = np.where(r[:, None] > 0, denoise(lower, r), y)
    norm = np.linalg.norm(denoise(x, t) - target, axis=1)
    expected = math.sqrt(3) * (np.sqrt(norm**2 + c**2) - c) / np.linalg.norm(x - lower, axis=1)
    network = lambda x, sigma: jnp.tanh(x) / (1 + sigma[:, None])
    np.testing.assert_allclose(losses.consistency_error(network, network, x, t, r, y, c), expected, rtol=1e-9)


def test_it_vanishes_at_the_flow_map_with_the_step(x64):
    # Gaussian data at D = ∞: the end of the flow is mean + (x − mean) √(v/(v + σ²)) along each axis. With the posterior
    # mean, x_r is a step of Euler's method, whose error is second order: half of it where the step is halved.
    data = oracles.Gaussian()
    x, _, t = pair(math.inf)

    def end(x, sigma):
        along = (x - data.mean) @ data.axes
        return data.mean + (along * jnp.sqrt(data.variance / (data.variance + sigma[:, None] ** 2))) @ data.axes.T

    mean = np.asarray(data.denoise(x, t))
    errors = [np.asarray(losses.consistency_error(end, end, x, t, t * (1 - step), mean)).max() for step in (0.02, 0.01)]
    assert errors[1] < 0.02 and errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    wrong = lambda x, sigma: end(x, 1.1 * sigma)
    assert np.asarray(losses.consistency_error(wrong, wrong, x, t, 0.99 * t, mean)).max() > 3 * errors[1]


def test_the_gradient_is_of_the_upper_end_alone_and_finite_at_equality():
    x, y, t = (jnp.asarray(a, jnp.float32) for a in pair(math.inf))
    network = lambda w: lambda x, sigma: w * x

    def loss(w, stopped):
        return jnp.sum(losses.consistency_error(network(w), network(stopped), x, t, 0.5 * t, y))

    both = jax.grad(lambda w: loss(w, jax.lax.stop_gradient(w)))(0.7)
    assert both == pytest.approx(float(jax.grad(loss)(0.7, 0.7)))
    assert both != pytest.approx(float(jax.grad(lambda w: loss(w, w))(0.7)))
    constant = lambda x, sigma: 0 * x
    gradient = jax.grad(lambda x: jnp.sum(losses.consistency_error(constant, constant, x, t, 0.5 * t, y)))(x)
    assert np.isfinite(gradient).all()
