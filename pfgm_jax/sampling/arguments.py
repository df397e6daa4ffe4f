"""What a person hands to a Generator, checked and brought into form: keys, numbers, states, noise levels, labels."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pfgm_jax import parallel
from pfgm_jax.data.dataset import to_unit
from pfgm_jax.errors import UserError


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of at least `least` as an int; True, 4.0 and "4" are none."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise UserError(f"{name} must be a whole number, such as {name}={max(4, least)}, got {value!r}")
    if value < least:
        raise UserError(f"{name} must be at least {least}, got {value}")
    return int(value)


def number(name: str, value: Any) -> float:
    """A real number as a float."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise UserError(f"{name} must be a number, got {value!r}")
    return float(value)


def require_memory(name: str, n: int, shape: tuple[int, ...]) -> None:
    """Raises UserError where n samples of `shape`, float32, are more than this machine's memory holds."""
    size, free = 4 * n * math.prod(shape), parallel.host_memory()
    if size > free:
        by, needed = "×".join(map(str, shape)), f"{size // 2**30:,} GiB, and {free / 2**30:.3g} GiB are free"
        raise UserError(f"{name}={n} is too large: samples of {by} would take {needed}")


def require_key(key: Any) -> None:
    """Raises UserError unless `key` is one PRNG key, new or old."""
    of_keys = isinstance(key, jax.Array | np.ndarray)
    new = of_keys and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()
    old = of_keys and key.dtype == np.uint32 and key.shape == (2,)
    if not new and not old:
        got = f"an array {key.dtype} {key.shape}" if of_keys else repr(key)
        raise UserError(f"key must be a PRNG key, such as jax.random.key(0), got {got}; a number of samples is n=4")


def states(x: Any, shape: tuple[int, ...]) -> Float[Array, "B *S"]:
    """x [B, *shape] of floats as an array.

    Raises:
      UserError: another shape, no batch axis, or whole numbers.
    """
    x = _array("x", x)
    wanted = f"[B, {', '.join(map(str, shape))}]"
    if x.shape == shape:
        raise UserError(f"x has no batch axis: it must be {wanted}; pass x[None]")
    if x.shape[1:] != shape or not x.shape:
        raise UserError(f"x must be {wanted}, got {list(x.shape)}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"x must be floats in the unit scale, got {x.dtype}: pass pfgm_jax.data.to_unit(images)")
    return x


def images(images, shape):
    """Images [n, *shape], uint8 or floats in the unit scale, as float32 in the unit scale.

    Raises:
      UserError: another shape or type, no batch axis, none at all, or values that are not finite.
    """
    images = np.asarray(images)
    wanted = f"[n, {', '.join(map(str, shape))}]"
    if images.shape == shape:
        raise UserError(f"images have no batch axis: they must be {wanted}; pass images[None]")
    if images.shape[1:] != shape or not len(images):
        raise UserError(f"images must be {wanted}, got {list(images.shape)}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images must be uint8, or floats in the unit scale [-1, 1], got {images.dtype}")
    if not np.isfinite(images).all():
        raise UserError("images must be finite")
    return np.asarray(to_unit(images), np.float32)


def noise_levels(sigma: Any, x: Float[Array, "B *S"]) -> Float[Array, "B"]:
    """sigma, a number or [B], as [B] in the type of the states x [B, …].

    Raises:
      UserError: another shape, or levels that are not above 0.
    """
    sigma = _array("sigma", sigma)
    if sigma.shape not in ((), (1,), x.shape[:1]) or jnp.issubdtype(sigma.dtype, jnp.complexfloating):
        raise UserError(f"sigma must be a number or [{x.shape[0]}], one per state of x, got {list(sigma.shape)}")
    if not isinstance(sigma, jax.core.Tracer) and not (np.asarray(sigma) > 0).all():
        raise UserError(f"sigma must be above 0, got {np.min(np.asarray(sigma)):g}")
    return jnp.broadcast_to(sigma, x.shape[:1]).astype(x.dtype)


def state_labels(labels: Any, B: int, classes: int) -> Int[Array, "B"] | None:
    """Labels, a whole number or [B], as [B]; −1 stands for none. None stays None.

    Args:
      classes: number of classes, 0 for a network without labels.

    Raises:
      UserError: labels of another length or type, out of range, or for a network without labels.
    """
    if labels is None:
        return None
    if not classes:
        raise UserError("this network was trained without labels: leave labels out")
    labels = _array("labels", labels)
    if labels.shape not in ((), (B,)) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UserError(
            f"labels must be a whole number or [{B}] of them, one per state of x, got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    known = isinstance(labels, jax.core.Tracer) or ((np.asarray(labels) >= -1) & (np.asarray(labels) < classes)).all()
    if not known:
        raise UserError(f"labels must be from 0 to {classes - 1}, or -1 for none, got {np.asarray(labels).tolist()}")
    return jnp.broadcast_to(labels, (B,))


def _array(name, value):
    try:
        return value if isinstance(value, jax.Array) else jnp.asarray(np.asarray(value))
    except (TypeError, ValueError):
        raise UserError(f"{name} must be an array of numbers, got {type(value).__name__}") from None
