"""Linear measurements of images: a map A and its adjoint Aᵀ, ⟨Ax, y⟩ = ⟨x, Aᵀy⟩.

Averages and blurs act along rows and columns, x -> R x Cᵀ, whose adjoint is y -> Rᵀ y C.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pfgm_jax.array_types import Arrays, Numbers, per_example
from pfgm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Operator:
    """A linear measurement.

    Attributes:
      name: for people.
      forward: A, `x [B, H, W, C] -> [B, *M]`.
      adjoint: Aᵀ, `y [B, *M] -> [B, H, W, C]`.
    """

    name: str
    forward: Callable
    adjoint: Callable


def masked(mask: Arrays) -> Operator:
    """The pixels where `mask`, which broadcasts to [B, H, W, C], is 1; the others are measured as 0."""
    keep = lambda x: jnp.where(mask, x, 0)
    return Operator("mask", keep, keep)


MASKS = ("centre", "right", "random")


def named_mask(name: str, sides: tuple[int, ...], key: Array) -> Bool[Array, "H W"]:
    """A mask in MASKS, True where observed: the middle or the right half is hidden, or half of the pixels by chance."""
    H, W = sides
    rows, columns = jnp.arange(H)[:, None], jnp.arange(W)
    if name == "centre":
        hidden = (rows >= H // 4) & (rows < H - H // 4) & (columns >= W // 4) & (columns < W - W // 4)
        return ~hidden
    if name == "right":
        return jnp.broadcast_to(columns < W // 2, (H, W))
    return jax.random.bernoulli(key, 0.5, (H, W))


identity = Operator("identity", lambda x: x, lambda x: x)


@functools.lru_cache(maxsize=32)
def average(factor: int, shape: tuple[int, ...]) -> Operator:
    """Means of factor × factor pixels of images of `shape` (H, W, C): [B, H/factor, W/factor, C].

    Raises:
      UserError: a factor that does not divide the sides.
    """
    H, W = shape[:2]
    if factor < 2 or H % factor or W % factor:
        raise UserError(f"factor={factor} must be at least 2 and divide the {H}×{W} pixels of an image")
    means = lambda side: np.repeat(np.eye(side // factor, dtype=np.float32), factor, axis=1) / factor
    return separable(f"mean of {factor}×{factor}", means(H), means(W))


@functools.lru_cache(maxsize=32)
def blur(width: float, shape: tuple[int, ...]) -> Operator:
    """A Gaussian blur of standard deviation `width` pixels; at the border it averages what is there.

    Raises:
      UserError: a width that is not above 0.
    """
    if not 0 < width < 1e3:
        raise UserError(f"the width of a blur must be above 0 pixels, got {width:g}")

    def weights(side):
        at = np.arange(side)
        kernel = np.exp(-((at[:, None] - at) ** 2) / (2 * width**2))
        return (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)

    return separable(f"blur of {width:g} px", weights(shape[0]), weights(shape[1]))


def separable(name: str, rows: Float[np.ndarray, "h H"], columns: Float[np.ndarray, "w W"]) -> Operator:
    """x [B, H, W, C] -> rows x columnsᵀ, [B, h, w, C], channel by channel."""
    apply = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return Operator(
        name,
        lambda x: apply("ab,nbdc,ed->naec", rows, x, columns),
        lambda y: apply("ab,naec,ed->nbdc", rows, y, columns),
    )


def check(operator: Operator, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one measurement of images of `shape`.

    Raises:
      UserError: a map whose adjoint returns another shape than `shape`, or does not satisfy ⟨Ax, y⟩ = ⟨x, Aᵀy⟩.
    """
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, *shape))
    Ax = operator.forward(x)
    y = jax.random.normal(keys[1], Ax.shape)
    Aty = operator.adjoint(y)
    if Ax.shape[:1] != (2,) or Aty.shape != x.shape:
        raise UserError(
            f"the operator {operator.name} takes [B, {', '.join(map(str, shape))}] to {list(Ax.shape)} and its adjoint "
            f"back to {list(Aty.shape)}: both keep the batch axis, and the adjoint returns images"
        )
    left, right = float(jnp.vdot(Ax, y)), float(jnp.vdot(x, Aty))
    scale = float(jnp.linalg.norm(Ax) * jnp.linalg.norm(y) + jnp.linalg.norm(x) * jnp.linalg.norm(Aty))
    if not abs(left - right) <= 1e-4 * scale:  # float32 rounding is below 1e-6 of it
        raise UserError(
            f"the adjoint of the operator {operator.name} is not Aᵀ: ⟨Ax, y⟩ = {left:.4g} and ⟨x, Aᵀy⟩ = {right:.4g} "
            "for random x and y"
        )
    return Ax.shape[1:]


def weighted_inverse(
    operator: Operator, residual: Float[Arrays, "B *M"], variance: Numbers, spread: Float[Arrays, "B"]
) -> Float[Array, "B *M"]:
    """v with (spread A Aᵀ + variance) v = residual, by conjugate gradients, image by image.

    Args:
      residual: [B, *M].
      variance: of the measurement's noise, broadcasts to [B, *M]; 0 for none, where the residual lies in the range.
      spread: [B] variance of what is measured.
    """
    spread = per_example(spread, residual)
    # Divided by `spread`, so that a tolerance serves all levels.
    variance = variance / spread

    def apply(v):
        return operator.forward(operator.adjoint(v)) + variance * v

    def squared(v):
        return jnp.sum(jnp.square(v).reshape(len(v), -1), axis=1)

    def step(state):
        i, v, r, p, rr = state
        Ap = apply(p)
        energy = jnp.sum((p * Ap).reshape(len(p), -1), axis=1)
        alpha = jnp.where(energy > 0, rr / jnp.where(energy > 0, energy, 1), 0)
        v, r = v + per_example(alpha, residual) * p, r - per_example(alpha, residual) * Ap
        after = squared(r)
        beta = jnp.where(rr > 0, after / jnp.where(rr > 0, rr, 1), 0)
        return i + 1, v, r, r + per_example(beta, residual) * p, after

    first = squared(residual)

    def unfinished(state):
        return (state[0] < MOST_ITERATIONS) & jnp.any(state[4] > TOLERANCE**2 * first)

    start = (0, jnp.zeros_like(residual), residual, residual, first)
    return jax.lax.while_loop(unfinished, step, start)[1] / spread


# Of conjugate gradients: masks and averages take one iteration, blurs of little noise are cut off, which regularises.
MOST_ITERATIONS = 64
TOLERANCE = 1e-5


def conditioned(
    operator: Operator,
    prior: Float[Arrays, "B H W C"],
    measurement: Float[Arrays, "B *M"],
    variance: Numbers,
    spread: Float[Arrays, "B"],
) -> Float[Array, "B H W C"]:
    """prior + spread Aᵀ (spread A Aᵀ + variance)⁻¹ (measurement − A prior).

    For a draw `prior` of N(x, spread) and `measurement` with a fresh draw of its noise added, that is a draw of the
    Gaussian posterior (Matheron's rule); for the mean x and the measurement itself, its mean.
    """
    residual = measurement - operator.forward(prior)
    v = weighted_inverse(operator, residual, variance, spread)
    return prior + spread.reshape(-1, 1, 1, 1) * operator.adjoint(v)
