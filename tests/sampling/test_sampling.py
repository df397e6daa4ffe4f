"""What all solvers share: names, refusals, counting, stopping at NaN, frames, devices."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import counted, draw, keys, solve

from pfgm_jax import parallel, sampling
from pfgm_jax.config import default
from pfgm_jax.errors import UserError
from pfgm_jax.flow.process import ddpm, edm, pfgmpp, subvp, ve, vp
from pfgm_jax.sampling import grids, posterior_trace
from pfgm_jax.sampling.settings import SampleSettings

# (solver, options, evaluations of 7 levels) of every solver with fixed steps.
FIXED = [
    ("euler", {}, 7),
    ("euler", dict(last_denoise=False), 6),
    ("heun", {}, 13),
    ("heun", dict(last_denoise=False, grid="log"), 12),
    ("heun", dict(S_churn=3.0), 13),
    ("dpmpp_2m", {}, 7),
    ("dpmpp_2m", dict(start="rk4"), 10),
    ("dpmpp_3m", dict(last_denoise=False), 6),
    ("dpmpp_3m", dict(start="rk4"), 13),
    ("ipndm", {}, 7),
    ("ipndm", dict(start="rk4"), 16),
    ("unipc", {}, 7),
    ("unipc", dict(last_denoise=False), 6),
    ("auto", {}, 7),
    ("auto", dict(grid="log", last_denoise=False), 6),
    ("ddim", {}, 7),
    ("ddim", dict(eta=0.5, last_denoise=False), 6),
    ("sde", {}, 7),
    ("sde", dict(noise=0.5, last_denoise=False), 6),
    ("ancestral", {}, 7),
    ("euler_maruyama", {}, 7),
    ("predictor_corrector", dict(predictor="ancestral"), 14),
    ("predictor_corrector", dict(corrector_steps=2), 21),
]


def toy(x, sigma):
    """Data of variance 1 around 0, at D = ∞."""
    return x / (1 + sigma[:, None] ** 2)


# ---- counting and stopping


@pytest.mark.parametrize("solver, options, nfe", FIXED)
def test_evaluations_counted_are_the_calls_made(solver, options, nfe):
    process = vp()
    counting, calls = counted(toy)
    _, stats = jax.block_until_ready(
        solve(solver, process, counting, draw(process, 4, (3,)), keys(4), steps=7, **options)
    )
    jax.effects_barrier()
    assert len(calls) == nfe == int(stats.nfe) and np.all(stats.sample_nfe == nfe)
    ends = options.get("last_denoise", True)
    assert int(stats.steps) == 6 + ends and int(stats.rejected) == 0 and stats.completed and stats.finite
    assert stats.sigma == (0 if ends else pytest.approx(process.sigma_min, rel=1e-6))
    assert stats.trajectory.shape == (0, 4, 3) and stats.sigmas.shape == (0,)


@pytest.mark.parametrize("solver, options, nfe", FIXED)
def test_stops_where_the_field_is_not_finite(solver, options, nfe):
    """At the first level below 3, exactly; the step that meets it is finished, and no other begun."""
    process = vp()
    levels = sampling.levels_of(solver, process, options | dict(steps=7))
    bad = jnp.array([jnp.nan, 0, jnp.inf])
    counting, calls = counted(lambda x, sigma: jnp.where(sigma[:, None] < 3, bad, toy(x, sigma)))
    _, stats = jax.block_until_ready(
        solve(solver, process, counting, draw(process, 4, (3,)), keys(4), steps=7, **options)
    )
    jax.effects_barrier()
    assert not stats.completed and not stats.finite and int(stats.nfe) == len(calls) < nfe
    first = next(i for i, sigma in enumerate(calls) if sigma < 3)
    assert float(stats.sigma) == calls[first]
    if "start" not in options and "S_churn" not in options:  # which ask between the levels
        assert calls[first] == pytest.approx(levels[levels < 3][0], rel=1e-6)
    rest_of_the_step = {"S_churn": 2, "start": 4, "corrector_steps": 3, "predictor": 2}
    assert len(calls) - first <= max([rest_of_the_step.get(option, 1) for option in options], default=1)


def test_stops_in_the_last_step():
    process = edm()
    broken = lambda x, sigma: jnp.where(sigma[:, None] < 0.0021, jnp.nan, toy(x, sigma))
    _, stats = solve("euler", process, broken, draw(process, 4, (3,)), steps=9)
    assert not stats.completed and not stats.finite and stats.sigma == pytest.approx(0.002, rel=1e-6)
    assert int(stats.nfe) == int(stats.steps) == 9
    _, stats = solve("euler", process, broken, draw(process, 4, (3,)), steps=9, last_denoise=False)
    assert stats.completed and stats.finite


@pytest.mark.parametrize("solver", ["heun", "predictor_corrector"])
def test_devices_stop_together(solver):
    """One device's samples fail; the others, whose norms the corrector shares, stop with it."""
    process = vp()

    def broken(x, sigma):
        failed = (jax.lax.axis_index(parallel.AXIS) == 3) & (sigma[:, None] < 1)
        return jnp.where(failed, jnp.nan, toy(x, sigma))

    run = functools.partial(sampling.SOLVERS[solver], process, broken, axis_name=parallel.AXIS, steps=15)
    _, stats = parallel.pmap(lambda x, keys: run(x, keys=keys))(
        parallel.shard(draw(process, 16, (3,))), parallel.shard(keys(16))
    )
    assert not np.any(stats.completed) and not np.any(stats.finite)
    assert len(np.unique(stats.nfe)) == len(np.unique(stats.sigma)) == 1 and 0 < stats.sigma[0] < 1


# ---- frames and devices


@pytest.mark.parametrize("frames, kept", [(1, [0]), (2, [0, 8]), (4, [0, 3, 5, 8]), (9, range(9)), (50, range(9))])
def test_frames(x64, frames, kept):
    """Even over the steps, no more than there are; the first is the prior's draw, the last the state at σ_min."""
    process = edm()
    x = draw(process, 4, (3,))
    samples, stats = solve("euler", process, toy, x, steps=9, frames=frames)
    levels = sampling.levels(process, "edm", 9)[list(kept)]
    np.testing.assert_allclose(stats.sigmas, levels, rtol=1e-12)
    assert stats.trajectory.shape == (len(levels), 4, 3)
    np.testing.assert_array_equal(stats.trajectory[0], x)
    if frames > 1:
        np.testing.assert_allclose(toy(stats.trajectory[-1], np.full(4, levels[-1])), samples, rtol=0, atol=1e-12)
    if frames == 4:  # a frame is where a solve to that level ends
        for level, state in zip(levels[1:], stats.trajectory[1:], strict=True):
            count = 1 + int(np.argmin(np.abs(sampling.levels(process, "edm", 9) - level)))
            shorter = edm(sigma_min=level)
            ended, _ = solve("euler", shorter, toy, x, steps=count, last_denoise=False)
            np.testing.assert_allclose(ended, state, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver, options", [
    ("heun", dict(S_churn=3.0)),
    ("dpmpp_3m", {}),
    ("ddim", dict(eta=0.5)),
    ("sde", {}),
    ("ancestral", {}),
    ("predictor_corrector", dict(frames=3)),
])  # fmt: skip
def test_samples_do_not_depend_on_the_number_of_devices(x64, solver, options):
    process, data = vp(), oracles.Gaussian()
    x, drawn = draw(process, 24, (3,)), keys(24, seed=1)
    run = functools.partial(sampling.SOLVERS[solver], process, data.denoise, steps=12, **options)
    one, stats = jax.jit(lambda x, keys: run(x, keys=keys))(x, drawn)
    many, stats_of_each = parallel.pmap(lambda x, keys: run(x, keys=keys, axis_name=parallel.AXIS))(
        parallel.shard(x), parallel.shard(drawn)
    )
    np.testing.assert_allclose(parallel.gather(many), one, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(stats_of_each.nfe, np.full(8, stats.nfe))
    if solver == "predictor_corrector":
        frames = np.concatenate(list(stats_of_each.trajectory), axis=1)
        np.testing.assert_allclose(frames, stats.trajectory, rtol=0, atol=1e-9)
        apart, _ = parallel.pmap(lambda x, keys: run(x, keys=keys))(parallel.shard(x), parallel.shard(drawn))
        assert np.abs(parallel.gather(apart) - one).max() > 1e-6  # its norms are the axis's


# ---- names and refusals


@pytest.mark.parametrize("steps, grid, expected", [
    (2, None, ("ipndm", dict(grid="edm", equal_weights=True))),
    (14, None, ("ipndm", dict(grid="edm", equal_weights=True))),
    (3, "80,2,0.002", ("ipndm", dict(grid="80,2,0.002", equal_weights=False))),
    (15, None, ("dpmpp_3m", dict(grid="log"))),
    (15, "edm", ("dpmpp_3m", dict(grid="edm"))),
])  # fmt: skip
def test_what_auto_takes(steps, grid, expected):
    assert sampling.choice(steps, grid) == (expected[0], {"steps": steps} | expected[1])


def test_find():
    heun, options = sampling.find("heun")
    assert heun is sampling.heun and options["steps"] == 18 and options["grid"] == "edm" and options["frames"] == 0
    assert not {"keys", "axis_name", "x", "process"} & set(options)
    with pytest.raises(UserError, match="unknown solver 'huen'; .*; did you mean 'heun'"):
        sampling.find("huen")
    with pytest.raises(UserError, match="choose from rk45, tsit5, euler, heun, dpmpp_2m, .*predictor_corrector, auto$"):
        sampling.find("x")


def test_every_option_has_a_type():
    kinds = sampling.option_kinds()
    named = set().union(*(sampling.find(name)[1] for name in sampling.SOLVERS)) - {"frames"}
    assert set(kinds) == named and set(kinds.values()) <= {int, float, str, bool}
    expected = dict(steps=int, grid=str, per_sample=bool, rtol=float, clip=float, start=str, fixed_steps=int, eta=float)
    assert {name: kinds[name] for name in expected} == expected
    for name in sampling.SOLVERS:  # and a default of that type, or none
        for option, value in sampling.find(name)[1].items():
            assert option == "frames" or value is None or type(value) is kinds[option]


def test_options_of_another_solver():
    sampling.check_options("heun", {"steps": 3, "S_churn": 1.0})
    with pytest.raises(UserError, match="heun has no option 'rtol'.*it takes .*S_churn, .*steps"):
        sampling.check_options("heun", {"rtol": 1e-3})
    with pytest.raises(UserError, match="dpmpp_2m has no option 'stpes'; .*; did you mean 'steps'"):
        sampling.check("dpmpp_2m", edm(), {"stpes": 3})


REFUSALS = [
    (
        "heun",
        edm(),
        dict(grid="lgo"),
        "unknown grid 'lgo'; choose from edm, log, time, searched; did you mean 'log'\\?",
    ),
    ("dpmpp_2m", edm(), dict(start="rk5"), "unknown start 'rk5'; choose from published, rk4.*; did you mean 'rk4'\\?"),
    (
        "ancestral",
        vp(),
        dict(variance="smal"),
        "variance 'smal'; choose from small, large; did you mean 'small'\\?",
    ),
    (
        "predictor_corrector",
        vp(),
        dict(predictor="ancestrall"),
        "choose from reverse_diff.*; did you mean 'ancestral'\\?",
    ),
    ("ancestral", pfgmpp(128), {}, "ancestral is for D = inf only, and this process has D = 128: .*Use rk45"),
    ("sde", pfgmpp(128), {}, "sde with noise > 0 at D = 128 needs second_moment"),
    ("euler_maruyama", pfgmpp(1), {}, "euler_maruyama is for D = inf only"),
    ("predictor_corrector", pfgmpp(3.5), {}, "predictor_corrector is for D = inf only, .* D = 3.5"),
    ("ddim", pfgmpp(2048), dict(eta=0.1), "ddim with eta > 0 is for D = inf only"),
    ("heun", pfgmpp(2048), dict(S_churn=1.0), "heun with S_churn > 0 at D = 2048 needs second_moment"),
    ("auto", edm(), dict(steps=1), "auto needs steps >= 2, the number of evaluations, got 1"),
    ("euler", edm(), dict(grid="searched"), "is found for the weights of a run, by mode=schedule"),
    (
        "euler_maruyama",
        ddpm(),
        {},
        "needs a continuous time, and ddpm has discrete levels; use ancestral or ddim",
    ),
    ("predictor_corrector", ddpm(), dict(predictor="euler_maruyama"), "needs a continuous time"),
    ("euler", edm(), dict(steps=1), "steps >= 2, got 1"),
    ("dpmpp_3m", edm(), dict(steps=0), "steps >= 2, got 0"),
    ("heun", edm(), dict(steps=0), "steps >= 2, got 0"),
    ("heun", edm(), dict(steps=-3), "steps >= 2, got -3"),
    ("ancestral", vp(), dict(steps=0), "steps >= 2, got 0"),
    ("euler_maruyama", vp(), dict(steps=1), "steps >= 2, got 1"),
    ("ddim", vp(), dict(steps=500_000), "at most 100,000 steps, got 500000"),
    ("ancestral", ddpm(100), dict(steps=101), "ddpm has 100 noise levels, fewer than 101 steps"),
    ("heun", edm(), dict(rho=0.0), "rho from 0.5 to 1e\\+06, such as 7, got 0"),
    ("heun", edm(), dict(rho=0.001), "rho from 0.5 to .*, got 0.001"),
    ("heun", edm(), dict(rho=math.nan), "rho from .*, got nan"),
    ("euler", edm(), dict(rho=math.inf), "rho from .*, got inf"),
    ("heun", edm(), dict(S_churn=-1.0), "S_churn >= 0 and S_noise >= 0, both finite, got -1.0 and 1.0"),
    ("heun", edm(), dict(S_churn=math.nan), "both finite, got nan and 1.0"),
    ("heun", edm(), dict(S_churn=1.0, S_noise=math.nan), "both finite, got 1.0 and nan"),
    ("heun", edm(), dict(S_churn=1.0, S_min=2.0, S_max=1.0), "S_min <= S_max, got 2.0 and 1.0"),
    ("ddim", edm(), dict(eta=1.5), "eta from 0 to 1, got 1.5"),
    ("ddim", edm(), dict(eta=-0.1), "eta from 0 to 1, got -0.1"),
    ("ancestral", vp(), dict(clip=0.0), "clip > 0, got 0"),
    ("predictor_corrector", vp(), dict(corrector_steps=-1), "corrector_steps >= 0 and snr > 0, got -1"),
    ("predictor_corrector", vp(), dict(snr=0.0), "corrector_steps >= 0 and snr > 0"),
    ("rk45", edm(), dict(rtol=0.0), "needs rtol > 0"),
    ("tsit5", edm(), dict(max_steps=0), "max_steps >= 1"),
    ("rk45", edm(), dict(fixed_steps=-1), "fixed_steps >= 0"),
]


@pytest.mark.parametrize("solver, process, options, message", REFUSALS)
def test_refusals(solver, process, options, message):
    """The same single line from the solver and from `check`, which runs nothing."""

    def denoise(x, sigma):
        raise AssertionError("not to be called")

    x = np.zeros((2, 3), np.float32)
    for refused in [
        lambda: sampling.SOLVERS[solver](process, denoise, x, keys=keys(2), **options),
        lambda: sampling.check(solver, process, options),
    ]:
        with pytest.raises(UserError, match=message) as error:
            refused()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("solver, options", [
    ("ancestral", {}), ("euler_maruyama", {}), ("predictor_corrector", {}), ("ddim", dict(eta=0.5)),
    ("heun", dict(S_churn=1.0)), ("sde", {}),
])  # fmt: skip
def test_noise_needs_keys(solver, options):
    with pytest.raises(UserError, match="draws noise: it needs keys="):
        sampling.SOLVERS[solver](edm(), toy, np.zeros((2, 3), np.float32), **options)


@pytest.mark.parametrize("process", [pfgmpp(1), pfgmpp(128), edm(), ve(), vp(), subvp(), ddpm()], ids=lambda p: p.name)
def test_check_passes_what_can_be_run(process):
    for solver in sampling.SOLVERS:
        gaussian = solver in ("sde", "ancestral", "euler_maruyama", "predictor_corrector")
        refused = (gaussian and not process.is_gaussian) or (solver == "euler_maruyama" and process.name == "ddpm")
        if not refused:
            sampling.check(solver, process, {})


@pytest.mark.parametrize("solver, options", [("sde", {}), ("heun", dict(S_churn=5.0))])
@pytest.mark.parametrize("D", [0.5, 1])
def test_check_passes_noise_at_small_D(solver, options, D):
    trace = posterior_trace.TraceCurve(float(D), (0.0, 1.0), (0.0, 1.0))
    sampling.check(solver, pfgmpp(D), options | {"second_moment": trace})


@pytest.mark.parametrize("rho", grids.RHO)
@pytest.mark.parametrize("process", [edm(), ve(sigma_max=400.0), pfgmpp(1)], ids=lambda p: p.name)
def test_extreme_edm_grids_fall_from_end_to_end(process, rho):
    sigmas = grids.edm_grid(process, 18, rho)
    assert (np.diff(sigmas) < 0).all()
    np.testing.assert_allclose(sigmas[[0, -1]], [process.sigma_max, process.sigma_min], rtol=1e-5)


@pytest.mark.parametrize("own, solver, given, message", [
    ({}, "dpmpp_2m", dict(rho=5.0), "sample.rho is for grid=edm, and the grid is log"),
    ({}, "heun", dict(rho=5.0, steps=3, grid="80,1,0.002"), "and the grid is 80,1,0.002"),
    ({}, "heun", dict(S_noise=1.1), "sample.S_noise has no effect without churn: set sample.S_churn"),
    (dict(fixed_steps=9), "rk45", dict(rtol=1e-3), "sample.rtol has no effect with sample.fixed_steps=9"),
])  # fmt: skip
def test_an_argument_without_effect_is_refused(own, solver, given, message):
    settings = SampleSettings.of(default().sample)
    settings = dataclasses.replace(settings, options=own)
    with pytest.raises(UserError, match=message):
        settings.changed(solver=solver, **given)
    # A run's own options may be of another solver.
    assert dataclasses.replace(settings, options=own | given).changed(solver=solver).solver == solver


def test_arguments_with_an_effect_are_taken():
    settings = dataclasses.replace(SampleSettings.of(default().sample), options={"grid": "edm", "S_churn": 2.0})
    settings.changed(solver="dpmpp_2m", rho=5.0)
    settings.changed(solver="heun", S_noise=1.1)
    settings.changed(solver="ddim", rho=5.0, grid="edm")
    settings.changed(solver="rk45", rtol=1e-3, fixed_steps=0)


def test_an_empty_guide_undoes_the_run_s_own():
    settings = dataclasses.replace(SampleSettings.of(default().sample), guidance=2.0, guide="runs/weak")
    assert settings.changed(guide="").guide == "" and settings.changed().guide == "runs/weak"
