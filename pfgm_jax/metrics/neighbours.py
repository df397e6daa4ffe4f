"""Nearest-neighbour figures as pure NumPy functions of features [n, d].

N real and M fake points; B_i is the ball round real point i whose radius is the distance to its k-th nearest
other real point; c_i is the number of fakes inside B_i. Then (Kynkäänniemi et al. 2019, arXiv 1904.06991)

    precision = share of fakes inside some B_i
    recall    = share of reals inside some such ball round a fake, of radius to its k-th nearest other fake

and (Naeem et al. 2020, arXiv 2002.09797)

    density  = sum_i c_i / (k M)       1 expected for fakes of the real law, unbounded above
    coverage = sum_i 1[c_i > 0] / N    in [0, 1]; for fakes of the real law 1 - prod_{i=1..k} (N-i) / (M+N-i)
                                       is expected (Lemma 2), which rises with M: compare at equal M only

Published figures have k = 3 for the first two and k = 5 for the others.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from pfgm_jax.array_types import Arrays

BLOCK_ELEMENTS = 2**22  # distances held at once: 32 MiB of float64
# Balls are closed (the authors' code has open ones). The slack puts a fake that *is* some point's k-th
# neighbour inside, whatever the rounding of the matrix product.
TIE_SLACK = 1e-9


def squared_distances(a: Arrays | list, b: Arrays | list) -> Iterator[tuple[slice, Float[np.ndarray, "rows m"]]]:
    """Yield (rows, distances): a slice of `a` [n, d], and its squared distances to `b` [m, d] as [rows, m].

    Memory stays near BLOCK_ELEMENTS values; |a - b|^2 is expanded to use one matrix product per block.
    Raises ValueError unless both are finite, non-empty matrices of the same width.
    """
    a, b = as_features(a), as_features(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features differ in width: {a.shape[1]} and {b.shape[1]}")
    centre = b.mean(axis=0)  # large common offsets would cancel digits in the expansion
    a, b = a - centre, b - centre
    b_norm = (b * b).sum(axis=1)
    step = max(1, BLOCK_ELEMENTS // len(b))
    for start in range(0, len(a), step):
        block = a[start : start + step]
        distances = (block * block).sum(axis=1)[:, None] + b_norm - 2 * block @ b.T
        yield slice(start, start + len(block)), np.maximum(distances, 0)


def neighbour_radius(real: Num[Arrays, "n d"], k: int) -> Float[np.ndarray, "n"]:
    """Distance of each point of `real` [n, d] to its k-th nearest other point, [n].

    Raises ValueError unless 1 <= k < n.
    """
    real = as_features(real)
    if not 1 <= k < len(real):
        raise ValueError(f"k must be from 1 to {len(real) - 1} for {len(real)} real points, not {k}")
    radius = np.empty(len(real))
    for rows, distances in squared_distances(real, real):
        radius[rows] = np.sqrt(np.partition(distances, k, axis=1)[:, k])  # index 0 is the point itself
    return radius


def ball_counts(
    real: Num[Arrays, "n d"], fake: Arrays | list, k: int = 5, radius: Float[Arrays, "n"] | None = None
) -> Int[np.ndarray, "n"]:
    """How many points of `fake` [m, d] lie in the ball B_i of each point of `real` [n, d]: int [n].

    `radius` [n] is `neighbour_radius(real, k)`, if that is known.
    """
    limit = _limit(real, k, radius)
    counts = np.empty(len(limit), dtype=int)
    for rows, distances in squared_distances(real, fake):
        counts[rows] = (distances <= limit[rows, None]).sum(axis=1)
    return counts


def covered(
    real: Num[Arrays, "n d"], fake: Num[Arrays, "m d"], k: int = 3, radius: Float[Arrays, "n"] | None = None
) -> Bool[np.ndarray, "m"]:
    """Which points of `fake` [m, d] lie in the ball B_i of some point of `real` [n, d]: bool [m]; radius as above."""
    limit = _limit(real, k, radius)
    inside = np.empty(len(fake), dtype=bool)
    for rows, distances in squared_distances(fake, real):
        inside[rows] = (distances <= limit).any(axis=1)
    return inside


def _limit(real, k, radius):
    """Squared radii [n] within which a point counts as inside."""
    return ((neighbour_radius(real, k) if radius is None else radius) * (1 + TIE_SLACK)) ** 2


def precision_recall(real: Num[Arrays, "n d"], fake: Num[Arrays, "m d"], k: int = 3) -> tuple[float, float]:
    """Precision and recall of `fake` [m, d] with respect to `real` [n, d]: two floats."""
    return float(covered(real, fake, k).mean()), float(covered(fake, real, k).mean())


def density_coverage(
    real: Num[Arrays, "n d"], fake: Arrays | list, k: int = 5, radius: Float[Arrays, "n"] | None = None
) -> tuple[float, float]:
    """Density and coverage of `fake` [m, d] with respect to `real` [n, d]: two floats; radius as above."""
    counts = ball_counts(real, fake, k, radius)
    return float(counts.sum() / (k * len(fake))), float((counts > 0).mean())


def against(
    real: Num[Arrays, "n d"], k: int = 3, density_k: int = 5
) -> Callable[[Num[Arrays, "m d"]], dict[str, float]]:
    """`fake -> {"precision", "recall", "density", "coverage"}` for reference features, whose radii are found once.

    k is that of the first two, density_k of the others.
    """
    radius, density_radius = neighbour_radius(real, k), neighbour_radius(real, density_k)

    def metric(fake):
        density, coverage = density_coverage(real, fake, density_k, density_radius)
        precision, recall = covered(real, fake, k, radius).mean(), covered(fake, real, k).mean()
        return {"precision": float(precision), "recall": float(recall), "density": density, "coverage": coverage}

    return metric


def expected_coverage(counts: Int[Arrays, "N"] | list[int], total: int, n: int) -> float:
    """Coverage expected of n fakes drawn without replacement from the `total` fakes that gave `counts` [N].

    A ball with c of the fakes stays empty with the hypergeometric chance C(total-c, n) / C(total, n), so no
    subset has to be drawn. At n = total it is the coverage itself. Raises ValueError unless 1 <= n <= total.
    """
    if not 1 <= n <= total:
        raise ValueError(f"n must be from 1 to {total}, not {n}")
    # empty[c] = prod_{i<c} (total-n-i) / (total-i); the clip is for c > total-n: no draw can miss such a ball
    i = np.arange(total)
    empty = np.concatenate([[1.0], np.cumprod(np.maximum(total - n - i, 0) / (total - i))])
    return float((1 - empty[np.asarray(counts)]).mean())


def nearest_distance(fake: Arrays | list, real: Num[Arrays, "n d"]) -> Float[np.ndarray, "m"]:
    """Distance of each point of `fake` [m, d] to the nearest of `real` [n, d], [m]; exactly 0 for a copy."""
    fake, real = as_features(fake), as_features(real)
    nearest = np.empty(len(fake), dtype=int)
    for rows, distances in squared_distances(fake, real):
        nearest[rows] = distances.argmin(axis=1)
    return np.linalg.norm(fake - real[nearest], axis=1)  # recomputed: the expansion loses the digits near 0


def as_features(x: Any) -> Float[np.ndarray, "n d"]:
    """`x` as float64; ValueError unless it is a finite, non-empty matrix [n, d]."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape or not np.isfinite(x).all():
        raise ValueError(f"features must be a finite, non-empty matrix [n, d], not of shape {x.shape}")
    return x
