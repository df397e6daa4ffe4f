"""Fréchet distance between Gaussians fitted to features [n, d] (FID: Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    FID = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)),    C with n - 1

For any F with F^T F = C, tr (C1 C2)^(1/2) is the sum of the singular values of F1 F2^T, since C1 C2 and
(F1 F2^T)(F1 F2^T)^T have the same eigenvalues but for zeros. That needs no root of a matrix that is not symmetric, and
is exact where covariances are singular: of at most d images, F are the centred features over sqrt(n - 1).

FID depends on n, roughly as FID_n = FID_inf + c / n (Chong and Forsyth 2020, arXiv 1911.07023): compare at equal n.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from scipy.linalg import eigh, svdvals

from pfgm_jax.array_types import Arrays
from pfgm_jax.metrics.neighbours import as_features


class Statistics(NamedTuple):
    """Count, mean [d] and scatter [d, d], the sum of (x - mean)(x - mean)^T, of features; float64."""

    n: int
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """[d, d], with n - 1; ValueError for fewer than two features."""
        if self.n < 2:
            raise ValueError(f"a covariance needs the features of at least 2 images, got {self.n}")
        return self.scatter / (self.n - 1)


def statistics(features: Num[Arrays, "n d"]) -> Statistics:
    """Statistics of features [n, d]."""
    features = as_features(features)
    mean = features.mean(axis=0)
    centred = features - mean
    return Statistics(len(features), mean, centred.T @ centred)


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of two sets together (Chan, Golub and LeVeque 1983); associative."""
    n, shift = a.n + b.n, b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(shift, shift) * (a.n * b.n / n)
    return Statistics(n, a.mean + shift * (b.n / n), scatter)


def accumulate(batches: Iterable[Num[Arrays, "_ d"]]) -> Statistics:
    """Statistics of all the features in an iterable of [n_i, d], which need not be in memory together."""
    return functools.reduce(merge, map(statistics, batches))


class Gaussian(NamedTuple):
    """The Gaussian of a set: mean [d], and a factor [r, d] with factor^T factor = covariance."""

    mean: Float[np.ndarray, "d"]
    factor: Float[np.ndarray, "r d"]


def gaussian(data: Num[Arrays, "n d"] | Statistics | Gaussian) -> Gaussian:
    """The Gaussian of features [n, d] or Statistics; ValueError for fewer than two features."""
    if isinstance(data, Gaussian):
        return data
    if not isinstance(data, Statistics):
        features = as_features(data)
        n, d = features.shape
        if 2 <= n <= d:
            mean = features.mean(axis=0)
            return Gaussian(mean, (features - mean) / np.sqrt(n - 1))
        data = statistics(features)
    values, vectors = map(np.asarray, eigh(data.covariance))
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)  # the others are rounding alone
    return Gaussian(data.mean, np.sqrt(values[kept])[:, None] * vectors[:, kept].T)


def fid(real: Arrays | Statistics | Gaussian, fake: Arrays | Statistics | Gaussian) -> float:
    """Fréchet distance of two sets, each features [n, d], Statistics, or a `gaussian` of them; symmetric.

    Never negative but for rounding (1e-12 of the covariances' trace), which is cut off at 0.
    """
    a, b = gaussian(real), gaussian(fake)
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features differ in width: {len(a.mean)} and {len(b.mean)}")
    cross = np.sum(svdvals(a.factor @ b.factor.T)) if len(a.factor) and len(b.factor) else 0.0
    apart = np.square(a.mean - b.mean).sum()
    return float(max(apart + np.square(a.factor).sum() + np.square(b.factor).sum() - 2 * cross, 0.0))


def against(real: Arrays | Statistics) -> Callable[[Arrays | Statistics], dict[str, float]]:
    """`fake -> {"fid": value}` for a reference (features or Statistics), whose decomposition is made once."""
    prepared = gaussian(real)
    return lambda fake: {"fid": fid(prepared, fake)}
