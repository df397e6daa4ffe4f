"""Independent oracles in NumPy float64, written from the formulas and sharing no code with the package."""

import numpy as np


def posterior_mean(x, sigma, points, D):
    """E[y | x, σ] by direct differences, one query at a time. x [B, N], sigma [B], points [n, N], all made float64."""
    points = np.asarray(points, np.float64)
    means = []
    for query, level in zip(np.asarray(x, np.float64), np.asarray(sigma, np.float64), strict=True):
        squared = np.sum((query - points) ** 2, axis=1)
        if np.isinf(D):
            log_weight = -squared / (2 * level**2)
        else:
            log_weight = -(len(query) + D) / 2 * np.log(squared / level**2 + D)
        weight = np.exp(log_weight - log_weight.max())
        means.append(weight @ points / weight.sum())
    return np.stack(means)
