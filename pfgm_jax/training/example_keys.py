"""The number of an example of a run, which passes the largest int32 in a long run, as a random key."""

import jax
import jax.numpy as jnp


def example_keys(key, step, batch, places):
    """A key for each example of a run: `key` with its number step × batch + place folded in.

    The number may pass 2³², which is where `fold_in` wraps: what is above is folded in after it, if there is any.

    Args:
      step: int32 []. batch: examples a step, below 2³¹. places: int [b], of these examples in their batch.
    """
    high, low = _wide_product(step.astype(jnp.uint32), batch)
    lows = low + places.astype(jnp.uint32)
    highs = high + (lows < low)  # the carry

    def one(low, high):
        own = jax.random.fold_in(key, low)
        return jnp.where(high > 0, jax.random.fold_in(own, high), own)

    return jax.vmap(one)(lows, highs)


def _wide_product(a, b):
    """(high, low) uint32 of the 64 bits of a × b, both below 2³²: without x64 JAX has no integers of 64 bits."""
    (a1, a0), (b1, b0) = ((x >> 16, x & 0xFFFF) for x in (a, jnp.uint32(b)))
    middle = a1 * b0 + (a0 * b0 >> 16)  # below 2³²
    carried = a0 * b1 + (middle & 0xFFFF)
    return a1 * b1 + (middle >> 16) + (carried >> 16), a * jnp.uint32(b)
