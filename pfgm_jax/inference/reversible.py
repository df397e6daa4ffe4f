"""An algebraically reversible solver: encode and decode undo each other to the last bit, at any number of steps.

In w = x/σ and s = 1/σ the flow dx/dσ = (x − d)/σ, d = E[y | x, σ], is

    dw = d(σ w, σ) ds,                                                                                            (1)

whose right side has no term in w alone. A pair (w_y, w_z), which the exact flow keeps equal, then steps by additions:

    Poisson step:  w_y += (s' − s) d(σ w_z, σ),     then     w_z += (s' − s) d(σ' w_y, σ').                       (2)

Each half step changes one member by a function of the other, so it is undone by a subtraction of the same number,
whatever the network: a stack of such layers (a learned map, then a Poisson step along its direction) is inverted from
the last layer to the first, each in closed form. The number is the same only if nothing is rounded in between, so the
pair is kept in fixed-point integers (a unit is 2⁻¹⁶) and increments are rounded to them: sums of integers are exact.
In raw x instead of w, a reversible pair needs a damping factor λ < 1, whose powers amplify round-off on the way back
(arXiv 2502.08834 has the general scheme).

A layer costs two calls of the network in either direction: 2 L for L steps. (2) is a leapfrog of order two; of the
errors of its two members, which see each interval from its two ends, the mean is free to first order.

Down the levels the difference w_y − w_z decays. Up it grows as fast, so that an encoder that starts from w_y = w_z, a
little off the difference that the steps themselves would hold, ends far off: of order one, and with 36 times Heun's
error at 40 steps of trained digits. `settled` finds that difference first, by a way up to SETTLE_TO and down again.

The integers leave room for |x|/σ up to 2¹⁵, which images in [−1, 1] reach at σ = 3e-5. Beyond it sums wrap around,
which costs accuracy and not reversibility.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32

from pfgm_jax.array_types import Arrays, Denoiser
from pfgm_jax.sampling.single_step import heun_step

# The difference is settled from this level on down: from a few times the data's own scale, above which nothing grows.
SETTLE_TO = 2.0
UNIT = 2.0**-16  # of w, which is 2⁻¹⁶ of the noise's standard deviation


class HalfSteps(NamedTuple):
    """Rows of the scan: which member moves, the level at which the other is read, the increment's factor and sign."""

    member: np.ndarray
    sigma: np.ndarray
    step: np.ndarray
    sign: np.ndarray


def half_steps(sigmas: Any, upwards: bool) -> HalfSteps:
    """The 2 L half steps (2) down the descending levels `sigmas` [L + 1], or those that undo them, last one first."""
    sigmas = np.asarray(sigmas, np.float64)
    L = len(sigmas) - 1
    inverse = 1 / sigmas
    rows = HalfSteps(
        member=np.tile(np.array([0, 1], np.int32), L),
        sigma=np.stack([sigmas[:-1], sigmas[1:]], axis=1).reshape(-1).astype(np.float32),
        step=np.repeat(np.diff(inverse), 2).astype(np.float32),
        sign=np.full(2 * L, -1 if upwards else 1, np.int32),
    )
    return HalfSteps(*(row[::-1] for row in rows)) if upwards else rows


def follow(denoise: Denoiser, pair: Int32[Arrays, "B 2 *S"], rows: HalfSteps) -> Int32[Array, "B 2 *S"]:
    """The pair after the half steps.

    Up and down are one program, distinguished only by `rows`: the increments of a step are then equal to the last bit.

    Args:
      denoise: posterior mean `(x [B, *S], sigma [B]) -> [B, *S]`.
      pair: int32 [B, 2, *S], (w_y, w_z) in units of 2⁻¹⁶.
      rows: `half_steps`.

    Returns:
      int32 [B, 2, *S].
    """

    def half_step(pair, row):
        x = row.sigma * UNIT * pair[:, 1 - row.member].astype(jnp.float32)
        d = denoise(x, jnp.full(len(x), row.sigma))
        increment = jnp.round(row.step / UNIT * d).astype(jnp.int32)
        return pair.at[:, row.member].add(row.sign * increment), None

    return lax.scan(half_step, jnp.asarray(pair), jax.tree.map(jnp.asarray, rows))[0]


def settled(denoise: Denoiser, x: Float[Arrays, "B *S"], sigmas: Any) -> Int32[Array, "B *S"]:
    """Half the difference w_y − w_z that steps down to the last level leave, int32 [B, *S].

    The states x [B, *S] at the last of the descending levels `sigmas` go up to the first by Heun's method and come down
    as a pair: four calls a level. The pair does not come back to x, but its difference is that of pairs near x.
    """
    up = jnp.asarray(sigmas[::-1], jnp.float32)
    at = lambda x, sigma: denoise(x, jnp.full(len(x), sigma))
    x, _ = lax.scan(lambda x, ends: (heun_step(at, x, *ends), None), x, (up[:-1], up[1:]))
    w = jnp.round(x / (up[-1] * UNIT)).astype(jnp.int32)
    pair = follow(denoise, jnp.stack([w, w], axis=1), half_steps(sigmas, upwards=False))
    return (pair[:, 0] - pair[:, 1]) // 2


def to_pair(x: Float[Arrays, "B *S"], sigma: float, half_difference: Any = 0) -> Int32[np.ndarray, "B 2 *S"]:
    """States x [B, *S] at a level as a pair with the mean x/σ, int32 [B, 2, *S]; in float64, on the host."""
    w = np.round(np.asarray(x, np.float64) / (sigma * UNIT))
    limit = np.iinfo(np.int32).max // 2
    w = np.clip(w, -limit, limit).astype(np.int32)
    half = np.clip(half_difference, -limit, limit).astype(np.int32)
    return np.stack([w + half, w - half], axis=1)


def to_states(pair: Int32[Arrays, "B 2 *S"], sigma: float) -> Float[np.ndarray, "B *S"]:
    """The states [B, *S], float32, of a pair at a level: σ times the mean of w_y and w_z."""
    return (sigma * UNIT * np.asarray(pair, np.float64).mean(axis=1)).astype(np.float32)
