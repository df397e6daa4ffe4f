"""The flow map, from any noise level to any lower one, and sampling by it in few evaluations.

The flow dx/dσ = (x − E[y | x, σ])/σ leads from x at σ to a point F(x, σ, σ') at every lower level σ'. Written as one
step of Euler's method,

    F(x, σ, σ') = d(x, σ, σ') + (σ'/σ) (x − d(x, σ, σ')),                                                    (1)

it defines the two-time denoiser d: for σ' → σ the posterior mean E[y | x, σ], for σ' = 0 the consistency function
(arXiv 2303.01469), which is where the flow ends. A run tuned by `training.tune` has learned the latter.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKeys
from pfgm_jax.errors import UserError
from pfgm_jax.flow.kernel import kernel_noise
from pfgm_jax.flow.process import Process, pfgmpp
from pfgm_jax.sampling.adaptive import rk45
from pfgm_jax.sampling.fixed_grid import march
from pfgm_jax.sampling.noise import require_keys
from pfgm_jax.sampling.stats import Output, SolveStats


def flow_map(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    sigma: float,
    sigma_next: float = 0.0,
    tolerance: float = 1e-5,
) -> Float[Array, "B *S"]:
    """F(x, σ, σ') of equation (1) by RK45: where the flow of `denoise` takes x from σ to σ', [B, *S].

    Args:
      process: gives D and the level σ_min below which, for σ' = 0, one step of Euler's method is taken.
      denoise: posterior mean `(x [B, *S], sigma [B]) -> [B, *S]`: of a network, or the exact one of a data set.
      x: [B, *S] states at σ, unscaled. sigma, sigma_next: numbers, σ > σ' >= 0 and σ > σ_min.
      tolerance: rtol and atol of the solver.

    Raises:
      UserError: levels that are not descending.
    """
    low = sigma_next or process.sigma_min
    if not 0 <= sigma_next < sigma or not low < sigma < math.inf:
        raise UserError(f"the flow leads down, from a level above {low:g}; got {sigma:g} to {sigma_next:g}")
    # The flow in σ and the unscaled x is the same for every process of this D.
    between = pfgmpp(process.D, sigma_min=float(low), sigma_max=float(sigma))
    return rk45(between, denoise, x, rtol=tolerance, atol=tolerance, last_denoise=not sigma_next)[0]


def two_time_denoiser(
    x: Float[Arrays, "B *S"], reached: Float[Arrays, "B *S"], sigma: float, sigma_next: float
) -> Float[Array, "B *S"]:
    """d(x, σ, σ') of equation (1), [B, *S], from x at σ and the point `reached` = F(x, σ, σ') [B, *S]."""
    ratio = sigma_next / sigma
    return (jnp.asarray(reached) - ratio * jnp.asarray(x)) / (1 - ratio)


def consistency(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    steps: int = 2,
    levels: str | None = None,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """Multistep consistency sampling (arXiv 2303.01469, algorithm 1): to σ = 0 at once, up by fresh noise, down again.

    The noise is a full draw of the process's kernel around the point at σ = 0, so that for the exact flow map every
    evaluation keeps the law of the data, at every D.

    Args:
      process: gives the kernel.
      denoise: the consistency function `(x [B, *S], sigma [B]) -> [B, *S]`, which leads to σ = 0; not a posterior mean.
      x: [B, *S] draws of the prior at σ_max, unscaled.
      keys: [B] PRNG keys, one per sample, for the noise of the second evaluation and on.
      steps: evaluations, the first at σ_max.
      levels: where the others are, falling, as text like "0.8,0.3", of which the first steps − 1 are taken; None for
        levels evenly spread in ln σ between σ_max and σ_min.
      frames, framed, axis_name: as for `single_step.euler`; a frame is a state before an evaluation.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: steps < 1, or levels that are not descending numbers between σ_max and σ_min, or too few of them.
    """
    sigmas = _levels(process, steps, levels)
    if steps > 1:
        require_keys(keys, "consistency with more than one step")

    def step(denoise, x, memory, at):
        def lifted(key, y):
            noise = kernel_noise(jax.random.fold_in(key, at.index), y.shape, process.D, y.dtype)
            return y + at.sigma_next * noise

        return jax.vmap(lifted)(keys, denoise(x, at.sigma)), memory

    segments = [(step, steps - 1)] if steps > 1 else []
    return march(denoise, x, sigmas, segments, Output(True, frames, framed, axis_name))


def _levels(process, steps, text):
    """[steps] float64 noise levels of the evaluations: σ_max, and those of the text."""
    if not 1 <= steps <= 1000:
        raise UserError(f"consistency takes 1 to 1,000 steps (evaluations), got {steps}")
    if text is None:
        return np.geomspace(process.sigma_max, process.sigma_min, steps + 1)[:-1]
    try:
        sigmas = np.array([process.sigma_max, *(float(word) for word in text.split(",") if word.strip())])
    except ValueError:
        raise UserError(f"the levels of consistency must be numbers like 0.8,0.3, got {text!r}") from None
    if len(sigmas) < steps:
        raise UserError(
            f"consistency with steps={steps} needs {steps - 1} levels below σ_max, and {text!r} has {len(sigmas) - 1}: "
            "give more, or none for levels evenly spread in ln σ"
        )
    sigmas = sigmas[:steps]
    if not (np.isfinite(sigmas).all() and (np.diff(sigmas) < 0).all() and sigmas[-1] >= process.sigma_min):
        raise UserError(
            f"the levels of consistency must fall from below σ_max = {process.sigma_max:.4g} to no less than "
            f"σ_min = {process.sigma_min:g}, got {text}"
        )
    return sigmas
