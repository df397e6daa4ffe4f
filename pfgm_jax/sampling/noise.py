"""Fresh noise for solvers that draw some, and what they need of a process."""

import jax

from pfgm_jax.errors import UserError


def standard_normal(keys, index, x):
    """Noise of step `index`, [B, *S]: sample i's is a function of (keys[i], index) alone."""

    def one_sample(key, x):
        return jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)

    return jax.vmap(one_sample)(keys, x)


def require_keys(keys, solver):
    """Raises UserError unless a stochastic solver was given keys."""
    if keys is None:
        raise UserError(f"{solver} draws noise: it needs keys=, one PRNG key per sample")


def require_gaussian(process, solver, why):
    """Raises UserError unless the process is Gaussian: only there a solver with fresh noise has a meaning."""
    if not process.is_gaussian:
        raise UserError(
            f"{solver} is for D = inf only, and this process has D = {process.D:g}: {why}. "
            "Use rk45, tsit5, heun, euler, ddim, dpmpp_2m or dpmpp_3m, or sample with D = inf"
        )
