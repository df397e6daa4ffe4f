"""Log-likelihood by the flow's change of variables, at every D.

The flow dx/dσ = (x − E[y | x, σ]) / σ is dx/du = x − E[y | x, e^u] in u = ln σ, with divergence N − tr ∂E[y | x, σ]/∂x.
Along a path from x at σ_min to z at σ_max (arXiv 1806.07366, eq. 8; arXiv 2011.13456, eq. 39)

    log p(x, σ_min) = log p(z, σ_max) + N ln(σ_max/σ_min) − ∫ tr ∂E[y | x, σ]/∂x du.                              (1)

Only the trace has to be integrated. It is exact by N derivatives along the axes, or estimated by Hutchinson's
v·(∂E/∂x) v with random signs v that are fixed along the path, so that each vector v gives an unbiased estimate of the
whole integral (arXiv 1810.01367, section 3). Nothing in (1) knows D but the prior: the same code serves PFGM, PFGM++
and diffusion models.

The density is that of the data smoothed to σ_min, so σ_min belongs to every figure. At σ_max the prior, which is
centred at 0, stands for the smoothed data: one image's figure is off by about ‖E y‖/σ_max nats either way, the mean
over images by at most E‖y‖²/(2σ_max²) (`run.prior_mismatch`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKeys
from pfgm_jax.errors import UserError
from pfgm_jax.flow.process import Process, log_prior
from pfgm_jax.inference.upwards import upwards
from pfgm_jax.sampling.adaptive import rk45

EXACT = 0  # as a number of trace vectors: the whole trace
# Exact traces take N derivatives an evaluation, and hold N states at a time.
MOST_EXACT = 4096


class Likelihood(NamedTuple):
    """Log-densities of a batch and where its images came to lie.

    Attributes:
      log_prob: [B] nats, log p(x, σ_min) in the unit scale.
      error: [B] standard error over the trace vectors; 0 for exact traces, NaN for a single vector.
      latents: [B, *S] the states at σ_max, unscaled.
      nfe: [] evaluations of `denoise`, each with as many derivatives as there are vectors.
      completed: [] whether σ_max was reached with finite values.
    """

    log_prob: Any
    error: Any
    latents: Any
    nfe: Any
    completed: Any


def log_likelihood(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    key: PRNGKeys | None = None,
    *,
    vectors: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int = 0,
    max_steps: int = 1000,
    prior: Callable = log_prior,
    axis_name: str | None = None,
) -> Likelihood:
    """Log-density of states x at the process's σ_min, equation (1).

    Args:
      process: gives σ_min, σ_max and the prior.
      denoise: posterior mean `(x [B, *S], sigma [B]) -> [B, *S]`, of which derivatives are taken.
      x: [B, *S] floats, unscaled.
      key: [B] PRNG keys of the trace vectors, one an image; not needed for exact traces.
      vectors: Hutchinson vectors an image, or `EXACT`.
      rtol, atol: of the error control (`sampling.rk45`), the trace counting per dimension.
      steps: so many equal steps in ln σ in place of error control; 0 for control.
      max_steps: limit on steps of the error control.
      prior: `(process, z [B, *S]) -> [B]`, log-density at σ_max.
      axis_name: mapped axis over whose devices the batch is spread.

    Returns:
      Likelihood.

    Raises:
      UserError: fewer than 0 vectors, an exact trace of more than MOST_EXACT dimensions, or tolerances that are not
        positive.
    """
    B, shape, N = len(x), x.shape[1:], math.prod(x.shape[1:])
    if vectors < 0:
        raise UserError(f"vectors must be at least 1, or 0 for the exact trace, got {vectors}")
    if vectors == EXACT and N > MOST_EXACT:
        raise UserError(f"an exact trace takes {N:,} derivatives per evaluation: estimate it with vectors=1 or more")
    if vectors == EXACT:
        directions = None
    else:
        directions = jax.vmap(lambda key: jax.random.rademacher(key, (vectors, *shape), x.dtype), out_axes=1)(key)
    # The trace's integral rides along as further coordinates of the state, divided by √N: among the N of the image it
    # then weighs in the error norm as its error per dimension does.
    traces = max(vectors, 1)

    def augmented(state, sigma):
        x, integral = state[:, :N].reshape(B, *shape), state[:, N:]
        mean, derivative = jax.linearize(lambda x: denoise(x, sigma), x)
        if directions is None:
            trace = _exact_trace(derivative, B, shape, x.dtype)[:, None]
        else:
            along = jax.vmap(derivative)(directions)
            trace = jnp.einsum("vbn,vbn->bv", *(a.reshape(vectors, B, N) for a in (directions, along)))
        # dx/du = x − denoise(x): a coordinate whose "posterior mean" is itself plus t falls by t.
        return jnp.concatenate([mean.reshape(B, N), integral + trace / math.sqrt(N)], axis=1)

    start = jnp.concatenate([x.reshape(B, N), jnp.zeros((B, traces), x.dtype)], axis=1)
    state, stats = rk45(upwards(process), augmented, start, rtol=rtol, atol=atol, fixed_steps=steps,
                        max_steps=max_steps, last_denoise=False, axis_name=axis_name)  # fmt: skip
    latents, integrals = state[:, :N].reshape(B, *shape), math.sqrt(N) * state[:, N:]
    growth = N * math.log(process.sigma_max / process.sigma_min)
    log_prob = prior(process, latents) + growth + jnp.mean(integrals, axis=1)
    if vectors == EXACT:
        error = jnp.zeros(B, x.dtype)
    else:
        error = jnp.std(integrals, axis=1, ddof=1) / math.sqrt(vectors) if vectors > 1 else jnp.full(B, jnp.nan)
    return Likelihood(log_prob, error, latents, stats.nfe, stats.completed)


def _exact_trace(derivative, B, shape, dtype):
    """tr ∂denoise/∂x [B] by N derivatives along the axes."""
    N = math.prod(shape)
    axes = jnp.eye(N, dtype=dtype)

    def along(axis):
        return derivative(jnp.broadcast_to(axis.reshape(shape), (B, *shape))).reshape(B, N) @ axis

    return jnp.sum(jax.lax.map(along, axes, batch_size=min(N, 64)), axis=0)


def dequantised(images: UInt8[Arrays, "B *S"], key: PRNGKeys) -> Float[Array, "B *S"]:
    """uint8 images [B, H, W, C] as floats in the unit scale, spread uniformly over each grey level's interval.

    x = (image + U − ½)/127.5 − 1 with U ~ U[0, 1), one key an image [B]: the levels k/127.5 − 1 on which networks here
    are trained lie in the middle of their intervals.
    """
    noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], minval=-0.5, maxval=0.5))(key)
    return (jnp.asarray(images, jnp.float32) + noise) / 127.5 - 1


# Grey levels per unit of the unit scale, of uint8 images.
LEVELS_PER_UNIT = 127.5


def bits_per_dim(log_prob, N, levels_per_unit=LEVELS_PER_UNIT):
    """−log₂ of the probability of a dequantised image's grey levels, per dimension: −log p/(N ln 2) + log₂(levels).

    An upper bound, in the mean over dequantisations, on −log₂ of the discrete probability (arXiv 1511.01844, section
    3.1).

    Args:
      log_prob: nats in the unit scale, number or array.
      N: dimensions of an image.
      levels_per_unit: 127.5 for images whose grey levels lie 1/127.5 apart; 255 for data in [0, 1].

    The uniform law on [−1, 1]³, whose sides are 255 grey levels long:

    >>> f"{bits_per_dim(-3 * math.log(2), N=3):.3f} {math.log2(255):.3f}"
    '7.994 7.994'
    """
    return -np.asarray(log_prob, np.float64) / (N * math.log(2)) + math.log2(levels_per_unit)
