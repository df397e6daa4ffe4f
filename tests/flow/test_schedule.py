"""Schedules against NumPy float64, and against the SDEs that they stand for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfgm_jax.flow import process as processes
from pfgm_jax.flow import schedule

T = np.linspace(1e-3, 1, 201)
VP, SUBVP, VE = schedule.VP(0.1, 20.0), schedule.SubVP(0.1, 20.0), schedule.Geometric(0.02, 100.0)


def beta(t):
    return 0.1 + t * 19.9


def integral(t):
    return 0.1 * t + 19.9 * t**2 / 2


def drift_and_diffusion(noise_schedule, t):
    """(f, g²) of dx = f x dt + g dw, whose solution from y at t = 0 is x_t = s(t) (y + σ(t) n): f = ṡ/s, g² = 2 s² σ σ̇.

    The mean s y solves m' = f m, and the variance v = s² σ² solves v' = 2 f v + g².
    """

    def rate(function):
        return jax.vmap(jax.grad(function))(t)

    s, sigma = noise_schedule.scale(t), noise_schedule.sigma(t)
    return rate(noise_schedule.scale) / s, 2 * s**2 * sigma * rate(noise_schedule.sigma)


# ---- the marginals


@pytest.mark.parametrize(
    "noise_schedule, coefficient, deviation",
    [
        (VP, np.exp(-integral(T) / 2), np.sqrt(1 - np.exp(-integral(T)))),
        (SUBVP, np.exp(-integral(T) / 2), 1 - np.exp(-integral(T))),
        (VE, np.ones_like(T), 0.02 * (100 / 0.02) ** T),
        (schedule.Identity(), np.ones_like(T), T),
    ],
    ids=["vp", "subvp", "ve", "identity"],
)
def test_marginals_are_the_published_ones(x64, noise_schedule, coefficient, deviation):
    s, sigma = noise_schedule.scale(jnp.asarray(T)), noise_schedule.sigma(jnp.asarray(T))
    np.testing.assert_allclose(s, coefficient, rtol=1e-13)
    # At t = 1e-3 the oracle's own 1 − e^(−B) has lost four of its sixteen digits.
    np.testing.assert_allclose(s * sigma, deviation, rtol=1e-11)


# ---- the SDEs (arXiv 2011.13456, eq. 31 to 33)


@pytest.mark.parametrize(
    "noise_schedule, f, g_squared",
    [
        (VP, -beta(T) / 2, beta(T)),
        (SUBVP, -beta(T) / 2, beta(T) * (1 - np.exp(-2 * integral(T)))),
        (VE, 0 * T, (0.02 * 5000**T) ** 2 * 2 * math.log(5000)),
    ],
    ids=["vp", "subvp", "ve"],
)
def test_a_schedule_solves_its_sde(x64, noise_schedule, f, g_squared):
    ours_f, ours_g_squared = drift_and_diffusion(noise_schedule, jnp.asarray(T))
    np.testing.assert_allclose(ours_f, f, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ours_g_squared, g_squared, rtol=1e-11)


# ---- DDPM


def ddpm_sigmas(steps, betas):
    """σ_i = √((1 − ᾱ_i)/ᾱ_i), ᾱ_i = Π_(j ≤ i) (1 − β_j), one product after the other."""
    alpha_bar, sigmas = 1.0, []
    for i in range(steps):
        alpha_bar *= 1 - betas[i]
        sigmas.append(math.sqrt((1 - alpha_bar) / alpha_bar))
    return np.array(sigmas)


def cosine_betas(steps):
    def alpha_bar(i):
        return math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    return [min(1 - alpha_bar(i) / alpha_bar(i - 1), 0.999) for i in range(1, steps + 1)]


def test_ddpm_levels(x64):
    levels = schedule.Discrete(1000, "linear")
    i = jnp.arange(1, 1001)
    # β_i from 1e-4 to 0.02 (arXiv 2006.11239, section 4); 1 − ᾱ_1 = 1e-4 leaves the oracle twelve digits.
    expected = ddpm_sigmas(1000, [1e-4 + j * (0.02 - 1e-4) / 999 for j in range(1000)])
    np.testing.assert_allclose(levels.sigma(i), expected, rtol=1e-11)
    np.testing.assert_allclose(levels.scale(i), 1 / np.sqrt(1 + expected**2), rtol=1e-11)
    assert expected[0] == pytest.approx(0.0100, abs=5e-6) and expected[-1] == pytest.approx(157.4, abs=0.05)
    # Other T keep T β, and with it the σ at the ends of the same order.
    other = ddpm_sigmas(100, np.linspace(1e-3, 0.2, 100))
    np.testing.assert_allclose(schedule.Discrete(100, "linear").sigma(jnp.arange(1, 101)), other, rtol=1e-11)


def test_cosine_levels(x64):
    sigma = np.asarray(schedule.Discrete(1000, "cosine").sigma(jnp.arange(1, 1001)))
    betas = cosine_betas(1000)
    np.testing.assert_allclose(sigma, ddpm_sigmas(1000, betas), rtol=1e-10)
    assert sigma[0] == pytest.approx(0.0064, abs=5e-5)
    assert sigma[-2] == pytest.approx(641.6, abs=0.1) and sigma[-1] == pytest.approx(20291, abs=1)
    assert betas[-1] == 0.999 > betas[-2]  # the last β alone is clipped: ᾱ would be 0 there
    # Before it, ᾱ is the cosine itself.
    i = np.arange(1, 1000)
    cosine = np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(1 / (1 + sigma[:-1] ** 2), cosine, rtol=1e-9)


def test_ddpm_is_vp_on_a_grid(x64):
    # −Σ ln(1 − β_j) is more than ∫ β by Σ β_j²/2 = 134/(2T) at t = T (and a Riemann sum's 19.9/(8T) on the way there),
    # and σ ~ e^(B/2) by half of that in its logarithm: 0.034 at T = 1000, a quarter of it at T = 4000.
    worst = []
    for steps in (1000, 4000):
        t = jnp.arange(1, steps + 1)
        ratio = schedule.Discrete(steps, "linear").sigma(t) / VP.sigma(t / steps)
        late = np.abs(np.asarray(ratio) - 1)[np.asarray(t) >= steps // 10]
        worst.append(late.max())
    np.testing.assert_allclose(worst, [134 / 4000, 134 / 16000], rtol=0.05)


@pytest.mark.parametrize(
    "steps, kind", [(1000, "linear"), (1000, "cosine"), (4000, "cosine"), (50, "linear"), (2, "cosine")]
)
def test_time_of_a_discrete_level_is_whole(steps, kind):
    levels = schedule.Discrete(steps, kind)
    t = np.arange(1, steps + 1)
    back = np.asarray(levels.time(levels.sigma(jnp.asarray(t))))
    # ln σ rounds at 6e-8 of its size 5 to 10; a level is 0.005 or more of ln σ wide.
    np.testing.assert_allclose(back, t, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(np.round(back), t)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_between_discrete_levels_ln_sigma_is_linear(x64, kind):
    levels = schedule.Discrete(1000, kind)
    for i, part in [(1, 0.5), (500, 0.25), (999, 0.9)]:
        low, high = (float(levels.sigma(jnp.asarray(j))) for j in (i, i + 1))
        between = low ** (1 - part) * high**part
        assert float(levels.sigma(jnp.asarray(i + part))) == pytest.approx(between, rel=1e-12)
        assert float(levels.time(jnp.asarray(between))) == pytest.approx(i + part, abs=1e-9)
    # Beyond the ends there are no levels.
    ends = levels.sigma(jnp.asarray([-3.0, 1.0, 1000.0, 1002.0]))
    assert ends[0] == ends[1] and ends[2] == ends[3]
    np.testing.assert_allclose(levels.time(jnp.asarray([1e-5, 1e6])), [1, 1000], rtol=1e-15)


# ---- time


CONTINUOUS = [VP, SUBVP, VE, schedule.Identity(), schedule.Geometric(0.01, 50.0), schedule.VP(0.5, 8.0)]


@pytest.mark.parametrize("noise_schedule", CONTINUOUS, ids=repr)
def test_time_is_the_inverse_of_sigma(noise_schedule):
    t = np.concatenate([np.geomspace(1e-5, 1e-2, 50), np.linspace(0.01, 1, 200)]).astype(np.float32)
    back = np.asarray(noise_schedule.time(noise_schedule.sigma(jnp.asarray(t))), np.float64)
    # A few roundings of float32. VP and sub-VP keep the digits of a small t too; VE's ln(σ/σ_min) at t ~ 0 is the
    # logarithm of a number near 1, of which 1e-7 remains.
    of_t = 2e-6 if isinstance(noise_schedule, schedule.LinearBeta) else 0
    np.testing.assert_allclose(back, t, rtol=of_t, atol=0 if of_t else 5e-7)
    with jax.enable_x64(True):
        t = t.astype(np.float64)
        np.testing.assert_allclose(noise_schedule.time(noise_schedule.sigma(jnp.asarray(t))), t, rtol=1e-12, atol=1e-15)


def test_a_flat_beta_has_a_time_too(x64):
    flat = schedule.VP(3.0, 3.0)  # the quadratic in t is a line
    t = jnp.linspace(0.01, 1, 7)
    np.testing.assert_allclose(flat.time(flat.sigma(t)), t, rtol=1e-13)


PROCESSES = [processes.edm(), processes.ve(), processes.vp(), processes.subvp(), processes.ddpm(), processes.ddpm(50)]


@pytest.mark.parametrize("process", [*PROCESSES, processes.ddpm(1000, "cosine")], ids=lambda p: f"{p.name}{p.t_max:g}")
def test_sigma_grows_with_time_under_jit_and_vmap(process):
    t = jnp.linspace(process.t_min, process.t_max, 300)
    sigma = jax.jit(jax.vmap(process.sigma))(t)
    assert (np.diff(sigma) > 0).all() and np.isfinite(sigma).all()
    np.testing.assert_allclose(sigma, process.sigma(t), rtol=1e-6)
    scale = np.asarray(jax.jit(process.scale)(t))
    assert ((0 < scale) & (scale <= 1)).all() and (np.diff(scale) <= 0).all()
    np.testing.assert_allclose(jax.jit(process.time)(sigma), t, rtol=1e-5, atol=1e-6)
