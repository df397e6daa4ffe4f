"""Grids found for one denoiser by dynamic programming over a fine path (GITS, arXiv 2405.11326, section 4).

The flow carries a few draws of the prior down a fine grid σ_0 > … > σ_m. Jumping from σ_i to σ_j by one Euler step
from where the flow is at σ_i misses where it is at σ_j by

    c_ij = mean over draws of ‖d_i + (σ_j/σ_i) (x_i − d_i) − x_j‖,       d_i = E[y | x_i, σ_i],              (1)

and a grid of n levels is the cheapest path of n − 1 jumps from σ_0 to σ_m. Costs add up with a discount: what a jump
costs and γ times the costs of all jumps after it, found backwards (γ > 1 weighs the later, smaller levels more).

`denoise` may be a network, or the exact field of the training set, which needs no training at all. One path gives the
grids of every n and γ. Which γ is best for a solver is measured: `best` runs `ipndm` over the grid of each and takes
the one whose end is nearest to that of the path.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser
from pfgm_jax.errors import UserError
from pfgm_jax.flow.process import Process
from pfgm_jax.sampling.grids import levels
from pfgm_jax.sampling.multistep import adams_bashforth
from pfgm_jax.sampling.single_step import heun_step

GAMMA = 1.15  # as published for CIFAR-10
GAMMAS = (0.9, 1.0, GAMMA, 1.3)  # that `best` tries
OTHERS = ("edm", "log")  # grids that it compares with


class FinePath(NamedTuple):
    """Where the flow is at each fine level: levels [m], states x and means d [m, B, *S]."""

    sigmas: Float[np.ndarray, "m"]
    states: Float[Array, "m B *S"]
    means: Float[Array, "m B *S"]


def fine_path(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    fine: int = 61,
    tick: Callable[[], None] = lambda: None,
) -> FinePath:
    """The FinePath of draws x of the prior, by Heun's method: 2 · `fine` − 1 calls of `denoise`, `tick` at each level.

    The levels are EDM's with ρ = 7.
    """
    sigmas = levels(process, "edm", fine)
    at = jax.jit(lambda x, sigma: denoise(x, jnp.full(len(x), sigma, x.dtype)))

    @jax.jit
    def down(x, d, sigma, lower):
        return heun_step(lambda y, level: d if y is x else at(y, level), x, sigma, lower)

    states, means = [jnp.asarray(x)], []
    for i, sigma in enumerate(np.asarray(sigmas, states[0].dtype)):
        means.append(at(states[-1], sigma))
        if i + 1 < fine:
            states.append(down(states[-1], means[-1], sigma, np.asarray(sigmas[i + 1], states[0].dtype)))
        tick()
    return FinePath(sigmas, jnp.stack(states), jnp.stack(means))


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
      denoise: posterior mean; it is called 2 · `fine` − 1 times.
      x: [B, *S] draws of the prior; 256 were published.
      steps: numbers of levels n.
      fine: levels of the fine grid, m + 1.
      gamma: the discount γ.

    Raises:
      UserError: a number of levels below 2 or above `fine`, or γ <= 0.
    """
    check_steps(steps, fine)
    if not gamma > 0:
        raise UserError(f"a searched grid needs gamma > 0, got {gamma}")
    path = fine_path(process, denoise, x, fine)
    cost = costs(path)
    return {n: written(path.sigmas[cheapest(cost, n - 1, gamma)]) for n in steps}


def check_steps(steps: tuple[int, ...], fine: int) -> None:
    """Raises UserError for numbers of levels that a grid within `fine` levels cannot have."""
    if not steps or min(steps) < 2 or max(steps) > fine:
        raise UserError(f"a searched grid has from 2 to fine = {fine} levels, got steps = {tuple(steps)}")


def written(sigmas: Float[np.ndarray, "n"]) -> str:
    """Levels as a text, which `grids.levels` reads."""
    return ",".join(f"{sigma:.7g}" for sigma in sigmas)


def by_steps(
    denoise: Denoiser, tick: Callable[[], None] = lambda: None
) -> Callable[[Float[Arrays, "B *S"], Float[np.ndarray, "n"]], Float[Array, "B *S"]]:
    """`(x at σ_0, levels [n]) -> x at σ_(n−1)` of `ipndm` with the weights of its levels, `tick` after each call.

    One compiled step serves all levels: where many grids are tried, a program for each would take most of the time.
    """

    @jax.jit
    def step(x, past, sigma, row):
        slope = (x - denoise(x, jnp.full(len(x), sigma, x.dtype))) / sigma
        values = jnp.concatenate([slope[None], past[:-1]])
        return row[0] * x + jnp.tensordot(row[1:], values, 1), values

    def follow(x, sigmas):
        rows = adams_bashforth(sigmas, equal_weights=False)
        past = jnp.zeros((rows.shape[1] - 1, *x.shape), x.dtype)
        for sigma, row in zip(*(a.astype(x.dtype) for a in (sigmas, rows)), strict=False):
            x, past = step(x, past, sigma, row)
            tick()
        return x

    return follow


def best(
    process: Process, follow: Callable, path: FinePath, cost: Float[np.ndarray, "m m"], n: int
) -> tuple[str, dict[str, float]]:
    """(grid of n levels, {"searched", and each of OTHERS: error}) for `ipndm` with the weights of its levels.

    The error is the mean distance, over the draws of the path, between the solver's end and the path's at σ_min, as
    rms over the values of an image. `follow` is `by_steps` of the path's denoiser, which takes n − 1 calls for each of
    GAMMAS and OTHERS.
    """
    texts = [written(path.sigmas[cheapest(cost, n - 1, gamma)]) for gamma in GAMMAS]
    errors = []
    for text in (*texts, *OTHERS):
        missed = np.asarray(follow(path.states[0], levels(process, text, n)) - path.states[-1])
        errors.append(float(np.sqrt(np.mean(np.square(missed).reshape(len(missed), -1), axis=1)).mean()))
    winner = int(np.argmin(errors[: len(GAMMAS)]))
    return texts[winner], {"searched": errors[winner], **dict(zip(OTHERS, errors[len(GAMMAS) :], strict=True))}


def costs(path: FinePath) -> Float[np.ndarray, "m m"]:
    """c of equation (1), float64, which holds above the diagonal.

    Raises:
      UserError: a path with NaN or inf.
    """

    @jax.jit
    def row(x, d, ratios, states):
        def jump(_, target):
            y, ratio = target
            missed = d + ratio * (x - d) - y
            return (), jnp.mean(jnp.linalg.norm(missed.reshape(len(x), -1), axis=1))

        return jax.lax.scan(jump, (), (states, ratios))[1]

    ratios = (path.sigmas / path.sigmas[:, None]).astype(path.states.dtype)
    parts = (row(x, d, r, path.states) for x, d, r in zip(path.states, path.means, ratios, strict=True))
    cost = np.stack([np.asarray(part, np.float64) for part in parts])
    if not np.isfinite(cost[np.triu_indices(len(cost), 1)]).all():
        raise UserError("the search met NaN or inf: the denoiser's weights are unusable")
    return cost


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
