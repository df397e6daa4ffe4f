"""Independent oracles in NumPy float64, written from the formulas and sharing no code with the package.

At the end what the tests of the solvers share: fields, a way to run a solver, and a count of its calls.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from scipy.integrate import solve_ivp

from pfgm_jax import sampling
from pfgm_jax.flow.process import prior

# Three charges far apart, the first three times and the second twice: frequencies 1/2, 1/3, 1/6.
CHARGES = np.repeat(np.array([[3.0, 0, 0, 0], [-2, 2, 0, 0], [0, -1, 3, 1]]), [3, 2, 1], axis=0)
FREQUENCIES = np.array([1 / 2, 1 / 3, 1 / 6])


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


def flow(x, high, low, points, D, method="DOP853", tolerance=1e-12):
    """Where the flow takes x [B, N] from σ = high to low around the points, by SciPy."""

    def velocity(u, flat):
        x = flat.reshape(-1, points.shape[1])
        return (x - posterior_mean(x, np.full(len(x), math.exp(u)), points, D)).ravel()

    span = (math.log(high), math.log(low))
    solution = solve_ivp(velocity, span, np.asarray(x).ravel(), method=method, rtol=tolerance, atol=tolerance)
    return solution.y[:, -1].reshape(x.shape)


class Gaussian:
    """Data y ~ N(mean, C) at D = ∞: the denoiser and the flow are linear and known."""

    def __init__(self, N=3, seed=0):
        rng = np.random.default_rng(seed)
        self.mean = rng.normal(size=N)
        self.axes, _ = np.linalg.qr(rng.normal(size=(N, N)))
        self.variance = np.geomspace(0.05, 2, N)

    def denoise(self, x, sigma):
        """E[y | x, σ] = mean + C (C + σ² I)⁻¹ (x − mean)."""
        shrunk = self.variance / (self.variance + sigma[:, None] ** 2)
        return self.mean + ((x - self.mean) @ self.axes * shrunk) @ self.axes.T

    def flow(self, x, start, end):
        """Along the flow each principal component of x − mean scales as √(variance + σ²)."""
        scale = np.sqrt((self.variance + end**2) / (self.variance + start**2))
        return self.mean + ((np.asarray(x) - self.mean) @ self.axes * scale) @ self.axes.T

    def components(self, x):
        """x − mean in principal axes."""
        return (np.asarray(x, np.float64) - self.mean) @ self.axes


def denoiser(points, D):
    """`denoise` of the points in JAX, by direct differences: for float64, and quick to compile."""

    def denoise(x, sigma):
        data = jnp.asarray(points, x.dtype)
        squared = jnp.sum((x[:, None] - data) ** 2, axis=2)
        level = sigma[:, None]
        log_weight = (
            -squared / (2 * level**2) if math.isinf(D) else -(x.shape[1] + D) / 2 * jnp.log1p(squared / (D * level**2))
        )
        return jax.nn.softmax(log_weight, axis=1) @ data

    return denoise


def second_moment(points, D):
    """E[‖x − y‖² | x, σ] of the points in JAX, by direct differences; `mean` is not used."""

    def of(x, sigma, mean=None):
        squared = jnp.sum((x[:, None] - jnp.asarray(points, x.dtype)) ** 2, axis=2)
        level = sigma[:, None]
        log_weight = (
            -squared / (2 * level**2) if math.isinf(D) else -(x.shape[1] + D) / 2 * jnp.log1p(squared / (D * level**2))
        )
        return jnp.sum(jax.nn.softmax(log_weight, axis=1) * squared, axis=1)

    return of


def noised(points, D, n, sigma, seed=0):
    """n draws of points + kernel in NumPy: [n, N]."""
    rng, points = np.random.default_rng(seed), np.asarray(points, np.float64)
    scale = np.ones(n) if math.isinf(D) else np.sqrt(D / rng.chisquare(D, n))
    return points[rng.integers(len(points), size=n)] + sigma * scale[:, None] * rng.normal(size=(n, points.shape[1]))


def cumulative(points, D, sigma, direction):
    """c -> P(direction · x <= c) for x as `noised` draws it; the direction has length 1."""
    law = scipy.stats.norm() if math.isinf(D) else scipy.stats.t(D)
    return lambda c: np.mean([law.cdf((c - direction @ y) / sigma) for y in np.asarray(points)], axis=0)


def solve(solver, process, denoise, x, keys=None, **options):
    """(samples, SolveStats) of the solver called `solver`, compiled."""
    return jax.jit(lambda x, keys: sampling.SOLVERS[solver](process, denoise, x, keys=keys, **options))(x, keys)


def draw(process, n, shape, seed=0):
    return jax.jit(lambda keys: prior(process, keys, shape))(keys(n, seed))


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def counted(denoise):
    """`denoise` and a list that gets the level of each call, complete after `jax.effects_barrier()`."""
    calls = []

    def counting(x, sigma):
        jax.debug.callback(lambda sigma: calls.append(float(sigma)), sigma[0])
        return denoise(x, sigma)

    return counting, calls
