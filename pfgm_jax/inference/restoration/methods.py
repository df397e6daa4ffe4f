"""Ways from a measurement to a restored image: `(problem, denoise, process, keys, options) -> x [B, H, W, C]`.

Each returns one draw for each row. `METHODS` says for which tasks, noise and D a method is, and its options.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKeys, per_example
from pfgm_jax.flow.kernel import GAUSSIAN_D, kernel_noise
from pfgm_jax.flow.process import Process, prior
from pfgm_jax.inference.restoration import noise as noises
from pfgm_jax.inference.restoration.operators import Operator, conditioned, weighted_inverse
from pfgm_jax.inference.restoration.reverse import ancestral, grid, posterior_draw, posterior_moments
from pfgm_jax.sampling import heun
from pfgm_jax.sampling.noise import standard_normal


class Problem(NamedTuple):
    """What was measured.

    Attributes:
      measurement: [B, *M] floats in the unit scale.
      operator: A and Aᵀ.
      kind: of the noise, in `noise.KINDS`.
      level: [B] of the noise; 0 for none.
      noiseless: whether all levels are 0 (static).
      observed: where the measurement has values, broadcasts to [B, *M].
      spread: the data's standard deviation.
    """

    measurement: Any
    operator: Operator
    kind: str
    level: Any
    noiseless: bool
    observed: Any
    spread: float


def _keys(keys, index):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, index)


def matched(
    problem: Problem, denoise: Denoiser, process: Process, keys: PRNGKeys, steps: int
) -> Float[Arrays, "B H W C"]:
    """A noisy image is a state of the flow at the level of its noise, and is followed from there.

    PPFM's "hijacking" (arXiv 2312.09754), here with fresh noise on the way (`reverse.posterior_draw`): at D = ∞ and
    Gaussian noise draws of the posterior, in one evaluation its mean.
    """
    start = noises.deviation(problem.kind, problem.level, problem.measurement)
    return posterior_draw(denoise, keys, problem.measurement, start, process.sigma_min, process.D, steps)


def repaint(
    problem: Problem, denoise: Denoiser, process: Process, keys: PRNGKeys, steps: int, resample: int
) -> Float[Arrays, "B H W C"]:
    """Observed pixels are replaced at every level by the measured ones with the level's noise (arXiv 2011.13456,
    appendix I.2); each step is repeated `resample` times, with noise upwards in between (RePaint, arXiv 2201.09865).

    The noise has the variance τ σ² of `reverse.posterior_moments`, the same for replaced and other pixels, as the
    kernel's has at finite D. Of noisy measurements replacement ends where the level comes below their noise.
    """
    m, seen = problem.measurement, problem.observed
    own = jnp.square(noises.deviation(problem.kind, problem.level, m))
    start = jax.vmap(lambda key: kernel_noise(key, m.shape[1:], process.D, m.dtype))(_keys(keys, 0))
    x = process.sigma_max * start
    x = jnp.where(seen, m + x, x)
    sigmas = grid(jnp.full(len(m), process.sigma_max), process.sigma_min, steps)

    def down(x, row):
        index, sigma, after = row
        ratio = (after / sigma) ** 2

        def once(i, x):
            key = _keys(_keys(keys, index + 1), i)
            step = posterior_moments(denoise, key, x, sigma, process.D)
            new = ancestral(key, 0, x, step, sigma, after)
            variance = step.noise * ratio
            noise = per_example(jnp.sqrt(jnp.maximum(variance - own, 0)), x) * standard_normal(key, 1, x)
            replaced = jnp.where(seen & per_example(variance > own, x), m + noise, new)
            lift = per_example(jnp.sqrt(step.noise * (1 - ratio)), x) * standard_normal(key, 2, x)
            return jnp.where(i + 1 < resample, replaced + lift, replaced)

        return jax.lax.fori_loop(0, resample, once, x), None

    x, _ = jax.lax.scan(down, x, (jnp.arange(steps - 1), sigmas[:-1], sigmas[1:]))
    x = denoise(x, sigmas[-1])
    return jnp.where(seen, m, x) if problem.noiseless else x


def pigdm(
    problem: Problem, denoise: Denoiser, process: Process, keys: PRNGKeys, steps: int
) -> Float[Arrays, "B H W C"]:
    """ΠGDM (Song et al., ICLR 2023, openreview 9_gsMA8MRKQ): the score of p(m | x) with y | x ~ N(d, r²).

    d is moved by σ² Jᵀ Aᵀ (r² A Aᵀ + s²)⁻¹ (m − A d) with J = ∂d/∂x and r² = σ² σ_d²/(σ² + σ_d²), σ_d the data's
    standard deviation: exact for data N(0, σ_d²), and for D = ∞ only, where d has a score.
    """
    m, forward, adjoint = problem.measurement, problem.operator.forward, problem.operator.adjoint

    def guided(x, sigma):
        spread = sigma**2 * problem.spread**2 / (sigma**2 + problem.spread**2)
        d, pull = jax.vjp(lambda x: denoise(x, sigma), x)
        variance = noises.variance(problem.kind, problem.level, forward(d))
        v = weighted_inverse(problem.operator, m - forward(d), variance, spread)
        return d + per_example(sigma**2, x) * pull(adjoint(v))[0]

    x = prior(process, _keys(keys, 0), problem.operator.adjoint(m).shape[1:], m.dtype)
    start = jnp.full(len(m), process.sigma_max)
    x = posterior_draw(guided, _keys(keys, 1), x, start, process.sigma_min, process.D, steps, plain=True)
    return _consistent(problem, x)


def split_gibbs(
    problem: Problem, denoise: Denoiser, process: Process, keys: PRNGKeys, sweeps: int, steps: int, lowest: float
) -> Float[Arrays, "B H W C"]:
    """The split Gibbs sampler (PnP-DM, arXiv 2405.18782), here at every D.

    The target p(y) p(m | z) k(z | y, ρ) has the flow's own kernel k between an image y and a copy z of it that
    meets the measurement. Its parts are drawn in turn, while ρ falls from HIGHEST to a share `lowest` of the noise:

        W | y, z   the kernel's mixing variable, (D + ‖z − y‖²/ρ²)/χ²_(N + D)      (1 at D = ∞)
        z | y, W, m   Gaussian: `operators.conditioned`
        y | z      the denoiser's posterior at the level ρ, by `reverse.posterior_draw` in `steps` evaluations

    As ρ falls, y follows the posterior given m, up to the error of the last part and to how well it mixes. From one ρ
    to the next the chain keeps ‖z − y‖²/ρ², not ‖z − y‖²: of that W would forget a share D/(N + D) a sweep only, and z
    would stay as far from y as it was at the first ρ.
    """
    m, D = problem.measurement, process.D
    shape = jax.eval_shape(problem.operator.adjoint, m).shape[1:]
    noise_level = noises.deviation(problem.kind, problem.level, m)
    end = jnp.maximum(lowest * noise_level, process.sigma_min)
    high = jnp.full(len(m), min(process.sigma_max, HIGHEST))
    rhos = end * (high / end) ** (1 - jnp.arange(sweeps)[:, None] / max(sweeps - 1, 1))
    y = jnp.zeros((len(m), *shape), m.dtype)
    first = jax.vmap(lambda key: kernel_noise(key, shape, D, m.dtype))(_keys(keys, 0))

    def sweep(state, row):
        y, squared = state
        index, rho = row
        key = _keys(keys, index + 1)
        width = rho**2 * _mixing(_keys(key, 0), squared, shape, D)
        clean = problem.operator.forward(y)
        variance = noises.mixture_variance(problem.kind, _keys(key, 1), problem.level, m, clean)
        variance = jnp.where(problem.observed, variance, 0)
        noisy = m + jnp.sqrt(variance) * standard_normal(key, 2, m)
        z = conditioned(problem.operator, y + per_example(jnp.sqrt(width), y) * standard_normal(key, 3, y), noisy,
                        variance, width)  # fmt: skip
        y = posterior_draw(denoise, _keys(key, 4), z, rho, process.sigma_min, D, steps)
        return (y, jnp.sum(jnp.square(z - y).reshape(len(y), -1), axis=1) / rho**2), None

    squared = jnp.sum(jnp.square(first.reshape(len(m), -1)), axis=1)
    (y, _), _ = jax.lax.scan(sweep, (y, squared), (jnp.arange(sweeps), rhos))
    return _consistent(problem, y)


def conditional(
    problem: Problem, denoise: Denoiser, process: Process, keys: PRNGKeys, steps: int
) -> Float[Arrays, "B H W C"]:
    """A network conditioned on the measurement (`condition`): Heun's method down its flow, which ends in the posterior.

    `steps` levels take 2 · steps − 1 evaluations; one step is the denoiser at σ_max, nearly the posterior's mean.
    """
    m = problem.measurement
    x = prior(process, _keys(keys, 0), jax.eval_shape(problem.operator.adjoint, m).shape[1:], m.dtype)
    if steps == 1:
        x = denoise(x, jnp.full(len(x), process.sigma_max, x.dtype))
    else:
        x = heun(process, denoise, x, steps=steps)[0]
    return _consistent(problem, x)


HIGHEST = 10.0  # first ρ of the Gibbs sampler, in the unit scale


def _mixing(keys, squared, shape, D):
    """W [B] given ‖z − y‖²/ρ² [B]."""
    if D >= GAUSSIAN_D:
        return jnp.ones_like(squared)
    half = (math.prod(shape) + D) / 2
    chi2 = 2 * jax.vmap(lambda key: jax.random.gamma(key, half, (), squared.dtype))(keys)
    return (D + squared) / chi2


def _consistent(problem, x):
    """Without noise the nearest image that meets the measurement; else the image as it is."""
    if not problem.noiseless:
        return x
    variance = jnp.zeros((), x.dtype)
    return conditioned(problem.operator, x, problem.measurement, variance, jnp.ones(len(x), x.dtype))


@dataclasses.dataclass(frozen=True)
class Method:
    """A method, its default options, and what it is for.

    Attributes:
      run: the function.
      options: its options and their defaults.
      tasks: names of the tasks it serves; () for all.
      gaussian: whether it needs D = ∞.
    """

    run: Callable
    options: dict
    tasks: tuple = ()
    gaussian: bool = False


CONDITIONAL = "conditional"  # the method of networks conditioned on the measurement, and of no others
METHODS = {
    "matched": Method(matched, {"steps": 35}, ("denoise",)),
    "repaint": Method(repaint, {"steps": 35, "resample": 4}, ("inpaint",)),
    "pigdm": Method(pigdm, {"steps": 35}, gaussian=True),
    "split_gibbs": Method(split_gibbs, {"sweeps": 60, "steps": 5, "lowest": 0.3}),
    CONDITIONAL: Method(conditional, {"steps": 18}),
}
