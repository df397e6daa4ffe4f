"""UniPC (arXiv 2302.04867): a multistep predictor, corrected by the value that the next step needs anyway.

With λ = −ln σ and h = ln(σ/σ'), a step integrates the linear part exactly (`multistep.py`, equation 1),

    x' = e^(−h) x + Σ w_j d_j,        w_j = ∫₀ʰ e^(s−h) l_j(s) ds,                                            (1)

l_j the Lagrange polynomials of the points where the values d_j are. The predictor (UniP-3) takes the last three; the
value at its x' is the one of the next step, and with it the corrector (UniC-3) takes the step again over four points.
So an evaluation serves twice, and the method is one order higher than its predictor; its first step, a first-order one
corrected to second order, limits it to order 3. The x where the last value is taken is not corrected.

The paper writes (1) with a function B(h), which cancels in the integrals; its choices of B differ where it puts ½ for
the weight of the first corrector and the second predictor. Here all weights are the integrals (1), by quadrature.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKeys
from pfgm_jax.flow.process import Process
from pfgm_jax.sampling.fixed_grid import march
from pfgm_jax.sampling.grids import levels
from pfgm_jax.sampling.stats import Output, SolveStats

ORDER = 3


def unipc(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    steps: int = 10,
    grid: str | None = "edm",
    rho: float = 7.0,
    last_denoise: bool = True,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """UniPC-3 with its values of d (see the module): one evaluation a step.

    Args:
      process, denoise, x, keys, grid, rho, last_denoise, frames, framed, axis_name: as for `single_step.euler`.
      steps: levels n of the grid; n evaluations.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: an unknown grid, or fewer than 2 steps.
    """
    del keys
    sigmas = levels(process, grid, steps, rho)

    def step(denoise, x, memory, at):
        before, *past = memory
        values = (denoise(x, at.sigma), *past)
        (own, earlier, *corrected), (kept, *predicted) = at.extra
        x = own * x + earlier * before + _weighted(corrected, values)
        return kept * x + _weighted(predicted, values[:ORDER]), (x, *values[:ORDER])

    x = jnp.asarray(x)
    extra = tuple(jnp.asarray(rows, x.dtype) for rows in coefficients(sigmas))
    output = Output(last_denoise, frames, framed, axis_name)
    memory = (jnp.zeros_like(x),) * (ORDER + 1)
    return march(denoise, x, sigmas, [(step, steps - 1)], output, extra=extra, memory=memory)


def coefficients(
    sigmas: Float[np.ndarray, "n"],
) -> tuple[Float[np.ndarray, "n-1 6"], Float[np.ndarray, "n-1 4"]]:
    """Of each step over the levels `sigmas` [n], float64: what corrects the state at its start, and what leaves it.

    The first rows are coefficients of (x, the x before it, d, d₁, d₂, d₃), the second of (the corrected x, d, d₁, d₂).
    """
    time = -np.log(sigmas)
    corrector, predictor = np.zeros((len(sigmas) - 1, ORDER + 3)), np.zeros((len(sigmas) - 1, ORDER + 1))
    corrector[0, 0] = 1  # the prior's draw
    for i, (begin, end) in enumerate(zip(time[:-1], time[1:], strict=True)):
        past = time[max(0, i + 1 - ORDER) : i + 1][::-1]
        predictor[i, 0] = np.exp(begin - end)
        predictor[i, 1 : len(past) + 1] = _integrals(begin, end, past)
        if i + 2 < len(time):
            points = np.append(end, past)
            corrector[i + 1, 1] = np.exp(begin - end)
            corrector[i + 1, 2 : len(points) + 2] = _integrals(begin, end, points)
    return corrector, predictor


def _integrals(begin, end, points):
    """∫ e^(s − end) l_j(s) ds from `begin` to `end` for the Lagrange polynomials of `points`: w_j of equation (1)."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    s = begin + (nodes + 1) / 2 * (end - begin)
    weights = weights / 2 * (end - begin) * np.exp(s - end)
    others = lambda j: np.delete(points, j)
    return np.array(
        [weights @ np.prod((s[:, None] - others(j)) / (point - others(j)), axis=1) for j, point in enumerate(points)]
    )


def _weighted(coefficients, values):
    return sum(c * v for c, v in zip(coefficients, values, strict=True))
