"""The reverse SDE at every D, between the flow (λ = 0) and as much noise as wanted.

    dx = (1 + λ) (x − d)/σ dσ + √(2 λ σ |dσ| τ) dW,      downwards in σ,  d = E[y | x, σ]                     (1)

keeps the marginals of the flow at every D, with τ of `flow/diffusion.py` (1 for D = ∞). Over a step from σ to σ' the
linear part is integrated exactly, d and τ being frozen:

    x' = d + (σ'/σ)^(1+λ) (x − d) + σ' √(τ (1 − (σ'/σ)^(2λ))) n.                                             (2)

At λ = 0 that is Euler's step of the flow, DDIM; at λ = 1 and D = ∞ DDPM's ancestral step (arXiv 2006.11239, eq. 7).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKeys, SecondMoment
from pfgm_jax.errors import UserError
from pfgm_jax.flow import diffusion
from pfgm_jax.flow.process import Process
from pfgm_jax.sampling.fixed_grid import march
from pfgm_jax.sampling.grids import levels
from pfgm_jax.sampling.noise import require_keys, require_second_moment, standard_normal
from pfgm_jax.sampling.stats import Output, SolveStats


def sde(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    second_moment: SecondMoment | None = None,
    steps: int = 100,
    noise: float = 1.0,
    grid: str | None = "edm",
    rho: float = 7.0,
    last_denoise: bool = True,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """Steps (2) of the reverse SDE (1) at any D; then E[y | x, σ_min].

    Args:
      process, denoise, x, grid, rho, last_denoise, frames, framed, axis_name: as for `single_step.euler`.
      keys: [B] PRNG keys, one per sample, for noise > 0.
      second_moment: `(x [B, *S], sigma [B], denoise(x, sigma)) -> E[‖x − y‖² | x, σ] [B]`, needed for noise > 0 at
        finite D: `field.exact_second_moment` for a data set, `posterior_trace.TraceCurve` for a network.
      steps: levels n of the grid; n evaluations.
      noise: λ >= 0 of (1).

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: a negative or infinite λ, noise at finite D without a second moment or with N + D <= 2, an unknown
        grid, fewer than 2 steps.
    """
    N = math.prod(x.shape[1:])
    if not (noise >= 0 and math.isfinite(noise)):
        raise UserError(f"sde needs noise >= 0 and finite, got {noise}")
    if noise:
        require_keys(keys, "sde")
        if not process.is_gaussian:
            squared_distance = require_second_moment(second_moment, "sde with noise > 0", N, process.D)

    def step(denoise, x, memory, at):
        ratio = at.sigma_next / at.sigma
        d = denoise(x, at.sigma)
        mean = d + ratio ** (1 + noise) * (x - d)
        if not noise:
            return mean, memory
        variance = at.sigma_next**2 * -jnp.expm1(2 * noise * jnp.log(ratio)) * _tau(x, at.sigma, d)
        deviation = jnp.sqrt(variance).reshape((-1,) + (1,) * (x.ndim - 1))
        return mean + deviation * standard_normal(keys, at.index, x), memory

    def _tau(x, sigma, d):
        if process.is_gaussian:
            return jnp.ones(len(x), x.dtype)
        sigma = jnp.full(len(x), sigma, x.dtype)
        return diffusion.tau(squared_distance(x, sigma, d), sigma, N, process.D)

    sigmas = levels(process, grid, steps, rho)
    return march(denoise, x, sigmas, [(step, steps - 1)], Output(last_denoise, frames, framed, axis_name))
