"""The exact field of a data set: posterior mean and Poisson field in closed form, stable in float32.

For charges y_1 … y_n the posterior mean is softmax attention over the data,

    E[y | x, σ] = Σ w_i y_i / Σ w_i,     log w_i = −((N + D)/2) log(d_i² + D σ²),   d_i = ‖x − y_i‖,                (1)

(D = ∞: log w_i = −d_i²/(2σ²)), and the Poisson field at (x, r = σ√D), with the normalisation of PFGM's algorithm 1, is
(x − E[y | x, σ], r).

The second moment E[‖x − y‖² | x, σ], which noise at finite D needs (`diffusion.py`), comes from the same weights:
d_m² + Σ w_i (d_i² − d_m²)/Σ w_i, m the nearest point, whose terms are all >= 0.

A partial result (pivot y_m, Σ w, Σ w (y − y_m), Σ w (d² − d_m²)) merges associatively with another: streaming over the
data and sharding it over devices are the same sum, and memory does not grow with the data set.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Num

from pfgm_jax import parallel
from pfgm_jax.array_types import Arrays, Denoiser, Levels, PRNGKeys, SecondMoment
from pfgm_jax.errors import UserError
from pfgm_jax.flow import diffusion, kernel_sums
from pfgm_jax.flow.kernel import GAUSSIAN_D, require_D

# Bytes that points may take at a time where nobody says how many, and floats for each pair of a point and a query
# (measured: 4.5).
MEMORY = 2**30
WORKSPACE = 12


def posterior_mean(
    x: Num[Arrays, "B *S"],
    sigma: Levels,
    points: Num[Arrays, "n ..."],
    D: float,
    *,
    chunk: int | None = None,
    allowed: Bool[Arrays, "B n"] | None = None,
    prepare: Callable | None = None,
    axis_name: str | None = None,
) -> Float[Array, "B *S"]:
    """Exact posterior mean E[y | x, σ] of a data set, equation (1).

    Args:
      x: [B, *S] queries, unscaled.
      sigma: [B] noise levels > 0.
      points: [n, *S] data; with `axis_name`, this device's share of them.
      D: extra dimensions, a number from 0.5 on or `math.inf` (static).
      chunk: stream over the data, this many points at a time; None takes them whole.
      allowed: [B, n] which points count for which query (such as those of its label); None is all. Every query needs
        at least one.
      prepare: converts a part of `points`, such as `data.to_unit` for uint8 images, so that only a chunk is held as
        floats at a time; None leaves them.
      axis_name: mapped axis over whose devices the data are spread; queries are the same on each.

    Returns:
      [B, *S]; NaN for a query whose x or σ is not finite.

    Raises:
      UserError: shapes that do not match, chunk < 1, or a D that float32 cannot represent (`kernel.require_D`).
    """
    # Not x − displacement, which would round at the size of x: far from the data that is more than the mean itself.
    sums = _total(x, sigma, kernel_sums.Data(points, allowed, prepare, chunk), D, axis_name)
    return (sums.pivot + sums.moment / sums.weight[:, None]).reshape(x.shape)


def poisson_field(
    x: Float[Arrays, "B *S"], sigma: Levels, points: Num[Arrays, "n ..."], D: float, **options
) -> tuple[Float[Array, "B *S"], Float[Array, "*_"]]:
    """The Poisson field (E_x [B, *S], E_r [B]) at (x, r = σ√D), scaled so that its r part is r (PFGM algorithm 1).

    It points away from the charges; field lines obey dx/dr = E_x / E_r. Arguments as for `posterior_mean`.

    Raises:
      UserError: also for D = inf, where r is infinite; use `displacement`.
    """
    if D >= GAUSSIAN_D:
        raise UserError("the Poisson field needs a finite D; at D = inf use field.displacement, σ times the velocity")
    return displacement(x, sigma, points, D, **options), jnp.asarray(sigma, _floating(x).dtype) * math.sqrt(D)


def displacement(
    x: Num[Arrays, "B *S"],
    sigma: Levels,
    points: Num[Arrays, "n ..."],
    D: float,
    *,
    chunk: int | None = None,
    allowed: Bool[Arrays, "B n"] | None = None,
    prepare: Callable | None = None,
    axis_name: str | None = None,
) -> Float[Array, "B *S"]:
    """x − E[y | x, σ] without cancellation, σ times the flow's velocity; arguments as for `posterior_mean`."""
    sums = _total(x, sigma, kernel_sums.Data(points, allowed, prepare, chunk), D, axis_name)
    return jnp.asarray(x) - sums.pivot.reshape(x.shape) - (sums.moment / sums.weight[:, None]).reshape(x.shape)


def second_moment(
    x: Num[Arrays, "B *S"],
    sigma: Levels,
    points: Num[Arrays, "n ..."],
    D: float,
    *,
    chunk: int | None = None,
    allowed: Bool[Arrays, "B n"] | None = None,
    prepare: Callable | None = None,
    axis_name: str | None = None,
) -> Float[Array, "B"]:
    """E[‖x − y‖² | x, σ] = ‖x − E[y | x, σ]‖² + tr Cov(y | x, σ), [B]; arguments as for `posterior_mean`."""
    sums = _total(x, sigma, kernel_sums.Data(points, allowed, prepare, chunk), D, axis_name)
    flat = jnp.asarray(x).reshape(len(x), -1)
    return jnp.sum(jnp.square(flat - sums.pivot), axis=1) + sums.excess / sums.weight


def posterior_draw(
    keys: PRNGKeys, x: Float[Arrays, "B *S"], sigma: Levels, points: Num[Arrays, "n ..."], D: float
) -> tuple[Float[Array, "B *S"], Float[Array, "B"]]:
    """A draw of y from p(y | x, σ) for each query, [B, *S], and ‖x − y‖² [B].

    Args:
      keys: [B] PRNG keys, one per query.
      x, sigma, points, D: as for `posterior_mean`; the points are taken whole, with B n floats of weights.

    Raises:
      UserError: shapes that do not match, or a D that float32 cannot represent.
    """
    require_same_shape(x, points)
    require_D(D)
    x, points = _floating(x), jnp.asarray(points)
    flat, data = (a.reshape(len(a), -1).astype(x.dtype) for a in (x, points))
    sigma = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
    log_weight, squared = kernel_sums.log_weights(flat, sigma, data, D)
    choice = jax.vmap(jax.random.categorical)(keys, log_weight)
    return data[choice].reshape(x.shape), jnp.take_along_axis(squared, choice[:, None], axis=1)[:, 0]


def churn(
    keys: PRNGKeys, x: Float[Arrays, "B *S"], sigma: Levels, sigma_hat: Levels, points: Num[Arrays, "n ..."], D: float
) -> Float[Array, "B *S"]:
    """Exact churn: x ~ p(·, σ) lifted to a draw of p(·, σ̂), for any σ̂ >= σ, at every D (`diffusion.lift`).

    Args:
      keys: [B] PRNG keys, one per query.
      x, sigma, points, D: as for `posterior_draw`.
      sigma_hat: levels to lift to.

    Raises:
      UserError: as `posterior_draw`.
    """
    pairs = jax.vmap(jax.random.split)(keys)
    _, squared = posterior_draw(pairs[:, 0], x, sigma, points, D)
    return diffusion.lift(pairs[:, 1], x, sigma, sigma_hat, squared, D)


def require_same_shape(x, points):
    """Raises UserError unless queries [B, *S] and points [n, *S] have the same shape S, and there is one of each."""
    if not x.ndim or not len(x):
        raise UserError(f"there are no queries in x of shape {x.shape}")
    if x.shape[1:] != points.shape[1:] or not len(points):
        raise UserError(f"queries of shape {x.shape[1:]} need data points of that shape, got {points.shape}")


def _floating(x):
    """Queries as an array of floats: σ and the points take its type, which whole numbers would round."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def _total(x, sigma, data, D, axis_name):
    """`Sums` of all points of a Data, whole or streamed, over all devices of the axis."""
    points, allowed = data.points, data.allowed
    require_same_shape(x, points)
    require_D(D)
    x, points = _floating(x), jnp.asarray(points)
    data = data._replace(points=points, allowed=None if allowed is None else jnp.asarray(allowed))
    flat = x.reshape(len(x), -1)
    sigma = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
    # Comparisons with NaN and inf choose some point and forget them.
    finite = jnp.isfinite(sigma) & jnp.all(jnp.isfinite(flat), axis=1)
    flat, sigma = jnp.where(finite[:, None], flat, 0), jnp.where(finite, sigma, 1)
    if data.chunk is None:
        sums = kernel_sums.sums_of(flat, sigma, data.rows(x.dtype), D, data.allowed)
    else:
        sums = kernel_sums.streamed(flat, sigma, data, D)
    if axis_name is not None:
        parts = lax.all_gather(sums, axis_name)
        first, rest = jax.tree.map(lambda a: a[0], parts), jax.tree.map(lambda a: a[1:], parts)
        sums, _ = lax.scan(lambda a, b: (kernel_sums.merge(flat, sigma, D, a, b), None), first, rest)
    return sums._replace(weight=jnp.where(finite, sums.weight, jnp.nan))


def exact_denoiser(points: Num[Arrays, "n ..."], D: float, chunk: int | None = None) -> Denoiser:
    """The data set's own `denoise(x, sigma)`: the function that a perfect network would learn.

    chunk: as for `posterior_mean`; None takes the points whole where that needs no more than MEMORY, and else streams.

    Two charges at −1 and 1 under the Gaussian kernel, where E[y | x, σ] = tanh(x/σ²):

    >>> denoise = exact_denoiser(jnp.array([[-1.0], [1.0]]), D=math.inf)
    >>> f"{float(denoise(jnp.array([[0.5]]), 0.5)[0, 0]):.4f}, {math.tanh(2):.4f}"
    '0.9640, 0.9640'
    """

    def denoise(x, sigma):
        size = chunk or fitting_chunk(len(x), points.shape)
        return posterior_mean(x, sigma, points, D, chunk=size)

    return denoise


def exact_second_moment(points: Num[Arrays, "n ..."], D: float, chunk: int | None = None) -> SecondMoment:
    """The data set's own `second_moment(x, sigma, mean)` for `sampling.sde`; points, D, chunk as `exact_denoiser`."""

    def squared_distance(x, sigma, mean):
        del mean
        size = chunk or fitting_chunk(len(x), points.shape)
        return second_moment(x, sigma, points, D, chunk=size)

    return squared_distance


def fitting_chunk(B: int, shape: tuple[int, ...]) -> int | None:
    """How many of the points of `shape` [n, *S] B queries can take at a time, None for all: a number, fixed at tracing.

    A point takes its N floats and, for every query, WORKSPACE floats. A chunk is a power of two, so that it changes
    rarely; it depends on the machine only where that has less than MEMORY to give.
    """
    per_point = 4 * (math.prod(shape[1:]) + WORKSPACE * B)
    points = max(kernel_sums.NEAREST, int(min(MEMORY, parallel.device_memory() / 4)) // per_point)
    return None if shape[0] <= points else 2 ** (points.bit_length() - 1)
