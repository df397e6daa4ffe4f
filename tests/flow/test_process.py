"""The kernel, its prior and the training laws against SciPy's distributions and independent NumPy draws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import polygamma

from pfgm_jax.errors import UserError
from pfgm_jax.flow import kernel
from pfgm_jax.flow import process as processes
from pfgm_jax.flow.kernel import kernel_noise
from pfgm_jax.flow.process import (  # fmt: skip
    GeometricShell,
    Process,
    ddpm,
    edm,
    pfgm,
    pfgm_M,
    pfgmpp,
    subvp,
    ve,
    vp,
    with_D,
)

DIMENSIONS = [0.5, 1, 3.5, 128, 1e6, math.inf]
DRAWS = 20_000
FIVE_SIGMA = 5.7e-7  # two-sided tail of a Gaussian

perturb = jax.jit(processes.perturb, static_argnums=0)
prior = jax.jit(processes.prior, static_argnums=(0, 2))
training_pairs = jax.jit(processes.training_pairs, static_argnums=0)


@functools.cache
def draw(D):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return np.asarray(jax.jit(jax.vmap(lambda key: kernel_noise(key, (48,), D)))(keys), np.float64)


def follows(samples, cdf):
    return stats.kstest(samples, cdf).pvalue > FIVE_SIGMA


# ---- the kernel


@pytest.mark.parametrize("D", DIMENSIONS)
def test_kernel_is_the_student_t(D):
    noise = draw(D)
    N = noise.shape[1]
    # R = r √(B/(1−B)), B ~ Beta(N/2, D/2), so R²/D is beta prime; χ²_N at D = ∞.
    squared = np.sum(noise**2, axis=1)
    if math.isinf(D):
        assert follows(squared, stats.chi2(N).cdf)
    else:
        assert follows(squared / D, stats.betaprime(N / 2, D / 2).cdf)
    # One coordinate is a one-dimensional t, and a coordinate of the direction is that of the uniform sphere.
    assert follows(noise[:, 7], stats.norm.cdf if math.isinf(D) else stats.t(D).cdf)
    assert follows((1 + noise[:, 0] / np.sqrt(squared)) / 2, stats.beta((N - 1) / 2, (N - 1) / 2).cdf)


@pytest.mark.parametrize("D", DIMENSIONS)
def test_one_radius_is_shared_by_all_pixels(D):
    # log n_j² = log g_j² + log(D/χ²_D): two pixels share only the second term, of variance ψ₁(D/2).
    log_squared = np.log(draw(D)[:, :2] ** 2)
    a, b = (log_squared - log_squared.mean(axis=0)).T
    expected = 0 if math.isinf(D) else polygamma(1, D / 2)
    assert abs(np.mean(a * b) - expected) < 5 * np.std(a * b) / math.sqrt(DRAWS)


def test_kernel_tends_to_the_gaussian():
    # √(D/χ²_D) is 1 ± 1/√(2D), and draws stay within 5 sigma; float32 rounds a log-gamma of 36 at 4e-6.
    for D in [1e6, 9.9e15]:
        deviation = np.abs(draw(D) / draw(math.inf) - 1).max()
        assert deviation < 5 / math.sqrt(2 * D) + 4e-6
        assert D > 1e6 or deviation > 3 / math.sqrt(2 * D)
    np.testing.assert_array_equal(draw(kernel.GAUSSIAN_D), draw(math.inf))


@pytest.mark.parametrize("N, sigma", [(2, 80), (64, 80), (3072, 80), (196_608, 300)])
def test_the_smallest_D_is_the_least_that_float32_holds(N, sigma):
    # ‖x‖² must be finite: F = ‖x‖²/(N σ²) follows an F law with N and D degrees of freedom.
    largest = float(np.finfo(np.float32).max) / (N * sigma**2)
    lost = stats.f(N, [0.1, 0.4, kernel.SMALLEST_D]).sf(largest)
    assert lost[0] > 0.01 and lost[2] < 1e-7
    assert N < 64 or lost[1] > 1e-7


def test_draws_and_densities_are_finite_at_the_smallest_D():
    process = pfgmpp(kernel.SMALLEST_D)
    x = prior(process, jax.random.split(jax.random.key(9), 100_000), (64,))
    assert np.isfinite(x).all() and np.abs(x).max() > 1e10
    assert np.isfinite(processes.log_prior(process, x)).all()


@pytest.mark.parametrize("sigma", [-1.0, np.float32([1, -0.5]), math.nan])
def test_perturb_refuses_levels_below_zero(sigma):
    with pytest.raises(UserError, match="sigma must not be below 0, got"):
        processes.perturb(edm(), jax.random.split(jax.random.key(0), 2), np.zeros((2, 3), np.float32), sigma)


def test_perturb_is_the_kernel_around_each_image():
    y = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype(np.float32)
    keys, sigma = jax.random.split(jax.random.key(1), 5), np.array([0.01, 0.1, 1, 10, 80], np.float32)
    x = np.asarray(perturb(pfgmpp(3.5), keys, y, sigma))
    for i in range(5):
        expected = y[i] + sigma[i] * np.asarray(kernel_noise(keys[i], y.shape[1:], 3.5))
        np.testing.assert_allclose(x[i], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", [pfgmpp(3.5), pfgm(M=287, N=48)], ids=lambda p: p.name)
def test_a_draw_depends_on_its_own_key_alone(process):
    @jax.jit
    def draws(keys, y):
        sigma = jnp.full(len(y), 0.5)
        pairs = processes.training_pairs(process, keys, y)
        return processes.perturb(process, keys, y, sigma), *pairs, processes.prior(process, keys, y.shape[1:])

    y, keys = jax.random.normal(jax.random.key(0), (6, 4, 4, 3)), jax.random.split(jax.random.key(1), 6)
    elsewhere = jnp.array([3, 1, 0, 5])  # two neighbours are gone, the others stand in other places
    other_keys, other_y = (
        jnp.concatenate([keys[elsewhere], keys[:2]]),
        jnp.concatenate([y[elsewhere], y[:2] + 1]),
    )
    for whole, moved in zip(draws(keys, y), draws(other_keys, other_y), strict=True):
        np.testing.assert_array_equal(whole[elsewhere], moved[:4])
        assert len(np.unique(np.asarray(whole).reshape(6, -1)[:, 0])) == 6


# ---- the prior


@pytest.mark.parametrize("D", [1, 128, math.inf])
def test_prior_is_the_kernel_at_sigma_max(D):
    process = pfgmpp(D, sigma_max=40.0)
    keys = jax.random.split(jax.random.key(2), DRAWS)
    x = np.asarray(prior(process, keys, (2, 2, 3)), np.float64)
    assert x.shape == (DRAWS, 2, 2, 3)
    squared = np.sum(x.reshape(DRAWS, -1) ** 2, axis=1) / 40.0**2
    assert follows(squared / 12, stats.chi2(12, scale=1 / 12).cdf if math.isinf(D) else stats.f(12, D).cdf)


@pytest.mark.parametrize("N", [3, 3072])
@pytest.mark.parametrize("D", [0.5, 1, 2, 3.5, 128, 2048, 1e6, 1e8, math.inf])
def test_log_prior_matches_scipy(x64, D, N):
    process = pfgmpp(D, sigma_max=7.0)
    x = np.random.default_rng(0).normal(size=(6, N)) * np.array([0.1, 1, 5, 7, 20, 100])[:, None]
    ours = np.asarray(processes.log_prior(process, jnp.asarray(x)))
    if N == 3:
        zeros, shape = np.zeros(N), 49.0 * np.eye(N)
        law = stats.multivariate_normal(zeros, shape) if math.isinf(D) else stats.multivariate_t(zeros, shape, D)
        expected = law.logpdf(x)
    else:
        expected = gaussian_log_density(x, 7.0) if math.isinf(D) else student_log_density(x, 7.0, D)
    # SciPy's own two log-gammas cancel: D/2 · ln(D/2) · 2⁻⁵³ is 1e-7 at D = 1e8.
    cancelled = 0 if math.isinf(D) else 4e-16 * D * math.log(D + N)
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-10 + cancelled)


def gaussian_log_density(x, sigma):
    return stats.norm(0, sigma).logpdf(x).sum(axis=1)


def student_log_density(x, sigma, D):
    """A product of conditionals: given j coordinates, the next is a t with D + j degrees of freedom."""
    j = np.arange(x.shape[1])
    before = np.cumsum(x**2, axis=1) - x**2
    scale = sigma * np.sqrt((D + before / sigma**2) / (D + j))
    return stats.t(D + j, scale=scale).logpdf(x).sum(axis=1)


def test_log_prior_tends_to_the_gaussian(x64):
    x = 5 * np.random.default_rng(0).normal(size=(8, 3072))
    gaussian = gaussian_log_density(x, 7.0)
    squared = np.sum((x / 7.0) ** 2, axis=1)
    for D in [1e8, 1e10, 1e12, 1e15]:
        ours = np.asarray(processes.log_prior(pfgmpp(D, sigma_max=7.0), jnp.asarray(x)))
        # The first order in 1/D, q = ‖x‖²/σ²; the next is N³/(6 D²), and log B(N/2, D/2) is good to 1e-5.
        first = (3072 * (3072 - 2) / 4 - 3072 * squared / 2 + squared**2 / 4) / D
        np.testing.assert_allclose(ours - gaussian, first, rtol=0, atol=3072**3 / D**2 + 1e-5)


@pytest.mark.parametrize("D", [0.5, 1, 128, 1e6, math.inf])
def test_log_prior_in_float32(D):
    x = (80 * np.random.default_rng(0).normal(size=(8, 3072))).astype(np.float32)
    expected = gaussian_log_density(x.astype(float), 80.0)
    if not math.isinf(D):
        expected = student_log_density(x.astype(float), 80.0, D)
    # A handful of roundings of a sum of size 2e4 nats.
    np.testing.assert_allclose(processes.log_prior(pfgmpp(D), jnp.asarray(x)), expected, rtol=4 * 2.0**-23)


@pytest.mark.parametrize("D", [1, 3.5, 128, 1e8, math.inf])
def test_log_prior_integrates_to_one(x64, D):
    process = pfgmpp(D, sigma_max=3.0)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    angle = math.pi / 4 * (nodes + 1)  # x = σ tan(angle) reaches all of the half line
    radius, measure = 3 * np.tan(angle), math.pi / 4 * weights * 3 / np.cos(angle) ** 2
    line = np.exp(processes.log_prior(process, jnp.asarray(radius[:, None])))
    plane = np.exp(processes.log_prior(process, jnp.asarray(radius[:, None] * [0.6, -0.8])))
    assert 2 * np.sum(measure * line) == pytest.approx(1, abs=1e-8)
    assert 2 * math.pi * np.sum(measure * radius * plane) == pytest.approx(1, abs=1e-8)


def test_one_level_serves_for_all_and_one_key_does_not():
    flow, y = processes.pfgmpp(3.0), jnp.ones((4, 2))
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        keys = jax.random.split(key, 4)
        np.testing.assert_array_equal(
            processes.perturb(flow, keys, y, 0.5), processes.perturb(flow, keys, y, jnp.full(4, 0.5))
        )
        for few in (key, keys[:3]):
            with pytest.raises(UserError, match=r"one PRNG key per example, such as jax.random.split\(key, 4\)"):
                kernel.require_key_of_each(few, 4)
        kernel.require_key_of_each(keys)
        with pytest.raises(UserError, match="one PRNG key per example"):
            kernel.require_key_of_each(key)


def test_prior_radius_of_pfgm_is_clipped():
    process = pfgm(M=291, N=3072)
    keys = jax.random.split(jax.random.key(3), 4000)
    norm = np.linalg.norm(np.asarray(prior(process, keys, (3072,)), np.float64), axis=1)
    assert norm.max() == pytest.approx(process.max_norm, rel=1e-5)
    clipped = np.mean(norm > process.max_norm * (1 - 1e-5))
    share = stats.f(3072, 1).sf((process.max_norm / process.sigma_max) ** 2 / 3072)
    assert share == pytest.approx(0.575, abs=5e-4)  # of the formulas' z_max and norm
    assert abs(clipped - share) < 5 * math.sqrt(share * (1 - share) / 4000)
    inside = norm[norm < process.max_norm * (1 - 1e-5)]
    law = stats.f(3072, 1)
    assert follows((inside / process.sigma_max) ** 2 / 3072, lambda q: law.cdf(q) / (1 - share))


def test_prior_radius_of_pfgm_is_at_least_one():
    process = pfgm(M=1, N=2, z_max=0.05, max_norm=30.0)
    norm = np.linalg.norm(prior(process, jax.random.split(jax.random.key(0), 2000), (2,)), axis=1)
    assert norm.min() == pytest.approx(1, rel=1e-6) and np.mean(norm > 1.01) > 0.02
    assert norm.max() <= 30 * (1 + 1e-6)


# ---- schedules


@pytest.mark.parametrize(
    "process, low, high",
    [
        # sqrt(e^B − 1) at B(1e-3) = 1.1e-4 and B(1) = 10.05; 2 sinh(B/2) there; DDPM's σ_1 and σ_1000.
        (vp(), 0.010486, 152.167),
        (vp(t_min=1e-5), 0.00100050, 152.167),
        (subvp(), 1.0995e-4, 152.164),
        (ve(), 0.02 * 5000**1e-5, 100.0),
        (ve(0.01, 50.0), 0.01 * 5000**1e-5, 50.0),
        (ddpm(), 0.01000050, 157.407),
        (ddpm(kind="cosine"), 0.00642541, 20291.17),
    ],
    ids=lambda p: p.name if isinstance(p, Process) else None,
)
def test_ranges_of_sigma_are_the_published_ones(process, low, high):
    assert process.is_gaussian and math.isinf(process.max_norm)
    assert isinstance(process.sigma_min, float) and isinstance(process.sigma_max, float)
    assert process.sigma_min == pytest.approx(low, rel=1e-5)
    assert process.sigma_max == pytest.approx(high, rel=1e-5)
    # Inside a compiled program they are numbers too.
    assert jax.jit(lambda: process.sigma_max * jnp.ones(()))() == pytest.approx(high, rel=1e-5)


def test_processes_with_a_time_of_their_own():
    assert (vp().t_min, vp().t_max, subvp().t_min, subvp().t_max) == (1e-3, 1, 1e-3, 1)
    assert (ve().t_min, ve().t_max) == (1e-5, 1) and (ddpm(200).t_min, ddpm(200).t_max) == (1, 200)
    process, t = vp(0.2, 12.0), jnp.linspace(1e-3, 1, 7)
    # Data of variance 1 keep it.
    np.testing.assert_allclose(process.scale(t) ** 2 * (1 + process.sigma(t) ** 2), 1, rtol=1e-5)
    np.testing.assert_allclose(process.time(process.sigma(t)), t, rtol=1e-5)


@pytest.mark.parametrize("process", [vp(), subvp(), ve(), ddpm()], ids=lambda p: p.name)
def test_prior_of_the_gaussian_processes(process):
    x = np.asarray(prior(process, jax.random.split(jax.random.key(0), 2000), (10,)), np.float64)
    assert follows(x.ravel(), stats.norm(0, process.sigma_max).cdf)
    # In the process's own variable: 1 for VP, DDPM and, but for e^(−B), sub-VP; σ_max for VE.
    own = float(process.scale(jnp.asarray(process.t_max))) * x.std()
    expected = process.sigma_max if process.name == "ve" else 1
    assert own == pytest.approx(expected, rel=5 / math.sqrt(2 * x.size) + 1e-4)
    log_density = processes.log_prior(process, jnp.asarray(x[:3], jnp.float32))
    np.testing.assert_allclose(log_density, gaussian_log_density(x[:3], process.sigma_max), rtol=1e-5)


def test_schedule_of_the_named_processes():
    t = jnp.array([0.5, 3.0])
    for process in [edm(), pfgmpp(128), pfgm(M=287, N=3072)]:
        np.testing.assert_array_equal(process.sigma(t), t)
        np.testing.assert_array_equal(process.scale(t), 1)
    assert (edm().sigma_min, edm().sigma_max, edm().D) == (0.002, 80.0, math.inf)
    assert (pfgm(M=287, N=3072).D, pfgm(M=287, N=3072).sigma_min) == (1.0, 1e-3)


@pytest.mark.parametrize(
    "norm, N, M, z_max, max_norm",
    [
        (30.0, 3072, 287, None, None),  # the published script's defaults
        (28.9, 2352, 289, 40.9, 2487),  # BloodMNIST's average norm
        (37.9, 2352, 303, 61.9, 3762),  # its largest
        (32.8, 2352, 295, 48.9, 2970),  # RetinaMNIST
        (15, 2352, 256, 15.4, 938),
        (20, 2352, 270, 23.3, 1418),
        (25, 2352, 281, 32.3, 1963),
        (32, 3072, 291, 43.4, 3015),  # the published M of CIFAR-10
    ],
)
def test_pfgm_reach(norm, N, M, z_max, max_norm):
    assert pfgm_M(norm, N) == M
    if z_max:
        process = pfgm(M, N)
        assert process.sigma_max == pytest.approx(z_max, abs=0.05)
        assert process.max_norm == pytest.approx(max_norm, abs=0.5)


def test_pfgm_reach_can_be_given():
    process = pfgm(M=291, N=3072, z_max=40.0, max_norm=3000.0, z_min=0.01)
    assert (process.sigma_min, process.sigma_max, process.max_norm) == (0.01, 40.0, 3000.0)
    lsun = pfgm(M=356, N=256 * 256 * 3)  # the formulas at LSUN's published M
    assert lsun.sigma_max == pytest.approx(296, abs=0.5)
    # N and σ count too: M steps multiply σ_ε by (1 + τ)^M.
    assert lsun.max_norm == pytest.approx(0.01 * 1.03**356 * math.sqrt(196608), rel=1e-9)


# ---- training laws


@pytest.mark.parametrize("process", [edm(P_mean=-0.8, P_std=1.1), pfgmpp(2.5)], ids=lambda p: p.name)
def test_log_normal_law(process):
    y = jnp.full((DRAWS, 3), 0.25)
    x, sigma = training_pairs(process, jax.random.split(jax.random.key(4), DRAWS), y)
    sigma = np.asarray(sigma, np.float64)
    law = process.training_law
    assert follows(np.log(sigma), stats.norm(law.P_mean, law.P_std).cdf)
    noise = (np.asarray(x, np.float64) - 0.25) / sigma[:, None]
    assert follows(noise[:, 1], stats.norm.cdf if process.is_gaussian else stats.t(process.D).cdf)
    radius = np.linalg.norm(noise, axis=1)
    assert abs(stats.spearmanr(radius, sigma).statistic) < 5 / math.sqrt(DRAWS)


@pytest.mark.parametrize("process", [vp(), subvp(), ve(0.02, 30.0), vp(0.5, 8.0)], ids=lambda p: p.name)
def test_uniform_time_law(process):
    y = jnp.full((DRAWS, 3), 0.25)
    keys = jax.random.split(jax.random.key(8), DRAWS)
    x, sigma = (np.asarray(a) for a in training_pairs(process, keys, y))
    t = np.asarray(process.time(jnp.asarray(sigma)), np.float64)
    assert 1e-5 - 1e-6 < t.min() < 1e-3 and t.max() < 1 + 1e-6
    assert follows(t, stats.uniform(1e-5, 1 - 1e-5).cdf)
    assert not follows(t, stats.uniform(0.03, 0.97).cdf)  # the comparison sees a difference
    # x is the kernel around y; float32 holds x to 6e-8 of its size 0.25, against σ of 1e-6 and up: so of those above
    # 1e-4, which t, and not x, decides.
    noise = ((x.astype(np.float64) - 0.25) / sigma[:, None])[sigma > 1e-4]
    assert len(noise) > 0.95 * DRAWS and follows(noise[:, 1], stats.norm.cdf)
    assert follows(np.sum(noise**2, axis=1), stats.chi2(3).cdf)
    assert abs(stats.spearmanr(noise[:, 0], sigma[sigma > 1e-4]).statistic) < 5 / math.sqrt(len(noise))
    again = training_pairs(process, keys, y)
    for a, b in zip((x, sigma), again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (training_pairs(process, jax.random.split(jax.random.key(9), DRAWS), y)[1] != sigma).mean() > 0.99


@pytest.mark.parametrize("process", [ddpm(25), ddpm(40, "cosine")], ids=["linear", "cosine"])
def test_ddpm_is_trained_at_every_level_alike(process):
    y = jnp.full((DRAWS, 3), 0.25)
    x, sigma = (np.asarray(a) for a in training_pairs(process, jax.random.split(jax.random.key(8), DRAWS), y))
    levels, counts = np.unique(sigma, return_counts=True)
    steps = process.schedule.steps
    np.testing.assert_allclose(levels, process.sigma(jnp.arange(1, steps + 1)), rtol=1e-6)
    assert len(levels) == steps and stats.chisquare(counts).pvalue > FIVE_SIGMA
    noise = (x.astype(np.float64) - 0.25) / sigma[:, None]
    assert follows(noise[:, 1], stats.norm.cdf) and follows(np.sum(noise**2, axis=1), stats.chi2(3).cdf)
    # Both ends of the thousand levels are drawn: of 20 000 draws each has 20, and none of one has chance e^-20.
    _, sigma = training_pairs(ddpm(), jax.random.split(jax.random.key(8), DRAWS), y)
    assert sigma.min() == pytest.approx(0.0100005, rel=1e-5) and sigma.max() == pytest.approx(157.407, rel=1e-5)


def algorithm_2(rng, n, N, M, sigma=0.01, tau=0.03, restrict_M=True):
    """PFGM's algorithm 2 as published, in NumPy: (radius, z) of n samples."""
    m = rng.uniform(0, M, n)
    noise_z = sigma * np.abs(rng.normal(size=n))
    if restrict_M:
        small = noise_z < sigma / 2
        m[small] = rng.uniform(0, 0.7 * M, small.sum())
    radius = sigma * np.linalg.norm(rng.normal(size=(n, N)), axis=1)
    return radius * (1 + tau) ** m, noise_z * (1 + tau) ** m


@pytest.mark.parametrize("restrict_M", [True, False])
def test_geometric_shell(restrict_M):
    N, M = 12, 200
    process = pfgm(M, N, restrict_M=restrict_M)
    y = jnp.full((DRAWS, 2, 2, 3), 0.5)
    x, z = training_pairs(process, jax.random.split(jax.random.key(5), DRAWS), y)
    z = np.asarray(z, np.float64)
    difference = np.asarray(x, np.float64).reshape(DRAWS, N) - 0.5
    radius = np.linalg.norm(difference, axis=1)

    rng = np.random.default_rng(0)
    expected_radius, expected_z = algorithm_2(rng, 5 * DRAWS, N, M, restrict_M=restrict_M)
    other_radius, other_z = algorithm_2(rng, 5 * DRAWS, N, M, restrict_M=not restrict_M)
    assert stats.ks_2samp(z, expected_z).pvalue > FIVE_SIGMA
    assert stats.ks_2samp(radius, expected_radius).pvalue > FIVE_SIGMA
    assert stats.ks_2samp(z, other_z).pvalue < FIVE_SIGMA  # the comparison sees the difference
    assert stats.ks_2samp(radius, other_radius).pvalue < FIVE_SIGMA
    # The same m serves x and z, so it leaves the ratio: ‖ε_x‖²/(N ε_z²) ~ F(N, 1).
    assert follows((radius / z) ** 2 / N, stats.f(N, 1).cdf)
    # The direction is uniform: a coordinate of u on the sphere.
    assert follows((1 + difference[:, 4] / radius) / 2, stats.beta((N - 1) / 2, (N - 1) / 2).cdf)


def test_small_z_takes_fewer_shells():
    # τ is so large that the radius tells m, N so large that ‖ε_x‖ = σ√N to 1/√(2N) = 0.7 %, and the ratio tells ε_z.
    N, draws = 10_000, 2000
    process = pfgm(1, N, tau=1e20)
    x, z = training_pairs(process, jax.random.split(jax.random.key(6), draws), jnp.zeros((draws, N)))
    radius = np.linalg.norm(np.asarray(x, np.float64), axis=1)
    m = np.log(radius / (0.01 * math.sqrt(N))) / math.log(1e20)
    noise_z = math.sqrt(N) * np.asarray(z, np.float64) / radius  # in units of σ
    assert follows(noise_z, stats.halfnorm.cdf)
    assert follows(m[noise_z > 0.53], stats.uniform.cdf)
    assert follows(m[noise_z < 0.47], stats.uniform(0, 0.7).cdf)
    # Some eight draws are between 0.5 and 0.52 and beyond 0.7 M.
    assert 0.48 < noise_z[m > 0.701].min() < 0.52


# ---- another D


@pytest.mark.parametrize("process", [pfgmpp(128), edm(), vp(), ddpm(40)], ids=lambda p: p.name)
@pytest.mark.parametrize("D", [2.0, math.inf])
def test_another_D_changes_the_prior_alone(process, D):
    other = with_D(process, D)
    assert (other.D, other.t_min, other.t_max) == (D, process.t_min, process.t_max)
    assert (other.sigma_min, other.sigma_max) == (process.sigma_min, process.sigma_max)
    assert other.schedule == process.schedule and other.training_law == process.training_law
    assert with_D(process, process.D) is process and with_D(other, D) is other
    assert with_D(with_D(process, 2.5), 3.5).name == with_D(process, 2.5).name


def test_the_prior_at_another_D():
    x = np.asarray(prior(with_D(vp(), 2.0), jax.random.split(jax.random.key(2), DRAWS), (2, 2, 3)), np.float64)
    squared = np.sum((x.reshape(DRAWS, 12) / vp().sigma_max) ** 2, axis=1)
    assert follows(squared / 12, stats.f(12, 2).cdf)


def test_another_D_leaves_the_clip_of_pfgm_behind():
    process = pfgm(M=291, N=3072)
    other = with_D(process, 2.0)
    assert math.isinf(other.max_norm) and other.sigma_max == process.sigma_max and "sampled" in other.name
    norm = np.linalg.norm(prior(other, jax.random.split(jax.random.key(3), 500), (3072,)), axis=1)
    assert follows((norm / process.sigma_max) ** 2 / 3072, stats.f(3072, 2).cdf)
    assert norm.max() > process.max_norm
    assert with_D(process, 1).max_norm == process.max_norm
    for D in [0, -1, math.nan, 0.4]:
        with pytest.raises(UserError, match="^D must be inf or at least 0.5"):
            with_D(process, D)


@pytest.mark.parametrize("process", [edm(), pfgmpp(2.0), pfgm(M=20, N=4), vp(), ddpm(50)], ids=lambda p: p.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_draws_keep_their_precision_where_float64_is_enabled(x64, process, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x = processes.prior(process, keys, (4,), dtype)
    pairs = processes.training_pairs(process, keys, x)
    others = processes.log_prior(process, x), processes.perturb(process, keys, x, np.ones(3))
    assert {a.dtype for a in (x, *pairs, *others)} == {jnp.dtype(dtype)}


# ---- mistakes


@pytest.mark.parametrize("D", [0, -1, math.nan, -math.inf, 0.1, 0.499])
def test_D_must_be_one_that_float32_holds(D):
    with pytest.raises(UserError, match="^D must be inf or at least 0.5.*got") as caught:
        pfgmpp(D)
    assert "\n" not in str(caught.value)
    assert pfgmpp(0.5).D == 0.5


@pytest.mark.parametrize("low, high", [(0, 80), (-1, 80), (80, 80), (80, 0.002), (0.1, math.inf), (math.nan, 80)])
def test_sigma_range_is_checked(low, high):
    with pytest.raises(UserError, match="smallest σ < largest σ"):
        edm(low, high)


def test_geometric_shell_z_is_never_zero():
    law = GeometricShell(M=0, sigma=1e-12)
    _, z = training_pairs(
        Process("tiny", 1.0, 1e-3, 1.0, law), jax.random.split(jax.random.key(0), 100), jnp.zeros((100, 3))
    )
    assert (np.asarray(z) >= np.float32(1e-10)).all()


@pytest.mark.parametrize("steps, kind", [(1, "cosine"), (0, "linear"), (20, "linear"), (-5, "cosine")])
def test_ddpm_needs_some_levels(steps, kind):
    with pytest.raises(UserError, match=f"more than 20 noise levels.*got {steps}$"):
        ddpm(steps, kind)
    assert ddpm(21).sigma_max > ddpm(21).sigma_min > 0 and math.isfinite(ddpm(2, "cosine").sigma_max)


def test_a_schedule_that_does_not_rise_is_refused():
    with pytest.raises(UserError, match="process ve needs 0 < smallest σ < largest σ") as caught:
        ve(20.0, 10.0)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="smallest σ < largest σ"):
        vp(t_min=0.0)
    with pytest.raises(UserError, match="smallest σ < largest σ"):
        ve(t_min=2.0)


def test_unknown_betas_are_no_cosine():
    with pytest.raises(UserError, match="unknown kind of betas 'cos'; there are linear, cosine"):
        ddpm(kind="cos")
