"""Posteriors of real images: the exact conditional flow and the methods against exact weights, at every D."""

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfgm_jax import config, data
from pfgm_jax.flow import field
from pfgm_jax.flow.process import pfgmpp
from pfgm_jax.inference.restoration import METHODS, Problem, exact, noise, operators

MEASUREMENTS, DRAWS = 6, 100
CELLS = os.environ.get("PFGM_JAX_BLOODMNIST", "")  # the folder with bloodmnist.npz


def points(name):
    settings = config.default().data
    if name == "bloodmnist":
        settings.update(name=name, size=28, dir=CELLS)
    return data.to_unit(data.load(settings).train.images[:500])


def measured(x, operator, level):
    """(measurements, Posterior) of MEASUREMENTS of the images, each of which leaves 3 to 50 effective points."""
    clean = operator.forward(jnp.asarray(x[:40]))
    m = noise.draw("gaussian", jax.random.split(jax.random.key(1), 40), jnp.full(40, level), clean)
    posterior = exact.posterior(x, m, operator, "gaussian", level)
    good = np.flatnonzero((posterior.effective > exact.FEW) & (posterior.effective < exact.MANY))[:MEASUREMENTS]
    assert len(good) == MEASUREMENTS
    posterior = exact.Posterior(x, posterior.log_likelihood[good])
    posterior.require_calibratable()
    return np.asarray(m)[good], posterior


def floor(posterior):
    """Mean and standard deviation of the total variation of as many draws of the posterior itself."""
    rng = np.random.default_rng(0)
    each = [
        np.mean([np.abs(rng.multinomial(DRAWS, w) / DRAWS - w).sum() / 2 for w in posterior.weights])
        for _ in range(100)
    ]
    return np.mean(each), np.std(each)


@pytest.mark.slow
@pytest.mark.parametrize("D", [1.0, 64.0, 128.0, math.inf])
@pytest.mark.parametrize("name", ["digits", "bloodmnist"])
def test_the_exact_conditional_flow_is_calibrated(name, D):
    """Its draws are as far from the posterior as the posterior's own, and their 90 % sets hold 90 %."""
    if name == "bloodmnist" and not CELLS:
        pytest.skip("PFGM_JAX_BLOODMNIST=FOLDER says where bloodmnist.npz is")
    x = points(name)
    operator = operators.average(2, x.shape[1:])
    _, posterior = measured(x, operator, 1.0 if name == "digits" else 1.2)
    indices = posterior.draws(pfgmpp(D, sigma_max=200.0), jax.random.key(2), DRAWS, steps=24)
    shares = exact.frequencies(indices, len(x))
    mean, deviation = floor(posterior)
    assert exact.total_variation(shares, posterior.weights).mean() < mean + 5 * deviation + 0.02  # 0.02 of the steps
    # Sets of the shares themselves hold less than 0.9 of the posterior, by as much as the floor at most.
    mass = np.sum(posterior.weights * exact.credible_set(shares), axis=1).mean()
    assert 0.9 - mean < mass <= 1


@pytest.mark.slow
@pytest.mark.parametrize("D", [128.0, math.inf])
def test_methods_on_the_exact_field_of_digits(D):
    """Denoising by the matching level and by split Gibbs comes near the floor; the field knows no measurement."""
    x = points("digits")
    m, posterior = measured(x, operators.identity, 1.2)
    mean, deviation = floor(posterior)
    denoise, flow = field.exact_denoiser(x, D), pfgmpp(D)
    repeated = jnp.repeat(jnp.asarray(m), DRAWS, axis=0)
    level, seen = jnp.full(len(repeated), 1.2), jnp.ones((1, 1, 1, 1), bool)
    for name, more in (("matched", 0.05), ("split_gibbs", 0.12)):
        problem = Problem(repeated, operators.identity, "gaussian", level, False, seen, float(x.std()))
        run = jax.jit(lambda keys: METHODS[name].run(problem, denoise, flow, keys, **METHODS[name].options))  # noqa: B023
        draws = np.asarray(run(jax.random.split(jax.random.key(3), len(repeated))))
        shares = exact.frequencies(exact.nearest(draws, x).reshape(MEASUREMENTS, DRAWS), len(x))
        assert exact.total_variation(shares, posterior.weights).mean() < mean + 5 * deviation + more, name
