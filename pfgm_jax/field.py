"""The exact field of a data set: posterior mean and Poisson field in closed form, stable in float32.

For charges y_1 … y_n the posterior mean is softmax attention over the data,

    E[y | x, σ] = Σ w_i y_i / Σ w_i,     log w_i = −((N + D)/2) log(d_i² + D σ²),   d_i = ‖x − y_i‖,                (1)

(D = ∞: log w_i = −d_i²/(2σ²)), and the Poisson field at (x, r = σ√D), with the normalisation of PFGM's algorithm 1, is
(x − E[y | x, σ], r). Computed as written, (1) is 5 % to 100 % off in float32 at large D. Three things make it exact:

  1. only differences δ_i = d_i² − d_m² to the nearest point m enter: log w_i − log w_m = −((N+D)/2) log1p(δ_i / (d_m²
  + D σ²));
  2. δ_i comes from ‖y_i‖² − 2 x·y_i (one matrix product; ‖x‖² would only cancel), but for the nearest points, where
  that form
     cancels too, it is recomputed as (y_m − y_i)·((x − y_i) + (x − y_m));
  3. the mean is accumulated relative to y_m, so that x − E[y | x, σ] keeps its digits at small σ.

A partial result (pivot y_m, Σ w, Σ w (y − y_m)) merges associatively with another: streaming over the data and
sharding it over devices are the same sum, and memory does not grow with the data set.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pfgm_jax.errors import UserError
from pfgm_jax.process import GAUSSIAN_D

# How many of the nearest points get exact differences; in float32 only points within about σ of each other need them.
NEAREST = 32


class Sums(NamedTuple):
    """The field of some of the data, relative to the nearest of its points: weights are 1 at the pivot."""

    pivot: jax.Array  # [B, N] nearest data point
    weight: jax.Array  # [B] Σ w_i; 0 says that no point is in it
    moment: jax.Array  # [B, N] Σ w_i (y_i − pivot)


def posterior_mean(x, sigma, points, D, *, chunk=None, allowed=None, axis_name=None):
    """Exact posterior mean E[y | x, σ] of a data set, equation (1).

    Args:
      x: [B, *S] queries, unscaled.
      sigma: [B] noise levels > 0.
      points: [n, *S] data; with `axis_name`, this device's share of them.
      D: extra dimensions, a number > 0 or `math.inf` (static).
      chunk: stream over the data, this many points at a time; None takes them whole.
      allowed: [B, n] which points count for which query (such as those of its label); None is all. Every query needs
        at least one.
      axis_name: mapped axis over whose devices the data are spread; queries are the same on each.

    Returns:
      [B, *S].

    Raises:
      UserError: shapes that do not match, chunk < 1, or D not > 0.
    """
    # Not x − displacement, which would round at the size of x: far from the data that is more than the mean itself.
    sums = _total(x, sigma, points, D, chunk, allowed, axis_name)
    return (sums.pivot + sums.moment / sums.weight[:, None]).reshape(x.shape)


def poisson_field(x, sigma, points, D, **options):
    """The Poisson field (E_x [B, *S], E_r [B]) at (x, r = σ√D), scaled so that its r part is r (PFGM algorithm 1).

    It points away from the charges; field lines obey dx/dr = E_x / E_r. Arguments as for `posterior_mean`.

    Raises:
      UserError: also for D = inf, where r is infinite; use `displacement`.
    """
    if D >= GAUSSIAN_D:
        raise UserError("the Poisson field needs a finite D; at D = inf use field.displacement, σ times the velocity")
    return displacement(x, sigma, points, D, **options), jnp.asarray(sigma, x.dtype) * math.sqrt(D)


def displacement(x, sigma, points, D, *, chunk=None, allowed=None, axis_name=None):
    """x − E[y | x, σ] without cancellation, σ times the flow's velocity; arguments as for `posterior_mean`."""
    sums = _total(x, sigma, points, D, chunk, allowed, axis_name)
    return x - sums.pivot.reshape(x.shape) - (sums.moment / sums.weight[:, None]).reshape(x.shape)


def _total(x, sigma, points, D, chunk, allowed, axis_name):
    """`Sums` of all points, whole or streamed, over all devices of the axis."""
    if x.shape[1:] != points.shape[1:] or not len(points):
        raise UserError(f"queries of shape {x.shape[1:]} need data points of that shape, got {points.shape}")
    if not D > 0:
        raise UserError(f"D must be a number > 0 or inf, got {D}")
    x, points = jnp.asarray(x), jnp.asarray(points)
    flat, data = x.reshape(len(x), -1), points.reshape(len(points), -1).astype(x.dtype)
    sigma = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
    if chunk is None:
        sums = _sums(flat, sigma, data, D, allowed)
    else:
        sums = _streamed(flat, sigma, data, D, allowed, chunk)
    if axis_name is not None:
        parts = lax.all_gather(sums, axis_name)
        first, rest = jax.tree.map(lambda a: a[0], parts), jax.tree.map(lambda a: a[1:], parts)
        sums, _ = lax.scan(lambda a, b: (_merge(flat, sigma, D, a, b), None), first, rest)
    return sums


def exact_denoiser(points, D, chunk=None):
    """The data set's own `denoise(x, sigma)`: the function that a perfect network would learn."""
    return lambda x, sigma: posterior_mean(x, sigma, points, D, chunk=chunk)


def _relative_weight(delta, nearest_squared, sigma, N, D):
    """w(d² = nearest + δ) / w(d² = nearest), the kernel's ratio for squared distances that differ by δ."""
    if D >= GAUSSIAN_D:
        return jnp.exp(-delta / (2 * sigma**2))
    return jnp.exp(-(N + D) / 2 * jnp.log1p(delta / (nearest_squared + D * sigma**2)))


def _difference(x, y, pivot):
    """‖x − y‖² − ‖x − pivot‖² for rows [B, N], without cancellation when y is close to the pivot."""
    return jnp.sum((pivot - y) * ((x - y) + (x - pivot)), axis=1)


def _sums(x, sigma, data, D, allowed=None):
    B, N = x.shape
    rows = jnp.arange(B)[:, None]
    product = lambda a, b: jnp.matmul(a, b, precision=lax.Precision.HIGHEST)

    rough = jnp.sum(jnp.square(data), axis=1) - 2 * product(x, data.T)
    if allowed is not None:
        rough = jnp.where(allowed, rough, jnp.inf)
    _, near = lax.top_k(-rough, min(NEAREST, len(data)))
    first = data[near[:, 0]]
    # One neighbour of every query at a time: [B, N] of memory in place of [B, 32, N].
    exact = lax.map(lambda column: _difference(x, data[column], first), near.T).T
    if allowed is not None:
        exact = jnp.where(allowed[rows, near], exact, jnp.inf)
    shift = jnp.min(exact, axis=1)
    pivot = data[near[jnp.arange(B), jnp.argmin(exact, axis=1)]]
    nearest_squared = jnp.sum(jnp.square(x - pivot), axis=1)

    delta = (rough - rough[rows, near[:, :1]]).at[rows, near].set(exact) - shift[:, None]
    if allowed is not None:
        delta = jnp.where(allowed, delta, 0)  # at δ = ∞ the weight is 0, but its reverse-mode derivative is not finite
    weights = _relative_weight(jnp.maximum(delta, 0), nearest_squared[:, None], sigma[:, None], N, D)
    if allowed is not None:
        weights = jnp.where(allowed, weights, 0)
    far = weights.at[rows, near].set(0)

    def add_neighbour(moment, column_weight):
        column, weight = column_weight
        return moment + weight[:, None] * (data[column] - pivot), None

    moment = product(far, data) - jnp.sum(far, axis=1, keepdims=True) * pivot
    moment, _ = lax.scan(add_neighbour, moment, (near.T, weights[rows, near].T))
    return Sums(pivot, jnp.sum(weights, axis=1), moment)


def _merge(x, sigma, D, a, b):
    """The sums of two disjoint sets of points from the sums of each; associative."""
    difference = _difference(x, b.pivot, a.pivot)
    b_is_nearer = (a.weight == 0) | ((b.weight > 0) & (difference < 0))
    choose = lambda p, q: jnp.where(b_is_nearer.reshape((-1,) + (1,) * (p.ndim - 1)), q, p)
    near, far = jax.tree.map(choose, a, b), jax.tree.map(choose, b, a)
    nearest_squared = jnp.sum(jnp.square(x - near.pivot), axis=1)
    factor = _relative_weight(jnp.abs(difference), nearest_squared, sigma, x.shape[1], D)
    moved = far.moment + far.weight[:, None] * (far.pivot - near.pivot)
    return Sums(near.pivot, near.weight + factor * far.weight, near.moment + factor[:, None] * moved)


def _streamed(x, sigma, data, D, allowed, chunk):
    if chunk < 1:
        raise UserError(f"chunk must be at least 1, got {chunk}")
    n, chunk = len(data), min(chunk, len(data))
    empty = Sums(jnp.zeros_like(x), jnp.zeros_like(sigma), jnp.zeros_like(x))

    def add_chunk(sums, begin):
        # The last chunk starts early instead of being padded (a padded copy would double the memory) and masks what
        # was seen.
        start = jnp.minimum(begin, n - chunk)
        mask = jnp.broadcast_to(start + jnp.arange(chunk) >= begin, (len(x), chunk))
        if allowed is not None:
            mask &= lax.dynamic_slice_in_dim(allowed, start, chunk, axis=1)
        part = _sums(x, sigma, lax.dynamic_slice_in_dim(data, start, chunk), D, mask)
        return _merge(x, sigma, D, sums, part), None

    return lax.scan(add_chunk, empty, jnp.arange(0, n, chunk))[0]
