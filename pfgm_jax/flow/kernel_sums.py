"""Weighted sums over a data set, stable in float32: the arithmetic of `field.py`, whose equation (1) it computes.

Computed as written, (1) is 5 % to 100 % off in float32 at large D. Four things keep its digits:

  1. only differences δ_i = d_i² − d_m² to the nearest point m enter:
     log w_i − log w_m = −((N+D)/2) log1p(δ_i / (d_m² + D σ²));
  2. δ_i comes from ‖y_i‖² − 2 x·y_i (one matrix product; ‖x‖² would only cancel), but for the nearest 32 points, where
     that form cancels too, it is recomputed as (y_m − y_i)·((x − y_i) + (x − y_m));
  3. the mean is accumulated relative to y_m: the near points add w_i (y_i − y_m), exactly 0 for a copy of y_m, the far
     ones Σ w_i y_i − (Σ w_i) y_m, a matrix product again;
  4. where more points lie so near that the rounding of the products could show (copies of an image, or nearly so), they
     too are treated as near, as many as it takes. Other data do not pay for it.

At draws of the kernel x − E[y | x, σ] is then within 1e-6 of its norm, with hundreds of copies of a point as without,
down to σ = 1e-4. Where it is shorter than the distance d_m, as between points, the error is relative to d_m.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays
from pfgm_jax.errors import UserError
from pfgm_jax.flow.kernel import GAUSSIAN_D

# How many of the nearest points always get exact differences; in float32 only points within about σ of each other need
# them. It is also the size of the blocks in which more points get them.
NEAREST = 32
# More do where the others' rounding may move the displacement by more than this part of d_m: by a bound in which all
# errors add up, at the longest distances. What was measured is a hundred times less.
TOLERANCE = 1e-4


class Sums(NamedTuple):
    """The field of some of the data, relative to the nearest of its points: weights are 1 at the pivot."""

    pivot: Float[Array, "B N"]  # nearest data point
    weight: Float[Array, "B"]  # Σ w_i; 0 says that no point is in it
    moment: Float[Array, "B N"]  # Σ w_i (y_i − pivot)
    excess: Float[Array, "B"]  # Σ w_i (‖x − y_i‖² − ‖x − pivot‖²), a sum of terms >= 0


class Data(NamedTuple):
    """The points and how they are read: arguments of `posterior_mean`."""

    points: Arrays
    allowed: Arrays | None
    prepare: Callable | None
    chunk: int | None

    def rows(self, dtype, start=None, count=0):
        """Points [n, N], or `count` of them from `start` on."""
        points = self.points if start is None else lax.dynamic_slice_in_dim(self.points, start, count)
        points = points if self.prepare is None else self.prepare(points)
        return points.reshape(len(points), -1).astype(dtype)


def _relative_weight(delta, nearest_squared, sigma, N, D):
    """w(d² = nearest + δ) / w(d² = nearest), the kernel's ratio for squared distances that differ by δ."""
    return jnp.exp(_log_relative_weight(delta, nearest_squared, sigma, N, D))


def _log_relative_weight(delta, nearest_squared, sigma, N, D):
    if D >= GAUSSIAN_D:
        return -delta / (2 * sigma**2)
    return -(N + D) / 2 * jnp.log1p(delta / (nearest_squared + D * sigma**2))


def _difference(x, y, pivot):
    """‖x − y‖² − ‖x − pivot‖² for rows [B, N], without cancellation when y is close to the pivot."""
    return jnp.sum((pivot - y) * ((x - y) + (x - pivot)), axis=1)


def sums_of(x, sigma, data, D, allowed=None):
    """`Sums` of the points at hand, with exact differences at the nearest and at as many more as accuracy asks for."""
    squared = jnp.sum(jnp.square(data), axis=1)
    rough = squared - 2 * _product(x, data.T)
    if allowed is not None:
        rough = jnp.where(allowed, rough, jnp.inf)
    _, near = lax.top_k(-rough, min(NEAREST, len(data)))
    sums, delta, nearest_squared = _sums_around(x, sigma, data, D, allowed, rough, near)
    if len(data) <= NEAREST:
        return sums

    rows = jnp.arange(len(x))[:, None]
    doubt = _doubt(*lax.stop_gradient((x, sigma, jnp.max(squared), delta, nearest_squared, sums.weight)), D)
    doubt = doubt.at[rows, near].set(0)
    if allowed is not None:
        doubt = jnp.where(allowed, doubt, 0)

    @jax.checkpoint  # derivatives keep nothing of it but its arguments
    def with_more():
        places = jnp.broadcast_to(jnp.arange(len(data)), doubt.shape)
        falling, order = lax.sort((-doubt.at[rows, near].set(jnp.inf), places), num_keys=1)
        left_out = -lax.cumsum(falling, axis=1, reverse=True)
        count = _largest(jnp.sum(left_out > TOLERANCE, axis=1))
        return _sums_around(x, sigma, data, D, allowed, rough, order, count)[0]

    return lax.cond(_largest(jnp.sum(doubt, axis=1)) > TOLERANCE, with_more, lambda: sums)


def log_weights(x, sigma, data, D):
    """log w_i of every point relative to the nearest, [B, n], and ‖x − y_i‖² [B, n], as accurate as `sums_of` has them.

    x [B, N], sigma [B], data [n, N].
    """
    rough = jnp.sum(jnp.square(data), axis=1) - 2 * _product(x, data.T)
    _, near = lax.top_k(-rough, min(NEAREST, len(data)))
    delta, _, nearest = _differences(x, data, None, rough, near, None)
    delta, nearest_squared = jnp.maximum(delta, 0), jnp.sum(jnp.square(x - data[nearest]), axis=1, keepdims=True)
    return _log_relative_weight(delta, nearest_squared, sigma[:, None], x.shape[1], D), nearest_squared + delta


def _doubt(x, sigma, largest_squared, delta, nearest_squared, weight, D):
    """What each point may add to the displacement's error with δ from the product, [B, n] in parts of max(d_m, σ).

    Its weight is off by the slope of log w times the error of δ, at most by all that it could be were δ smaller by the
    largest error (the 2 and 16 are about the root mean square and the largest of those measured for N up to 12 288, in
    units of `rounding`), and what it weighs lies at most d_m + d_i from the pivot. The moment's product is rounded at
    the size of the points.
    """
    N, eps = x.shape[1], jnp.finfo(x.dtype).eps
    rounding = eps * (largest_squared + jnp.sqrt(largest_squared * jnp.mean(jnp.square(x), axis=1)))
    lowest = jnp.maximum(delta - 16 * rounding[:, None], 0)
    could = _relative_weight(lowest, nearest_squared[:, None], sigma[:, None], N, D)
    slope = 1 / (2 * sigma**2) if D >= GAUSSIAN_D else (N + D) / 2 / (nearest_squared + D * sigma**2)
    distance = jnp.sqrt(nearest_squared)
    scale = weight * jnp.maximum(distance, sigma)
    of_weight = jnp.minimum(2 * slope * rounding, 1) / scale
    of_product = 10 * eps * jnp.sqrt(largest_squared) / scale
    reach = 2 * distance[:, None] + jnp.sqrt(jnp.maximum(delta, 0))
    return could * (of_weight[:, None] * reach + of_product[:, None])


def _sums_around(x, sigma, data, D, allowed, rough, order, count=None):
    """The sums with exact differences at the first `count` (None: all) of each query's points, `order` [B, K].

    rough [B, n] is ‖y_i‖² − 2 x·y_i, inf where not allowed. Returns (Sums, δ [B, n], ‖x − pivot‖² [B]).
    """
    delta, is_exact, nearest = _differences(x, data, allowed, rough, order, count)
    pivot = data[nearest]
    nearest_squared = jnp.sum(jnp.square(x - pivot), axis=1)
    if allowed is not None:
        delta = jnp.where(allowed, delta, 0)  # at δ = ∞ the weight is 0, but its reverse-mode derivative is not finite
    weights = _relative_weight(jnp.maximum(delta, 0), nearest_squared[:, None], sigma[:, None], x.shape[1], D)
    if allowed is not None:
        weights = jnp.where(allowed, weights, 0)
    far = jnp.where(is_exact, 0, weights)
    moment = _product(far, data) - jnp.sum(far, axis=1, keepdims=True) * pivot
    moment = _add_near(moment, data, pivot, jnp.where(is_exact, weights, 0), order, count)
    excess = jnp.sum(weights * jnp.maximum(delta, 0), axis=1)
    return Sums(pivot, jnp.sum(weights, axis=1), moment, excess), delta, nearest_squared


def _differences(x, data, allowed, rough, order, count):
    """δ [B, n], where it is exact [B, n], and the nearest point [B]."""
    rows = jnp.arange(len(x))[:, None]
    first = data[order[:, 0]]

    # One neighbour of every query at a time: [B, N] of memory in place of [B, C, N], and none kept for derivatives.
    @jax.checkpoint
    def of_block(columns):
        return lax.map(lambda column: _difference(x, data[column], first), columns.T).T

    def none(columns):
        return jnp.full(columns.shape, jnp.inf, x.dtype)

    def step(carry, columns, _, needed):
        delta, is_exact, least, nearest = carry
        exact = needed(of_block, none, columns)
        if allowed is not None:
            exact = jnp.where(allowed[rows, columns], exact, jnp.inf)
        known, lowest = exact < jnp.inf, jnp.min(exact, axis=1)
        delta = delta.at[rows, columns].set(jnp.where(known, exact, delta[rows, columns]))
        lowest_column = columns[rows[:, 0], jnp.argmin(exact, axis=1)]
        nearest = jnp.where(lowest < least, lowest_column, nearest)
        return delta, is_exact.at[rows, columns].set(known), jnp.minimum(least, lowest), nearest

    start = (
        rough - rough[rows, order[:, :1]],
        jnp.zeros(rough.shape, bool),
        jnp.full(len(x), jnp.inf, x.dtype),
        order[:, 0],
    )
    delta, is_exact, least, nearest = _over_blocks(step, start, order, count)
    return delta - least[:, None], is_exact, nearest


def _add_near(moment, data, pivot, weights, order, count):
    """moment + Σ w_i (y_i − pivot) over the first `count` points of `order`."""
    rows = jnp.arange(len(pivot))[:, None]

    @jax.checkpoint
    def of_block(moment, columns, weights):
        def add(moment, column_weight):
            column, weight = column_weight
            return moment + weight[:, None] * (data[column] - pivot), None

        return lax.scan(add, moment, (columns.T, weights.T))[0]

    def step(moment, columns, is_new, needed):
        return needed(
            of_block, lambda moment, *_: moment, moment, columns, jnp.where(is_new, weights[rows, columns], 0)
        )

    return _over_blocks(step, moment, order, count)


def _over_blocks(step, carry, order, count):
    """Folds `step(carry, columns [B, C], is_new [C], needed)` over `order` [B, K] in blocks of C = 32, or K if less.

    `needed(function, otherwise, *arguments)` calls `otherwise` for blocks that begin at `count` or later (None: never).
    The last block starts early, to be as long as the others; `is_new` leaves out what was seen.
    """
    K = order.shape[1]
    C = min(NEAREST, K)

    def one_block(carry, begin):
        start = jnp.minimum(begin, K - C)
        columns = lax.dynamic_slice_in_dim(order, start, C, axis=1)

        def needed(function, otherwise, *arguments):
            return function(*arguments) if count is None else lax.cond(begin < count, function, otherwise, *arguments)

        return step(carry, columns, start + jnp.arange(C) >= begin, needed), None

    return lax.scan(one_block, carry, jnp.arange(0, K, C))[0]


@jax.custom_batching.custom_vmap
def _largest(values):
    """The largest value, also over an axis of `vmap`: a branch taken for it stays a branch there."""
    return jnp.max(values)


@_largest.def_vmap
def _largest_of_all(axis_size, in_batched, values):
    return _largest(values), False


def _product(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def merge(x, sigma, D, a, b):
    """The sums of two disjoint sets of points from the sums of each; associative."""
    difference = _difference(x, b.pivot, a.pivot)
    b_is_nearer = (a.weight == 0) | ((b.weight > 0) & (difference < 0))
    choose = lambda p, q: jnp.where(b_is_nearer.reshape((-1,) + (1,) * (p.ndim - 1)), q, p)
    near, far = jax.tree.map(choose, a, b), jax.tree.map(choose, b, a)
    nearest_squared = jnp.sum(jnp.square(x - near.pivot), axis=1)
    factor = _relative_weight(jnp.abs(difference), nearest_squared, sigma, x.shape[1], D)
    moved = far.moment + far.weight[:, None] * (far.pivot - near.pivot)
    excess = near.excess + factor * (far.excess + far.weight * jnp.abs(difference))
    return Sums(near.pivot, near.weight + factor * far.weight, near.moment + factor[:, None] * moved, excess)


def streamed(x, sigma, data, D):
    if data.chunk < 1:
        raise UserError(f"chunk must be at least 1, got {data.chunk}")
    n, chunk = len(data.points), min(data.chunk, len(data.points))
    empty = Sums(jnp.zeros_like(x), jnp.zeros_like(sigma), jnp.zeros_like(x), jnp.zeros_like(sigma))

    def add_chunk(sums, begin):
        # The last chunk starts early instead of being padded (a padded copy would double the memory) and masks what
        # was seen.
        start = jnp.minimum(begin, n - chunk)
        mask = jnp.broadcast_to(start + jnp.arange(chunk) >= begin, (len(x), chunk))
        if data.allowed is not None:
            mask &= lax.dynamic_slice_in_dim(data.allowed, start, chunk, axis=1)
        part = sums_of(x, sigma, data.rows(x.dtype, start, chunk), D, mask)
        return merge(x, sigma, D, sums, part), None

    return lax.scan(add_chunk, empty, jnp.arange(0, n, chunk))[0]
