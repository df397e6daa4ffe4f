"""Fresh noise for solvers that draw some, and what they need of a process."""

import jax
from jaxtyping import Array, Float, Int

from pfgm_jax.array_types import Arrays, PRNGKeys
from pfgm_jax.errors import UserError
from pfgm_jax.flow.process import Process


def standard_normal(
    keys: PRNGKeys | None, index: int | Int[Array, ""], x: Float[Arrays, "B *S"]
) -> Float[Array, "B *S"]:
    """Noise of step `index`, [B, *S]: sample i's is a function of (keys[i], index) alone; see `require_keys`."""

    def one_sample(key, x):
        return jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)

    return jax.vmap(one_sample)(keys, x)


def require_keys(keys: PRNGKeys | None, solver: str) -> None:
    """Raises UserError unless a stochastic solver was given keys."""
    if keys is None:
        raise UserError(f"{solver} draws noise: it needs keys=, one PRNG key per sample")


def require_gaussian(process: Process, solver: str, why: str) -> None:
    """Raises UserError unless the process is Gaussian: only there a solver with fresh noise has a meaning."""
    if not process.is_gaussian:
        raise UserError(
            f"{solver} is for D = inf only, and this process has D = {process.D:g}: {why}. "
            "Use rk45, tsit5, heun, euler, ddim, dpmpp_2m, dpmpp_3m or ipndm, or sample with D = inf"
        )
