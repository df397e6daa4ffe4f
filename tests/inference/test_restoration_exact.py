"""Posteriors of real images: the exact conditional flow against exact weights, at every D."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfgm_jax import config, data
from pfgm_jax.flow.process import pfgmpp
from pfgm_jax.inference.restoration import exact, noise, operators

MEASUREMENTS, DRAWS = 6, 100


def measured(x, operator):
    """(level, measurements, Posterior) of MEASUREMENTS of the images, at the first level that leaves 3 to 50 points."""
    clean, level, good = operator.forward(jnp.asarray(x[:40])), 0.5, []
    while len(good) < MEASUREMENTS:
        level *= 1.15
        m = noise.draw("gaussian", jax.random.split(jax.random.key(1), 40), jnp.full(40, level), clean)
        posterior = exact.posterior(x, m, operator, "gaussian", level)
        good = np.flatnonzero((posterior.effective > exact.FEW) & (posterior.effective < exact.MANY))[:MEASUREMENTS]
    posterior = exact.Posterior(x, posterior.log_likelihood[good])
    posterior.require_calibratable()
    return level, np.asarray(m)[good], posterior


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
def test_the_exact_conditional_flow_is_calibrated(D):
    """Its draws are as far from the posterior as the posterior's own, and their 90 % sets hold 90 %."""
    x = data.to_unit(data.load(config.default().data).train.images[:500])
    operator = operators.average(2, x.shape[1:])
    _, _, posterior = measured(x, operator)
    indices = posterior.draws(pfgmpp(D, sigma_max=200.0), jax.random.key(2), DRAWS, steps=24)
    shares = exact.frequencies(indices, len(x))
    mean, deviation = floor(posterior)
    assert exact.total_variation(shares, posterior.weights).mean() < mean + 5 * deviation + 0.02  # 0.02 of the steps
    # Sets of the shares themselves hold less than 0.9 of the posterior, by as much as the floor at most.
    mass = np.sum(posterior.weights * exact.credible_set(shares), axis=1).mean()
    assert 0.9 - mean < mass <= 1
