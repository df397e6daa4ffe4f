"""Multistep exponential integrators, for few evaluations: DPM-Solver++ (arXiv 2211.01095).

In λ = −ln σ the flow is dx/dλ = d(λ) − x, d = E[y | x, σ]. The linear part is integrated exactly and d is extrapolated
from its last values d, d₁, d₂ at distances h₁, h₂: over a step of h = ln(σ/σ'),

    x' = e^(−h) x + w₁ d + w₂ h d' + w₃ h² d''/2,        w_k = ∫₀ʰ e^(s−h) (s/h)^(k−1) ds,                    (1)
    w₁ = 1 − e^(−h),   w₂ = 1 − w₁/h,   w₃ = 1 − 2 w₂/h,

with divided differences for the derivatives: h d' ≈ a = (d − d₁) h/h₁ from two values; from three, with
b = (d₁ − d₂) h/h₂ and h² d''/2 = c = (a − b) h/(h₁ + h₂), it is a + c h₁/h. Only dx/dσ = (x − d)/σ is used, so the
methods hold at every D.

(1) departs from the published third-order step in one place. There the last term is (w₂/h − ½)·(−c) = w₃ c/2, half of
what the expansion asks for, which makes the method second order; with w₃ c it is third order, given a start that is
("rk4"). On the log grid that is better from 16 steps on; on EDM's grid the published weight errs less up to 32 steps.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKeys
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.flow.process import Process
from pfgm_jax.sampling.fixed_grid import march
from pfgm_jax.sampling.grids import levels
from pfgm_jax.sampling.stats import Output, SolveStats

# How the first steps, which have no past, are taken.
STARTS = ("published", "rk4")


def dpmpp_2m(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    steps: int = 18,
    grid: str | None = "log",
    rho: float = 7.0,
    start: str = "published",
    last_denoise: bool = True,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): second order, one evaluation a step.

    Args:
      process, denoise, x, keys, grid, rho, last_denoise, frames, framed, axis_name: as for `single_step.euler`.
      steps: levels n of the grid; n evaluations.
      start: how the first steps are taken: "published", by methods of lower order; "rk4", by the classical Runge-Kutta
        method in ln σ, for three more evaluations each.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: an unknown grid or start, or fewer than 2 steps.
    """
    del keys
    sigmas = levels(process, grid, steps, rho)
    return _multistep(2, start, denoise, x, sigmas, Output(last_denoise, frames, framed, axis_name))


def dpmpp_3m(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    steps: int = 18,
    grid: str | None = "log",
    rho: float = 7.0,
    start: str = "published",
    last_denoise: bool = True,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """DPM-Solver++(3M), corrected to third order (see the module): arguments, returns and errors of `dpmpp_2m`."""
    del keys
    sigmas = levels(process, grid, steps, rho)
    return _multistep(3, start, denoise, x, sigmas, Output(last_denoise, frames, framed, axis_name))


def weights(order: int, sigmas: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n-1 4"]:
    """Coefficients of (x, d, d₁, d₂) in each step over the grid `sigmas` [n], by equation (1): float64 [n − 1, 4].

    Order 2 takes w₁/2 for w₂, as published; the first steps are of the order that their past allows.
    """
    h = np.log(sigmas[:-1] / sigmas[1:])
    rows = np.zeros((len(h), 4))
    w1 = -np.expm1(-h)
    w2 = 1 - w1 / h
    w3 = 1 - 2 * w2 / h
    rows[:, 0], rows[:, 1] = np.exp(-h), w1
    for i in range(1, len(h)):
        a = np.array([1, -1, 0]) * h[i] / h[i - 1]
        if order == 2:
            rows[i, 1:] += w1[i] / 2 * a
        elif i == 1:
            rows[i, 1:] += w2[i] * a
        else:
            c = (a - np.array([0, 1, -1]) * h[i] / h[i - 2]) * h[i] / (h[i - 1] + h[i - 2])
            rows[i, 1:] += w2[i] * (a + c * h[i - 1] / h[i]) + w3[i] * c
    return rows


def _multistep(order, start, denoise, x, sigmas, output):
    """(samples, SolveStats) over the grid `sigmas` [n] by the method of `order` 2 or 3 and an Output."""
    if start not in STARTS:
        raise UserError(f"unknown start {start!r}; there are {', '.join(STARTS)}{nearest(start, STARTS)}")

    def step(denoise, x, past, at):
        values = (denoise(x, at.sigma), *past)
        of_x, of_values = at.extra[0], at.extra[1:]
        return of_x * x + sum(w * d for w, d in zip(of_values, values, strict=True)), values[:2]

    def rk4(denoise, x, past, at):
        h, middle = jnp.log(at.sigma / at.sigma_next), jnp.sqrt(at.sigma * at.sigma_next)
        d = denoise(x, at.sigma)
        k1 = d - x
        k2 = denoise(x + h / 2 * k1, middle) - (x + h / 2 * k1)
        k3 = denoise(x + h / 2 * k2, middle) - (x + h / 2 * k2)
        k4 = denoise(x + h * k3, at.sigma_next) - (x + h * k3)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), (d, past[0])

    intervals = len(sigmas) - 1
    begin = min(order - 1, intervals) if start == "rk4" else 0
    segments = [(rk4, begin), (step, intervals - begin)]
    extra, memory = jnp.asarray(weights(order, sigmas), x.dtype), (jnp.zeros_like(x), jnp.zeros_like(x))
    return march(denoise, x, sigmas, segments, output, extra=extra, memory=memory)
