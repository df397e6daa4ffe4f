"""Training losses: regression on a parametrisation's target, from the clean image or the large-batch mean; and the
consistency of a flow map between two levels, for tuning (`training.tune`)."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Bool, Float, Int

from pfgm_jax.array_types import Arrays, Denoiser, per_example
from pfgm_jax.flow import field
from pfgm_jax.flow.parametrization import Parametrization
from pfgm_jax.flow.process import Process


def posterior_target(
    process: Process,
    x: Float[Arrays, "B *S"],
    sigma: Float[Arrays, "B"],
    y: Float[Arrays, "B *S"],
    references: Float[Arrays, "R *S"] | None = None,
    allowed: Bool[Arrays, "B R"] | None = None,
) -> Float[Arrays, "B *S"]:
    """What stands for E[y | x, σ] in the target.

    The clean image y is an unbiased stand-in (denoising). The posterior mean over a large batch of references is the
    field of that batch: PFGM's algorithm 1 at D = 1, the stable target (arXiv 2302.00670) at any D. Its variance is
    lower, and it is the only valid target for points that were not drawn from the kernel.

    Args:
      x: [B, *S] perturbed images. sigma: [B]. y: [B, *S] their clean images.
      references: [R, *S], holding y among them, or None for the clean image; streamed where they are many.
      allowed: [B, R] references of an example's own label, for a class-conditional network.
    """
    if references is None:
        return y
    chunk = field.fitting_chunk(len(x), references.shape)
    return field.posterior_mean(x, sigma, references, process.D, chunk=chunk, allowed=allowed)


def squared_error(
    parametrization: Parametrization,
    process: Process,
    network: Callable,
    x: Float[Arrays, "B *S"],
    sigma: Float[Arrays, "B"],
    posterior_mean: Float[Arrays, "B *S"],
) -> Float[Arrays, "B"]:
    """Weighted squared error per example, [B].

    Args:
      network: `(x, noise) -> raw`, with labels and dropout bound by closure.
      x, sigma, posterior_mean: [B, *S], [B], [B, *S].
    """
    output = parametrization.outputs(network(*parametrization.inputs(process, x, sigma)))
    error = output - parametrization.target(process, x, sigma, posterior_mean)
    return parametrization.weight(x, sigma) * jnp.mean(jnp.square(error).reshape(len(x), -1), axis=1)


def lower_level(t: Float[Arrays, "B"], q: float, stage: int | Int[Array, ""], sigma_min: float) -> Float[Array, "B"]:
    """ECT's lower level r of a pair at t, [B]: r = t max(0, 1 − q^−(s+1) (1 + 8 sigmoid(−t))) (arXiv 2406.14548).

    The step t − r shrinks by q with each stage s. Below σ_min r is set to 0: that level
    is the clean image.
    """
    r = t * jnp.maximum(0, 1 - q ** -(stage + 1.0) * (1 + 8 * sigmoid(-t)))
    return jnp.where(r < sigma_min, 0, r)


def consistency_error(
    online: Denoiser,
    stopped: Denoiser,
    x: Float[Arrays, "B *S"],
    t: Float[Arrays, "B"],
    r: Float[Arrays, "B"],
    mean: Float[Arrays, "B *S"],
    c: float = 0.0,
) -> Float[Array, "B"]:
    """How much the end of the flow changes from x at t to x_r at r, per length of that step: [B].

        √N (√(‖d(x, t) − d(x_r, r)‖² + c²) − c) / ‖x − x_r‖,     x_r = y + (r/t) (x − y),  d(x_0, 0) = y.

    With the clean image for y the pair shares its noise (ECT, arXiv 2406.14548); with the posterior mean, x_r is one
    step of Euler's method. ‖x − x_r‖ is (t − r) √N times the length of the sample's noise in units of its Gaussian
    mean, so that at D = ∞ this is the published weight 1/(t − r). At small D the noise has heavy tails, and an example
    counts by its own length and not by the typical one.

    Args:
      online, stopped: the consistency function with and without a gradient, with the same dropout.
      x, t: [B, *S], [B] the upper end. r: [B] the lower level, 0 for the image itself.
      mean: [B, *S] the clean image y, or E[y | x, t].
      c: Pseudo-Huber constant; 0 for the norm itself.
    """
    lower = mean + per_example(r / t, x) * (x - mean)
    # The network is never evaluated at level 0: the clean image is the target there.
    target = jnp.where(per_example(r, x) > 0, stopped(lower, jnp.where(r > 0, r, t)), mean)
    squared = lambda a: jnp.sum(jnp.square(a).reshape(len(x), -1), axis=1)
    # The square root has no gradient at 0.
    distance = jnp.sqrt(squared(online(x, t) - target) + c**2 + 1e-12) - c
    return math.sqrt(math.prod(x.shape[1:])) * distance / jnp.sqrt(squared(x - lower))
