"""Draws of the posterior p(y | x, σ) of a denoiser, from a level of each image's own: the core of the methods.

Given x and y the kernel's state at σ' < σ is Gaussian around y + (σ'/σ)² (x − y). With y | x taken as N(d, V) in each
pixel, d = E[y | x, σ], a step is

    x' = d + r (x − d) + √(τ σ'² (1 − r) + (1 − r)² V) n,        r = (σ'/σ)²,                                  (1)

DDPM's ancestral step for V = 0, and for V = tr Cov(y | x, σ)/N the best of its kind (Analytic-DPM, arXiv 2201.06503),
exact at any step size where pixels are independent and Gaussian. A denoiser has V in its derivative: at D = ∞,
Cov(y | x, σ) = σ² ∂d/∂x, of which one random vector gives the trace J.

At D = ∞ τ = 1, and small steps end in a draw of p(y | x, σ). At finite D the kernel is a Gaussian of variance W σ² with
W one draw an image, and τ is its mean given x, (D + E[‖x − y‖² | x, σ]/σ²)/(N + D − 2) (`flow/diffusion.py`). The
gradient of the kernel's logarithm, −(N + D)(x − y)/(‖x − y‖² + D σ²), is nearly −(x − y)/(σ² τ) where N + D is large.
So Cov(y | x, σ) ≈ τ σ² ∂d/∂x, and with E[‖x − y‖²] = ‖x − d‖² + τ σ² J

    τ = (D + ‖x − d‖²/σ²)/(N + D − 2 − J).                                                                     (2)

That W keeps its mean on the way is an approximation too, close where N + D is large. τ σ² is the variance of the noise
that the image itself shows: small D follows it where the level that was said is wrong, D = ∞ does not.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKeys, per_example
from pfgm_jax.flow.kernel import GAUSSIAN_D
from pfgm_jax.sampling.noise import standard_normal

RHO = 7.0  # of the grids, EDM's
PROBE = 2**20  # numbers the random vector of a trace among the draws of a key


class Step(NamedTuple):
    """A denoiser's answer at a level.

    Attributes:
      mean: d. noise: τ σ² [B]. spread: V [B], 0 where it was not asked for.
    """

    mean: Float[Arrays, "B *S"]
    noise: Float[Arrays, "B"]
    spread: Float[Arrays, "B"]


def grid(start: Float[Arrays, "B"], end: float, steps: int) -> Float[Array, "steps B"]:
    """Falling levels from each image's `start` toward `end`: EDM's grid; a single step is at `start`."""
    at = jnp.arange(steps)[:, None] / max(steps - 1, 1)
    high, low = jnp.asarray(start) ** (1 / RHO), end ** (1 / RHO)
    return (high + at * (low - high)) ** RHO


def posterior_moments(
    denoise: Denoiser, keys: PRNGKeys, x: Float[Arrays, "B *S"], sigma: Float[Arrays, "B"], D: float
) -> Step:
    """The posterior mean at x, τ σ² by equation (2) and V: one evaluation with a derivative."""
    N = math.prod(x.shape[1:])
    v = jax.vmap(lambda key: jax.random.rademacher(jax.random.fold_in(key, PROBE), x.shape[1:], x.dtype))(keys)
    total = lambda a: jnp.sum(a.reshape(len(a), -1), axis=1)
    d, along = jax.jvp(lambda x: denoise(x, sigma), (x,), (v,))
    J = jnp.clip(total(v * along), 0, N)  # one vector's scatters
    noise = sigma**2
    if D < GAUSSIAN_D:
        # At small D and J near N, τ would be left to the scatter of J.
        freedom = jnp.maximum(N + D - 2 - J, 0.1 * (N + D))
        noise = (D * sigma**2 + total(jnp.square(x - d))) / freedom
    return Step(d, noise, noise * J / N)


def posterior_mean_only(denoise: Denoiser, x: Float[Arrays, "B *S"], sigma: Float[Arrays, "B"]) -> Step:
    """The posterior mean alone, one evaluation; for D = ∞."""
    return Step(denoise(x, sigma), sigma**2, jnp.zeros_like(sigma))


def ancestral(
    keys: PRNGKeys, index, x: Float[Arrays, "B *S"], step: Step, sigma: Float[Arrays, "B"], after: Float[Arrays, "B"]
) -> Float[Arrays, "B *S"]:
    """Equation (1), from `sigma` to the level `after`, both [B]; `index` numbers the noise of a key."""
    r = (after / sigma) ** 2
    deviation = jnp.sqrt(step.noise * r * (1 - r) + (1 - r) ** 2 * step.spread)
    return step.mean + per_example(r, x) * (x - step.mean) + per_example(deviation, x) * standard_normal(keys, index, x)


def posterior_draw(
    denoise: Denoiser,
    keys: PRNGKeys,
    x: Float[Arrays, "B *S"],
    start: Float[Arrays, "B"],
    end: float,
    D: float,
    steps: int,
    plain: bool = False,
) -> Float[Arrays, "B *S"]:
    """A draw of p(y | x, start) in `steps` evaluations: down to `end`, then its posterior mean.

    In one evaluation, the posterior mean itself.

    Args:
      keys: [B]. x: [B, *S] states at the levels `start` [B].
      end: smallest level.
      plain: take V = 0, at D = ∞: no derivatives.
    """
    sigmas = grid(jnp.maximum(start, end), end, steps)

    def down(x, row):
        index, sigma, after = row
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        step = posterior_mean_only(denoise, x, sigma) if plain else posterior_moments(denoise, own, x, sigma, D)
        return ancestral(own, 0, x, step, sigma, after), None

    x, _ = jax.lax.scan(down, x, (jnp.arange(steps - 1), sigmas[:-1], sigmas[1:]))
    return denoise(x, sigmas[-1])
