"""The adaptive solvers: against SciPy, the steps they take, what they count, where they stop."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import CHARGES, counted, draw, solve
from scipy.integrate import solve_ivp

from pfgm_jax import parallel, sampling
from pfgm_jax.flow import field
from pfgm_jax.flow.process import edm, pfgmpp

ADAPTIVE = ["rk45", "tsit5"]


@pytest.mark.parametrize("D", [1, 3.5, 128, math.inf])
def test_rk45_against_scipy(x64, D):
    points, process = np.random.default_rng(0).normal(size=(12, 4)), pfgmpp(D, sigma_min=0.02, sigma_max=20.0)
    x = np.asarray(draw(process, 5, (4,), seed=1))
    theirs = oracles.flow(x, 20.0, 0.02, points, D, method="RK45", tolerance=1e-6)
    exact = oracles.flow(x, 20.0, 0.02, points, D)
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
    denoise, options = oracles.denoiser(points, 128), dict(rtol=1.0, atol=1.0)
    ours, stats = solve("rk45", process, denoise, x, last_denoise=False, **options)

    def velocity(u, x):
        return x - oracles.posterior_mean(x[None], [math.exp(u)], points, 128)[0]

    span = (math.log(2), math.log(2) - 0.09)
    theirs = solve_ivp(velocity, span, x[0], method="RK45", first_step=span[0] - span[1], **options)
    assert int(stats.steps) == 1 and len(theirs.t) == 2
    np.testing.assert_allclose(ours[0], theirs.y[:, -1], rtol=0, atol=1e-13)


def test_rk45_obeys_its_tolerance(x64):
    data, process = oracles.Gaussian(), edm(sigma_min=0.01, sigma_max=20.0)
    x = draw(process, 8, (3,))
    exact = data.flow(x, 20.0, 0.01)
    errors, steps = [], []
    for tolerance in [1e-3, 1e-5, 1e-7]:
        y, stats = solve("rk45", process, data.denoise, x, rtol=tolerance, atol=tolerance, last_denoise=False)
        errors.append(np.abs(y - exact).max())
        steps.append(int(stats.steps))
    assert steps[0] < steps[1] < steps[2] and errors[2] < 1e-5
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


@pytest.mark.parametrize("per_sample", [False, True])
def test_frames(per_sample):
    process, denoise = pfgmpp(128, 1e-3, 40.9), oracles.denoiser(CHARGES, 128)
    x = draw(process, 6, (4,))
    options = dict(rtol=1e-5, atol=1e-5, last_denoise=False, per_sample=per_sample)
    end, stats = solve("rk45", process, denoise, x, frames=9, **options)
    np.testing.assert_allclose(stats.sigmas, np.geomspace(40.9, 1e-3, 9), rtol=1e-5)
    assert stats.trajectory.shape == (9, 6, 4) and stats.sigmas.dtype == stats.trajectory.dtype == jnp.float32
    np.testing.assert_allclose(stats.trajectory[0], x, rtol=1e-6)
    # The last frame is interpolated: sums of stages, in float32.
    np.testing.assert_allclose(stats.trajectory[-1], end, rtol=0, atol=3e-5)
    # Frames are the solution itself: Heun's, on a fine grid from the start to the fifth frame, agrees.
    process = pfgmpp(128, float(stats.sigmas[4]), 40.9)
    fine, _ = solve("heun", process, denoise, x, steps=400, last_denoise=False)
    np.testing.assert_allclose(stats.trajectory[4], fine, rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", sampling.SOLVERS)
def test_float32_states_where_float64_is_enabled(x64, solver):
    process, options = edm(0.01, 20.0), [dict(steps=4, frames=2)]
    if solver in ADAPTIVE:
        options = [dict(frames=2), dict(fixed_steps=4), dict(per_sample=True)]
    x = jax.random.normal(jax.random.key(0), (3, 4), jnp.float32)
    for given in options:
        y, stats = solve(solver, process, oracles.denoiser(CHARGES, math.inf), x, keys=oracles.keys(3), **given)
        assert {a.dtype for a in (y, stats.sigma, stats.sigmas, stats.trajectory)} == {jnp.dtype("float32")}
        assert np.isfinite(y).all() and stats.completed


# ---- counting and stopping


def jump(x, sigma):
    """A field that no step over σ = 1 can pass at once."""
    return jnp.where(sigma[:, None] > 1, jnp.asarray(CHARGES[0], x.dtype), jnp.asarray(CHARGES[4], x.dtype))


def broken(x, sigma, value=jnp.nan):
    """NaN, or `value`, below σ = 0.5."""
    return jnp.where(sigma[:, None] > 0.5, x / (1 + sigma[:, None] ** 2), value)


smooth = oracles.denoiser(CHARGES, 128)


@pytest.mark.parametrize("solver, denoise, options", [
    ("rk45", smooth, dict(last_denoise=False, frames=7)),
    ("rk45", smooth, dict(max_steps=3)),
    ("rk45", smooth, dict(fixed_steps=7)),
    ("rk45", smooth, dict(rtol=1e-9, atol=1e-9)),  # refuses its first steps
    ("tsit5", smooth, dict(rtol=1e-9, atol=1e-9, per_sample=True, frames=2)),
    ("tsit5", smooth, dict(per_sample=True, last_denoise=False, max_steps=7)),
    ("tsit5", smooth, dict(per_sample=True, fixed_steps=5)),
    ("rk45", jump, dict(frames=3)),
    ("rk45", jump, dict(max_steps=12)),
    ("tsit5", jump, dict(last_denoise=False)),
])  # fmt: skip
def test_evaluations_counted_are_the_calls_made(x64, solver, denoise, options):
    process, limit = pfgmpp(128), options.get("max_steps")
    counting, calls = counted(denoise)
    x, stats = jax.block_until_ready(solve(solver, process, counting, draw(process, 16, (4,)), **options))
    jax.effects_barrier()
    assert int(stats.nfe) == len(calls) == np.max(stats.sample_nfe)
    assert int(stats.rejected) > 0 or (denoise is smooth and "rtol" not in options)
    assert bool(stats.completed) == (limit is None) and stats.finite
    if limit:  # and it says how far it came: the last state's level, which is above the lowest it has asked for
        assert int(stats.nfe) == 1 + 6 * limit + options.get("last_denoise", True)
        assert 0.002 < stats.sigma < 80
    else:
        assert min(calls) == pytest.approx(0.002, rel=1e-6) == float(stats.sigma)  # a callback is in float32
    if options.get("fixed_steps"):
        assert int(stats.steps) == options["fixed_steps"]
    assert max(calls) == pytest.approx(80, rel=1e-6)
    assert stats.trajectory.shape == (options.get("frames", 0), 16, 4)
    assert stats.sigmas.shape == (options.get("frames", 0),)


@pytest.mark.parametrize("solver, value, options", [
    ("rk45", math.nan, {}),
    ("rk45", math.nan, dict(per_sample=True)),
    ("tsit5", math.inf, {}),
    ("tsit5", math.nan, dict(fixed_steps=100)),
    ("rk45", -math.inf, dict(fixed_steps=100, per_sample=True)),
])  # fmt: skip
def test_stops_where_the_field_is_not_finite(x64, solver, value, options):
    process = edm(0.01, 20.0)
    counting, calls = counted(functools.partial(broken, value=value))
    _, stats = jax.block_until_ready(solve(solver, process, counting, draw(process, 4, (3,)), **options))
    jax.effects_barrier()
    assert not stats.completed and not stats.finite and int(stats.nfe) == len(calls)
    # Adaptive steps shrink to 1e-6 in ln σ in front of it; equal steps stop at the beginning of the one that meets it.
    step = math.log(2000) / 100 if "fixed_steps" in options else 1e-5
    assert 0.5 <= stats.sigma <= 0.5 * math.exp(step)


def test_stops_at_once_where_the_prior_is_not_finite(x64):
    process = edm(0.01, 20.0)
    counting, calls = counted(lambda x, sigma: x * jnp.nan)
    _, stats = jax.block_until_ready(solve("rk45", process, counting, draw(process, 4, (3,))))
    jax.effects_barrier()
    assert not stats.completed and not stats.finite and int(stats.nfe) == len(calls)
    assert stats.sigma == pytest.approx(20, rel=1e-12) and int(stats.steps) == 0


# ---- steps of one's own


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_a_sample_with_its_own_steps_does_not_depend_on_its_batch(x64, solver):
    process, denoise = pfgmpp(3.5, 0.01, 30.0), oracles.denoiser(CHARGES, 3.5)
    x = draw(process, 12, (4,), seed=4)
    options = dict(per_sample=True, rtol=1e-6, atol=1e-6)
    together, stats = solve(solver, process, denoise, x, **options)
    run = jax.jit(lambda x: getattr(sampling, solver)(process, denoise, x, **options))
    for i in range(len(x)):
        alone, stats_alone = run(x[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], rtol=0, atol=1e-12)
        assert int(stats.sample_nfe[i]) == int(stats_alone.nfe)
    assert len(np.unique(stats.sample_nfe)) > 1


@pytest.mark.parametrize("solver, D", [("rk45", 1), ("rk45", math.inf), ("tsit5", 128)])
def test_own_steps_cost_at_most_a_quarter_more_calls(solver, D):
    # The batch waits for its slowest sample; without any slack for that it needs up to 1.5 times the calls.
    process, denoise = pfgmpp(D), oracles.denoiser(CHARGES, D)
    x = draw(process, 256, (4,), seed=0)
    _, shared = solve(solver, process, denoise, x)
    _, own = solve(solver, process, denoise, x, per_sample=True)
    assert shared.completed and own.completed
    assert np.mean(own.sample_nfe) < own.nfe <= 1.25 * shared.nfe


@pytest.mark.parametrize("options", [{}, dict(per_sample=True), dict(fixed_steps=12)])
def test_samples_do_not_depend_on_the_number_of_devices(x64, options):
    process, denoise = pfgmpp(128), oracles.denoiser(CHARGES, 128)
    x = draw(process, 24, (4,))
    run = functools.partial(sampling.rk45, process, denoise, rtol=1e-5, atol=1e-5, **options)
    one, stats = jax.jit(run)(x)
    many, stats_of_each = parallel.pmap(functools.partial(run, axis_name=parallel.AXIS))(parallel.shard(x))
    np.testing.assert_allclose(parallel.gather(many), one, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(parallel.gather(stats_of_each.sample_nfe), stats.sample_nfe)
    if options:
        return
    for name in ["steps", "rejected", "nfe"]:
        np.testing.assert_array_equal(getattr(stats_of_each, name), np.full(8, getattr(stats, name)))
    _, apart = parallel.pmap(run)(parallel.shard(x))  # and that is the axis's doing
    assert len(np.unique(apart.nfe)) > 1


@pytest.mark.parametrize("options", [{}, dict(fixed_steps=100)])
def test_devices_stop_together(x64, options):
    process = edm(0.01, 20.0)

    def broken_on_one(x, sigma):
        return jnp.where(jax.lax.axis_index(parallel.AXIS) == 3, broken(x, sigma), broken(x, sigma, 0.0))

    run = functools.partial(sampling.rk45, process, broken_on_one, axis_name=parallel.AXIS, **options)
    _, stats = parallel.pmap(run)(parallel.shard(draw(process, 16, (3,))))
    assert not np.any(stats.completed) and not np.any(stats.finite)
    assert len(np.unique(stats.nfe)) == len(np.unique(stats.sigma)) == 1 and stats.sigma[0] >= 0.5
