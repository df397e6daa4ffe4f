"""Steps that are far out of their range: a gradient norm above k times the running median of those before it."""

import flax
import jax
import jax.numpy as jnp
import numpy as np

# Norms of which the median is taken; an odd number, so that it is one of them.
REMEMBERED = 63


@flax.struct.dataclass
class Outliers:
    """What a run remembers of its steps, a part of its state.

    norms: [REMEMBERED] of the last gradients that were finite, those of skipped steps among them, so that a run whose
    norms rise for good goes on; the largest float where there was none yet. skipped: int32 [], steps since the start.
    """

    norms: jax.Array
    skipped: jax.Array


def unknown(dtype):
    """The Outliers before the first step, whose norms have this type."""
    return Outliers(np.full(REMEMBERED, np.finfo(dtype).max, dtype), np.zeros((), np.int32))


def judge(outliers, step, norm, finite, k):
    """(whether `step` is taken, the Outliers after it).

    It is where it is `finite` and its gradient norm at most k times the median, which counts once half of the norms are
    known.
    """
    taken = finite & (norm <= k * jnp.median(outliers.norms))
    place = step % REMEMBERED
    norms = outliers.norms.at[place].set(jnp.where(finite, norm, outliers.norms[place]))
    return taken, Outliers(norms, outliers.skipped + (~taken).astype(jnp.int32))
