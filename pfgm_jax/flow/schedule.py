"""Noise schedules: x_t = s(t) (y + σ(t) n), where n is a draw of the kernel at σ = 1.

A schedule is three functions of arrays, `sigma(t)`, `scale(t)` = s(t), and `time(sigma)`, the inverse of `sigma`. They
only parametrise a process's time: the flow, dx/dσ = (x − E[y | x, σ]) / σ in the unscaled x = x_t / s(t),
is the same for all of them.

With B(t) = ∫₀ᵗ β, the schedules of score-based SDEs (arXiv 2011.13456, eq. 29) are

    VE       s = 1,          σ = σ_min (σ_max/σ_min)^t
    VP       s = e^(−B/2),   σ = √(e^B − 1)             so that s² (1 + σ²) = 1                                   (1)
    sub-VP   s = e^(−B/2),   σ = 2 sinh(B/2)            so that s σ = 1 − e^(−B)                                  (2)
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np

from pfgm_jax.array_types import Numbers


@dataclasses.dataclass(frozen=True)
class Identity:
    """σ(t) = t, s = 1: EDM, PFGM++ and PFGM (whose t is z)."""

    discrete = False

    def sigma(self, t: Numbers) -> Numbers:
        return t

    def scale(self, t: Numbers) -> Numbers:
        return jnp.ones_like(t)

    def time(self, sigma: Numbers) -> Numbers:
        return sigma


@dataclasses.dataclass(frozen=True)
class Geometric:
    """VE: σ = σ_min (σ_max/σ_min)^t, t in [0, 1]."""

    sigma_min: float
    sigma_max: float
    discrete = False

    def sigma(self, t: Numbers) -> Numbers:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def scale(self, t: Numbers) -> Numbers:
        return jnp.ones_like(t)

    def time(self, sigma: Numbers) -> Numbers:
        return jnp.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)


@dataclasses.dataclass(frozen=True)
class LinearBeta:
    """β(t) = β_min + t (β_max − β_min), t in [0, 1], B(t) = β_min t + (β_max − β_min) t²/2, and s = e^(−B/2)."""

    beta_min: float
    beta_max: float
    discrete = False

    def integral(self, t: Numbers) -> Numbers:
        """B(t)."""
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def scale(self, t: Numbers) -> Numbers:
        return jnp.exp(-self.integral(t) / 2)

    def _inverse_integral(self, B):
        # The root of a quadratic, in the form that does not cancel at small B.
        return 2 * B / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B))


@dataclasses.dataclass(frozen=True)
class VP(LinearBeta):
    """Variance preserving: equation (1)."""

    def sigma(self, t: Numbers) -> Numbers:
        return jnp.sqrt(jnp.expm1(self.integral(t)))

    def time(self, sigma: Numbers) -> Numbers:
        return self._inverse_integral(jnp.log1p(sigma**2))


@dataclasses.dataclass(frozen=True)
class SubVP(LinearBeta):
    """Sub-variance preserving: equation (2)."""

    def sigma(self, t: Numbers) -> Numbers:
        return 2 * jnp.sinh(self.integral(t) / 2)

    def time(self, sigma: Numbers) -> Numbers:
        return self._inverse_integral(2 * jnp.arcsinh(sigma / 2))


KINDS = ("linear", "cosine")


@functools.lru_cache
def _log_sigmas(steps, kind):
    """ln σ_i for i = 1 … steps; σ_i² = (1 − ᾱ_i)/ᾱ_i, in float64."""
    i = np.arange(1, steps + 1)
    if kind == "linear":  # DDPM (arXiv 2006.11239, section 4), at T = 1000: β from 1e-4 to 0.02
        beta = np.linspace(0.1, 20, steps) / steps
    else:  # improved DDPM (arXiv 2102.09672, eq. 17)
        alpha_bar = lambda i: np.cos((i / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.minimum(1 - alpha_bar(i) / alpha_bar(i - 1), 0.999)
    log_alpha_bar = np.cumsum(np.log1p(-beta))
    return (np.log(-np.expm1(log_alpha_bar)) - log_alpha_bar) / 2


@dataclasses.dataclass(frozen=True)
class Discrete:
    """DDPM's grid of T levels: t = 1 … T, ᾱ_t = Π (1 − β_i), σ_t² = (1 − ᾱ_t)/ᾱ_t, s = √ᾱ_t.

    Between two levels ln σ is linear in t, so that solvers that choose their own σ have a time too.

    Attributes:
      steps: T.
      kind: "linear" in β (DDPM), or "cosine" in ᾱ (improved DDPM).
    """

    steps: int
    kind: str
    discrete = True

    def sigma(self, t: Numbers) -> Numbers:
        t = jnp.asarray(t, jnp.result_type(float))
        return jnp.exp(jnp.interp(t, np.arange(1, self.steps + 1), _log_sigmas(self.steps, self.kind)))

    def scale(self, t: Numbers) -> Numbers:
        return 1 / jnp.sqrt(1 + self.sigma(t) ** 2)

    def time(self, sigma: Numbers) -> Numbers:
        return jnp.interp(jnp.log(sigma), _log_sigmas(self.steps, self.kind), np.arange(1.0, self.steps + 1))
