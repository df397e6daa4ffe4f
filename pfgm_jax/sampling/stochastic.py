"""Samplers that draw fresh noise: DDPM's ancestral steps and the reverse SDEs. All need the score, hence D = ∞.

With d = E[y | x, σ], the score of the noised density at unscaled x is (d − x)/σ², and the noise from a level σ' up to σ
has variance σ² − σ'². DDPM's posterior of the lower level given the higher one and y = d is (arXiv 2006.11239, eq. 7,
written in σ)

    x' = d + (σ'/σ)² (x − d) + √v n,        v = σ'² (σ² − σ'²)/σ²,                                           (1)

the same for variance-preserving and exploding schedules. The reverse SDE of x_t = s(t) x (arXiv 2011.13456, eq. 6),
whose drift is (s'/s) x_t and whose diffusion is g² = 2 s² σ σ', has in the unscaled x the Euler-Maruyama step

    x⁻ = (s/s⁻) [ (1 − f h) x + (2 σ̇/σ) h (d − x) + √(2 σ σ̇ h) n ],        f = ṡ/s,  h = t − t⁻.             (2)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKeys
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.flow.process import Process
from pfgm_jax.sampling.fixed_grid import march
from pfgm_jax.sampling.grids import levels
from pfgm_jax.sampling.noise import require_gaussian, require_keys, standard_normal
from pfgm_jax.sampling.stats import Output, SolveStats

PREDICTORS = ("reverse_diffusion", "ancestral", "euler_maruyama")
_NO_SCORE = "(E[y | x, σ] − x)/σ² is a score only for the Gaussian kernel"


def ddim(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    steps: int = 50,
    eta: float = 0.0,
    grid: str | None = None,
    rho: float = 7.0,
    last_denoise: bool = True,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """DDIM (arXiv 2010.02502, eq. 12): x' = d + √(σ'² − η² v)/σ (x − d) + η √v n, v of equation (1).

    η = 0 is Euler's method of the flow, for every D; η = 1 is the ancestral sampler.

    Args:
      process, denoise, x, grid, rho, last_denoise, frames, framed, axis_name: as for `single_step.euler`.
      keys: [B] PRNG keys, one per sample, for η > 0.
      steps: levels n of the grid; n evaluations.
      eta: η from 0 to 1; above 0 needs D = ∞.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: η out of range or > 0 at finite D, an unknown grid, too few or too many steps.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"ddim needs eta from 0 to 1, got {eta}")
    if eta > 0:
        require_gaussian(process, "ddim with eta > 0", _NO_SCORE)
        require_keys(keys, "ddim with eta > 0")

    def step(denoise, x, memory, at):
        d = denoise(x, at.sigma)
        variance = eta**2 * _posterior_variance(at.sigma, at.sigma_next)
        x = d + jnp.sqrt(at.sigma_next**2 - variance) / at.sigma * (x - d)
        return x + jnp.sqrt(variance) * standard_normal(keys, at.index, x) if eta > 0 else x, memory

    sigmas = levels(process, grid, steps, rho)
    output = Output(last_denoise, frames, framed, axis_name)
    return march(denoise, x, sigmas, [(step, steps - 1)], output)


def ancestral(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    steps: int = 1000,
    variance: str = "small",
    clip: float = 1.0,
    grid: str | None = None,
    rho: float = 7.0,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """DDPM's sampler (arXiv 2006.11239, algorithm 2): equation (1), the last step without noise.

    Args:
      process, denoise, x, grid, rho, frames, framed, axis_name: as for `single_step.euler`.
      keys: [B] PRNG keys, one per sample.
      steps: levels n of the grid; n evaluations. With n = T the process's own grid.
      variance: "small" for v of (1), "large" for that of the forward step, DDPM's β, v = (σ² − σ'²) (s/s')²: for all T
        steps; with fewer its last steps leave a grain (arXiv 2010.02502, table 1, whose σ̂ it is).
      clip: E[y | x, σ] is clipped to [−clip, clip], the range of images, as published; `inf` for other data.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: finite D, an unknown variance or grid, too few or too many steps.
    """
    require_gaussian(process, "ancestral", _NO_SCORE)
    require_keys(keys, "ancestral")
    _one_of("variance", variance, ("small", "large"))
    if not clip > 0:
        raise UserError(f"ancestral needs clip > 0, got {clip}")
    sigmas = levels(process, grid, steps, rho)
    variances = _posterior_variance(sigmas[:-1], sigmas[1:])
    if variance == "large":
        variances = _difference(sigmas[:-1], sigmas[1:]) * _scale_ratio(process, sigmas)[:-1]

    def step(denoise, x, memory, at):
        d = last(denoise, x, at.sigma)
        mean = d + (at.sigma_next / at.sigma) ** 2 * (x - d)
        return mean + jnp.sqrt(at.extra) * standard_normal(keys, at.index, x), memory

    def last(denoise, x, sigma):
        return jnp.clip(denoise(x, sigma), -clip, clip)

    output = Output(True, frames, framed, axis_name)
    return march(denoise, x, sigmas, [(step, steps - 1)], output, extra=variances.astype(x.dtype), last=last)


def euler_maruyama(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    steps: int = 1000,
    grid: str | None = None,
    rho: float = 7.0,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """Euler-Maruyama steps (2) of the reverse SDE; then E[y | x, σ_min].

    Args:
      process, denoise, x, grid, rho, frames, framed, axis_name: as for `single_step.euler`.
      keys: [B] PRNG keys, one per sample.
      steps: levels n of the grid; n evaluations.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: finite D, a discrete process, an unknown grid, or fewer than 2 steps.
    """
    return predictor_corrector(
        process,
        denoise,
        x,
        keys=keys,
        steps=steps,
        grid=grid,
        rho=rho,
        predictor="euler_maruyama",
        corrector_steps=0,
        frames=frames,
        framed=framed,
        axis_name=axis_name,
    )


def predictor_corrector(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    steps: int = 1000,
    predictor: str = "reverse_diffusion",
    corrector_steps: int = 1,
    snr: float = 0.16,
    grid: str | None = None,
    rho: float = 7.0,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """Predictor-corrector sampling (arXiv 2011.13456, algorithms 1 to 5): Langevin steps at a level, then a step down.

    A corrector step is x += e·score + √(2e) n, e = 2a (snr ‖n‖/‖score‖)², with norms averaged over the batch on all
    devices, so that a sample depends on its batch; a is 1 where s = 1, the step's (s/s')² elsewhere (DDPM's 1 − β).

    Args:
      process, denoise, x, grid, rho, frames, framed, axis_name: as for `single_step.euler`.
      keys: [B] PRNG keys, one per sample.
      steps: levels n of the grid; n (1 + corrector_steps) evaluations.
      predictor: "reverse_diffusion", x + (σ² − σ'²) score + √(σ² − σ'²) n in the unscaled x (the published step for VE;
        for VP the published one expands it in x_t); "ancestral", equation (1); "euler_maruyama", equation (2).
      corrector_steps: Langevin steps before each predictor step.
      snr: their signal-to-noise ratio (0.16 CIFAR-10, 0.17 CelebA-64, 0.075 LSUN).

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: finite D, an unknown predictor or grid, euler_maruyama on a discrete process, too few or too many
        steps.
    """
    solver = "euler_maruyama" if predictor == "euler_maruyama" and not corrector_steps else "predictor_corrector"
    require_gaussian(process, solver, _NO_SCORE)
    require_keys(keys, solver)
    _one_of("predictor", predictor, PREDICTORS)
    if corrector_steps < 0 or not snr > 0:
        raise UserError(f"{solver} needs corrector_steps >= 0 and snr > 0, got {corrector_steps} and {snr}")
    if predictor == "euler_maruyama" and process.schedule.discrete:
        raise UserError(
            f"euler_maruyama needs a continuous time, and {process.name} has discrete levels; use ancestral or ddim"
        )
    sigmas = levels(process, grid, steps, rho)
    draws = corrector_steps + 1

    def correct(denoise, x, sigma, shrink, index):
        for i in range(corrector_steps):
            score = (denoise(x, sigma) - x) / sigma**2
            noise = standard_normal(keys, index * draws + i, x)
            e = 2 * shrink * (snr * _mean_norm(noise, axis_name) / _mean_norm(score, axis_name)) ** 2
            x = x + e * score + jnp.sqrt(2 * e) * noise
        return x

    def step(denoise, x, memory, at):
        shrink, drift, pull, noise_variance, rescale = at.extra
        x = correct(denoise, x, at.sigma, shrink, at.index)
        d = denoise(x, at.sigma)
        noise = standard_normal(keys, at.index * draws + corrector_steps, x)
        if predictor == "euler_maruyama":
            x = rescale * (drift * x + pull * (d - x) + jnp.sqrt(noise_variance) * noise)
        elif predictor == "ancestral":
            v = _posterior_variance(at.sigma, at.sigma_next)
            x = d + (at.sigma_next / at.sigma) ** 2 * (x - d) + jnp.sqrt(v) * noise
        else:
            v = _difference(at.sigma, at.sigma_next)
            x = x + v / at.sigma**2 * (d - x) + jnp.sqrt(v) * noise
        return x, memory

    shrink = _scale_ratio(process, sigmas).astype(x.dtype)

    def last(denoise, x, sigma):
        return denoise(correct(denoise, x, sigma, shrink[-1], steps - 1), sigma)

    euler = _euler_maruyama_coefficients(process, sigmas) if predictor == "euler_maruyama" else np.zeros((4, steps - 1))
    extra = tuple(a.astype(x.dtype) for a in (shrink[:-1], *euler))
    output = Output(True, frames, framed, axis_name)
    return march(denoise, x, sigmas, [(step, steps - 1)], output, extra=extra, last=last)


def _euler_maruyama_coefficients(process, sigmas):
    """(1 − f h, 2 σ̇ h/σ, 2 σ σ̇ h, s/s⁻) of equation (2) for each of the n − 1 steps."""

    def with_rate(function, t):
        return jax.jvp(function, (t,), (jnp.ones_like(t),))

    with jax.ensure_compile_time_eval():
        t = process.time(jnp.asarray(sigmas))
        curves = (t, *with_rate(process.sigma, t), *with_rate(process.scale, t))
        t, sigma, sigma_dot, scale, scale_dot = (np.asarray(a, np.float64) for a in curves)
    h = t[:-1] - t[1:]
    at = slice(None, -1)
    drift = 1 - scale_dot[at] / scale[at] * h
    return drift, 2 * sigma_dot[at] * h / sigma[at], 2 * sigma[at] * sigma_dot[at] * h, scale[:-1] / scale[1:]


def _scale_ratio(process, sigmas):
    """(s_i/s_(i+1))² at each level, the last one's neighbour being s = 1 at σ = 0: [n]."""
    with jax.ensure_compile_time_eval():
        scale = np.asarray(process.scale(process.time(jnp.asarray(sigmas))), np.float64)
    return (scale / np.append(scale[1:], 1.0)) ** 2


def _difference(sigma, sigma_next):
    """σ² − σ'², without cancellation."""
    return (sigma - sigma_next) * (sigma + sigma_next)


def _posterior_variance(sigma, sigma_next):
    """v of equation (1)."""
    return (sigma_next / sigma) ** 2 * _difference(sigma, sigma_next)


def _mean_norm(a, axis_name):
    """Mean over the batch, on all devices, of the norm of each sample."""
    norm = jnp.mean(jnp.linalg.norm(a.reshape(len(a), -1), axis=1))
    return norm if axis_name is None else lax.pmean(norm, axis_name)


def _one_of(what, value, options):
    if value not in options:
        raise UserError(f"unknown {what} {value!r}; choose from {', '.join(options)}{nearest(value, options)}")
