"""A solver by the number of evaluations: the one that did best at so many on digits and blood cells (docs/solvers.md).

It never chooses a searched grid by itself: its samples lie nearer to the flow's end, but for blood cells farther from
the data.
"""

from typing import Any

from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKeys
from pfgm_jax.errors import UserError
from pfgm_jax.flow.process import Process
from pfgm_jax.sampling.multistep import dpmpp_3m, ipndm
from pfgm_jax.sampling.stats import SolveStats

FEW = 14  # evaluations up to which `ipndm` is taken: those at which it was measured to be nearer to the flow's end
_SOLVERS = {"ipndm": ipndm, "dpmpp_3m": dpmpp_3m}


def choice(steps: int, grid: str | None = None) -> tuple[str, dict[str, Any]]:
    """The solver that `auto` chooses for a number of evaluations, and its options: `(name, {"steps": …, "grid": …})`.

    Up to FEW evaluations that is `ipndm`, beyond them `dpmpp_3m`, each on its own grid unless another is given. On
    its own grid `ipndm` has its published weights, which did better there; on any other, such as a searched one, those
    of the levels.

    Raises:
      UserError: fewer than 2 evaluations, the first of which gives no more than the mean of the data.
    """
    if steps < 2:
        raise UserError(f"auto needs steps >= 2, the number of evaluations, got {steps}")
    if steps <= FEW:
        grid = grid or "edm"
        return "ipndm", {"steps": steps, "grid": grid, "equal_weights": grid == "edm"}
    return "dpmpp_3m", {"steps": steps, "grid": grid or "log"}


def auto(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    steps: int = 18,
    grid: str | None = None,
    last_denoise: bool = True,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """The solver and grid for a number of evaluations (`choice`).

    Args:
      process, denoise, x, keys, last_denoise, frames, framed, axis_name: as for `single_step.euler`.
      steps: evaluations, and levels of the grid.
      grid: a grid other than the solver's own, such as a searched one.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: an unknown grid, or fewer than 2 steps.
    """
    name, options = choice(steps, grid)
    output = dict(last_denoise=last_denoise, frames=frames, framed=framed, axis_name=axis_name)
    return _SOLVERS[name](process, denoise, x, keys=keys, **options, **output)
