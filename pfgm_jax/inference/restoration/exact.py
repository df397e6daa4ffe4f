"""The exact posterior of a data set given a measurement, at every D: an oracle for everything that claims to draw it.

For data y_1 … y_n of equal weight, the posterior given a measurement m is p(m | y_i)/Σ_j p(m | y_j). The flow that ends
in it is that of the same data with these weights, so its denoiser is the softmax of `flow/field.py`, equation (1), with
the log-likelihood added to each logit:

    E[y | x, σ, m] = Σ w_i y_i / Σ w_i,     log w_i = −((N + D)/2) log(d_i² + D σ²) + log p(m | y_i).              (1)

Its flow needs no new solver, and its samples are the posterior at every D.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pfgm_jax import sampling
from pfgm_jax.array_types import Arrays, Denoiser, Levels, Numbers, PRNGKey
from pfgm_jax.errors import UserError
from pfgm_jax.flow import kernel_sums
from pfgm_jax.flow.process import Process, prior, require_D
from pfgm_jax.inference.restoration import noise as noises
from pfgm_jax.inference.restoration.operators import Operator

FEW, MANY = 3.0, 50.0  # effective points of a posterior in which a calibration can be seen
FARTHEST = 8.0  # standard deviations of χ² beyond which a measurement is of none of the images


def conditional_mean(
    x: Float[Arrays, "B *S"],
    sigma: Levels,
    points: Float[Arrays, "n *S"],
    D: float,
    log_likelihood: Float[Arrays, "B n"],
) -> Float[Array, "B *S"]:
    """E[y | x, σ, m] of a data set, equation (1), [B, *S].

    Args:
      x, sigma, points, D: as for `field.posterior_mean`; the points are taken whole.
      log_likelihood: log p(m | y_i) of each query's measurement, up to a constant; −inf excludes a point.

    Raises:
      UserError: a D that float32 does not hold.
    """
    require_D(D)
    x = jnp.asarray(x)
    flat, data = (jnp.asarray(a).reshape(len(a), -1).astype(x.dtype) for a in (x, points))
    sigma = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
    log_weight, _ = kernel_sums.log_weights(flat, sigma, data, D)
    weights = jax.nn.softmax(log_weight + log_likelihood, axis=1)
    return jnp.matmul(weights, data, precision=lax.Precision.HIGHEST).reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """Posteriors of measurements over a data set.

    Attributes:
      points: [n, *S] the data, floats in the unit scale.
      log_likelihood: [B, n] of each measurement and point.
    """

    points: Float[np.ndarray, "n *S"]
    log_likelihood: Float[np.ndarray, "B n"]

    @property
    def weights(self) -> Float[np.ndarray, "B n"]:
        """p(y_i | m), float64."""
        log = self.log_likelihood - self.log_likelihood.max(axis=1, keepdims=True)
        weights = np.exp(np.asarray(log, np.float64))
        return weights / weights.sum(axis=1, keepdims=True)

    @property
    def effective(self) -> Float[np.ndarray, "B"]:
        """Effective number of points, 1/Σ w_i²."""
        return 1 / np.sum(self.weights**2, axis=1)

    def denoiser(self, D: float, n: int = 1) -> Denoiser:
        """The conditional `denoise(x, sigma)` for n states of each measurement, [B n, *S], those of one together."""
        log_likelihood = jnp.repeat(jnp.asarray(self.log_likelihood, jnp.float32), n, axis=0)
        return lambda x, sigma: conditional_mean(x, sigma, self.points, D, log_likelihood)

    def draws(self, process: Process, key: PRNGKey, n: int, steps: int = 18) -> Int[np.ndarray, "B n"]:
        """Indices of the points nearest to where n draws of the exact conditional flow end, by Heun's method.

        It starts at the prior of `process`, which is centred at 0: choose σ_max well above the norms of the data.
        """
        B, shape = len(self.log_likelihood), self.points.shape[1:]
        x = prior(process, jax.random.split(key, B * n), shape)
        solve = jax.jit(lambda x: sampling.heun(process, self.denoiser(process.D, n), x, steps=steps)[0])
        return nearest(np.asarray(solve(x)), self.points).reshape(B, n)

    def require_calibratable(self) -> None:
        """Raises UserError unless every posterior has FEW to MANY effective points: others show no calibration."""
        effective = self.effective
        low, high = effective.min(), effective.max()
        if low < FEW:
            raise UserError(
                f"a measurement leaves {low:.2g} effective points of {len(self.points):,}: a posterior of fewer than "
                f"{FEW:g} cannot show whether draws are calibrated; raise the noise level"
            )
        if high > MANY:
            raise UserError(
                f"a measurement leaves {high:.3g} effective points: more than {MANY:g} take too many draws; lower the "
                "noise level"
            )


def posterior(
    points: Float[Arrays, "n *S"],
    measurement: Float[Arrays, "B *M"],
    operator: Operator,
    kind: str,
    level: float,
    observed: Numbers | Arrays = 1.0,
) -> Posterior:
    """The Posterior of measurements A y + noise.

    Args:
      points: [n, *S] floats in the unit scale.
      kind, level: of the noise (`noise.KINDS`), above 0.
      observed: 1 where a value is measured, 0 elsewhere; broadcasts to [B, *M].

    Raises:
      UserError: a level that is not above 0, or a measurement that no image matches at this level.
    """
    if not 0 < level < math.inf:
        raise UserError(
            f"an exact posterior needs noise above 0, got {level:g}: without noise, held-out images match no "
            "other image"
        )
    points, measurement = jnp.asarray(points), jnp.asarray(measurement)
    clean = operator.forward(points)
    weight = jnp.broadcast_to(jnp.asarray(observed, measurement.dtype), measurement.shape)
    each = []
    for m, w in zip(measurement, weight, strict=True):
        log = noises.log_likelihood(kind, jnp.full(len(clean), level), jnp.broadcast_to(m, clean.shape), clean, w)
        misfit = w * jnp.square(m - clean) / noises.variance(kind, jnp.full(len(clean), level), clean)
        least, values = float(jnp.min(jnp.sum(misfit.reshape(len(misfit), -1), axis=1))), float(jnp.sum(w))
        # Heavy tails have a χ² of infinite variance: only their scale is judged.
        limit = values + FARTHEST * math.sqrt(2 * values) if kind != "heavy" else 20 * values
        if not least <= limit:
            raise UserError(
                f"measurement {len(each)} matches no image: the nearest of {len(points):,} is {least / values:.3g} "
                f"times as far as noise of level {level:g} is; give its level, or images that it may be of"
            )
        each.append(log)
    return Posterior(np.asarray(points), np.asarray(jnp.stack(each)))


def nearest(x: Float[Arrays, "m *S"], points: Float[Arrays, "n *S"]) -> Int[np.ndarray, "m"]:
    """The index of the point nearest to each of x."""
    x, points = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, points))
    return np.argmin(np.sum(points**2, axis=1) - 2 * x @ points.T, axis=1)


def frequencies(indices: Int[np.ndarray, "B n"], count: int) -> Float[np.ndarray, "B count"]:
    """The share of each of `count` points among a measurement's draws."""
    return np.stack([np.bincount(row, minlength=count) / len(row) for row in indices])


def total_variation(p: Float[np.ndarray, "B n"], q: Float[np.ndarray, "B n"]) -> Float[np.ndarray, "B"]:
    """Σ |p − q|/2 of each row, from 0 (equal) to 1 (disjoint)."""
    return np.abs(np.asarray(p, np.float64) - q).sum(axis=1) / 2


def credible_set(weights: Float[np.ndarray, "B n"], mass: float = 0.9) -> Bool[np.ndarray, "B n"]:
    """The smallest set of points with at least `mass` of each row's weight: True for its members."""
    order = np.argsort(-weights, axis=1, kind="stable")
    falling = np.take_along_axis(weights, order, axis=1)
    before = np.cumsum(falling, axis=1) - falling
    member = np.zeros(weights.shape, bool)
    np.put_along_axis(member, order, (before < mass) & (falling > 0), axis=1)
    return member
