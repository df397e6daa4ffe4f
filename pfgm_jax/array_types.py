"""Types that annotations share, and `per_example`, by which one number an example multiplies its image.

Shapes are jaxtyping's: `Float[Arrays, "B *S"]` are B arrays of any one shape S. Axes: B examples, n points or images,
H W C of an image, d features, K classes, T levels. Tests check them at every call (tests/conftest.py); nothing does at
run time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num, Shaped, UInt32

Arrays = jax.Array | np.ndarray
# A number, or numbers of any shape.
Numbers = float | np.floating | Num[Arrays, "*T"]
# A noise level for all of B examples, or one for each.
Levels = float | np.floating | Float[Arrays, ""] | Float[Arrays, "#B"]
# One PRNG key, and one for each of B examples: new (`jax.random.key`) or old (`jax.random.PRNGKey`).
PRNGKey = Key[Array, ""] | UInt32[Arrays, "2"]
PRNGKeys = Key[Array, "B"] | UInt32[Arrays, "B 2"]
# The posterior mean E[y | x, σ].
Denoiser = Callable[[Float[Arrays, "B *S"], Float[Arrays, "B"]], Float[Arrays, "B *S"]]
# E[‖x − y‖² | x, σ] of (x, σ, the posterior mean at x); the exact field ignores the third argument, estimates use it.
SecondMoment = Callable[
    [Float[Arrays, "B *S"], Float[Arrays, "B"], Float[Arrays, "B *S"]],
    Float[Arrays, "B"],
]
# Features of images; and images as they are stored, an array or what can be sliced like one.
Features = Num[Arrays, "n d"]
Extractor = Callable[[Shaped[Arrays, "n H W C"]], Features]


def per_example(a: Numbers, like: Shaped[Arrays, "B *S"]) -> Array:
    """a [B], or a number, with as many axes of length 1 as `like` [B, *S] has after its first: to multiply it."""
    return jnp.asarray(a).reshape((-1,) + (1,) * (like.ndim - 1))
