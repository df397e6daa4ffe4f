"""Perturbation processes: how data turns into noise.

One kernel (`kernel.py`) serves every model: D = 1 is PFGM (arXiv 2209.11178), D → ∞ the Gaussian of diffusion models,
any real D between is PFGM++ (arXiv 2302.04265). With a schedule (`schedule.py`), x_t = s(t) (y + σ(t) n); everything
below works in σ and the unscaled variable x = x_t / s(t). Along a field line, dx/dσ = (x − E[y | x, σ]) / σ.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import betaln, gammaln

from pfgm_jax.array_types import Arrays, Levels, Numbers, PRNGKey, PRNGKeys
from pfgm_jax.errors import UserError
from pfgm_jax.flow import schedule
from pfgm_jax.flow.kernel import GAUSSIAN_D, kernel_draw, kernel_noise, require_D, require_key_of_each


@dataclasses.dataclass(frozen=True)
class LogNormal:
    """EDM's training law: ln σ ~ N(P_mean, P_std²), then the kernel (EDM table 1; PFGM++ keeps it for every D).

    clipped: whether σ is kept in the process's range.
    """

    P_mean: float = -1.2
    P_std: float = 1.2
    clipped: bool = False
    from_kernel = True

    def __call__(
        self, process: "Process", key: PRNGKey, y: Float[Arrays, "*S"]
    ) -> tuple[Float[Array, "*S"], Float[Array, ""]]:
        key_sigma, key_noise = jax.random.split(key)
        sigma = jnp.exp(self.P_mean + self.P_std * jax.random.normal(key_sigma, (), y.dtype))
        if self.clipped:
            sigma = jnp.clip(sigma, process.sigma_min, process.sigma_max)
        return kernel_draw(process.D, key_noise, y, sigma), sigma


@dataclasses.dataclass(frozen=True)
class GeometricShell:
    """PFGM's training law (arXiv 2209.11178, algorithm 2): shells whose radius grows geometrically with m ~ U[0, M].

        x = y + ‖ε_x‖ (1 + τ)^m u,    z = |ε_z| (1 + τ)^m,    ε ~ N(0, σ² I_(N+1)),  u uniform on the sphere.

    These pairs are points at which to regress the *field*: at a given z the radius does not follow the kernel, so
    the clean image is not a valid target for them. With `restrict_M`, samples with |ε_z| < σ/2 draw m from
    [0, 0.7 M].
    """

    M: int
    sigma: float = 0.01
    tau: float = 0.03
    restrict_M: bool = True
    from_kernel = False

    def __call__(
        self, process: "Process", key: PRNGKey, y: Float[Arrays, "*S"]
    ) -> tuple[Float[Array, "*S"], Float[Array, ""]]:
        key_m, key_x, key_z, key_u = jax.random.split(key, 4)
        noise_z = jnp.abs(self.sigma * jax.random.normal(key_z, (), y.dtype))
        m = self.M * jax.random.uniform(key_m, (), y.dtype)
        if self.restrict_M:
            m = jnp.where(noise_z < self.sigma / 2, 0.7 * m, m)
        growth = (1 + self.tau) ** m
        radius = self.sigma * jnp.linalg.norm(jax.random.normal(key_x, (y.size,), y.dtype)) * growth
        direction = jax.random.normal(key_u, y.shape, y.dtype)
        z = jnp.maximum(noise_z * growth, 1e-10)
        return y + radius * direction / jnp.linalg.norm(direction.ravel()), z


@dataclasses.dataclass(frozen=True)
class UniformTime:
    """Training law of score-based SDEs and DDPM: t ~ U[low, high], a whole number on a discrete schedule; then σ(t)."""

    low: float
    high: float
    from_kernel = True

    def __call__(
        self, process: "Process", key: PRNGKey, y: Float[Arrays, "*S"]
    ) -> tuple[Float[Array, "*S"], Float[Array, ""]]:
        key_t, key_noise = jax.random.split(key)
        if process.schedule.discrete:
            t = jax.random.randint(key_t, (), self.low, self.high + 1)
        else:
            t = jax.random.uniform(key_t, (), y.dtype, self.low, self.high)
        sigma = jnp.asarray(process.sigma(t), y.dtype)
        return kernel_draw(process.D, key_noise, y, sigma), sigma


@dataclasses.dataclass(frozen=True)
class Process:
    """A kernel and its schedule: x_t = scale(t) · (y + sigma(t) · n), n from the kernel at σ = 1.

    Attributes:
      name: the model family, for people.
      D: number of extra dimensions, any real from 0.5 on; `math.inf` is the Gaussian.
      t_min, t_max: range of time in which samples are followed, t_max being the prior's end.
      training_law: `(process, key, y [*S]) -> (x [*S], sigma [])`, how one training pair is drawn; `from_kernel` says
        whether x given (y, σ) follows the kernel, so that y itself is a valid target.
      schedule: σ(t), s(t) and t(σ), see `schedule.py`. Everything here and every solver works in σ and the unscaled x;
        x_t = scale(t) · x is for whoever needs the process in its own time.
      max_norm: the prior's radius is clipped to it (PFGM), `inf` for no clip.

    Raises:
      UserError: D, t_min or t_max out of range.
    """

    name: str
    D: float
    t_min: float
    t_max: float
    training_law: Callable
    schedule: Any = schedule.Identity()
    max_norm: float = math.inf

    def __post_init__(self):
        require_D(self.D)
        if not 0 < self.t_min < self.t_max < math.inf or not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise UserError(
                f"process {self.name} needs 0 < smallest σ < largest σ < inf, got times {self.t_min} to {self.t_max}, "
                f"σ {self.sigma_min} to {self.sigma_max}"
            )

    def sigma(self, t: Numbers) -> Numbers:
        """σ(t)."""
        return self.schedule.sigma(t)

    def scale(self, t: Numbers) -> Numbers:
        """s(t)."""
        return self.schedule.scale(t)

    def time(self, sigma: Numbers) -> Numbers:
        """t(σ), the inverse of `sigma`."""
        return self.schedule.time(sigma)

    @property
    def sigma_min(self) -> float:
        return self._number(self.t_min)

    @property
    def sigma_max(self) -> float:
        return self._number(self.t_max)

    def _number(self, t):
        with jax.ensure_compile_time_eval():  # a schedule in jnp is a number inside jit too
            return float(self.sigma(t))

    @property
    def is_gaussian(self) -> bool:
        return self.D >= GAUSSIAN_D


SAMPLED = ", sampled"  # in the name of a process that is sampled with another D than the trained one


def with_D(process: Process, D: float) -> Process:
    """The process with another D and the same σ, to sample at D' what was trained at D (arXiv 2302.04265, section 4).

    The flow in σ is the same at every D, so D' changes the prior, and at D' = ∞ admits the samplers that draw noise.
    The clip of PFGM's prior belongs to D = 1 and is dropped.
    """
    if D == process.D:
        return process
    name = process.name.removesuffix(SAMPLED) + SAMPLED
    return dataclasses.replace(process, name=name, D=float(D), max_norm=math.inf)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, P_mean: float = -1.2, P_std: float = 1.2) -> Process:
    """EDM (arXiv 2206.00364): the Gaussian kernel, σ(t) = t."""
    return Process("edm", math.inf, sigma_min, sigma_max, LogNormal(P_mean, P_std))


def pfgmpp(
    D: float, sigma_min: float = 0.002, sigma_max: float = 80.0, P_mean: float = -1.2, P_std: float = 1.2
) -> Process:
    """PFGM++ (arXiv 2302.04265) with EDM's σ through r = σ√D (its section 4): D = 1 is PFGM's field, D = inf is EDM."""
    return Process("pfgmpp", float(D), sigma_min, sigma_max, LogNormal(P_mean, P_std))


def ve(sigma_min: float = 0.02, sigma_max: float = 100.0, t_min: float = 1e-5) -> Process:
    """Variance-exploding SDE (arXiv 2011.13456, eq. 31): σ from σ_min to σ_max, geometric in t ~ U[t_min, 1].

    The published σ of 0.01 to 50 are for images in [0, 1]; in [−1, 1] they are twice that. σ_max is to be the largest
    distance between two images of the data (arXiv 2006.09011, technique 1; `data.diameter`).
    """
    return Process("ve", math.inf, t_min, 1.0, UniformTime(t_min, 1.0), schedule.Geometric(sigma_min, sigma_max))


def vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Process:
    """Variance-preserving SDE (arXiv 2011.13456, eq. 32): trained on t ~ U[1e-5, 1], sampled down to t_min."""
    return Process("vp", math.inf, t_min, 1.0, UniformTime(1e-5, 1.0), schedule.VP(beta_min, beta_max))


def subvp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Process:
    """Sub-VP SDE (arXiv 2011.13456, eq. 33): trained on t ~ U[1e-5, 1], sampled down to t_min."""
    return Process("subvp", math.inf, t_min, 1.0, UniformTime(1e-5, 1.0), schedule.SubVP(beta_min, beta_max))


def ddpm(steps: int = 1000, kind: str = "linear") -> Process:
    """DDPM (arXiv 2006.11239) on its grid of T = `steps` levels; `kind` "linear" or "cosine" (arXiv 2102.09672).

    Raises:
      UserError: an unknown kind, fewer than 20 steps of the linear one, whose last β would reach 1, or fewer than 2.
    """
    if kind not in schedule.KINDS:
        raise UserError(f"unknown kind of betas {kind!r}; there are {', '.join(schedule.KINDS)}")
    if steps < 2 or (kind == "linear" and steps <= 20):
        raise UserError(f"ddpm needs more than 20 noise levels (2 for the cosine kind), got {steps}")
    return Process("ddpm", math.inf, 1, steps, UniformTime(1, steps), schedule.Discrete(steps, kind))


def pfgm(
    M: int,
    N: int,
    *,
    z_min: float = 1e-3,
    sigma: float = 0.01,
    tau: float = 0.03,
    restrict_M: bool = True,
    z_max: float | None = None,
    max_norm: float | None = None,
) -> Process:
    """PFGM (arXiv 2209.11178): D = 1 and σ = z.

    z_max = √(2/π) σ (1+τ)^M and max_norm = √N σ (1+τ)^M, the mean |ε_z| and ‖ε_x‖ at m = M, unless given.

    Args:
      M: largest exponent of algorithm 2; see `pfgm_M`.
      N: data dimension.
    """
    reach = sigma * (1 + tau) ** M
    return Process(
        "pfgm",
        1.0,
        z_min,
        math.sqrt(2 / math.pi) * reach if z_max is None else z_max,
        GeometricShell(M, sigma, tau, restrict_M),
        max_norm=math.sqrt(N) * reach if max_norm is None else max_norm,
    )


def pfgm_M(data_norm: float, N: int, sigma: float = 0.01, tau: float = 0.03) -> int:
    """PFGM's M = ⌊0.75 ln(R² / (2 √N σ²)) / ln(1+τ)⌋ + 1, R the mean norm of the data (published script)."""
    return math.floor(0.75 * math.log(data_norm**2 / (2 * math.sqrt(N) * sigma**2)) / math.log1p(tau)) + 1


def perturb(process: Process, keys: PRNGKeys, y: Float[Arrays, "B *S"], sigma: Levels) -> Float[Array, "B *S"]:
    """Draws x ~ p(x | y, σ), the kernel around each image.

    Args:
      keys: [B] one PRNG key per example, so that a draw does not depend on the rest of the batch.
      y: [B, *S] images.
      sigma: [B] noise levels, or one for all, not below 0; at 0 x is y.

    Returns:
      [B, *S], in the unscaled variable x_t / s(t).

    Raises:
      UserError: keys that are not B, levels below 0 or nan.
    """
    require_key_of_each(keys, len(y))
    if not isinstance(sigma, jax.core.Tracer) and not ((levels := np.asarray(sigma)) >= 0).all():
        raise UserError(f"sigma must not be below 0, got {np.min(levels):g}")
    return jax.vmap(kernel_draw, (None, 0, 0, 0))(
        process.D, keys, y, jnp.broadcast_to(sigma, y.shape[:1]).astype(y.dtype)
    )


def training_pairs(
    process: Process, keys: PRNGKeys, y: Float[Arrays, "B *S"]
) -> tuple[Float[Array, "B *S"], Float[Array, "B"]]:
    """Draws (x [B, *S], sigma [B]) for images y [B, *S] from the process's own training law; keys [B]."""
    return jax.vmap(lambda key, y: process.training_law(process, key, y))(keys, y)


def prior(process: Process, keys: PRNGKeys, shape: tuple[int, ...], dtype=None) -> Float[Array, "B *S"]:
    """Draws x at σ_max: the kernel centred at 0, its radius clipped to [1, max_norm] where the process clips it.

    Args:
      keys: [B] one PRNG key per sample.
      shape: S of one sample.

    Returns:
      [B, *S], unscaled.

    Raises:
      UserError: a single key.
    """
    require_key_of_each(keys)

    def one_example(key):
        x = process.sigma_max * kernel_noise(key, shape, process.D, dtype)
        if math.isinf(process.max_norm):
            return x
        norm = jnp.linalg.norm(x.ravel())
        return x * jnp.clip(norm, 1.0, process.max_norm) / norm

    return jax.vmap(one_example)(keys)


def log_prior(process: Process, x: Float[Arrays, "B *S"]) -> Float[Array, "B"]:
    """Log density in nats of the (unclipped) prior at x [B, *S], unscaled; returns [B].

    log Γ((N+D)/2) − log Γ(D/2) − (N/2) log(π r²) − ((N+D)/2) log(1 + ‖x‖²/r²) with r = σ_max √D. The gamma functions do
    not depend on x and are evaluated in float64 on the host: in float32 they are 0.2 nats off at D = 1e6.
    """
    N = math.prod(x.shape[1:])
    D, sigma = process.D, process.sigma_max
    squared = jnp.sum(jnp.square(x.reshape(len(x), -1) / sigma), axis=1)
    constant = -N / 2 * math.log(2 * math.pi * sigma**2)
    if process.is_gaussian:
        return constant - squared / 2
    # log Γ((N+D)/2) − log Γ(D/2), by the beta function, which stays accurate where the difference of two gammas
    # cancels.
    log_gamma_ratio = float(gammaln(N / 2) - betaln(N / 2, D / 2))
    return constant + log_gamma_ratio - N / 2 * math.log(D / 2) - (N + D) / 2 * jnp.log1p(squared / D)
