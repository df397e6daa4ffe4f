"""Fixed-step solution of the flow dx/dσ = (x − E[y | x, σ]) / σ by Euler's and Heun's methods."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKeys, SecondMoment
from pfgm_jax.errors import UserError
from pfgm_jax.flow import diffusion
from pfgm_jax.flow.process import Process
from pfgm_jax.sampling.fixed_grid import march
from pfgm_jax.sampling.grids import levels
from pfgm_jax.sampling.noise import keys_of_step, require_keys, require_second_moment, standard_normal
from pfgm_jax.sampling.stats import Output, SolveStats


def euler(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    steps: int = 50,
    grid: str | None = "edm",
    rho: float = 7.0,
    last_denoise: bool = True,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """Euler's method in σ, x' = d + (σ'/σ) (x − d) with d = E[y | x, σ]; on the time grid it is DDIM.

    Args:
      process: gives the grid.
      denoise: posterior mean `(x [B, *S], sigma [B]) -> [B, *S]`.
      x: [B, *S] draws of the prior at σ_max, unscaled.
      keys: not needed; every solver takes them.
      steps: levels n of the grid; n evaluations.
      grid, rho: see `grids.levels`.
      last_denoise: end with E[y | x, σ_min], one step from σ_min to 0; without it, n − 1 evaluations.
      frames: number of states to keep, evenly spread over the steps.
      framed: frames of the first `framed` samples alone; None: of all.
      axis_name: mapped axis whose devices share the batch.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: an unknown grid, or fewer than 2 steps.
    """
    del keys

    def step(denoise, x, memory, at):
        d = denoise(x, at.sigma)
        return d + at.sigma_next / at.sigma * (x - d), memory

    sigmas = levels(process, grid, steps, rho)
    output = Output(last_denoise, frames, framed, axis_name)
    return march(denoise, x, sigmas, [(step, steps - 1)], output)


def heun_step(denoise, x, sigma, sigma_next):
    """One step of Heun's method, also called improved Euler, from σ to σ', up or down; two calls of `denoise`."""
    slope = (x - denoise(x, sigma)) / sigma
    predicted = x + (sigma_next - sigma) * slope
    slope_next = (predicted - denoise(predicted, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (slope + slope_next) / 2


def heun(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    second_moment: SecondMoment | None = None,
    steps: int = 18,
    grid: str | None = "edm",
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    last_denoise: bool = True,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """EDM's sampler (arXiv 2206.00364, algorithm 2; algorithm 1 where S_churn = 0): Heun's method, also called improved
    Euler, with a last step to σ = 0 by Euler.

    With churn each step first lifts σ to σ̂ = σ (1 + γ), γ = min(S_churn/n, √2 − 1), by fresh noise, where
    S_min ≤ σ ≤ S_max. At finite D that is the noise of `diffusion.lift` with E‖x − y‖² in the place of ‖x − y‖².

    Args:
      process, denoise, x, grid, rho, last_denoise, frames, framed, axis_name: as for `euler`.
      keys: [B] PRNG keys, one per sample, for churn.
      second_moment: as for `reverse_sde.sde`, for churn at finite D.
      steps: levels n of the grid; 2n − 1 evaluations, 2n − 2 without the last. Churn at finite D takes one more for
        each level.
      S_churn, S_min, S_max, S_noise: EDM's names.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: an unknown grid, fewer than 2 steps, a churn or noise below 0 or not finite, or churn at finite D
        without a second moment.
    """
    if not (0 <= S_churn < math.inf and 0 <= S_noise < math.inf):
        raise UserError(f"heun needs S_churn >= 0 and S_noise >= 0, both finite, got {S_churn} and {S_noise}")
    if not S_min <= S_max:
        raise UserError(f"heun needs S_min <= S_max, got {S_min} and {S_max}")
    if S_churn:
        require_keys(keys, "heun with S_churn > 0")
        if not process.is_gaussian:
            N = math.prod(x.shape[1:])
            squared_distance = require_second_moment(second_moment, "heun with S_churn > 0", N, process.D)
    sigmas = levels(process, grid, steps, rho)
    gamma = min(S_churn / steps, math.sqrt(2) - 1)

    def lift(denoise, x, sigma, index):
        if not S_churn:
            return x, sigma
        sigma_hat = jnp.where((S_min <= sigma) & (sigma <= S_max), sigma * (1 + gamma), sigma)
        if not process.is_gaussian:
            squared = squared_distance(x, jnp.full(len(x), sigma, x.dtype), denoise(x, sigma))
            lifted = diffusion.lift(keys_of_step(keys, index), x, sigma, sigma_hat, squared, process.D)
            return x + S_noise * (lifted - x), sigma_hat
        # σ̂² − σ², in a form that float32 does not cancel.
        extra = jnp.sqrt((sigma_hat - sigma) * (sigma_hat + sigma))
        return x + extra * S_noise * standard_normal(keys, index, x), sigma_hat

    def step(denoise, x, memory, at):
        x, sigma = lift(denoise, x, at.sigma, at.index)
        return heun_step(denoise, x, sigma, at.sigma_next), memory

    def last(denoise, x, sigma):
        return denoise(*lift(denoise, x, sigma, steps - 1))

    output = Output(last_denoise, frames, framed, axis_name)
    return march(denoise, x, sigmas, [(step, steps - 1)], output, last=last)
