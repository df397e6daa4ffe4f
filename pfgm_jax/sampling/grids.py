"""Noise levels σ_0 > … > σ_(n−1) > 0 that fixed steps visit, from a process's σ_max to its σ_min."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pfgm_jax.errors import UserError, nearest
from pfgm_jax.flow.process import Process
from pfgm_jax.flow.schedule import Identity

# Beyond these the powers of the EDM grid lose its levels to rounding, or overflow.
RHO = (0.5, 1e6)


def edm_grid(process: Process, steps: int, rho: float = 7.0) -> Float[np.ndarray, "n"]:
    """σ_i = (σ_max^(1/ρ) + i/(n−1) (σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ for i < n = `steps` (EDM eq. 5), [n].

    >>> from pfgm_jax.flow.process import edm
    >>> print(", ".join(f"{sigma:.3g}" for sigma in edm_grid(edm(sigma_max=80.0), 5)))
    80, 17.5, 2.52, 0.17, 0.002
    """
    if not RHO[0] <= rho <= RHO[1]:
        raise UserError(f"the EDM grid needs rho from {RHO[0]:g} to {RHO[1]:g}, such as 7, got {rho:g}")
    high, low = process.sigma_max ** (1 / rho), process.sigma_min ** (1 / rho)
    return (high + np.arange(steps) / (steps - 1) * (low - high)) ** rho


def log_grid(process: Process, steps: int) -> Float[np.ndarray, "n"]:
    """Evenly spaced in ln σ, [steps]: PFGM's grid, geometric in z (arXiv 2209.11178, section 3.3)."""
    return np.geomspace(process.sigma_max, process.sigma_min, steps)


def time_grid(process: Process, steps: int) -> Float[np.ndarray, "n"]:
    """σ at evenly spaced times of the process's own, [steps]; on a discrete schedule at the nearest whole numbers.

    Raises:
      UserError: more steps than a discrete schedule has levels.
    """
    t = np.linspace(process.t_max, process.t_min, steps)
    if process.schedule.discrete:
        if steps > process.schedule.steps:
            raise UserError(f"{process.name} has {process.schedule.steps} noise levels, fewer than {steps} steps")
        t = np.round(t)
    with jax.ensure_compile_time_eval():
        return np.asarray(process.sigma(jnp.asarray(t)), np.float64)


MOST = 100_000  # levels of a grid
SEARCHED = "searched"  # the grid that a run's schedule holds (`schedules.Schedule`), which a Generator puts here

GRIDS = {"edm": edm_grid, "log": log_grid, "time": time_grid}


def levels(process: Process, grid: str | None, steps: int, rho: float = 7.0) -> Float[np.ndarray, "n"]:
    """[steps] float64 levels of the grid called `grid`: "edm" (with ρ), "log" or "time".

    Or the levels themselves, as `search.searched` finds them: a text of falling numbers such as "80,11,0.57,0.002",
    from the process's σ_max to its σ_min, as many as there are steps. A Generator replaces "searched" by those that its
    run's schedule holds.

    None is "time", the grid of DDPM, DDIM and the published SDE samplers; "edm" where the time is σ itself, as steps of
    equal σ would skip the small ones.

    Raises:
      UserError: an unknown grid, fewer than 2 steps or more than MOST, or more than a discrete process has; levels in
        a text that are no numbers, do not fall, are not as many as the steps, or begin or end elsewhere.
    """
    if grid is None:
        grid = "edm" if isinstance(process.schedule, Identity) else "time"
    if "," in grid:
        return _written(process, grid, steps)
    if grid == SEARCHED:
        raise UserError("grid=searched is found for the weights of a run, by mode=schedule, and kept with them")
    if grid not in GRIDS:
        names = (*GRIDS, SEARCHED)
        raise UserError(f"unknown grid {grid!r}; choose from {', '.join(names)}{nearest(grid, names)}")
    if steps < 2:
        raise UserError(f"a grid needs steps >= 2, got {steps}")
    if steps > MOST:
        raise UserError(f"a grid can have at most {MOST:,} steps, got {steps}")
    return edm_grid(process, steps, rho) if grid == "edm" else GRIDS[grid](process, steps)


def _written(process, text, steps):
    """The levels of a text such as "80,11,0.002"."""
    try:
        sigmas = np.array([float(word) for word in text.split(",")])
    except ValueError:
        raise UserError(
            f"a grid must be a name ({', '.join(GRIDS)}) or numbers like 80,11,0.002, got {text!r}"
        ) from None
    if len(sigmas) != steps:
        raise UserError(f"the grid {text} has {len(sigmas)} levels, and steps is {steps}: give as many")
    if not (np.isfinite(sigmas).all() and (np.diff(sigmas) < 0).all() and sigmas[-1] > 0):
        raise UserError(f"the levels of a grid must fall and stay above 0, got {text}")
    up = process.sigma_max < process.sigma_min  # the way of `inference.upwards`
    ends = np.sort([process.sigma_max, process.sigma_min])[::-1]
    # A thousandth: texts are rounded.
    if not np.allclose(sigmas[[0, -1]], ends, rtol=1e-3, atol=0):
        raise UserError(f"the grid {text} must lead from σ_max = {ends[0]:g} to σ_min = {ends[1]:g}")
    sigmas[[0, -1]] = ends
    return sigmas[::-1] if up else sigmas
