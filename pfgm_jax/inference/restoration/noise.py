"""Noise of measurements: Gaussian, Poisson-like and heavy-tailed, and a level that the denoiser itself estimates.

With the clean measurement a = A y in the unit scale and a level s, each pixel is a + noise of

    gaussian   variance s²
    poisson    variance s² v(a), v(a) = max((1 + a)/2, 0.02): photon counts seen from afar; s is the noise of white
    heavy      s times Student's t with 3 degrees of freedom: variance 3 s², and far pixels now and then         (1)
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from pfgm_jax.array_types import Arrays, Denoiser, Numbers, PRNGKeys, per_example

KINDS = ("gaussian", "poisson", "heavy")
DOF = 3.0  # degrees of freedom of heavy tails
DARKEST = 0.02  # of white's variance, of Poisson-like noise
EVALUATIONS = 8  # of `denoise`, each with a derivative, of an estimate


def variance(kind: str, level: Numbers, clean: Float[Arrays, "B *M"]) -> Float[Arrays, "B *M"]:
    """The variance of each pixel around `clean`; level [B]."""
    squared = jnp.square(per_example(level, clean)) * jnp.ones_like(clean)
    if kind == "poisson":
        return squared * jnp.maximum((1 + clean) / 2, DARKEST)
    return squared * (DOF / (DOF - 2) if kind == "heavy" else 1)


def draw(kind: str, keys: PRNGKeys, level: Numbers, clean: Float[Arrays, "B *M"]) -> Float[Arrays, "B *M"]:
    """A measurement of `clean`, one key an image."""
    if kind == "heavy":
        noise = jax.vmap(lambda key: jax.random.t(key, DOF, clean.shape[1:], clean.dtype))(keys)
        return clean + per_example(level, clean) * noise
    noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:], clean.dtype))(keys)
    return clean + jnp.sqrt(variance(kind, level, clean)) * noise


def log_likelihood(
    kind: str,
    level: Numbers,
    measurement: Float[Arrays, "B *M"],
    clean: Float[Arrays, "B *M"],
    weight: Numbers | Arrays = 1.0,
) -> Float[Arrays, "B"]:
    """log p(measurement | clean) in nats, [B], up to a constant; a pixel of weight 0 (not observed) does not count."""
    squared = jnp.square(measurement - clean)
    if kind == "heavy":
        each = -(DOF + 1) / 2 * jnp.log1p(squared / (DOF * jnp.square(per_example(level, clean))))
    else:
        spread = variance(kind, level, clean)
        each = -squared / (2 * spread) - jnp.log(spread) / 2
    return jnp.sum((weight * each).reshape(len(each), -1), axis=1)


def mixture_variance(
    kind: str, keys: PRNGKeys, level: Numbers, measurement: Float[Arrays, "B *M"], clean: Float[Arrays, "B *M"]
) -> Float[Arrays, "B *M"]:
    """A variance for each pixel with which its noise is Gaussian, given the residual to the last draw `clean`.

    Exact Gibbs for heavy tails, which are a mixture of Gaussians: λ ~ Gamma((ν+1)/2, (ν + r²/s²)/2). For Poisson-like
    noise the variance at `clean`.
    """
    if kind != "heavy":
        return variance(kind, level, clean)
    squared_level = jnp.square(per_example(level, clean))
    rate = (DOF + jnp.square(measurement - clean) / squared_level) / 2
    gamma = jax.vmap(lambda key: jax.random.gamma(key, (DOF + 1) / 2, clean.shape[1:], clean.dtype))(keys)
    return squared_level * rate / gamma


def deviation(kind: str, level: Numbers, measurement: Float[Arrays, "B *M"]) -> Float[Arrays, "B"]:
    """The root mean square of the noise of each measurement, [B], judged by the measurement itself."""
    spread = variance(kind, level, measurement)
    return jnp.sqrt(jnp.mean(spread.reshape(len(spread), -1), axis=1))


def estimated(
    denoise: Denoiser, keys: PRNGKeys, x: Float[Arrays, "B *S"], low: float, high: float
) -> Float[Arrays, "B"]:
    """The level [B] of white noise in x = y + noise, by the denoiser: s² = E[‖x − y‖² | x, s]/N, iterated.

    At D = ∞ that is the EM iteration of the maximum likelihood of s under the denoiser's own data (the trace of the
    posterior's covariance is s² tr ∂E/∂x, by one random vector). Starts from the pixels' own variance.
    """
    N = math.prod(x.shape[1:])
    v = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))(keys)
    total = lambda a: jnp.sum(a.reshape(len(a), -1), axis=1)

    def once(level, _):
        d, along = jax.jvp(lambda x: denoise(x, level), (x,), (v,))
        share = jnp.clip(total(v * along) / N, 0, 0.98)
        # The fixed point of s² = residual/N + share s² at once, which the plain iteration nears slowly.
        level = jnp.sqrt(total(jnp.square(x - d)) / N / (1 - share))
        return jnp.clip(level, low, high), None

    own_mean = jnp.mean(x, axis=range(1, x.ndim), keepdims=True)
    start = jnp.clip(jnp.sqrt(total(jnp.square(x - own_mean)) / N) / 2, low, high)
    return jax.lax.scan(once, start, None, length=EVALUATIONS)[0]
