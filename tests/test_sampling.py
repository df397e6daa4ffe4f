"""The solvers on fields whose flow is known in closed form, against SciPy, and what they report."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy.integrate import solve_ivp

from pfgm_jax import field, parallel, sampling
from pfgm_jax.errors import UserError
from pfgm_jax.process import edm, pfgmpp, prior

# Three charges far apart, the first three times and the second twice: frequencies 1/2, 1/3, 1/6.
CHARGES = np.array([[3.0, 0, 0, 0], [-2, 2, 0, 0], [0, -1, 3, 1]])
CHARGES = np.repeat(CHARGES, [3, 2, 1], axis=0)
FREQUENCIES = np.array([1 / 2, 1 / 3, 1 / 6])


def solve(solver, process, denoise, x, **options):
    return jax.jit(lambda x: sampling.SOLVERS[solver](process, denoise, x, **options))(x)


def draw(process, n, shape, seed=0):
    keys = jax.random.split(jax.random.key(seed), n)
    return jax.jit(lambda keys: prior(process, keys, shape))(keys)


class Gaussian:
    """Data y ~ N(mean, C) at D = ∞: the denoiser and the flow are linear and known."""

    def __init__(self, N=3, seed=0):
        rng = np.random.default_rng(seed)
        self.mean = rng.normal(size=N)
        self.axes, _ = np.linalg.qr(rng.normal(size=(N, N)))
        self.variance = np.geomspace(0.05, 2, N)
        self.covariance = self.axes @ np.diag(self.variance) @ self.axes.T

    def denoise(self, x, sigma):
        """E[y | x, σ] = mean + C (C + σ² I)⁻¹ (x − mean)."""
        shrunk = self.variance / (self.variance + sigma[:, None] ** 2)
        return self.mean + ((x - self.mean) @ self.axes * shrunk) @ self.axes.T

    def flow(self, x, start, end):
        """Along the flow each principal component of x − mean scales as √(variance + σ²)."""
        scale = np.sqrt((self.variance + end**2) / (self.variance + start**2))
        return self.mean + ((np.asarray(x) - self.mean) @ self.axes * scale) @ self.axes.T


# ---- the flow ends in the data, in the right proportions


@pytest.mark.parametrize("D", [1, 128, math.inf])
@pytest.mark.parametrize("solver, options", [("rk45", {}), ("heun", dict(steps=40))])
def test_samples_are_the_charges_in_their_proportions(x64, solver, options, D):
    # The prior is centred at 0, the charges' mean 1.2 away: their total variation is below 0.4 · 1.2/σ_max, plus terms
    # in 1/σ_max², and the flow carries that over. At σ_max = 1000 it is 5e-4, against 5 sigma = 0.04.
    # σ_min is small because at D = 1 a sample stays σ_min times a Cauchy factor away from its charge.
    n, process = 4000, pfgmpp(D, sigma_min=1e-5, sigma_max=1000.0)
    x, stats = solve(solver, process, field.exact_denoiser(CHARGES, D), draw(process, n, (4,)), **options)
    distance = np.linalg.norm(np.asarray(x)[:, None] - CHARGES[[0, 3, 5]], axis=2)
    assert stats.completed and distance.min(axis=1).max() < 1e-3
    counts = np.bincount(distance.argmin(axis=1), minlength=3)
    np.testing.assert_array_less(np.abs(counts / n - FREQUENCIES), 5 * np.sqrt(FREQUENCIES * (1 - FREQUENCIES) / n))


@pytest.mark.parametrize("solver, options", [("rk45", dict(rtol=1e-6, atol=1e-6)), ("heun", dict(steps=60))])
def test_samples_of_a_gaussian(solver, options):
    # The prior's own bias: mean 1.8 · √(variance)/σ_max < 3e-3, below a tenth of 5 sigma.
    data, n, process = Gaussian(), 20_000, edm(sigma_max=1000.0)
    x, _ = solve(solver, process, data.denoise, draw(process, n, (3,)), **options)
    x = np.asarray(x, np.float64)
    z = (x - data.mean) @ data.axes / np.sqrt(data.variance)
    assert np.abs(z.mean(axis=0)).max() < 5 / math.sqrt(n) + 3e-3
    error = np.abs(np.cov(z.T) - np.eye(3))  # sd √(2/n) on the diagonal, √(1/n) off it
    assert error.max() < 5 * math.sqrt(2 / n) + 1e-3


@pytest.mark.parametrize("solver, options", [("rk45", dict(rtol=1e-9, atol=1e-9)), ("heun", dict(steps=800))])
def test_the_map_of_a_gaussian(x64, solver, options):
    data, process = Gaussian(), edm(sigma_min=0.01, sigma_max=20.0)
    x = draw(process, 8, (3,))
    samples, stats = solve(solver, process, data.denoise, x, frames=5, **options)
    at_end = data.flow(x, 20.0, 0.01)
    # 1e-9 over some 300 steps; Heun's h² with h = 1/80 of σ in its largest steps.
    tolerance = 1e-6 if solver == "rk45" else 3e-4
    np.testing.assert_allclose(stats.trajectory[-1], at_end, rtol=0, atol=tolerance)
    np.testing.assert_allclose(samples, data.denoise(at_end, np.full(8, 0.01)), rtol=0, atol=tolerance)
    for level, state in zip(stats.sigmas[1:-1:100], stats.trajectory[1:-1:100], strict=True):
        np.testing.assert_allclose(state, data.flow(x, 20.0, float(level)), rtol=1e-3, atol=1e-3)


# ---- rk45


@pytest.mark.parametrize("D", [1, 128, math.inf])
def test_rk45_against_scipy(x64, D):
    rng = np.random.default_rng(0)
    points, process = rng.normal(size=(12, 4)), pfgmpp(D, sigma_min=0.02, sigma_max=20.0)
    x = np.asarray(draw(process, 5, (4,), seed=1))

    def velocity(u, flat):
        x = flat.reshape(5, 4)
        return (x - oracles.posterior_mean(x, np.full(5, math.exp(u)), points, D)).ravel()

    span = (math.log(20.0), math.log(0.02))
    scipy = functools.partial(solve_ivp, velocity, span, x.ravel())
    theirs = scipy(method="RK45", rtol=1e-6, atol=1e-6).y[:, -1].reshape(5, 4)
    exact = scipy(method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1].reshape(5, 4)
    ours, stats = solve("rk45", process, field.exact_denoiser(points, D), x, rtol=1e-6, atol=1e-6, last_denoise=False)
    # A step may err by 1e-6 (1 + |x|) and the flow contracts towards the data, so at most all errors add up.
    tolerance = int(stats.steps) * 1e-6
    np.testing.assert_allclose(theirs, exact, rtol=0, atol=tolerance)
    np.testing.assert_allclose(ours, exact, rtol=0, atol=tolerance)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_one_step_is_dormand_prince(x64):
    # The first step, of 0.1 in ln σ, is cut at the end; SciPy's RK45 is told to take the same.
    points, x = np.random.default_rng(0).normal(size=(12, 4)), np.random.default_rng(1).normal(size=(1, 4))
    process = pfgmpp(128, sigma_min=2 * math.exp(-0.09), sigma_max=2.0)
    denoise, options = field.exact_denoiser(points, 128), dict(rtol=1.0, atol=1.0)
    ours, stats = solve("rk45", process, denoise, x, last_denoise=False, **options)

    def velocity(u, x):
        return x - oracles.posterior_mean(x[None], [math.exp(u)], points, 128)[0]

    span = (math.log(2), math.log(2) - 0.09)
    theirs = solve_ivp(velocity, span, x[0], method="RK45", first_step=span[0] - span[1], **options)
    assert int(stats.steps) == 1 and len(theirs.t) == 2
    np.testing.assert_allclose(ours[0], theirs.y[:, -1], rtol=0, atol=1e-13)


def counted(denoise):
    """`denoise` and a list that grows by one entry at every call."""
    calls = []

    def counting(x, sigma):
        jax.debug.callback(lambda sigma: calls.append(float(sigma)), sigma[0])
        return denoise(x, sigma)

    return counting, calls


def jump(x, sigma):
    """A field that no step over σ = 1 can pass at once."""
    return jnp.where(sigma[:, None] > 1, jnp.asarray(CHARGES[0], x.dtype), jnp.asarray(CHARGES[4], x.dtype))


@pytest.mark.parametrize(
    "denoise, options",
    [
        (field.exact_denoiser(CHARGES, 128), dict()),
        (field.exact_denoiser(CHARGES, 128), dict(last_denoise=False, frames=7)),
        (field.exact_denoiser(CHARGES, 128), dict(max_steps=3)),
        (jump, dict(frames=3)),
        (jump, dict(last_denoise=False)),
        (jump, dict(max_steps=12)),
    ],
)
def test_rk45_counts_its_evaluations(denoise, options):
    process, limit = pfgmpp(128), options.get("max_steps")
    counting, calls = counted(denoise)
    x, stats = solve("rk45", process, counting, draw(process, 16, (4,)), **options)
    jax.block_until_ready(x)
    jax.effects_barrier()
    assert int(stats.nfe) == len(calls)
    assert (int(stats.rejected) > 0) == (denoise is jump)
    assert bool(stats.completed) == (limit is None)
    assert limit is None or int(stats.steps + stats.rejected) == limit
    assert max(calls) == pytest.approx(80, rel=1e-5)
    assert limit or min(calls) == pytest.approx(0.002, rel=1e-5)
    assert stats.trajectory.shape == (options.get("frames", 0), 16, 4)
    assert stats.sigmas.shape == (options.get("frames", 0),)


def test_rk45_obeys_its_tolerance(x64):
    data, process = Gaussian(), edm(sigma_min=0.01, sigma_max=20.0)
    x = draw(process, 8, (3,))
    exact = data.flow(x, 20.0, 0.01)
    run = jax.jit(
        lambda tolerance: sampling.rk45(process, data.denoise, x, rtol=tolerance, atol=tolerance, last_denoise=False)
    )
    results = [run(tolerance) for tolerance in [1e-3, 1e-5, 1e-7]]
    errors, steps = zip(*((np.abs(y - exact).max(), int(stats.steps)) for y, stats in results), strict=True)
    assert steps[0] < steps[1] < steps[2] and errors[2] < 1e-5
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


@pytest.mark.parametrize("sigma_min, sigma_max", [(0.002, 80.0), (1e-3, 40.9)])
def test_rk45_trajectory(sigma_min, sigma_max):
    process, denoise = pfgmpp(128, sigma_min, sigma_max), field.exact_denoiser(CHARGES, 128)
    x = draw(process, 6, (4,))
    _, stats = solve("rk45", process, denoise, x, frames=9, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stats.sigmas, np.geomspace(sigma_max, sigma_min, 9), rtol=1e-5)
    assert stats.trajectory.shape == (9, 6, 4) and stats.sigmas.dtype == stats.trajectory.dtype == jnp.float32
    np.testing.assert_allclose(stats.trajectory[0], x, rtol=1e-6)
    # Frames are the solution itself: Heun's, on a fine grid from the start to the fifth frame, agrees.
    process = pfgmpp(128, float(stats.sigmas[4]), sigma_max)
    _, fine = solve("heun", process, denoise, x, steps=400, frames=1)
    np.testing.assert_allclose(stats.trajectory[4], fine.trajectory[-1], rtol=0, atol=1e-3)


# ---- heun


def test_edm_grid():
    grid = np.asarray(sampling.edm_grid(18, 80.0, 0.002), np.float64)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grid[:-1], expected, rtol=1e-4)  # a seventh power of float32
    assert len(grid) == 19 and grid[-1] == 0
    np.testing.assert_allclose(grid[[0, -2]], [80, 0.002], rtol=1e-4)
    np.testing.assert_allclose(sampling.edm_grid(5, 10, 1, rho=1)[:-1], [10, 7.75, 5.5, 3.25, 1], rtol=1e-6)
    for steps, rho in [(1, 7), (0, 7), (18, 0), (18, math.nan)]:
        with pytest.raises(UserError, match="steps >= 2"):
            sampling.edm_grid(steps, 80.0, 0.002, rho)


def test_heun_by_hand(x64):
    # Algorithm 1 of EDM in a loop of plain NumPy.
    data, process = Gaussian(), edm()
    x = expected = np.asarray(draw(process, 3, (3,)))
    grid = np.asarray(sampling.edm_grid(6, 80.0, 0.002, 5.0))
    for sigma, following in zip(grid[:-1], grid[1:], strict=True):
        d = (expected - data.denoise(expected, np.full(3, sigma))) / sigma
        euler = expected + (following - sigma) * d
        if following > 0:
            d = (d + (euler - data.denoise(euler, np.full(3, following))) / following) / 2
        expected = expected + (following - sigma) * d
    ours, _ = solve("heun", process, data.denoise, x, steps=6, rho=5.0)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_heun_is_of_second_order(x64):
    data, process = Gaussian(), edm(sigma_min=0.05, sigma_max=5.0)
    x = draw(process, 8, (3,))
    exact, steps = data.flow(x, 5.0, 0.05), np.array([40, 80, 160, 320])
    errors = []
    for n in steps:
        _, stats = solve("heun", process, data.denoise, x, steps=int(n), frames=1)
        errors.append(np.linalg.norm(stats.trajectory[-1] - exact))
    slope = np.polyfit(np.log(steps - 1), np.log(errors), 1)[0]
    assert slope == pytest.approx(-2, abs=0.1)


@pytest.mark.parametrize("frames", [0, 3])
def test_heun_counts_its_evaluations(frames):
    process = edm()
    denoise, calls = counted(field.exact_denoiser(CHARGES, math.inf))
    x = draw(process, 4, (4,))
    samples, stats = solve("heun", process, denoise, x, steps=11, frames=frames)
    jax.block_until_ready(samples)
    jax.effects_barrier()
    assert int(stats.nfe) == len(calls) == 21  # 2n − 1
    assert (int(stats.steps), int(stats.rejected), bool(stats.completed)) == (11, 0, True)
    if frames:
        np.testing.assert_array_equal(stats.trajectory[0], x)
        np.testing.assert_allclose(stats.sigmas, sampling.edm_grid(11, 80.0, 0.002)[:-1], rtol=1e-5)
        assert stats.trajectory.shape == (11, 4, 4)
    else:
        assert stats.trajectory.shape == (0, 4, 4) and stats.sigmas.shape == (0,)


# ---- devices and names


@pytest.mark.parametrize("solver, options", [("rk45", dict(rtol=1e-5, atol=1e-5)), ("heun", {})])
def test_samples_do_not_depend_on_the_number_of_devices(x64, solver, options):
    process = pfgmpp(128)
    denoise = field.exact_denoiser(CHARGES, 128)
    x = draw(process, 24, (4,))
    one, stats = solve(solver, process, denoise, x, **options)
    run = functools.partial(sampling.SOLVERS[solver], process, denoise, axis_name=parallel.AXIS, **options)
    many, stats_of_each = parallel.pmap(run)(parallel.shard(x))
    np.testing.assert_allclose(parallel.gather(many), one, rtol=0, atol=1e-9)
    for name in ["steps", "rejected", "nfe"]:
        np.testing.assert_array_equal(getattr(stats_of_each, name), np.full(8, getattr(stats, name)))
    if solver == "rk45":  # and that is the axis's doing
        _, apart = parallel.pmap(functools.partial(run, axis_name=None))(parallel.shard(x))
        assert len(np.unique(apart.nfe)) > 1


def test_a_schedule_of_its_own():
    """σ_max and σ_min come from σ(t), also when it is computed by JAX and the solver is compiled."""
    process = edm()
    scheduled = type(process)("vp", math.inf, 0.1, 1.0, None, sigma=lambda t: jnp.expm1(4 * t))
    x = draw(process, 4, (4,))
    _, stats = solve("heun", scheduled, field.exact_denoiser(CHARGES, math.inf), x, frames=1)
    np.testing.assert_allclose(stats.sigmas[jnp.array([0, -1])], np.expm1([4.0, 0.4]), rtol=1e-4)


def test_find():
    heun, options = sampling.find("heun", {"steps": 3, "rtol": 1, "frames": 2})
    assert heun is sampling.heun and options == {"steps", "frames"}
    assert sampling.find("rk45", ["rtol", "steps"]) == (sampling.rk45, {"rtol"})
    with pytest.raises(UserError, match="unknown solver 'huen'; did you mean 'heun'"):
        sampling.find("huen")
    with pytest.raises(UserError, match="there are rk45, heun"):
        sampling.find("x")
