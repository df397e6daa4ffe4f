"""Parametrisations: what a network is given, what it is taught, and how its output becomes a posterior mean.

Each is pure functions of one batch (x [B, *S] unscaled, sigma [B]), which `Parametrization` describes. No solver and no
loss knows which one is in use.
"""

import abc
import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Float

from pfgm_jax.array_types import Arrays, Denoiser, Levels, per_example
from pfgm_jax.flow.process import Process

Images = Float[Arrays, "B *S"]  # unscaled
Sigmas = Float[Arrays, "B"]
Raw = Float[Arrays, "B *R"]  # of a network
Outputs = Float[Arrays, "B *T"]


class Parametrization(abc.ABC):
    """The contract of this module. Subclasses are frozen dataclasses: static arguments of compiled programs.

    Attributes:
      extra_channels: of the network's output, besides those of an image.
    """

    extra_channels = 0

    @abc.abstractmethod
    def inputs(self, process: Process, x: Images, sigma: Sigmas) -> tuple[Images, Levels]:
        """What the network is given: x as it sees it, and the noise level [B] for its embedding."""

    @abc.abstractmethod
    def target(self, process: Process, x: Images, sigma: Sigmas, posterior_mean: Images) -> Outputs:
        """What `outputs` should be, given E[y | x, σ] or a stand-in for it, such as the clean image."""

    @abc.abstractmethod
    def to_denoiser(self, process: Process, output: Outputs, x: Images, sigma: Sigmas) -> Images:
        """The posterior mean that belongs to an output."""

    def outputs(self, raw: Raw) -> Outputs:
        """The network's raw output in the form of `target`."""
        return raw

    def weight(self, x: Images, sigma: Sigmas) -> float | Sigmas:
        """The weight of the squared error, for all or [B]."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class EDM(Parametrization):
    """EDM's preconditioning (arXiv 2206.00364, table 1), which PFGM++ keeps for every D (arXiv 2302.04265, section 4).

    denoise = c_skip x + c_out F(c_in x, ln σ / 4). The weight 1/c_out² on the denoiser's error is 1 on the error of F.
    """

    sigma_data: float = 0.5

    def inputs(self, process: Process, x: Images, sigma: Sigmas) -> tuple[Images, Levels]:
        c_in = 1 / jnp.sqrt(sigma**2 + self.sigma_data**2)
        return per_example(c_in, x) * x, jnp.log(sigma) / 4

    def _skip_and_out(self, sigma, x):
        total = sigma**2 + self.sigma_data**2
        return per_example(self.sigma_data**2 / total, x), per_example(sigma * self.sigma_data / jnp.sqrt(total), x)

    def target(self, process: Process, x: Images, sigma: Sigmas, posterior_mean: Images) -> Outputs:
        c_skip, c_out = self._skip_and_out(sigma, x)
        return (posterior_mean - c_skip * x) / c_out

    def to_denoiser(self, process: Process, output: Outputs, x: Images, sigma: Sigmas) -> Images:
        c_skip, c_out = self._skip_and_out(sigma, x)
        return c_skip * x + c_out * output


@dataclasses.dataclass(frozen=True)
class Epsilon(Parametrization):
    """The noise itself, ε = (x − E[y | x, σ]) / σ: DDPM (arXiv 2006.11239, eq. 14), VP and sub-VP (arXiv 2011.13456).

    The network sees x_t = s(t) x, the process's own variable, and `time_scale · t + time_shift`. The loss is the mean
    squared error of ε.

    Attributes:
      time_scale, time_shift: 999 and 0 for t in [0, 1] (VP, sub-VP), 1 and −1 for DDPM's t = 1 … T.
    """

    time_scale: float = 999.0
    time_shift: float = 0.0

    def inputs(self, process: Process, x: Images, sigma: Sigmas) -> tuple[Images, Levels]:
        t = process.time(sigma)
        return per_example(process.scale(t), x) * x, self.time_scale * t + self.time_shift

    def target(self, process: Process, x: Images, sigma: Sigmas, posterior_mean: Images) -> Outputs:
        return (x - posterior_mean) / per_example(sigma, x)

    def to_denoiser(self, process: Process, output: Outputs, x: Images, sigma: Sigmas) -> Images:
        return x - per_example(sigma, x) * output


@dataclasses.dataclass(frozen=True)
class Score(Parametrization):
    """σ times the score, (E[y | x, σ] − x) / σ: variance-exploding SDEs (arXiv 2011.13456, appendix A).

    x is not rescaled and the embedding takes ln(σ/2), which is the published ln σ: there images lie in [0, 1]. The loss
    is ½ Σ over pixels. At finite D the same network output is σ times a velocity, and no score.
    """

    def inputs(self, process: Process, x: Images, sigma: Sigmas) -> tuple[Images, Levels]:
        return x, jnp.log(sigma / 2)

    def target(self, process: Process, x: Images, sigma: Sigmas, posterior_mean: Images) -> Outputs:
        return (posterior_mean - x) / per_example(sigma, x)

    def to_denoiser(self, process: Process, output: Outputs, x: Images, sigma: Sigmas) -> Images:
        return x + per_example(sigma, x) * output

    def weight(self, x: Images, sigma: Sigmas) -> float:
        return math.prod(x.shape[1:]) / 2


@dataclasses.dataclass(frozen=True)
class PoissonField(Parametrization):
    """PFGM's negative normalised field (arXiv 2209.11178, algorithm 1 and eq. 5), for any finite D with r = σ√D.

    The network learns v = (v_x, v_r) = −√N E / (‖E‖ + γ), E = (x − E[y | x, σ], r) in N + 1 dimensions; v_r is the
    spatial mean of one extra output channel. x is not rescaled and the embedding takes r itself. The loss is ½ Σ over
    the N + 1 outputs.

    Two ways lead back to E_x: r v_x / v_r, exact but useless near the data, where v_r → 0; and the norm of v_x alone,
    which is useless far away, where it saturates. With n = ‖v_x‖/√N, the second solves n = e/(√(e² + r²) + γ) for e =
    ‖E_x‖:

        e = n (γ + √(n²γ² + (1 − n²) r²)) / (1 − n²),     E_x = −v_x (√(e² + r²) + γ)/√N.

    (The published sampler takes e = γ n/(1 − n), its first order in r.) Below r = `near` the second is used, above it
    the first.
    """

    gamma: float = 5.0
    near: float = 5.0
    extra_channels = 1

    def _radius(self, process, sigma):
        return sigma * math.sqrt(process.D)

    def inputs(self, process: Process, x: Images, sigma: Sigmas) -> tuple[Images, Levels]:
        return x, self._radius(process, sigma)

    def target(self, process: Process, x: Images, sigma: Sigmas, posterior_mean: Images) -> Outputs:
        B, N = len(x), math.prod(x.shape[1:])
        E = jnp.concatenate([(x - posterior_mean).reshape(B, N), self._radius(process, sigma).reshape(B, 1)], axis=1)
        return -math.sqrt(N) * E / (jnp.linalg.norm(E, axis=1, keepdims=True) + self.gamma)

    def outputs(self, raw: Raw) -> Outputs:
        v_x = raw[..., :-1].reshape(len(raw), -1)
        return jnp.concatenate([v_x, jnp.mean(raw[..., -1:], axis=(1, 2))], axis=1)

    def to_denoiser(self, process: Process, output: Outputs, x: Images, sigma: Sigmas) -> Images:
        N, r = math.prod(x.shape[1:]), self._radius(process, sigma)
        v_x, v_r = output[:, :-1].reshape(x.shape), output[:, -1]
        # A network's ‖v_x‖ may pass √N and its v_r may pass 0; both are kept where the formulas have a meaning.
        n = jnp.minimum(jnp.linalg.norm(output[:, :-1], axis=1) / math.sqrt(N), 1 - 1e-4)
        e = n * (self.gamma + jnp.sqrt(n**2 * self.gamma**2 + (1 - n**2) * r**2)) / (1 - n**2)
        by_norm = (jnp.sqrt(e**2 + r**2) + self.gamma) / math.sqrt(N)
        by_ratio = -r / jnp.minimum(v_r, -1e-5)
        return x + per_example(jnp.where(r < self.near, by_norm, by_ratio), x) * v_x

    def weight(self, x: Images, sigma: Sigmas) -> float:
        return (math.prod(x.shape[1:]) + 1) / 2


def denoiser(parametrization: Parametrization, process: Process, network: Callable) -> Denoiser:
    """Wraps `network(x, noise) -> raw` as the contract `denoise(x [B, *S], sigma [B]) -> [B, *S]`."""

    def denoise(x, sigma):
        output = parametrization.outputs(network(*parametrization.inputs(process, x, sigma)))
        return parametrization.to_denoiser(process, output, x, sigma)

    return denoise
