"""Kernel distance between sets of features [n, d] (KID: Binkowski et al. 2018, arXiv 1801.01401, section 4).

    k(a, b) = (a.b / d + 1)^3
    KID = mean of k over pairs of different fakes + the same of reals - 2 (mean of k over all fakes and reals)

This estimator of the squared maximum mean discrepancy is unbiased at any n, so figures of different n are comparable;
it may be negative.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num

from pfgm_jax.array_types import Arrays
from pfgm_jax.metrics.neighbours import BLOCK_ELEMENTS, as_features


def kernel(a: Float[Arrays, "n d"], b: Float[Arrays, "m d"]) -> Float[Arrays, "n m"]:
    """k of every pair of rows of a [n, d] and b [m, d]: [n, m]."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def _total(a, b):
    """Sum of k over all pairs, in blocks of BLOCK_ELEMENTS."""
    step = max(1, BLOCK_ELEMENTS // len(b))
    return sum(kernel(a[i : i + step], b).sum() for i in range(0, len(a), step))


def _within(a):
    """Mean of k over pairs of different rows."""
    if len(a) < 2:
        raise ValueError("a kernel distance needs the features of at least 2 images of each kind")
    itself = ((a * a).sum(axis=1) / a.shape[1] + 1) ** 3
    return (_total(a, a) - itself.sum()) / (len(a) * (len(a) - 1))


def against(real: Num[Arrays, "n d"]) -> Callable[[Num[Arrays, "m d"]], dict[str, float]]:
    """`fake -> {"kid": value}` for reference features [n, d], whose own mean is computed once."""
    real = as_features(real)
    within = _within(real)

    def metric(fake):
        fake = as_features(fake)
        if fake.shape[1] != real.shape[1]:
            raise ValueError(f"features differ in width: {fake.shape[1]} and {real.shape[1]}")
        return {"kid": float(_within(fake) + within - 2 * _total(fake, real) / (len(fake) * len(real)))}

    return metric


def kid(real: Arrays, fake: Arrays) -> float:
    """The unbiased estimate from all features of both sets."""
    return against(real)(fake)["kid"]


def kid_subsets(
    real: Num[Arrays, "n d"], fake: Num[Arrays, "m d"], subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """(mean, std) over random subsets, as KID is published; of `size` images or all of the smaller set.

    The std is the spread of a figure of that many images. Neither it nor std / sqrt(subsets) is the error of the mean,
    since subsets overlap; `intervals.estimate` gives that.
    """
    real, fake = as_features(real), as_features(fake)
    size = min(size, len(fake), len(real))
    rng = np.random.default_rng(seed)
    values = [
        kid(real[rng.choice(len(real), size, replace=False)], fake[rng.choice(len(fake), size, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))
