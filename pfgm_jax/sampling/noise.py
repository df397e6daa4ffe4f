"""Fresh noise for solvers that draw some, and what they need of a process."""

import jax
from jaxtyping import Array, Float, Int

from pfgm_jax.array_types import Arrays, PRNGKeys, SecondMoment
from pfgm_jax.errors import UserError
from pfgm_jax.flow import diffusion
from pfgm_jax.flow.process import Process


def standard_normal(
    keys: PRNGKeys | None, index: int | Int[Array, ""], x: Float[Arrays, "B *S"]
) -> Float[Array, "B *S"]:
    """Noise of step `index`, [B, *S]: sample i's is a function of (keys[i], index) alone; see `require_keys`."""

    return jax.vmap(lambda key, x: jax.random.normal(key, x.shape, x.dtype))(keys_of_step(keys, index), x)


def keys_of_step(keys: PRNGKeys | None, index: int | Int[Array, ""]) -> PRNGKeys:
    """PRNG keys [B] of step `index`, one for each sample."""
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)


def require_keys(keys: PRNGKeys | None, solver: str) -> None:
    """Raises UserError unless a stochastic solver was given keys."""
    if keys is None:
        raise UserError(f"{solver} draws noise: it needs keys=, one PRNG key per sample")


def require_gaussian(process: Process, solver: str, why: str) -> None:
    """Raises UserError unless the process is Gaussian: only there a solver with fresh noise has a meaning."""
    if not process.is_gaussian:
        raise UserError(
            f"{solver} is for D = inf only, and this process has D = {process.D:g}: {why}. "
            "Use rk45, tsit5, heun, euler, ddim, dpmpp_2m, dpmpp_3m, ipndm or unipc, sde for noise at any D, or sample "
            "with D = inf"
        )


def require_second_moment(second_moment: SecondMoment | None, solver: str, N: int, D: float) -> SecondMoment:
    """`second_moment`, which noise at finite D cannot do without.

    Raises:
      UserError: there is none, or N + D is 2 or less.
    """
    diffusion.require_noise(N, D)
    if second_moment is None:
        raise UserError(
            f"{solver} at D = {D:g} needs second_moment, E[‖x − y‖² | x, σ]: a trained run has it once mode=schedule "
            "has measured it, field.exact_second_moment gives that of a data set; or use no noise, or D = inf"
        )
    return second_moment
