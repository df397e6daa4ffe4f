"""Fixed-step solution of the flow dx/dσ = (x − E[y | x, σ]) / σ."""

import jax.numpy as jnp
from jax import lax

from pfgm_jax.errors import UserError
from pfgm_jax.sampling.stats import SolveStats


def edm_grid(steps, sigma_max, sigma_min, rho=7.0):
    """σ_i = (σ_max^(1/ρ) + i/(n−1) (σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ for i < n = `steps`, then 0 (EDM eq. 5); [n + 1].

    Raises:
      UserError: fewer than 2 steps, or ρ not > 0.
    """
    if steps < 2 or not rho > 0:
        raise UserError(f"the EDM grid needs steps >= 2 and rho > 0, got steps={steps} and rho={rho}")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return jnp.append((high + jnp.arange(steps) / (steps - 1) * (low - high)) ** rho, 0.0)


def heun(process, denoise, x, *, steps=18, rho=7.0, frames=0, axis_name=None):
    """EDM's deterministic sampler (arXiv 2206.00364, algorithm 1): Heun's method, the last step to σ = 0 by Euler.

    Args:
      process: gives σ_max and σ_min.
      denoise: posterior mean `(x [B, *S], sigma [B]) -> [B, *S]`.
      x: [B, *S] draws of the prior at σ_max, unscaled.
      steps: n of `edm_grid`; n steps cost 2n − 1 evaluations.
      rho: ρ of the grid.
      frames: any number > 0 keeps the states at all levels but 0.
      axis_name: not needed, steps do not depend on the batch; every solver takes it.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: fewer than 2 steps, or ρ not > 0.
    """
    del axis_name
    sigmas = edm_grid(steps, process.sigma_max, process.sigma_min, rho).astype(x.dtype)

    def slope(x, sigma):
        return (x - denoise(x, jnp.full(x.shape[:1], sigma))) / sigma

    def step(carry, levels):
        x, calls = carry
        sigma, sigma_next = levels
        d = slope(x, sigma)
        d_next = slope(x + (sigma_next - sigma) * d, sigma_next)
        return (x + (sigma_next - sigma) * (d + d_next) / 2, calls + 2), x if frames else None

    (x, calls), trajectory = lax.scan(step, (x, 0), (sigmas[:-2], sigmas[1:-1]))
    if frames:
        trajectory = jnp.concatenate([trajectory, x[None]])
    else:
        trajectory = jnp.zeros((0,) + x.shape, x.dtype)
    x = denoise(x, jnp.full(x.shape[:1], sigmas[-2]))  # the Euler step from σ_min to 0
    stats = SolveStats(
        nfe=calls + 1,
        steps=jnp.asarray(steps),
        rejected=jnp.asarray(0),
        completed=jnp.asarray(True),
        sigmas=sigmas[:-1] if frames else sigmas[:0],
        trajectory=trajectory,
    )
    return x, stats
