"""Uses of a denoiser besides sampling: likelihoods, latents, and an exactly reversible solver.

`likelihood.log_likelihood(process, denoise, x, key)` and `reversible.follow(denoise, pair, rows)` take any denoiser, an
exact field as well as a network; `upwards.upwards(process)` makes an encoder of every solver of the flow. `encode`,
`decode` and `log_likelihood` do it with a network for any number of images, on all devices. docs/inference.md has the
mathematics.
"""

from pfgm_jax.inference.batches import FLOW_SOLVERS, Weighted, check_solver, decode, encode, log_likelihood
from pfgm_jax.inference.latents import (
    PATHS,
    Latents,
    between,
    class_direction,
    from_hemisphere,
    slerp,
    straight,
    to_hemisphere,
)
from pfgm_jax.inference.latents import load as load_latents
from pfgm_jax.inference.likelihood import LEVELS_PER_UNIT, Likelihood, bits_per_dim, dequantised
from pfgm_jax.inference.upwards import upwards

__all__ = [
    "FLOW_SOLVERS",
    "LEVELS_PER_UNIT",
    "PATHS",
    "Latents",
    "Likelihood",
    "upwards",
    "Weighted",
    "between",
    "bits_per_dim",
    "check_solver",
    "class_direction",
    "decode",
    "dequantised",
    "encode",
    "from_hemisphere",
    "load_latents",
    "log_likelihood",
    "slerp",
    "straight",
    "to_hemisphere",
]
