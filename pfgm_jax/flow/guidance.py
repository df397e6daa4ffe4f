"""Guidance: a denoiser steered away from another one, its guide.

    denoise'(x, σ) = guide(x, σ) + w (denoise(x, σ) − guide(x, σ))                                                (1)

w = 0 is the guide, w = 1 the denoiser itself, and w > 1 goes on in the direction in which it differs from the guide.
With the same network without its label as the guide, (1) is classifier-free guidance (arXiv 2207.12598, whose
weight is w − 1); with a weaker network (smaller, or trained for less long), autoguidance (arXiv 2406.02507).

At D = ∞ a denoiser is a score, (denoise(x, σ) − x)/σ² = ∇ log p_σ(x), and (1) is the gradient of the tilted log density
log p_guide + w (log p − log p_guide) at each σ. Its flow does not end in the tilted density of the data, for which the
densities at all σ would have to be noised versions of each other. At finite D a denoiser is no score, and (1) is an
extrapolation of posterior means, nothing more: exact at w = 0 and w = 1, and the gradient of no known density between
and beyond. It is for denoisers alone: PFGM's normalised field is not linear in them.
"""

from jaxtyping import Array, Float

from pfgm_jax.array_types import Denoiser


def guided(denoise: Denoiser, guide: Denoiser, weight: float | Float[Array, ""]) -> Denoiser:
    """The denoiser of equation (1): `denoise` and `guide` (x [B, *S], sigma [B]) -> [B, *S], weight w a number.

    Written as (1 − w) guide + w denoise, which is bit for bit the guide at w = 0 and the denoiser at w = 1. A call is
    one of each.
    """
    return lambda x, sigma: (1 - weight) * guide(x, sigma) + weight * denoise(x, sigma)
