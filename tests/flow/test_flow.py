"""Solvers of the flow: order of convergence, the law they carry along, and their formulas step by step."""

import functools
import math

import jax
import numpy as np
import oracles
import pytest
from oracles import CHARGES, FREQUENCIES, draw, keys, solve
from scipy.integrate import quad_vec
from scipy.interpolate import lagrange

from pfgm_jax import sampling
from pfgm_jax.flow import field
from pfgm_jax.flow.process import ddpm, edm, perturb, pfgmpp, vp
from pfgm_jax.sampling import multistep

POINTS = np.random.default_rng(0).normal(size=(6, 3))

# ---- order of convergence


@functools.cache
def smooth(field_name):
    """(process, denoise, x, where the flow takes x): both fields are smooth from σ = 5 to 0.3."""
    D = math.inf if field_name == "gaussian" else 3.5
    process = pfgmpp(D, 0.3, 5.0)
    x = 5 * np.random.default_rng(1).normal(size=(4, 3))
    if field_name == "gaussian":
        data = oracles.Gaussian()
        return process, data.denoise, x, data.flow(x, 5.0, 0.3)
    return process, oracles.denoiser(POINTS, D), x, oracles.flow(x, 5.0, 0.3, POINTS, D)


def order(solver, field_name, counts, option="steps", **options):
    """Minus the slope of ln error over ln (number of intervals)."""
    process, denoise, x, exact = smooth(field_name)
    errors = [
        np.linalg.norm(solve(solver, process, denoise, x, last_denoise=False, **{option: n}, **options)[0] - exact)
        for n in counts
    ]
    intervals = np.array(counts) - (option == "steps")
    return -np.polyfit(np.log(intervals), np.log(errors), 1)[0]


FIXED_STEPS = [
    # solver, options, levels, order, its tolerance: what the next term of the error adds at these steps
    ("euler", {}, [101, 201, 401], 1, 0.03),
    ("heun", {}, [41, 81, 161], 2, 0.06),
    ("heun", dict(grid="log"), [41, 81, 161], 2, 0.06),
    ("dpmpp_2m", {}, [81, 161, 321], 2, 0.06),
    ("dpmpp_2m", dict(start="rk4", grid="edm"), [81, 161, 321], 2, 0.06),
    ("dpmpp_3m", dict(start="rk4"), [81, 161, 321], 3, 0.3),
    ("dpmpp_3m", dict(start="published"), [81, 161, 321], 2, 0.2),
    ("ipndm", dict(start="rk4", equal_weights=False), [161, 321, 641], 4, 0.3),
    ("ipndm", dict(start="rk4", equal_weights=False, grid="log"), [161, 321, 641], 4, 0.3),
    ("ipndm", dict(start="rk4", rho=1.0), [161, 321, 641], 4, 0.3),  # equal steps
    ("ipndm", dict(equal_weights=False), [161, 321, 641], 2, 0.2),  # its first step is Euler's
    ("unipc", {}, [81, 161, 321], 4, 0.5),  # the third order of its first step, a small part of the way, is yet to come
    ("ipndm", {}, [161, 321, 641], 2, 0.1),  # neighbouring steps differ by a part of the step
]


@pytest.mark.parametrize("field_name", ["gaussian", "points"])
@pytest.mark.parametrize("solver, options, counts, expected, tolerance", FIXED_STEPS)
def test_order_of_fixed_steps(x64, field_name, solver, options, counts, expected, tolerance):
    assert order(solver, field_name, counts, **options) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("field_name", ["gaussian", "points"])
def test_unipc_on_the_log_grid_is_of_order_3_or_more(x64, field_name):
    """Its first step is of second order, which limits it to 3; the others are of order 4."""
    assert 2.9 < order("unipc", field_name, [81, 161, 321], grid="log") < 4.2


@pytest.mark.parametrize("solver, field_name, low, high", [
    ("rk45", "gaussian", 4.7, 5.3),
    ("rk45", "points", 4.7, 5.3),
    ("tsit5", "gaussian", 4.7, 6.0),  # its leading error is so small that the next order shows
    ("tsit5", "points", 4.7, 6.0),
])  # fmt: skip
def test_order_of_equal_steps_in_log_sigma(x64, solver, field_name, low, high):
    assert low < order(solver, field_name, [40, 80], "fixed_steps") < high


@pytest.mark.parametrize("field_name", ["gaussian", "points"])
def test_the_published_third_order_coefficient_gives_second_order(x64, monkeypatch, field_name):
    def published(order, sigmas):
        """(w₂/h − ½)·(−c) for w₃ c, i.e. half of it: the mean of the weights with w₃ and those with 0 for it."""
        rows, h = corrected(order, sigmas), np.log(sigmas[:-1] / sigmas[1:])
        for i in range(2, len(h)):
            w3 = 1 - 2 / h[i] * (1 + np.expm1(-h[i]) / h[i])
            divided = [h[i] / h[i - 1], -h[i] / h[i - 1] - h[i] / h[i - 2], h[i] / h[i - 2]]
            rows[i, 1:] -= w3 / 2 * np.array(divided) * h[i] / (h[i - 1] + h[i - 2])
        return rows

    corrected = multistep.weights
    monkeypatch.setattr(multistep, "weights", published)
    assert order("dpmpp_3m", field_name, [81, 161, 321], start="rk4") == pytest.approx(2, abs=0.2)


# ---- the law that the flow carries along


@pytest.mark.parametrize("solver, options", [("rk45", dict(rtol=1e-5, atol=1e-5)), ("heun", dict(steps=60))])
@pytest.mark.parametrize("D", [1, 3.5, 128, math.inf])
def test_the_flow_carries_the_noised_law(x64, solver, options, D):
    """Samples of kernel * data at σ = 3, taken by the flow to σ = 0.5, are samples of kernel * data there."""
    n, m, process = 20_000, 100_000, pfgmpp(D, 0.5, 3.0)
    points = np.array([[2.0, 0, 0], [-1, 1.5, 0], [0, -1, 1], [-1, 1.5, 0]])

    @functools.partial(jax.jit, static_argnums=1)
    def noised(keys, sigma):
        choice = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(points)))(keys)
        return perturb(process, keys, jax.numpy.asarray(points)[choice], np.full(len(keys), sigma))

    x, _ = solve(solver, process, oracles.denoiser(points, D), noised(keys(n), 3.0), last_denoise=False, **options)
    direct, p = np.asarray(noised(keys(m, seed=1), 0.5)), np.arange(1, 20) / 20
    directions = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, -1, 0.5]])
    along = lambda x: np.stack([np.linalg.norm(x - points.mean(axis=0), axis=1), *directions @ x.T])
    for of_direct, of_flow in zip(along(direct), along(np.asarray(x)), strict=True):
        below = np.mean(of_flow[:, None] <= np.quantile(of_direct, p), axis=0)
        # Binomial error of n samples below a level, and of the level itself, found from m. The solvers' own error, 1e-3
        # at most, moves the share below a level by less than a tenth of that.
        np.testing.assert_array_less(np.abs(below - p), 5 * np.sqrt(p * (1 - p) * (1 / n + 1 / m)))


@pytest.mark.parametrize("D", [1, 128, math.inf])
@pytest.mark.parametrize("solver, options", [("rk45", {}), ("heun", dict(steps=40)), ("dpmpp_3m", dict(steps=80))])
def test_samples_are_the_charges_in_their_proportions(x64, solver, options, D):
    # The prior is centred at 0, the charges' mean 1.2 away: their total variation is below 0.4 · 1.2/σ_max, plus terms
    # in 1/σ_max², and the flow carries that over. At σ_max = 1000 it is 5e-4, against 5 sigma = 0.04.
    # σ_min is small because at D = 1 a sample stays σ_min times a Cauchy factor away from its charge.
    n, process = 4000, pfgmpp(D, sigma_min=1e-5, sigma_max=1000.0)
    denoise = field.exact_denoiser(CHARGES, D) if solver == "rk45" else oracles.denoiser(CHARGES, D)
    x, stats = solve(solver, process, denoise, draw(process, n, (4,)), **options)
    distance = np.linalg.norm(np.asarray(x)[:, None] - CHARGES[[0, 3, 5]], axis=2)
    assert stats.completed and distance.min(axis=1).max() < 1e-3
    counts = np.bincount(distance.argmin(axis=1), minlength=3)
    np.testing.assert_array_less(np.abs(counts / n - FREQUENCIES), 5 * np.sqrt(FREQUENCIES * (1 - FREQUENCIES) / n))


@pytest.mark.parametrize("solver, options", [("rk45", dict(rtol=1e-6, atol=1e-6)), ("heun", dict(steps=60))])
def test_samples_of_a_gaussian(solver, options):
    # The prior's own bias: mean 1.8 · √(variance)/σ_max < 3e-3, below a tenth of 5 sigma.
    data, n, process = oracles.Gaussian(), 20_000, edm(sigma_max=1000.0)
    x, _ = solve(solver, process, data.denoise, draw(process, n, (3,)), **options)
    z = data.components(x) / np.sqrt(data.variance)
    assert np.abs(z.mean(axis=0)).max() < 5 / math.sqrt(n) + 3e-3
    error = np.abs(np.cov(z.T) - np.eye(3))  # sd √(2/n) on the diagonal, √(1/n) off it
    assert error.max() < 5 * math.sqrt(2 / n) + 1e-3


# ---- one answer


@pytest.mark.parametrize("D", [1, 3.5, 128, math.inf])
def test_all_solvers_agree_in_the_limit(x64, D):
    # Tolerances: ten times the c hᵖ that each method's order leaves of its error at a few hundred steps.
    process, x = pfgmpp(D, 0.02, 20.0), 20 * np.random.default_rng(3).normal(size=(5, 3))
    exact = oracles.flow(x, 20.0, 0.02, POINTS, D)
    denoise = oracles.denoiser(POINTS, D)
    for solver, options, tolerance in [
        ("euler", dict(steps=1000), 2e-3),
        ("ddim", dict(steps=1000, grid="log"), 2e-3),
        ("heun", dict(steps=300), 5e-5),
        ("heun", dict(steps=300, grid="log"), 5e-5),
        ("dpmpp_2m", dict(steps=300), 5e-5),
        ("dpmpp_3m", dict(steps=300, start="rk4"), 2e-6),
        ("tsit5", dict(rtol=1e-8, atol=1e-8), 1e-6),
    ]:
        samples, stats = solve(solver, process, denoise, x, last_denoise=False, **options)
        assert stats.completed and stats.sigma == pytest.approx(0.02, rel=1e-9)
        np.testing.assert_allclose(samples, exact, rtol=0, atol=tolerance, err_msg=f"{solver} {options}")


def test_the_time_grid_leads_to_the_same_samples(x64):
    # heun on the times of a process that is not σ itself, and on whole numbers.
    data, process = oracles.Gaussian(), vp()
    x = draw(process, 4, (3,))
    for process, steps in [(vp(), 300), (ddpm(), 300)]:
        samples, _ = solve("heun", process, data.denoise, x, steps=steps, grid="time", last_denoise=False)
        exact = data.flow(x, process.sigma_max, process.sigma_min)
        np.testing.assert_allclose(samples, exact, rtol=0, atol=1e-3)


# ---- formulas


def test_grids(x64):
    i = np.arange(18) / 17
    karras = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sampling.levels(edm(), "edm", 18), karras, rtol=1e-12)
    np.testing.assert_allclose(sampling.levels(edm(sigma_min=1, sigma_max=10), "edm", 5, 1), [10, 7.75, 5.5, 3.25, 1])
    np.testing.assert_allclose(sampling.levels(edm(), "log", 18), 80 * (0.002 / 80) ** i, rtol=1e-12)
    t = 1 + i * (1e-3 - 1)
    B = 0.1 * t + 19.9 * t**2 / 2
    np.testing.assert_allclose(sampling.levels(vp(), "time", 18), np.sqrt(np.expm1(B)), rtol=1e-12)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    sigma = np.sqrt((1 - alpha_bar) / alpha_bar)
    np.testing.assert_allclose(sampling.levels(ddpm(), "time", 1000), sigma[::-1], rtol=1e-10)
    np.testing.assert_allclose(sampling.levels(ddpm(), "time", 5), sigma[[999, 749, 499, 250, 0]], rtol=1e-10)
    # None is the time grid, but for processes whose time is σ.
    np.testing.assert_array_equal(sampling.levels(vp(), None, 7), sampling.levels(vp(), "time", 7))
    np.testing.assert_array_equal(sampling.levels(edm(), None, 7), sampling.levels(edm(), "edm", 7))


def test_heun_by_hand(x64):
    # Algorithm 1 of EDM in a loop of plain NumPy.
    data, process = oracles.Gaussian(), edm()
    x = expected = np.asarray(draw(process, 3, (3,)))
    grid = (80 ** (1 / 5) + np.arange(6) / 5 * (0.002 ** (1 / 5) - 80 ** (1 / 5))) ** 5
    for sigma, following in zip(grid, [*grid[1:], 0], strict=True):
        d = (expected - data.denoise(expected, np.full(3, sigma))) / sigma
        euler = expected + (following - sigma) * d
        if following > 0:
            d = (d + (euler - data.denoise(euler, np.full(3, following))) / following) / 2
        expected = expected + (following - sigma) * d
    ours, _ = solve("heun", process, data.denoise, x, steps=6, rho=5.0)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_euler_is_ddim(x64):
    data, process = oracles.Gaussian(), vp()
    x = draw(process, 3, (3,))
    for options in [{}, dict(last_denoise=False)]:
        ddim, _ = solve("ddim", process, data.denoise, x, steps=9, **options)
        euler, _ = solve("euler", process, data.denoise, x, steps=9, grid="time", **options)
        np.testing.assert_allclose(ddim, euler, rtol=0, atol=1e-12)


def test_ddim_in_its_published_form(x64):
    # x_(t−1) = √ᾱ' (x_t − √(1−ᾱ) ε)/√ᾱ + √(1−ᾱ') ε on the whole numbers nearest to even ones.
    data, process, n = oracles.Gaussian(), ddpm(), 6
    x = draw(process, 3, (3,))
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[999, 799, 599, 400, 200, 0]]  # times 1000, 800.2, …
    x_t = np.sqrt(alpha_bar[0]) * np.asarray(x)
    for a, following in zip(alpha_bar, [*alpha_bar[1:], 1], strict=True):
        mean = data.denoise(x_t / np.sqrt(a), np.full(3, np.sqrt((1 - a) / a)))
        epsilon = (x_t - np.sqrt(a) * mean) / np.sqrt(1 - a)
        x_t = np.sqrt(following) * (x_t - np.sqrt(1 - a) * epsilon) / np.sqrt(a) + np.sqrt(1 - following) * epsilon
    ours, _ = solve("ddim", process, data.denoise, x, steps=n)
    np.testing.assert_allclose(ours, x_t, rtol=0, atol=1e-9)  # ᾱ at T is 4e-5: cancellation in float64's last digits


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_3m"])
def test_multistep_by_hand(x64, solver):
    # DPM-Solver++(2M) (algorithm 2) and (3M), its steps from one, two and three values, in λ = −ln σ; uneven levels.
    data, process = oracles.Gaussian(), edm(0.1, 10.0)
    x = np.asarray(draw(process, 3, (3,)))
    levels = (10 ** (1 / 7) + np.arange(5) / 4 * (0.1 ** (1 / 7) - 10 ** (1 / 7))) ** 7
    lam, d, expected = -np.log(levels), [], x
    for i in range(4):
        h = lam[i + 1] - lam[i]
        d.append(data.denoise(expected, np.full(3, levels[i])))
        phi_1 = 1 - np.exp(-h)
        phi_2 = phi_1 / h - 1  # as published, up to sign
        phi_3 = phi_2 / h + 1 / 2
        step = levels[i + 1] / levels[i] * expected + phi_1 * d[-1]
        if i >= 1:
            D1 = (d[-1] - d[-2]) * h / (lam[i] - lam[i - 1])
            step += phi_1 / 2 * D1 if solver == "dpmpp_2m" else 0
        if i == 1 and solver == "dpmpp_3m":
            step -= phi_2 * D1
        if i >= 2 and solver == "dpmpp_3m":
            r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
            D2 = (d[-2] - d[-3]) / r1
            first = D1 + r0 / (r0 + r1) * (D1 - D2)
            second = (D1 - D2) / (r0 + r1)
            step -= phi_2 * first - 2 * phi_3 * second  # 2: the correction of the module
        expected = step
    ours, _ = solve(solver, process, data.denoise, x, steps=5, grid="edm", last_denoise=False)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
    ended, _ = solve(solver, process, data.denoise, x, steps=5, grid="edm")
    np.testing.assert_allclose(ended, data.denoise(expected, np.full(3, 0.1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("equal_weights", [True, False])
def test_ipndm_by_hand(x64, equal_weights):
    """The published weights, or those of SciPy's Lagrange polynomials, integrated; uneven levels."""
    data, process = oracles.Gaussian(), edm(0.1, 10.0)
    expected = np.asarray(draw(process, 3, (3,)))
    x, levels, slopes = expected, sampling.levels(process, "edm", 7), []
    published = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    for i in range(6):
        slopes.insert(0, (expected - data.denoise(expected, np.full(3, levels[i]))) / levels[i])
        count, step = min(i + 1, 4), levels[i + 1] - levels[i]
        weights = step * np.array(published[count - 1])
        if not equal_weights:
            nodes = levels[i::-1][:count]
            integrals = [lagrange(nodes, one).integ() for one in np.eye(count)]
            weights = [integral(levels[i + 1]) - integral(levels[i]) for integral in integrals]
        expected = expected + sum(w * slope for w, slope in zip(weights, slopes, strict=False))
    ours, _ = solve("ipndm", process, data.denoise, x, steps=7, equal_weights=equal_weights, last_denoise=False)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grid", ["edm", "log"])
def test_unipc_by_hand(x64, grid):
    """Predictor and corrector with SciPy's integrals of Lagrange polynomials, on uneven levels."""
    data, process = oracles.Gaussian(), edm(0.1, 10.0)
    x = np.asarray(draw(process, 3, (3,)))
    time = -np.log(sampling.levels(process, grid, 7))

    def step(x, i, points, values):
        """From time[i] to time[i + 1], d being the polynomial through values at points."""
        d = lambda s: sum(lagrange(points, one)(s) * v for one, v in zip(np.eye(len(points)), values, strict=True))
        integral, _ = quad_vec(lambda s: np.exp(s - time[i + 1]) * d(s), time[i], time[i + 1], epsabs=1e-12)
        return np.exp(time[i] - time[i + 1]) * x + integral

    predicted, corrected, values = x, None, []
    for i in range(6):
        values.insert(0, data.denoise(predicted, np.full(3, np.exp(-time[i]))))
        if i == 0:
            corrected = x
        else:  # the step before once more, with the value at its end
            corrected = step(corrected, i - 1, time[i::-1][:4], values[:4])
        predicted = step(corrected, i, time[i::-1][:3], values[:3])
    ours, _ = solve("unipc", process, data.denoise, x, steps=7, grid=grid, last_denoise=False)
    np.testing.assert_allclose(ours, predicted, rtol=0, atol=1e-9)
