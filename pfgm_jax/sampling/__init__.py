"""Solvers, each `(process, denoise, x at σ_max, *, keys, frames, axis_name, **options) -> (samples, SolveStats)`."""

import inspect

import jax
import jax.numpy as jnp

from pfgm_jax.errors import UserError, nearest
from pfgm_jax.sampling.fixed_step import euler, heun
from pfgm_jax.sampling.grids import GRIDS, levels
from pfgm_jax.sampling.multistep import dpmpp_2m, dpmpp_3m
from pfgm_jax.sampling.ode import rk45, tsit5
from pfgm_jax.sampling.stats import SolveStats
from pfgm_jax.sampling.stochastic import ancestral, ddim, euler_maruyama, predictor_corrector

SOLVERS = {
    solver.__name__: solver
    for solver in (rk45, tsit5, euler, heun, dpmpp_2m, dpmpp_3m, ddim, ancestral, euler_maruyama, predictor_corrector)
}
__all__ = ["GRIDS", "SOLVERS", "SolveStats", "check", "check_options", "find", "levels", *SOLVERS]

# What every solver takes from its caller and a person does not set.
_PLUMBING = {"keys", "axis_name"}


def find(name):
    """The solver called `name` and its options with their defaults: (function, {option: default}).

    Raises:
      UserError: an unknown name.
    """
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}; there are {', '.join(SOLVERS)}{nearest(name, SOLVERS)}")
    parameters = inspect.signature(SOLVERS[name]).parameters.values()
    return SOLVERS[name], {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _PLUMBING
    }


def option_kinds():
    """{option: type} of everything that some solver can be told, but for the number of frames."""
    defaults = {}
    for name in SOLVERS:
        defaults |= {option: value for option, value in find(name)[1].items() if defaults.get(option) is None}
    del defaults["frames"]
    return {option: str if value is None else type(value) for option, value in defaults.items()}


def check_options(name, options):
    """Raises UserError for an unknown solver, or an option that it does not take."""
    _, taken = find(name)
    for option in options:
        if option not in taken:
            raise UserError(
                f"solver {name} has no option {option!r}; it takes {', '.join(sorted(taken))}{nearest(option, taken)}"
            )


def check(name, process, options):
    """Raises UserError if the solver called `name` is not defined for the process, or not with these options.

    The solver is traced on an empty denoiser, which costs little and finds whatever it would refuse.
    """
    check_options(name, options)
    solver = SOLVERS[name]
    x, keys = jnp.zeros((1, 1)), jax.random.split(jax.random.key(0), 1)
    jax.eval_shape(lambda x, keys: solver(process, lambda x, sigma: x, x, keys=keys, **options), x, keys)
