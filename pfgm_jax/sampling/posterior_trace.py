"""E[‖x − y‖² | x, σ] of a network, by a curve of the posterior's variance that is measured on training data.

Noise at finite D needs E[‖x − y‖² | x, σ] = ‖x − d‖² + tr Cov(y | x, σ), d = E[y | x, σ] (`flow/diffusion.py`). A
network gives d alone. The posterior's weights, (D σ² + ‖x − y‖²)^(−(N+D)/2), are to first order in ‖x − y‖² − ‖x − d‖²
those of a Gaussian kernel of scale

    s² = (D σ² + ‖x − d‖²)/(N + D),        s = σ for D = ∞,                                                   (1)

so the trace is taken for a function of s alone: ‖y − d‖² averaged over training images y and their noised x, whose mean
given x is the trace where d is the posterior mean.

The approximation is twofold: the trace differs from x to x of one s (between a rare image and a common one), and d is
the network's. Its part of E‖x − y‖² is largest where σ is small against the spacing of the data.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKey
from pfgm_jax.data.dataset import to_unit
from pfgm_jax.errors import UserError
from pfgm_jax.flow.kernel import GAUSSIAN_D
from pfgm_jax.flow.process import Process, perturb


class TraceCurve(NamedTuple):
    """tr Cov(y | x, σ) as a curve over the scale s of equation (1); what `sampling.sde` takes as `second_moment`.

    Attributes:
      D: the D that is sampled with.
      log_scale: ln s, rising. log_trace: ln tr Cov there.
    """

    D: float
    log_scale: tuple[float, ...]
    log_trace: tuple[float, ...]

    def __call__(
        self, x: Float[Arrays, "B *S"], sigma: Float[Arrays, "B"], mean: Float[Arrays, "B *S"]
    ) -> Float[Array, "B"]:
        """E[‖x − y‖² | x, σ] [B], of states, levels and the denoiser's values there."""
        squared = jnp.sum(jnp.square(x - mean).reshape(len(x), -1), axis=1)
        scale = kernel_scale(squared, sigma, math.prod(x.shape[1:]), self.D)
        curve = (jnp.asarray(values, squared.dtype) for values in (self.log_scale, self.log_trace))
        return squared + jnp.exp(jnp.interp(jnp.log(scale), *curve))


def kernel_scale(squared: Float[Arrays, "*B"], sigma: Float[Arrays, "*B"], N: int, D: float) -> Float[Arrays, "*B"]:
    """s of equation (1), from ‖x − d‖²."""
    if D >= GAUSSIAN_D:
        return sigma
    return ((D * sigma**2 + squared) / (N + D)) ** 0.5


def estimate(
    process: Process,
    denoiser: Callable[[Arrays], Denoiser],
    images: Any,
    labels: Arrays,
    key: PRNGKey,
    *,
    levels: int = 32,
    draws: int = 128,
    tick: Callable[[], None] = lambda: None,
) -> TraceCurve:
    """The TraceCurve of a denoiser, from `draws` noised images at each of `levels` levels even in ln σ.

    Draws are sorted by s; a point of the curve is the mean of `draws` neighbours, and there are as many as levels.

    Args:
      process: gives D and the range of levels.
      denoiser: labels [B] -> denoise.
      images: [n, *S] training data, uint8 or in the unit scale; labels: [n] the classes given to the denoiser.
      draws: images of each level.
      tick: called after each level.

    Raises:
      UserError: a denoiser that returns NaN or inf.
    """

    @jax.jit
    def one_level(y, labels, keys, sigma):
        sigma = jnp.full(len(y), sigma, y.dtype)
        x = perturb(process, keys, y, sigma)
        mean = denoiser(labels)(x, sigma)
        square = lambda a: jnp.sum(jnp.square(a).reshape(len(a), -1), axis=1)
        return kernel_scale(square(x - mean), sigma, math.prod(y.shape[1:]), process.D), square(y - mean)

    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    pairs = []
    for i, sigma in enumerate(np.geomspace(process.sigma_min, process.sigma_max, levels)):
        chosen = rng.integers(len(images), size=draws)
        keys = jax.random.split(jax.random.fold_in(key, i), draws)
        y = jnp.asarray(to_unit(images[chosen]))
        pairs.append(np.asarray(one_level(y, jnp.asarray(labels[chosen]), keys, np.float32(sigma)), np.float64))
        tick()
    scale, trace = np.concatenate(pairs, axis=1)
    if not (np.isfinite(scale).all() and np.isfinite(trace).all()):
        raise UserError("the curve of the posterior's variance met NaN or inf: the denoiser's weights are unusable")
    bins = np.array_split(np.argsort(scale, kind="stable"), levels)
    means = [(np.log(scale[rows]).mean(), math.log(max(trace[rows].mean(), 1e-30))) for rows in bins]
    log_scale, log_trace = zip(*means, strict=True)
    return TraceCurve(process.D, tuple(map(float, log_scale)), tuple(map(float, log_trace)))
