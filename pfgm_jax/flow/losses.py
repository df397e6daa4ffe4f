"""The one training loss: regression on a parametrisation's target, from the clean image or the large-batch mean."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pfgm_jax.array_types import Arrays
from pfgm_jax.flow import field
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
    parametrization,
    process: Process,
    network: Callable,
    x: Float[Arrays, "B *S"],
    sigma: Float[Arrays, "B"],
    posterior_mean: Float[Arrays, "B *S"],
) -> Float[Array, "B"]:
    """Weighted squared error per example, [B].

    Args:
      network: `(x, noise) -> raw`, with labels and dropout bound by closure.
      x, sigma, posterior_mean: [B, *S], [B], [B, *S].
    """
    output = parametrization.outputs(network(*parametrization.inputs(process, x, sigma)))
    error = output - parametrization.target(process, x, sigma, posterior_mean)
    return parametrization.weight(x) * jnp.mean(jnp.square(error).reshape(len(x), -1), axis=1)
