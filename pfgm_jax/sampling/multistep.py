"""Multistep methods, for few evaluations: DPM-Solver++ (arXiv 2211.01095) and iPNDM (arXiv 2204.13902).

DPM-Solver++ is a family of exponential integrators.

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

iPNDM is the Adams-Bashforth method in σ: x' = x + (σ' − σ) Σ b_j f_j over the last slopes f = (x − d)/σ, in two forms.
The published one takes the weights b of equal steps on any grid; as neighbouring steps differ by a part of the step,
it is of second order in the limit. The other takes the integral of the polynomial through the last slopes at the
levels where they are,

    b_j = ∫ l_j(s) ds/(σ' − σ) from σ to σ',    l_j the Lagrange polynomials of those levels,               (2)

which is of order 4 after an accurate start. On a grid of equal steps the two are one.
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


def ipndm(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    steps: int = 10,
    grid: str | None = "edm",
    rho: float = 7.0,
    start: str = "published",
    equal_weights: bool = True,
    last_denoise: bool = True,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """iPNDM (arXiv 2204.13902, equation 27; in σ as in arXiv 2312.00094): Adams-Bashforth of order 4 in σ.

    Args:
      process, denoise, x, keys, grid, rho, last_denoise, frames, framed, axis_name: as for `single_step.euler`.
      steps: levels n of the grid; n evaluations.
      start: as for `dpmpp_2m`: "published", orders 1, 2 and 3; "rk4", with nine more evaluations.
      equal_weights: the published weights, those of equal steps; False takes equation (2) of the module.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: an unknown grid or start, or fewer than 2 steps.
    """
    del keys
    sigmas = levels(process, grid, steps, rho)
    rows = adams_bashforth(sigmas, equal_weights)
    return _walk(4, rows, start, denoise, x, sigmas, Output(last_denoise, frames, framed, axis_name))


def adams_bashforth(sigmas: Float[np.ndarray, "n"], equal_weights: bool) -> Float[np.ndarray, "n-1 5"]:
    """Coefficients of (x, f, f₁, f₂, f₃) in each step of `ipndm` over the grid `sigmas` [n]: float64 [n − 1, 5].

    The first three steps are of the order that their past allows.
    """
    rows = np.zeros((len(sigmas) - 1, 5))
    rows[:, 0] = 1
    for i, step in enumerate(np.diff(sigmas)):
        order = min(i + 1, 4)
        # Levels of the slopes in units of the step, from where it begins.
        nodes = -np.arange(order) if equal_weights else (sigmas[i - np.arange(order)] - sigmas[i]) / step
        # Σ b_j nodes_j^k = ∫₀¹ s^k ds for all powers below the order.
        powers = np.arange(order)
        rows[i, 1 : order + 1] = step * np.linalg.solve(nodes[None, :] ** powers[:, None], 1 / (powers + 1))
    return rows


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
    """(samples, SolveStats) over the grid `sigmas` [n] by DPM-Solver++ of `order` 2 or 3 and an Output."""
    return _walk(order, weights(order, sigmas), start, denoise, x, sigmas, output)


def _walk(order, rows, start, denoise, x, sigmas, output):
    """(samples, SolveStats) of the method whose steps have the coefficients `rows` [n − 1, 1 + m] of x and m values.

    The values are those of d where m = 3 (DPM-Solver++), of the slope (x − d)/σ where m = 4 (iPNDM).
    """
    if start not in STARTS:
        raise UserError(f"unknown start {start!r}; choose from {', '.join(STARTS)}{nearest(start, STARTS)}")
    kept = rows.shape[1] - 2

    def value(x, d, sigma):
        return d if kept == 2 else (x - d) / sigma

    def step(denoise, x, past, at):
        values = (value(x, denoise(x, at.sigma), at.sigma), *past)
        of_x, of_values = at.extra[0], at.extra[1:]
        return of_x * x + sum(w * v for w, v in zip(of_values, values, strict=True)), values[:kept]

    def rk4(denoise, x, past, at):
        h, middle = jnp.log(at.sigma / at.sigma_next), jnp.sqrt(at.sigma * at.sigma_next)
        d = denoise(x, at.sigma)
        k1 = d - x
        k2 = denoise(x + h / 2 * k1, middle) - (x + h / 2 * k1)
        k3 = denoise(x + h / 2 * k2, middle) - (x + h / 2 * k2)
        k4 = denoise(x + h * k3, at.sigma_next) - (x + h * k3)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), (value(x, d, at.sigma), *past)[:kept]

    intervals = len(sigmas) - 1
    begin = min(order - 1, intervals) if start == "rk4" else 0
    segments = [(rk4, begin), (step, intervals - begin)]
    x = jnp.asarray(x)
    extra, memory = jnp.asarray(rows, x.dtype), (jnp.zeros_like(x),) * kept
    return march(denoise, x, sigmas, segments, output, extra=extra, memory=memory)
