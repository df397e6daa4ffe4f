"""Parametrisations: what a network is given, what it is taught, and how its output becomes a posterior mean.

Each is four pure functions of one batch (x [B, H, W, C] unscaled, sigma [B]):

    inputs(process, x, sigma)                     -> (x for the network, noise level for its embedding [B])
    target(process, x, sigma, posterior_mean)     -> what `outputs` should be, given E[y | x, σ] or a stand-in for it
    outputs(raw)                                  -> the network's raw [B, H, W, C + extra_channels] in target's form
    to_denoiser(process, output, x, sigma)        -> the posterior mean [B, H, W, C]

and a weight on the squared error, averaged over the outputs. No solver and no loss knows which one is in use.
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser, Levels
from pfgm_jax.flow.process import Process


def _per_image(a, like):
    """[B] reshaped to multiply [B, ...]."""
    return a.reshape(a.shape + (1,) * (like.ndim - 1))


@dataclasses.dataclass(frozen=True)
class EDM:
    """EDM's preconditioning (arXiv 2206.00364, table 1), which PFGM++ keeps for every D (arXiv 2302.04265, section 4).

    denoise = c_skip x + c_out F(c_in x, ln σ / 4). The weight 1/c_out² on the denoiser's error is 1 on the error of F.
    """

    sigma_data: float = 0.5
    extra_channels = 0

    def inputs(
        self, process: Process, x: Float[Arrays, "B *S"], sigma: Float[Arrays, "B"]
    ) -> tuple[Float[Arrays, "B *S"], Float[Array, "B"]]:
        c_in = 1 / jnp.sqrt(sigma**2 + self.sigma_data**2)
        return _per_image(c_in, x) * x, jnp.log(sigma) / 4

    def _skip_and_out(self, sigma, x):
        total = sigma**2 + self.sigma_data**2
        return _per_image(self.sigma_data**2 / total, x), _per_image(sigma * self.sigma_data / jnp.sqrt(total), x)

    def target(
        self,
        process: Process,
        x: Float[Arrays, "B *S"],
        sigma: Float[Arrays, "B"],
        posterior_mean: Float[Arrays, "B *S"],
    ) -> Float[Array, "B *T"]:
        c_skip, c_out = self._skip_and_out(sigma, x)
        return (posterior_mean - c_skip * x) / c_out

    def outputs(self, raw: Float[Arrays, "B *R"]) -> Float[Arrays, "B *T"]:
        return raw

    def to_denoiser(
        self,
        process: Process,
        output: Float[Arrays, "B *T"],
        x: Float[Arrays, "B *S"],
        sigma: Float[Arrays, "B"],
    ) -> Float[Array, "B *S"]:
        c_skip, c_out = self._skip_and_out(sigma, x)
        return c_skip * x + c_out * output

    def weight(self, x: Float[Arrays, "B *S"]) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Epsilon:
    """The noise itself, ε = (x − E[y | x, σ]) / σ: DDPM (arXiv 2006.11239, eq. 14), VP and sub-VP (arXiv 2011.13456).

    The network sees x_t = s(t) x, the process's own variable, and `time_scale · t + time_shift`. The loss is the mean
    squared error of ε.

    Attributes:
      time_scale, time_shift: 999 and 0 for t in [0, 1] (VP, sub-VP), 1 and −1 for DDPM's t = 1 … T.
    """

    time_scale: float = 999.0
    time_shift: float = 0.0
    extra_channels = 0

    def inputs(
        self, process: Process, x: Float[Arrays, "B *S"], sigma: Float[Arrays, "B"]
    ) -> tuple[Float[Arrays, "B *S"], Levels]:
        t = process.time(sigma)
        return _per_image(process.scale(t), x) * x, self.time_scale * t + self.time_shift

    def target(
        self,
        process: Process,
        x: Float[Arrays, "B *S"],
        sigma: Float[Arrays, "B"],
        posterior_mean: Float[Arrays, "B *S"],
    ) -> Float[Array, "B *T"]:
        return (x - posterior_mean) / _per_image(sigma, x)

    def outputs(self, raw: Float[Arrays, "B *R"]) -> Float[Arrays, "B *T"]:
        return raw

    def to_denoiser(
        self,
        process: Process,
        output: Float[Arrays, "B *T"],
        x: Float[Arrays, "B *S"],
        sigma: Float[Arrays, "B"],
    ) -> Float[Array, "B *S"]:
        return x - _per_image(sigma, x) * output

    def weight(self, x: Float[Arrays, "B *S"]) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Score:
    """σ times the score, (E[y | x, σ] − x) / σ: variance-exploding SDEs (arXiv 2011.13456, appendix A).

    x is not rescaled and the embedding takes ln(σ/2), which is the published ln σ: there images lie in [0, 1]. The loss
    is ½ Σ over pixels. At finite D the same network output is σ times a velocity, and no score.
    """

    extra_channels = 0

    def inputs(
        self, process: Process, x: Float[Arrays, "B *S"], sigma: Float[Arrays, "B"]
    ) -> tuple[Float[Arrays, "B *S"], Float[Array, "B"]]:
        return x, jnp.log(sigma / 2)

    def target(
        self,
        process: Process,
        x: Float[Arrays, "B *S"],
        sigma: Float[Arrays, "B"],
        posterior_mean: Float[Arrays, "B *S"],
    ) -> Float[Array, "B *T"]:
        return (posterior_mean - x) / _per_image(sigma, x)

    def outputs(self, raw: Float[Arrays, "B *R"]) -> Float[Arrays, "B *T"]:
        return raw

    def to_denoiser(
        self,
        process: Process,
        output: Float[Arrays, "B *T"],
        x: Float[Arrays, "B *S"],
        sigma: Float[Arrays, "B"],
    ) -> Float[Array, "B *S"]:
        return x + _per_image(sigma, x) * output

    def weight(self, x: Float[Arrays, "B *S"]) -> float:
        return math.prod(x.shape[1:]) / 2


@dataclasses.dataclass(frozen=True)
class PoissonField:
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

    def inputs(
        self, process: Process, x: Float[Arrays, "B *S"], sigma: Float[Arrays, "B"]
    ) -> tuple[Float[Arrays, "B *S"], Float[Array, "B"]]:
        return x, self._radius(process, sigma)

    def target(
        self,
        process: Process,
        x: Float[Arrays, "B *S"],
        sigma: Float[Arrays, "B"],
        posterior_mean: Float[Arrays, "B *S"],
    ) -> Float[Array, "B *T"]:
        B, N = len(x), math.prod(x.shape[1:])
        E = jnp.concatenate([(x - posterior_mean).reshape(B, N), self._radius(process, sigma).reshape(B, 1)], axis=1)
        return -math.sqrt(N) * E / (jnp.linalg.norm(E, axis=1, keepdims=True) + self.gamma)

    def outputs(self, raw: Float[Arrays, "B *R"]) -> Float[Arrays, "B *T"]:
        v_x = raw[..., :-1].reshape(len(raw), -1)
        return jnp.concatenate([v_x, jnp.mean(raw[..., -1:], axis=(1, 2))], axis=1)

    def to_denoiser(
        self,
        process: Process,
        output: Float[Arrays, "B *T"],
        x: Float[Arrays, "B *S"],
        sigma: Float[Arrays, "B"],
    ) -> Float[Array, "B *S"]:
        N, r = math.prod(x.shape[1:]), self._radius(process, sigma)
        v_x, v_r = output[:, :-1].reshape(x.shape), output[:, -1]
        # A network's ‖v_x‖ may pass √N and its v_r may pass 0; both are kept where the formulas have a meaning.
        n = jnp.minimum(jnp.linalg.norm(output[:, :-1], axis=1) / math.sqrt(N), 1 - 1e-4)
        e = n * (self.gamma + jnp.sqrt(n**2 * self.gamma**2 + (1 - n**2) * r**2)) / (1 - n**2)
        by_norm = (jnp.sqrt(e**2 + r**2) + self.gamma) / math.sqrt(N)
        by_ratio = -r / jnp.minimum(v_r, -1e-5)
        return x + _per_image(jnp.where(r < self.near, by_norm, by_ratio), x) * v_x

    def weight(self, x: Float[Arrays, "B *S"]) -> float:
        return (math.prod(x.shape[1:]) + 1) / 2


def denoiser(parametrization, process: Process, network: Callable) -> Denoiser:
    """Wraps `network(x, noise) -> raw` as the contract `denoise(x [B, *S], sigma [B]) -> [B, *S]`."""

    def denoise(x, sigma):
        output = parametrization.outputs(network(*parametrization.inputs(process, x, sigma)))
        return parametrization.to_denoiser(process, output, x, sigma)

    return denoise
