"""The kernel by which data turn into noise, at every D.

One kernel serves every model (PFGM++, arXiv 2302.04265, eq. 4). Data y in R^N are charges on the r = 0 hyperplane of a
space with D more dimensions, r being the norm of the extra coordinates:

    p_r(x | y)  ∝  (‖x − y‖² + r²)^(−(N + D)/2),        r = σ √D.                                            (1)

(1) is the joint Student-t law with D degrees of freedom and scale σ,

    x = y + σ g √(D / χ²_D),        g ~ N(0, I_N), one χ²_D draw per sample,                                  (2)

so D = 1 is PFGM (arXiv 2209.11178, where σ is called z), D → ∞ is the Gaussian of diffusion models (EDM,
arXiv 2206.00364), and any real D > 0 lies between.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, PRNGKey
from pfgm_jax.errors import UserError

# From this D on the kernel is taken for the Gaussian: √(D/χ²_D) is 1 to 1/√(2D) = 7e-9, less than float32's rounding.
GAUSSIAN_D = 1e16
# The smallest D. About t^(−D) of the kernel's draws are longer than t σ√N, and a length above 1.8e19 has an infinite
# square in float32: of draws at σ = 80, N = 3072 one in 1e8 at D = 0.5, one in 60 000 at 0.3, one in 40 at 0.1.
SMALLEST_D = 0.5


def require_D(D: float) -> None:
    """Refuses a D that is no number, not positive, or so small that float32 does not hold the kernel's draws."""
    if not D >= SMALLEST_D:
        raise UserError(f"D must be inf or at least {SMALLEST_D} (float32 cannot represent less), got {D}")


def kernel_noise(key: PRNGKey, shape: tuple[int, ...], D: float, dtype=None) -> Float[Array, "*S"]:
    """One draw of the kernel at σ = 1, y = 0: equation (2).

    The radius factor √(D/χ²_D) is shared by all pixels; it is computed from a log-gamma draw, which neither
    underflows at small D nor cancels at large D.
    """
    key_direction, key_radius = jax.random.split(key)
    noise = jax.random.normal(key_direction, shape, dtype)
    if D >= GAUSSIAN_D:
        return noise
    log_half_chi2 = jax.random.loggamma(key_radius, jnp.asarray(D / 2, noise.dtype), (), noise.dtype)
    return noise * jnp.exp(0.5 * (math.log(D / 2) - log_half_chi2))


def kernel_draw(D: float, key: PRNGKey, y: Float[Arrays, "*S"], sigma: float | Float[Arrays, ""]) -> Float[Array, "*S"]:
    """One draw x ~ p(x | y, σ) around one image y [*S], sigma []."""
    return jnp.asarray(y) + sigma * kernel_noise(key, y.shape, D, y.dtype)


def require_key_of_each(keys: Any, B: int | None = None) -> None:
    """Raises UserError unless `keys` are one PRNG key per example, B of them where B is given."""
    shape = jnp.shape(keys)[: None if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else -1]
    if len(shape) != 1 or shape[0] != (shape[0] if B is None else B):
        number = "n" if B is None else B
        raise UserError(f"keys must be one PRNG key per example, such as jax.random.split(key, {number})")
