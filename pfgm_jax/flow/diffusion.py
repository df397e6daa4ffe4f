"""Noise at every D: the diffusion coefficient that keeps the marginals, and the law of fresh noise.

With d = E[y | x, σ], (d − x)/σ² is the score of the noised density p(x, σ) only for the Gaussian kernel. For every D,
and N + D > 2, it is a score all the same, that of τ p:

    ∇(τ p)/p = (d − x)/σ²,        τ(x, σ) = (D + E[‖x − y‖² | x, σ]/σ²)/(N + D − 2),                          (1)

because ((D + ‖x − y‖²/σ²)/(N + D − 2)) times the kernel (1 + ‖x − y‖²/(D σ²))^(−(N+D)/2) has the gradient −(x − y)/σ²
times the kernel. The Fokker-Planck equation of the flow dx/dσ = (x − d)/σ therefore holds, at every λ >= 0, for

    dx = (1 + λ) (x − d)/σ dσ + √(2 λ σ |dσ| τ) dW,      run downwards in σ:                                  (2)

the drift λ (x − d)/σ takes away what the noise adds. λ = 0 is the flow; D = ∞ has τ = 1 and the known reverse SDE.
(2) keeps the marginal of every σ, not the joint law of x along a path of the forward process, whose noise scale is one
draw for all σ.

That joint law gives exact noise upwards. The kernel is a Gaussian of variance σ² W with W = D/χ²_D, one draw a sample
and the same at every σ; given x and y, W is (D + ‖x − y‖²/σ²)/χ²_(N+D). So for y ~ p(y | x, σ) and any σ̂ >= σ,

    x̂ = x + √(σ̂² − σ²) √W g,        W = (D + ‖x − y‖²/σ²)/χ²_(N+D),   g ~ N(0, I_N),                          (3)

follows p(·, σ̂) exactly. τ is the mean of W given x.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Levels, PRNGKeys, per_example
from pfgm_jax.errors import UserError
from pfgm_jax.flow.kernel import GAUSSIAN_D, require_D


def tau(second_moment: Float[Arrays, "B"], sigma: Levels, N: int, D: float) -> Float[Array, "B"]:
    """τ(x, σ) of equation (1), [B]; 1 for D = ∞.

    Args:
      second_moment: [B] E[‖x − y‖² | x, σ], such as `field.second_moment`.
      sigma: noise levels.
      N: data dimension.
      D: extra dimensions (static).

    Raises:
      UserError: N + D of 2 or less, where τ has no meaning, or a D that float32 does not hold.
    """
    require_noise(N, D)
    second_moment = jnp.asarray(second_moment)
    if D >= GAUSSIAN_D:
        return jnp.ones_like(second_moment)
    return (D + second_moment / jnp.asarray(sigma) ** 2) / (N + D - 2)


def require_noise(N: int, D: float) -> None:
    """Raises UserError for a D that float32 does not hold, or where N + D is 2 or less."""
    require_D(D)
    if N + D <= 2:
        raise UserError(f"the noise of a reverse SDE needs N + D > 2, got N = {N}, D = {D:g}")


def lift(
    keys: PRNGKeys,
    x: Float[Arrays, "B *S"],
    sigma: Levels,
    sigma_hat: Levels,
    squared_distance: Float[Arrays, "B"],
    D: float,
) -> Float[Array, "B *S"]:
    """x̂ at the level σ̂ >= σ by equation (3); `field.churn` draws the y that it needs.

    Args:
      keys: [B] PRNG keys, one per sample.
      x: [B, *S] states at `sigma`, unscaled.
      squared_distance: [B] ‖x − y‖² to a draw y of p(y | x, σ). Its mean given x in its place is an approximation.
      D: extra dimensions (static).

    Raises:
      UserError: a D that float32 does not hold.
    """
    require_D(D)
    x = jnp.asarray(x)
    N = math.prod(x.shape[1:])
    broadcast = lambda level: jnp.broadcast_to(jnp.asarray(level, x.dtype), x.shape[:1])
    sigma, sigma_hat = broadcast(sigma), broadcast(sigma_hat)
    pairs = jax.vmap(jax.random.split)(keys)
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(pairs[:, 0])
    variance = (sigma_hat - sigma) * (sigma_hat + sigma)
    if D < GAUSSIAN_D:
        half = jnp.asarray((N + D) / 2, x.dtype)
        gamma = jax.vmap(lambda key: jax.random.gamma(key, half, (), x.dtype))(pairs[:, 1])
        variance = variance * (D + jnp.asarray(squared_distance) / sigma**2) / (2 * gamma)
    return x + per_example(jnp.sqrt(variance), x) * noise
