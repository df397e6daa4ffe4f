"""Solvers, each `(process, denoise, x at σ_max, *, keys, frames, axis_name, **options) -> (samples, SolveStats)`."""

import inspect
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pfgm_jax.errors import UserError, nearest
from pfgm_jax.flow.process import Process
from pfgm_jax.sampling.adaptive import rk45, tsit5
from pfgm_jax.sampling.auto import auto, choice
from pfgm_jax.sampling.consistency import consistency, flow_map, two_time_denoiser
from pfgm_jax.sampling.grids import GRIDS, levels
from pfgm_jax.sampling.multistep import dpmpp_2m, dpmpp_3m, ipndm
from pfgm_jax.sampling.reverse_sde import sde
from pfgm_jax.sampling.single_step import euler, heun
from pfgm_jax.sampling.stats import SolveStats
from pfgm_jax.sampling.stochastic import ancestral, ddim, euler_maruyama, predictor_corrector
from pfgm_jax.sampling.unipc import unipc

SOLVERS: dict[str, Callable] = {
    solver.__name__: solver
    for solver in (
        rk45,
        tsit5,
        euler,
        heun,
        dpmpp_2m,
        dpmpp_3m,
        ipndm,
        unipc,
        ddim,
        consistency,
        sde,
        ancestral,
        euler_maruyama,
        predictor_corrector,
        auto,
    )
}
__all__ = [
    "GRIDS",
    "SOLVERS",
    "SolveStats",
    "check",
    "check_effect",
    "check_options",
    "choice",
    "concrete",
    "find",
    "flow_map",
    "levels",
    "levels_of",
    "shares_steps",
    "two_time_denoiser",
    *SOLVERS,
]

# What every solver takes from its caller and a person does not set.
_PLUMBING = {"keys", "axis_name", "framed", "second_moment"}
# No count of steps or frames, and no limit on them, has a use beyond this.
_MOST = 1_000_000


def find(name: str) -> tuple[Callable, dict[str, Any]]:
    """The solver called `name` and its options with their defaults: (function, {option: default}).

    Raises:
      UserError: an unknown name.
    """
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}; choose from {', '.join(SOLVERS)}{nearest(name, SOLVERS)}")
    parameters = inspect.signature(SOLVERS[name]).parameters.values()
    return SOLVERS[name], {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _PLUMBING
    }


def option_kinds() -> dict[str, type]:
    """{option: type} of the options of all solvers, except the number of frames."""
    defaults: dict[str, Any] = {}
    for name in SOLVERS:
        defaults |= {option: value for option, value in find(name)[1].items() if defaults.get(option) is None}
    del defaults["frames"]
    return {option: str if value is None else type(value) for option, value in defaults.items()}


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raises UserError for an unknown solver, an option that it does not take, or a value of another type."""
    _, taken = find(name)
    kinds = option_kinds() | {"frames": int}
    for option, value in options.items():
        if option not in taken:
            raise UserError(
                f"solver {name} has no option {option!r}; it takes {', '.join(sorted(taken))}{nearest(option, taken)}"
            )
        if value is not None:
            _check_kind(f"{name} takes {option} as", value, kinds[option])
    if (options.get("frames") or 0) < 0:
        raise UserError(f"frames must be 0 or more (0: none), got {options['frames']}")


def check_effect(name: str, options: dict[str, Any], given: Iterable[str]) -> None:
    """Raises UserError for one of the `given` options of a solver that has no effect with its other `options`."""
    taken = find(name)[1] | options
    for option in given:
        if option == "rho" and taken["grid"] not in (None, "edm"):
            raise UserError(f"sample.rho is for grid=edm, and the grid is {taken['grid']}: leave it out")
        if option in ("S_min", "S_max", "S_noise") and not taken["S_churn"]:
            raise UserError(f"sample.{option} has no effect without churn: set sample.S_churn too")
        if option in ("rtol", "atol", "max_steps") and taken["fixed_steps"]:
            fixed = taken["fixed_steps"]
            raise UserError(f"sample.{option} has no effect with sample.fixed_steps={fixed}: leave one of them out")


def _check_kind(asks, value, kind):
    """Raises UserError unless an option's value is of its kind, NumPy's numbers included."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is int and not (whole and -_MOST <= int(value) <= _MOST):
        raise UserError(f"{asks} a whole number up to {_MOST:,}, got {value!r}")
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is float and not real:
        raise UserError(f"{asks} a number, got {value!r}")
    if kind is bool and not isinstance(value, bool | np.bool_):
        raise UserError(f"{asks} True or False, got {value!r}")
    if kind is str and not isinstance(value, str):
        raise UserError(f"{asks} a word, got {value!r}")


def concrete(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, given options) of the solver that is meant: another one only for `auto`, by its number of steps."""
    if name != auto.__name__:
        return name, options
    taken = find(name)[1] | options
    chosen, own = choice(taken["steps"], taken["grid"])
    return chosen, own | {option: value for option, value in options.items() if option not in ("steps", "grid")}


def levels_of(name: str, process: Process, options: dict[str, Any]) -> Float[np.ndarray, "n"]:
    """The descending levels [n + 1] that n steps of a solver visit; a hundred even in ln σ for adaptive solvers."""
    name, options = concrete(name, options)
    taken = find(name)[1] | options
    if "grid" in taken:
        return levels(process, taken["grid"], taken["steps"], taken["rho"])
    return np.geomspace(process.sigma_max, process.sigma_min, 101)


def shares_steps(name: str, options: dict[str, Any]) -> bool:
    """Whether samples of one batch depend on each other: by a step size or a norm that they share."""
    taken = find(name)[1] | options
    if "per_sample" in taken:
        return not taken["per_sample"] and not taken["fixed_steps"]
    return taken.get("corrector_steps", 0) > 0


def check(name: str, process: Process, options: dict[str, Any]) -> None:
    """Raises UserError if the solver called `name` is not defined for the process, or not with these options.

    The solver is traced with an empty denoiser, which is cheap and raises whatever errors it would raise.
    """
    check_options(name, {option: value for option, value in options.items() if option not in _PLUMBING})
    solver = SOLVERS[name]
    # Three values: noise at finite D needs N + D > 2, which images have at every D.
    x, keys = jnp.zeros((1, 3)), jax.random.split(jax.random.key(0), 1)
    jax.eval_shape(lambda x, keys: solver(process, lambda x, sigma: x, x, keys=keys, **options), x, keys)
