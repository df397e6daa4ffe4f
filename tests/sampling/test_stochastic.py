"""Samplers that draw noise: exact moments of their samples, and their published formulas step by step."""

import math

import jax
import numpy as np
import oracles
import pytest
from oracles import draw, keys, solve
from scipy.special import gammaln

from pfgm_jax.flow.process import ddpm, edm, subvp, ve, vp
from pfgm_jax.sampling.noise import standard_normal

# The schedules once more: process, times of an n-step grid, then σ(t), s(t), f(t) = ṡ/s and g²(t) of the SDE in x_t.
B = lambda t: 0.1 * t + 19.9 * t**2 / 2
BETA = lambda t: 0.1 + 19.9 * t
ONE, NOTHING = np.ones_like, np.zeros_like
EVEN = lambda high, low: lambda n: np.linspace(high, low, n)
VE_SIGMA = lambda t: 0.02 * 5000**t
LOG_ALPHA_BAR = np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))
ALPHA_BAR = lambda t: np.exp(LOG_ALPHA_BAR[t.astype(int) - 1])
SCHEDULES = {
    "vp": (vp(), EVEN(1, 1e-3), lambda t: np.sqrt(np.expm1(B(t))), lambda t: np.exp(-B(t) / 2),
           lambda t: -BETA(t) / 2, BETA),
    "subvp": (subvp(), EVEN(1, 1e-3), lambda t: 2 * np.sinh(B(t) / 2), lambda t: np.exp(-B(t) / 2),
              lambda t: -BETA(t) / 2, lambda t: BETA(t) * -np.expm1(-2 * B(t))),
    "ve": (ve(), EVEN(1, 1e-5), VE_SIGMA, ONE, NOTHING, lambda t: 2 * math.log(5000) * VE_SIGMA(t) ** 2),
    "edm": (edm(), lambda n: np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), n) ** 7, lambda t: t, ONE, NOTHING,
            lambda t: 2 * t),
    "ddpm": (ddpm(), lambda n: np.round(np.linspace(1000, 1, n)), lambda t: np.sqrt(1 / ALPHA_BAR(t) - 1),
             lambda t: np.sqrt(ALPHA_BAR(t)), None, None),
}  # fmt: skip

DATA = oracles.Gaussian(N=2)

# ---- exact moments of every sampler's output for Gaussian data


class Moments:
    """Mean and variance of a sample's components: x − mean of the data, in principal axes, where all are independent.

    There E[y | x, σ] is k x with k = variance/(variance + σ²), and every step a linear map plus noise.
    """

    def __init__(self, sigma_max):
        self.mean, self.variance = DATA.components(np.zeros(2)), np.full(2, float(sigma_max) ** 2)

    def step(self, a, b=0.0, sigma=1.0, noise=0.0):
        """x' = a x + b E[y | x, σ] + noise n, for x as they are: with the data's mean, not from it."""
        gain = a + b * DATA.variance / (DATA.variance + sigma**2)
        shift = (a + b - 1) * (DATA.axes.T @ DATA.mean)
        self.mean, self.variance = gain * self.mean + shift, gain**2 * self.variance + noise**2


DRAWS = np.random.default_rng(0).normal(size=(100_000, 2))


def mean_norms(mean, variance):
    """(E‖n‖ of standard normal n, E‖x‖ of x with independent components), the latter by 100 thousand draws."""
    of_normal = math.sqrt(2) * math.exp(gammaln(3 / 2) - gammaln(1))
    return of_normal, np.linalg.norm(mean + DRAWS * np.sqrt(variance), axis=1).mean()


def correct(m, sigma, shrink, snr):
    score = (DATA.variance / (DATA.variance + sigma**2) - 1) / sigma**2
    of_noise, of_score = mean_norms(score * m.mean, score**2 * m.variance)
    e = 2 * shrink * (snr * of_noise / of_score) ** 2
    m.step(1 - e / sigma**2, e / sigma**2, sigma, math.sqrt(2 * e))


def moments(name, solver, n, **options):
    """(mean, variance) of the components of the output, from the formulas of the papers."""
    process, times, sigma_of, scale_of, f, g2 = SCHEDULES[name]
    t = times(n)
    sigma, scale = sigma_of(t), scale_of(t)
    m = Moments(sigma[0])
    corrector = options.get("corrector_steps", 1) if solver == "predictor_corrector" else 0
    predictor = solver if solver != "predictor_corrector" else options.get("predictor", "reverse_diffusion")
    for i in range(n):
        s, shrink = sigma[i], (scale[i] / (scale[i + 1] if i < n - 1 else 1)) ** 2
        for _ in range(corrector):
            correct(m, s, shrink, 0.16)
        if solver == "heun":
            gamma = min(options["S_churn"] / n, math.sqrt(2) - 1)
            s_hat = s * (1 + gamma) if options["S_min"] <= s <= options["S_max"] else s
            m.step(1, noise=options["S_noise"] * math.sqrt(s_hat**2 - s**2))
            s = s_hat
        if i == n - 1:
            m.step(0, 1, s)
            break
        low = sigma[i + 1]
        variance = (low / s) ** 2 * (s**2 - low**2)
        if predictor == "euler_maruyama":  # of dx = [f x − g² ∇ log p] dt + g dw, backwards
            h, r = t[i] - t[i + 1], scale[i] / scale[i + 1]
            pull = g2(t[i]) * h / (scale[i] * s) ** 2
            m.step(r * (1 - f(t[i]) * h - pull), r * pull, s, math.sqrt(g2(t[i]) * h) / scale[i + 1])
        elif predictor == "reverse_diffusion":
            m.step((low / s) ** 2, 1 - (low / s) ** 2, s, math.sqrt(s**2 - low**2))
        elif predictor == "ancestral":
            if options.get("variance") == "large":
                variance = (s**2 - low**2) * shrink
            m.step((low / s) ** 2, 1 - (low / s) ** 2, s, math.sqrt(variance))
        elif predictor == "ddim":
            eta = options["eta"]
            a = math.sqrt(low**2 - eta**2 * variance) / s
            m.step(a, 1 - a, s, eta * math.sqrt(variance))
        else:  # heun's linear map, of each component; noise has been added above
            slope = lambda sigma: sigma / (DATA.variance + sigma**2)
            predicted = 1 + (low - s) * slope(s)
            gain = 1 + (low - s) / 2 * (slope(s) + slope(low) * predicted)
            m.mean, m.variance = gain * m.mean, gain**2 * m.variance
    return m.mean, m.variance


CHURN = dict(S_churn=20.0, S_min=0.05, S_max=50.0, S_noise=1.003)
LARGE, SMALL = dict(variance="large", clip=math.inf), dict(variance="small", clip=math.inf)
CASES = [
    ("vp", "ancestral", LARGE), ("vp", "ancestral", SMALL),
    ("vp", "ddim", dict(eta=0.5)), ("vp", "ddim", dict(eta=1.0)),
    ("vp", "euler_maruyama", {}), ("vp", "predictor_corrector", {}),
    ("vp", "predictor_corrector", dict(predictor="ancestral", corrector_steps=2)),
    ("vp", "predictor_corrector", dict(predictor="euler_maruyama")),
    ("vp", "heun", dict(CHURN, grid="time")),
    ("subvp", "ancestral", LARGE), ("subvp", "ddim", dict(eta=0.5)), ("subvp", "euler_maruyama", {}),
    ("subvp", "predictor_corrector", {}),
    ("ve", "ancestral", SMALL), ("ve", "ddim", dict(eta=1.0)), ("ve", "euler_maruyama", {}),
    ("ve", "predictor_corrector", {}), ("ve", "predictor_corrector", dict(predictor="euler_maruyama")),
    ("ddpm", "ancestral", LARGE), ("ddpm", "ancestral", SMALL), ("ddpm", "ddim", dict(eta=0.5)),
    ("ddpm", "predictor_corrector", dict(predictor="ancestral")),
    ("edm", "heun", CHURN), ("edm", "euler_maruyama", {}),
]  # fmt: skip


@pytest.mark.parametrize("name, solver, options", CASES)
def test_mean_and_covariance_are_those_of_the_formulas(name, solver, options):
    n, steps, process = 10_000, 30, SCHEDULES[name][0]
    x, stats = solve(solver, process, DATA.denoise, draw(process, n, (2,)), keys(n, seed=1), steps=steps, **options)
    mean, variance = moments(name, solver, steps, **options)
    z = (DATA.components(x) - mean) / np.sqrt(variance)
    # 5 sigma: √(1/n) for the mean and off the diagonal, √(2/n) on it. A corrector's step is found from norms of this
    # batch, 0.5 % off; near equilibrium the law hardly depends on it.
    assert stats.completed and np.abs(z.mean(axis=0)).max() < 5 / math.sqrt(n)
    assert np.abs(np.cov(z.T) - np.eye(2)).max() < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("name, solver, options", [
    case for case in CASES if case[1] != "predictor_corrector" and case[0] != "ddpm"
] + [("vp", "predictor_corrector", dict(predictor="reverse_diffusion", corrector_steps=0))])  # fmt: skip
def test_the_bias_of_the_formulas_vanishes_with_many_steps(name, solver, options):
    """The formulas whose moments the samples have lead to the data's: mean 0 and their variance.

    A corrector keeps a bias of the order of its own step at any number of predictor steps, and is left out.
    """
    biases = []
    for n in [50, 800, 6400]:
        mean, variance = moments(name, solver, n, **options)
        biases.append(max(np.abs(mean).max(), np.abs(variance / DATA.variance - 1).max()))
    # What remains: the last step's contraction at σ_min, by 0.008 for σ_min = 0.02 and a variance of 0.05, and S_noise.
    assert biases[2] < 0.01 and max(biases[1:]) < biases[0]


# ---- formulas, with the noise that the sampler drew


def run(solver, process, n=4, seed=0, **options):
    """(x at σ_max, samples, noise(index)) of a solve in float64."""
    x, drawn = np.asarray(draw(process, n, (2,), seed)), keys(n, seed=seed + 1)
    samples, _ = solve(solver, process, DATA.denoise, x, drawn, **options)
    return x, np.asarray(samples), lambda index: np.asarray(standard_normal(drawn, index, jax.numpy.asarray(x)))


def test_noise_belongs_to_the_sample_and_the_step(x64):
    x, many = np.zeros((200, 50)), keys(200)
    first, second = standard_normal(many, 0, x), standard_normal(many, 1, x)
    np.testing.assert_array_equal(standard_normal(many[3:5], 0, x[3:5]), first[3:5])
    z = np.stack([np.ravel(first), np.ravel(second), np.roll(first, 1, axis=0).ravel()])
    # 1e4 numbers each: 5 sigma of mean, variance and covariance.
    assert np.abs(z.mean(axis=1)).max() < 0.05 and np.abs(np.cov(z) - np.eye(3)).max() < 0.05 * math.sqrt(2)


@pytest.mark.parametrize("process", [vp(), ddpm(), ve()], ids=lambda process: process.name)
def test_ddim_at_eta_1_is_ancestral(x64, process):
    _, ddim, _ = run("ddim", process, steps=9, eta=1.0)
    _, ancestral, _ = run("ancestral", process, steps=9, **SMALL)
    np.testing.assert_allclose(ddim, ancestral, rtol=0, atol=1e-11)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("clip", [1.0, math.inf])
def test_ancestral_is_ddpm(x64, variance, clip):
    # Algorithm 2 with the posterior of eq. 7, in x_t, on all levels of T = 50: β from 0.002 to 0.4.
    process = ddpm(50)
    beta = np.linspace(0.1, 20, 50) / 50
    alpha, alpha_bar = 1 - beta, np.cumprod(1 - beta)
    x, ours, noise = run("ancestral", process, steps=50, variance=variance, clip=clip)
    x_t = math.sqrt(alpha_bar[-1]) * x
    for t in range(49, -1, -1):
        below = alpha_bar[t - 1] if t else 1.0
        sigma = math.sqrt((1 - alpha_bar[t]) / alpha_bar[t])
        x_0 = np.clip(DATA.denoise(x_t / math.sqrt(alpha_bar[t]), np.full(4, sigma)), -clip, clip)
        of_x_0 = math.sqrt(below) * beta[t] / (1 - alpha_bar[t])
        of_x_t = math.sqrt(alpha[t]) * (1 - below) / (1 - alpha_bar[t])
        v = beta[t] if variance == "large" else (1 - below) / (1 - alpha_bar[t]) * beta[t]
        x_t = of_x_0 * x_0 + of_x_t * x_t + (math.sqrt(v) * noise(49 - t) if t else 0)
    np.testing.assert_allclose(ours, x_t, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_euler_maruyama_is_the_textbook_step(x64, name):
    # x_t' = x_t − (f x_t − g² score) h + g √h n; on the log grid, for times that are not even.
    process, _, sigma_of, scale_of, f, g2 = SCHEDULES[name]
    x, ours, noise = run("euler_maruyama", process, steps=7, grid="log")
    sigma = np.geomspace(process.sigma_max, process.sigma_min, 7)
    growth = np.log1p(sigma**2) if name == "vp" else 2 * np.arcsinh(sigma / 2)
    t = 2 * growth / (0.1 + np.sqrt(0.01 + 2 * 19.9 * growth))
    np.testing.assert_allclose(sigma_of(t), sigma, rtol=1e-9)
    x_t = scale_of(t[0]) * x
    for i in range(6):
        s, h = scale_of(t[i]), t[i] - t[i + 1]
        score = (s * DATA.denoise(x_t / s, np.full(4, sigma[i])) - x_t) / (s * sigma[i]) ** 2
        x_t = x_t - (f(t[i]) * x_t - g2(t[i]) * score) * h + np.sqrt(g2(t[i]) * h) * noise(i)
    expected = DATA.denoise(x_t / scale_of(t[-1]), np.full(4, sigma[-1]))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral"])
def test_predictor_corrector_of_ve(x64, predictor):
    # Algorithms 2 and 4 of arXiv 2011.13456: Langevin steps of ε = 2 (r ‖z‖/‖g‖)², norms of the batch's mean.
    sigma = VE_SIGMA(np.linspace(1, 1e-5, 6))
    x, ours, noise = run("predictor_corrector", ve(), steps=6, predictor=predictor, corrector_steps=2, snr=0.2)
    score = lambda x, level: (DATA.denoise(x, np.full(4, level)) - x) / level**2
    norm = lambda a: np.linalg.norm(a, axis=1).mean()
    for i in range(6):
        for j in range(2):
            z, g = noise(3 * i + j), score(x, sigma[i])
            e = 2 * (0.2 * norm(z) / norm(g)) ** 2
            x = x + e * g + math.sqrt(2 * e) * z
        if i == 5:
            x = DATA.denoise(x, np.full(4, sigma[i]))
            break
        v = sigma[i] ** 2 - sigma[i + 1] ** 2
        of_noise = v if predictor == "reverse_diffusion" else sigma[i + 1] ** 2 * v / sigma[i] ** 2
        x = x + v * score(x, sigma[i]) + math.sqrt(of_noise) * noise(3 * i + 2)
    np.testing.assert_allclose(ours, x, rtol=0, atol=1e-10)


def test_corrector_of_vp(x64):
    # Algorithm 5: ε = 2 α (r ‖z‖/‖g‖)² in x_t, α = 1 − β = (s/s')², g the score of x_t; a level's norm of it is s times
    # that of the unscaled x's, and ε in x_t is s² times that in x.
    t = np.linspace(1, 1e-3, 5)
    s, sigma = np.exp(-B(t) / 2), np.sqrt(np.expm1(B(t)))
    x, ours, noise = run("predictor_corrector", vp(), steps=5, predictor="ancestral", snr=0.2)
    for i in range(5):
        alpha = (s[i] / s[i + 1]) ** 2 if i < 4 else s[i] ** 2
        x_t, z = s[i] * x, noise(2 * i)
        g = (s[i] * DATA.denoise(x, np.full(4, sigma[i])) - x_t) / (s[i] * sigma[i]) ** 2
        e = 2 * alpha * (0.2 * np.linalg.norm(z, axis=1).mean() / np.linalg.norm(g, axis=1).mean()) ** 2
        x = (x_t + e * g + math.sqrt(2 * e) * z) / s[i]
        d = DATA.denoise(x, np.full(4, sigma[i]))
        low = sigma[i + 1] if i < 4 else 0
        v = (low / sigma[i]) ** 2 * (sigma[i] ** 2 - low**2)
        x = d + (low / sigma[i]) ** 2 * (x - d) + (math.sqrt(v) * noise(2 * i + 1) if i < 4 else 0)
    np.testing.assert_allclose(ours, x, rtol=0, atol=1e-10)


def test_heun_with_churn_is_edms_algorithm_2(x64):
    n, S_churn, S_min, S_max, S_noise = 8, 4.0, 0.05, 50.0, 1.003
    levels = np.append((80 ** (1 / 7) + np.arange(n) / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0)
    x, ours, noise = run("heun", edm(), steps=n, S_churn=S_churn, S_min=S_min, S_max=S_max, S_noise=S_noise)
    lifted = 0
    for i in range(n):
        gamma = min(S_churn / n, math.sqrt(2) - 1) if S_min <= levels[i] <= S_max else 0
        t_hat, lifted = levels[i] + gamma * levels[i], lifted + (gamma > 0)
        x_hat = x + math.sqrt(t_hat**2 - levels[i] ** 2) * S_noise * noise(i)
        d = (x_hat - DATA.denoise(x_hat, np.full(4, t_hat))) / t_hat
        x = x_hat + (levels[i + 1] - t_hat) * d
        if levels[i + 1]:
            d_next = (x - DATA.denoise(x, np.full(4, levels[i + 1]))) / levels[i + 1]
            x = x_hat + (levels[i + 1] - t_hat) * (d + d_next) / 2
    assert 0 < lifted < n
    np.testing.assert_allclose(ours, x, rtol=0, atol=1e-11)
