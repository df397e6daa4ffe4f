"""Solvers of the flow, each `(process, denoise, x at σ_max, **options) -> (samples, SolveStats)`."""

import inspect

from pfgm_jax.errors import UserError, nearest
from pfgm_jax.sampling.fixed_step import edm_grid, heun
from pfgm_jax.sampling.ode import rk45
from pfgm_jax.sampling.stats import SolveStats

__all__ = ["SOLVERS", "SolveStats", "edm_grid", "find", "heun", "rk45"]

SOLVERS = {"rk45": rk45, "heun": heun}


def find(name, options=()):
    """The solver called `name`, and which of `options` it takes: (function, set of names).

    Raises:
      UserError: an unknown name.
    """
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}{nearest(name, SOLVERS)}; there are {', '.join(SOLVERS)}")
    parameters = inspect.signature(SOLVERS[name]).parameters.values()
    return SOLVERS[name], {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in options}
