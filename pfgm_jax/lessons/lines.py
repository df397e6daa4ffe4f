"""Fields of charges without an extra coordinate, and lines of the flow with levels of their own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pfgm_jax.sampling.single_step import heun_step


def coulomb(x, charges):
    """Mean field [B, M] of equal charges [n, M] at x [B, M], without the constant 1/(area of the unit sphere):

    E(x) = (1/n) Σ (x − y_i) / ‖x − y_i‖^M, in NumPy's float64 and one block of queries at a time.
    """
    return np.concatenate([_field_of(block, charges) for block in _blocks(x, charges)])


def _field_of(x, charges):
    away = x[:, None] - charges
    distance = np.linalg.norm(away, axis=-1, keepdims=True)
    return np.mean(away / distance ** x.shape[1], axis=1)


def potential(x, charges):
    """Mean potential [B] in the plane: −(1/n) Σ ln ‖x − y_i‖, whose negative gradient is `coulomb`."""
    log_distance = lambda block: np.log(np.linalg.norm(block[:, None] - charges, axis=-1))
    return np.concatenate([-np.mean(log_distance(block), axis=1) for block in _blocks(x, charges)])


def _blocks(x, charges):
    return np.array_split(x, max(1, len(x) * len(charges) // 2_000_000))


def follow(denoise, x, sigma, sigma_end, steps=100):
    """Field lines from (x [B, N], σ [B]) to σ = `sigma_end` [B], each at levels of its own, evenly spaced in ln σ.

    Heun's method; returns (x [steps + 1, B, N], σ [steps + 1, B]).
    """
    ratio = (jnp.asarray(sigma_end) / jnp.asarray(sigma))[None] ** jnp.linspace(0, 1, steps + 1)[:, None]
    levels = jnp.asarray(sigma) * ratio
    of_column = lambda x, level: denoise(x, level[:, 0])

    def step(x, pair):
        x = heun_step(of_column, x, pair[0][:, None], pair[1][:, None])
        return x, x

    @jax.jit
    def walk(x, levels):
        return lax.scan(step, x, (levels[:-1], levels[1:]))[1]

    x, levels = jnp.asarray(x, jnp.float32), levels.astype(jnp.float32)
    return np.concatenate([np.asarray(x)[None], np.asarray(walk(x, levels))]), np.asarray(levels)
