"""Grids found for one denoiser by dynamic programming over a fine path (GITS, arXiv 2405.11326, section 4).

The flow carries a few draws of the prior down a fine grid σ_0 > … > σ_m. Jumping from σ_i to σ_j by one Euler step
from where the flow is at σ_i misses where it is at σ_j by

    c_ij = mean over draws of ‖d_i + (σ_j/σ_i) (x_i − d_i) − x_j‖,       d_i = E[y | x_i, σ_i],              (1)

and a grid of n levels is the cheapest path of n − 1 jumps from σ_0 to σ_m. Costs add up with a discount: what a jump
costs and γ times the costs of all jumps after it, found backwards (γ > 1 weighs the later, smaller levels more).

`denoise` may be a network, or the exact field of the training set, which needs no training at all. One search gives the
grids of every n.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pfgm_jax.array_types import Arrays, Denoiser
from pfgm_jax.errors import UserError
from pfgm_jax.flow.process import Process
from pfgm_jax.sampling.grids import levels
from pfgm_jax.sampling.single_step import heun_step

GAMMA = 1.15  # as published for CIFAR-10


def searched(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    steps: tuple[int, ...],
    *,
    fine: int = 61,
    gamma: float = GAMMA,
) -> dict[int, str]:
    """{n: grid of n levels}, each a text that every solver takes as `grid`.

    Args:
      process: gives the ends of the grids; the fine one is EDM's with ρ = 7.
      denoise: posterior mean; it is called 2 · `fine` times.
      x: [B, *S] draws of the prior; 256 were published.
      steps: numbers of levels n.
      fine: levels of the fine grid, m + 1.
      gamma: the discount γ.

    Raises:
      UserError: a number of levels below 2 or above `fine`, or γ <= 0.
    """
    if not steps or min(steps) < 2 or max(steps) > fine:
        raise UserError(f"a searched grid has from 2 to fine = {fine} levels, got steps = {tuple(steps)}")
    if not gamma > 0:
        raise UserError(f"a searched grid needs gamma > 0, got {gamma}")
    sigmas = levels(process, "edm", fine)
    cost = np.asarray(jax.jit(lambda x: _costs(denoise, x, jnp.asarray(sigmas, x.dtype)))(jnp.asarray(x)), np.float64)
    if not np.isfinite(cost[np.triu_indices(fine, 1)]).all():
        raise UserError("the search met NaN or inf: the denoiser's weights are unusable")
    return {n: ",".join(f"{sigma:.7g}" for sigma in sigmas[cheapest(cost, n - 1, gamma)]) for n in steps}


def _costs(denoise, x, sigmas):
    """c [m + 1, m + 1] of equation (1), which holds above the diagonal."""
    at = lambda x, sigma: denoise(x, jnp.full(len(x), sigma, x.dtype))

    def down(x, pair):
        sigma, lower = pair
        return heun_step(at, x, sigma, lower), x

    end, path = jax.lax.scan(down, x, (sigmas[:-1], sigmas[1:]))
    path = jnp.concatenate([path, end[None]])

    def row(_, start):
        x, sigma = start
        d = at(x, sigma)

        def jump(_, target):
            y, lower = target
            missed = d + lower / sigma * (x - d) - y
            return (), jnp.mean(jnp.linalg.norm(missed.reshape(len(x), -1), axis=1))

        return (), jax.lax.scan(jump, (), (path, sigmas))[1]

    return jax.lax.scan(row, (), (path, sigmas))[1]


def cheapest(cost: Float[np.ndarray, "m m"], jumps: int, gamma: float = 1.0) -> list[int]:
    """The indices 0 = i_0 < … < i_jumps = m − 1 of the cheapest path through cost[i, j], j > i.

    The cost of a path is cost[i_0, i_1] + γ (cost[i_1, i_2] + γ (…)).
    """
    m = len(cost)
    above = np.where(np.arange(m)[:, None] < np.arange(m), cost, np.inf)
    to_go, choices = np.where(np.arange(m) == m - 1, 0.0, np.inf), []
    for _ in range(jumps):
        totals = above + gamma * to_go
        choices.append(totals.argmin(axis=1))
        to_go = totals.min(axis=1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return path
