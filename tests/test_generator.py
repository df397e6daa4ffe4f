"""The Generator: the same seed gives the same samples, whatever the batch; labels and options are checked."""

import base64
import dataclasses
import math

import jax
import numpy as np
import pytest

import pfgm_jax
from configs import digits
from pfgm_jax import data, models, sampling, stored_run
from pfgm_jax import generator as generator_lib
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.flow import process
from pfgm_jax.generator import Generator, arguments
from pfgm_jax.sampling import batches, progress


def make(conditional=False, process="pfgmpp", seed=0, label_dropout=0.0):
    """A Generator with an untrained network whose last layer is not zero, so that its samples are not trivial."""
    config = digits.get_config(f"process={process}")
    config.train.label_dropout = label_dropout
    config.model.update(channels=4, multipliers=(1,), embedding_channels=8, noise_channels=8, conditional=conditional)
    config.sample.update(solver="heun", steps=4)
    derived = run_lib.derive(config, data.load(config.data))
    run = run_lib.make_run(config, derived)
    params = models.init(run.model, derived["shape"])
    noise = np.random.default_rng(seed)
    return Generator(run, jax.tree.map(lambda p: np.asarray(p + 0.1 * noise.standard_normal(p.shape), p.dtype), params))


@pytest.fixture(scope="module")
def generator():
    return make()


def test_same_seed_same_samples(generator):
    key = jax.random.key(3)
    first, stats = generator.sample(key, 11)
    again, _ = generator.sample(key, 11)
    other, _ = generator.sample(jax.random.key(4), 11)
    assert first.shape == (11, 8, 8, 1) and first.dtype == np.uint8 and stats.nfe == 7
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert len(np.unique(first.reshape(11, -1), axis=0)) == 11


def test_a_sample_does_not_depend_on_the_others(generator):
    # float32 round-off of another batch shape may move a grey level at a rounding edge.
    key = jax.random.key(0)
    few, _ = generator.sample(key, 5)
    at_once, _ = generator.sample(key, 20)
    in_batches, stats = generator.with_overrides({"sample.batch": 8}).sample(key, 20)
    assert in_batches.shape[0] == 20 and stats.nfe == 7
    assert np.abs(at_once.astype(int) - in_batches).max() <= 1
    assert np.abs(few.astype(int) - at_once[:5]).max() <= 1


def test_trajectory_runs_from_the_prior_to_the_data(generator):
    images, stats = generator.sample(jax.random.key(0), 3, solver="rk45", frames=6, rtol=1e-3, atol=1e-3)
    assert stats.trajectory.shape == (6, 3, 8, 8, 1)
    np.testing.assert_allclose(stats.sigmas[[0, -1]], [generator.process.sigma_max, 0.002], rtol=1e-5)
    rms = np.sqrt(np.mean(stats.trajectory**2, axis=(1, 2, 3, 4)))
    assert rms[0] > 5 * rms[-1]
    end = np.clip(127.5 * stats.trajectory[-1] + 128, 0, 255)
    assert np.abs(end - images).max() < 5  # the last step, from σ_min = 0.002 to 0, moves little


def test_denoise_is_the_contract_that_samplers_use(generator):
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)
    mean = generator.denoise(x, np.asarray([0.5, 2.0], np.float32))
    assert mean.shape == x.shape
    # At small σ the posterior mean is the image itself (c_skip → 1, c_out → 0).
    np.testing.assert_allclose(generator.denoise(x, np.full(2, 1e-4, np.float32)), x, atol=1e-3)
    # One program for all calls of a shape, and other weights are no other program.
    programs = batches.denoised._cache_size()
    plain = generator.network.denoiser(generator.params, None)(x, np.asarray([0.5, 2.0], np.float32))
    np.testing.assert_allclose(mean, plain, rtol=0, atol=1e-5)
    other = generator.with_params(jax.tree.map(lambda a: 0.5 * a, generator.params))
    assert np.abs(other.denoise(x, np.asarray([0.5, 2.0], np.float32)) - mean).max() > 1e-3
    assert batches.denoised._cache_size() == programs


def test_labels():
    made = make(conditional=True)
    key = jax.random.key(0)
    zeros, _ = made.sample(key, 4, labels=[0, 0, 0, 0])
    ones, _ = made.sample(key, 4, labels=np.ones(4, int))
    assert (zeros != ones).any()
    drawn = made.labels(key, 2000)
    assert set(drawn) == set(range(10))
    for labels in ([0], [0, 0, 0, 10], [0, 0, 0, -1]):
        with pytest.raises(UserError, match="labels must be 4 integers from 0 to 9"):
            made.sample(key, 4, labels=labels)
    with pytest.raises(UserError, match="trained without labels"):
        make().sample(key, 4, labels=[0, 0, 0, 0])


def test_pfgm_samples_through_the_same_contract():
    images, stats = make(process="pfgm").sample(jax.random.key(0), 8)
    assert images.shape == (8, 8, 8, 1) and stats.nfe == 7


def test_unknown_solver_and_option(generator):
    key = jax.random.key(0)
    with pytest.raises(UserError, match="did you mean 'heun'"):
        generator.sample(key, 1, solver="huen")
    with pytest.raises(UserError, match="did you mean 'steps'"):
        generator.sample(key, 1, solver="heun", step=3)
    with pytest.raises(UserError, match="no option 'rtol'"):
        generator.sample(key, 1, solver="heun", rtol=1e-3)
    with pytest.raises(UserError, match="at least 1"):
        generator.sample(key, 0)


def test_step_limit_is_an_error(generator):
    with pytest.raises(
        UserError, match="rk45 came only to σ = .* within its step limit of 2; raise max_steps, rtol or"
    ) as e:
        generator.sample(jax.random.key(0), 2, solver="rk45", max_steps=2)
    # Two steps of at most a few units of ln σ each: some way down, but not far.
    reached = float(str(e.value).split("σ = ")[1].split()[0])
    assert 0.01 * generator.process.sigma_max < reached < generator.process.sigma_max


@pytest.mark.parametrize("solver", ["rk45", "heun"])
def test_weights_of_nan_are_an_error(generator, solver):
    poor = generator.with_params(jax.tree.map(lambda p: p * np.nan, generator.params))
    with pytest.raises(UserError, match=f"{solver} stopped at σ = .* NaN or inf") as caught:
        poor.sample(jax.random.key(0), 2, solver=solver)
    # At once: the first call of the network is at σ_max.
    reached = float(str(caught.value).split("σ = ")[1].split(",")[0])
    assert reached == pytest.approx(generator.process.sigma_max, rel=1e-3)
    assert "\n" not in str(caught.value)


# ---- a run that cannot be changed, and settings in its place


def test_nothing_writes_to_a_run(generator):
    with pytest.raises(AttributeError):
        generator.config.sample.batch = 8
    with pytest.raises(TypeError):
        generator.derived["sigma_max"] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        generator.run.process = None
    own = generator.with_overrides({"sample.rtol": "1e-3", "sample.n": 5})
    assert (own.config.sample.rtol, own.config.sample.n, generator.config.sample.rtol) == (1e-3, 5, None)
    assert own.params is generator.params and own.process == generator.process
    with pytest.raises(UserError, match="model.channels cannot be changed in a trained run"):
        generator.with_overrides({"model.channels": 8})
    with pytest.raises(UserError, match="did you mean 'sample.steps'"):
        generator.with_overrides({"sample.stepz": 8})


def test_settings_in_place_of_the_runs_own(generator):
    key = jax.random.key(5)
    settings = dataclasses.replace(generator.settings, n=4, seed=5, solver="euler", D=2.0)
    images, stats = generator.sample(settings=settings)
    assert stats.nfe == 4  # the run's own steps
    np.testing.assert_array_equal(images, generator.sample(key, 4, solver="euler", D=2.0)[0])
    np.testing.assert_array_equal(
        generator.sample(settings=settings, steps=3)[0], generator.sample(key, 4, solver="euler", D=2.0, steps=3)[0]
    )


# ---- another D, and solvers that draw noise


def keys_of(key, n):
    """The keys of samples 0 … n − 1."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(n))


@pytest.mark.parametrize("D", [2.0, math.inf])
def test_another_D_changes_the_prior_alone(generator, D):
    key = jax.random.key(5)
    _, stats = generator.sample(key, 8, D=D, frames=2)
    again, own = generator.sample(key, 8, D=D, frames=2)
    flow = process.with_D(generator.process, D)
    x = process.prior(flow, keys_of(key, 8), generator.shape)
    # The whole batch starts at the other prior, passes the same levels, and follows the network as it was trained.
    np.testing.assert_allclose(stats.trajectory[0], x, rtol=1e-5, atol=1e-5)
    _, at_128 = generator.sample(key, 8, D=128, frames=2)
    assert np.abs(at_128.trajectory[0] - stats.trajectory[0]).max() > 1
    np.testing.assert_array_equal(stats.sigmas, at_128.sigmas)
    np.testing.assert_array_equal(stats.trajectory, own.trajectory)
    expected, _ = jax.jit(lambda x: sampling.SOLVERS["heun"](generator.process, generator.denoise, x, steps=4))(x)
    # A grey level is 1/127.5; other batch shapes round otherwise.
    assert np.abs(again / 127.5 - 1 - np.clip(expected, -1, 1)).max() < 2 / 127.5


def test_D_of_the_run_and_of_the_call(generator):
    key = jax.random.key(5)
    usual, _ = generator.sample(key, 4)
    np.testing.assert_array_equal(generator.sample(key, 4, D=128)[0], usual)
    at_2, _ = generator.sample(key, 4, D=2.0)
    assert (at_2 != usual).any()
    own = generator.with_overrides({"sample.D": 2.0})
    np.testing.assert_array_equal(own.sample(key, 4)[0], at_2)
    np.testing.assert_array_equal(own.sample(key, 4, D=128)[0], usual)
    for D in [0, math.nan, 0.1]:
        with pytest.raises(UserError, match="D must be inf or at least 0.5"):
            generator.sample(key, 4, D=D)


@pytest.mark.parametrize("solver", ["ancestral", "euler_maruyama", "predictor_corrector"])
def test_solvers_that_draw_noise_are_for_gaussian_processes(generator, solver):
    with pytest.raises(UserError) as caught:
        generator.sample(jax.random.key(0), 2, solver=solver, steps=3)
    message = str(caught.value)
    assert "\n" not in message
    for word in (solver, "D = inf only", "D = 128", "score only for the Gaussian", "rk45", "ddim"):
        assert word in message


def test_ddim_is_for_every_D_but_its_noise_is_not(generator):
    images, stats = generator.sample(jax.random.key(0), 2, solver="ddim", steps=3)
    assert images.shape == (2, 8, 8, 1) and stats.nfe == 3
    with pytest.raises(UserError, match="ddim with eta > 0 is for D = inf only"):
        generator.sample(jax.random.key(0), 2, solver="ddim", steps=3, eta=1.0)


def test_noise_at_another_D_than_the_trained_one():
    # PFGM's network is told r = σ√D of its own D = 1, which at the D = ∞ of the sampler would be no number.
    made = make(process="pfgm")
    with pytest.raises(UserError, match="D = inf only"):
        made.sample(jax.random.key(0), 4, solver="ancestral", steps=4)
    images, stats = made.sample(jax.random.key(0), 4, solver="ancestral", steps=4, D=math.inf)
    assert images.shape == (4, 8, 8, 1) and stats.nfe == 4 and stats.finite


@pytest.mark.parametrize("name, solver", [("vp", "euler_maruyama"), ("ddpm", "ancestral")])
def test_a_sample_has_noise_of_its_own(name, solver):
    made, options = make(process=name), dict(solver=solver, steps=5)
    key = jax.random.key(7)
    images, stats = made.sample(key, 16, **options)
    few, _ = made.sample(key, 3, **options)
    np.testing.assert_array_equal(made.sample(key, 16, **options)[0], images)
    assert stats.nfe == 5 and (stats.sample_nfe == 5).all()
    # float32 round-off of another batch shape may move a grey level at a rounding edge.
    assert np.abs(few.astype(int) - images[:3]).max() <= 1
    assert len(np.unique(images.reshape(16, -1), axis=0)) == 16
    assert (made.sample(jax.random.key(8), 16, **options)[0] != images).mean() > 0.3


# ---- guidance


@pytest.fixture(scope="module")
def told():
    """A network that was told the label in training, but not always."""
    return make(conditional=True, label_dropout=0.1)


def solved(made, denoise, n, key):
    """What heun makes of `denoise`, as grey levels, without the Generator's own program."""
    x = process.prior(made.process, keys_of(key, n), made.shape)
    x, _ = jax.jit(lambda x: sampling.SOLVERS["heun"](made.process, denoise, x, steps=4))(x)
    return 127.5 * (np.clip(x, -1, 1) + 1)


def test_guidance_is_that_of_the_network_without_its_label(told, generator):
    key, labels = jax.random.key(2), np.arange(8)
    usual, _ = told.sample(key, 8, labels)
    np.testing.assert_array_equal(told.sample(key, 8, labels, guidance=1.0)[0], usual)
    own, free = (lambda x, sigma: told.denoise(x, sigma, labels)), told.denoise
    images, stats = told.sample(key, 8, labels, guidance=3.0)
    expected = solved(told, lambda x, sigma: 3 * own(x, sigma) - 2 * free(x, sigma), 8, key)
    # to_uint8 rounds by half a level, and float32 by little more.
    assert stats.nfe == 7 and np.abs(images - expected).max() < 2 and np.abs(usual - expected).max() > 10
    # At 0 the guide alone, whatever the labels; another weight is no other program.
    programs = batches.compiled.cache_info().misses
    free_images, _ = told.sample(key, 8, labels, guidance=0.0)
    assert np.abs(free_images - solved(told, free, 8, key)).max() < 2
    np.testing.assert_array_equal(told.sample(key, 8, "3", guidance=0.0)[0], free_images)
    assert batches.compiled.cache_info().misses == programs
    # And the run's own setting counts.
    own = told.with_overrides({"sample.guidance": 3.0, "sample.labels": "balanced"})
    np.testing.assert_array_equal(own.sample(key, 8)[0], images)


def test_a_weaker_network_as_the_guide(told):
    key, labels = jax.random.key(2), np.arange(8)
    weak, blind = make(conditional=True, seed=1), make(seed=2)
    images, _ = told.sample(key, 8, labels, guidance=2.0, guide=weak)
    guided = lambda guide: lambda x, sigma: 2 * told.denoise(x, sigma, labels) - guide(x, sigma)
    expected = solved(told, guided(lambda x, sigma: weak.denoise(x, sigma, labels)), 8, key)
    assert np.abs(images - expected).max() < 2
    x, sigma = np.full((8, 8, 8, 1), 0.3, np.float32), np.full(8, 0.7, np.float32)
    for guide, theirs in ((weak, weak.denoise(x, sigma, labels)), (blind, blind.denoise(x, sigma))):
        result = told.denoiser(labels, guidance=2.0, guide=guide)(x, sigma)
        np.testing.assert_allclose(result, 2 * told.denoise(x, sigma, labels) - theirs, atol=1e-5)
    # The guide's weights are an argument of the program: others of the same form need no other.
    programs = batches.compiled.cache_info().misses
    others, _ = told.sample(key, 8, labels, guidance=2.0, guide=make(conditional=True, seed=3))
    assert batches.compiled.cache_info().misses == programs and (others != images).any()


def test_a_guided_sample_does_not_depend_on_the_others(told):
    told = told.with_overrides({"sample.batch": 8})
    key, options = jax.random.key(1), dict(labels="real", guidance=2.0)
    np.testing.assert_array_equal(told.sample(key, 5, **options)[0], told.sample(key, 19, **options)[0][:5])


def test_guidance_of_a_solver_that_draws_noise():
    made = make(conditional=True, process="vp", label_dropout=0.1)
    options = dict(solver="ancestral", steps=4, labels=list(range(8)))
    guided, stats = made.sample(jax.random.key(0), 8, guidance=2.0, **options)
    assert stats.nfe == 4 and stats.finite
    # Of a guide that is the network itself nothing remains, as without it.
    itself, _ = made.sample(jax.random.key(0), 8, guidance=2.0, guide=made, **options)
    alone, _ = made.sample(jax.random.key(0), 8, **options)
    assert np.abs(itself.astype(int) - alone).max() <= 1 and np.abs(guided.astype(int) - alone).max() > 2


def test_guidance_that_is_not_to_be_had(told):
    key, plain = jax.random.key(0), make()
    other_range, other_shape = make(conditional=True), make()
    other_range.run = dataclasses.replace(other_range.run, process=process.pfgmpp(D=128.0, sigma_max=5.0))
    other_shape.run = dataclasses.replace(other_shape.run, derived=other_shape.derived | {"shape": [9, 8, 1]})
    refused = {
        "trained without labels: give a weaker network as sample.guide": (plain, dict(guidance=2.0)),
        "trained with every label: train one with train.label_dropout=0.1, or give a weaker network": (
            make(conditional=True), dict(guidance=2.0),
        ),
        "must be a number": (told, dict(guidance=math.nan)),
        "has no effect at guidance 1": (told, dict(guide=told)),
        "the guide makes images of 9×8×1, but this network of 8×8×1": (told, dict(guidance=2.0, guide=other_shape)),
        "the guide is for D = 128, σ from 5 to 0.002, but must cover this network's D = 128, σ from 19.55": (
            told, dict(guidance=2.0, guide=other_range),
        ),
        "the guide is for D = 1,": (told, dict(guidance=2.0, guide=make(process="pfgm"))),
        "the guide is conditioned on classes that this network does not have: 0, 1": (
            plain, dict(guidance=2.0, guide=told),
        ),
        "holds no run": (told, dict(guidance=2.0, guide="no/such/run")),
        "no pretrained weights are called": (told, dict(guidance=2.0, guide="pretrained:none")),
    }  # fmt: skip
    for words, (made, options) in refused.items():
        with pytest.raises(UserError) as caught:
            made.sample(key, 4, **options)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    # At weight 1 a guide is not even opened.
    told.sample(key, 8, guidance=1, guide="no/such/run")
    with pytest.raises(UserError, match="trained without labels"):
        plain.labels(key, 4, "3")
    with pytest.raises(UserError, match="did you mean"):
        generator_lib.check_sampling(told.with_overrides({"sample.labels": "balnced"}).run)


# ---- a step size for every sample


def test_per_sample_steps_do_not_depend_on_the_batch():
    made = make(conditional=True)
    made.params = jax.tree.map(lambda p: 3 * p, made.params)  # a field wild enough that some samples need more steps
    made = made.with_overrides({"sample.batch": 8})
    key, labels, options = jax.random.key(0), np.arange(16) % 10, dict(solver="rk45", per_sample=True)
    few, few_stats = made.sample(key, 3, labels[:3], **options)
    batches, stats = made.sample(key, 16, labels, **options)
    made = made.with_overrides({"sample.batch": 256})
    at_once, at_once_stats = made.sample(key, 16, labels, **options)
    assert few_stats.sample_nfe.shape == (3,) and stats.sample_nfe.shape == at_once_stats.sample_nfe.shape == (16,)
    # The same compiled program, once with five idle places.
    np.testing.assert_array_equal(few_stats.sample_nfe, stats.sample_nfe[:3])
    np.testing.assert_array_equal(few, batches[:3])
    # Another batch shape is rounded otherwise: a grey level at a rounding edge, and another step where the error of one
    # was at the tolerance.
    assert np.abs(batches.astype(int) - at_once).max() <= 1
    assert np.mean(stats.sample_nfe == at_once_stats.sample_nfe) >= 0.75
    # Six evaluations a step, the very first, and the last. What a batch waits for is the most.
    assert (stats.sample_nfe % 6 == 2).all()
    assert at_once_stats.sample_nfe.min() < at_once_stats.sample_nfe.mean() < at_once_stats.sample_nfe.max()
    assert at_once_stats.nfe == at_once_stats.sample_nfe.max()
    assert stats.nfe == np.mean([stats.sample_nfe[:8].max(), stats.sample_nfe[8:].max()])


def test_a_shared_step_size_costs_every_sample_the_same(generator):
    _, stats = generator.sample(jax.random.key(0), 3, solver="rk45", frames=6, rtol=1e-3, atol=1e-3)
    assert stats.sample_nfe.shape == (3,) and (stats.sample_nfe == stats.nfe).all()


def test_a_large_set_in_parts(told):
    key = jax.random.key(5)
    for labels in (None, "real", "balanced"):
        whole, _ = told.sample(key, 16, labels=labels, solver="heun", steps=4)
        part, _ = told.sample(key, 8, labels=labels, solver="heun", steps=4, first=8)
        # One program makes them in batches of other sizes: a grey level of rounding.
        np.testing.assert_allclose(part.astype(int), whole[8:].astype(int), atol=1)
    other, _ = told.sample(key, 8, labels=told.labels(key, 8), solver="heun", steps=4)
    assert np.abs(other.astype(int) - whole[8:].astype(int)).mean() > 1


# ---- what a person hands over


def test_a_number_for_sigma_stands_for_all(generator):
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 1)).astype(np.float32)
    expected = generator.denoise(x, np.full(3, 1.5, np.float32))
    for sigma in (1.5, np.float64(1.5), [1.5] * 3, jax.numpy.ones(3) * 1.5):
        np.testing.assert_allclose(generator.denoise(x, sigma), expected, rtol=1e-6)


def test_arguments_of_denoise_that_are_none(generator, told):
    x, key = np.zeros((2, 8, 8, 1), np.float32), jax.random.key(0)
    refused = {
        "no batch axis: it must be \\[B, 8, 8, 1\\]; pass x\\[None\\]": lambda: generator.denoise(x[0], 1.0),
        "x must be \\[B, 8, 8, 1\\], got \\[2, 8, 8, 3\\]": lambda: generator.denoise(np.zeros((2, 8, 8, 3)), 1.0),
        "floats in the unit scale, got uint8": lambda: generator.denoise(x.astype(np.uint8), 1.0),
        "sigma must be a number or \\[2\\]": lambda: generator.denoise(x, np.ones(3)),
        "sigma must be above 0, got 0": lambda: generator.denoise(x, 0),
        "trained without labels": lambda: generator.denoise(x, 1.0, labels=[1, 1]),
        "labels must be a whole number or \\[2\\]": lambda: told.denoise(x, 1.0, labels=[1, 1, 1]),
        "labels must be from 0 to 9": lambda: told.denoise(x, 1.0, labels=10),
        "key must be a PRNG key, such as jax.random.key\\(0\\), got 4": lambda: generator.sample(4, 4),
        "got an array": lambda: generator.sample(np.zeros(3), 4),
        "n must be a whole number, such as n=4, got 4.0": lambda: generator.sample(key, 4.0),
        "n must be a whole number, such as n=4, got True": lambda: generator.sample(key, True),
        "n must be at least 1, got -1": lambda: generator.sample(key, -1),
        "n=1000000000000000000 is too large": lambda: generator.sample(key, 10**18),
        "takes steps as a whole number up to 1,000,000, got 2.5": lambda: generator.sample(key, 4, steps=2.5),
        "takes steps as a whole number up to 1,000,000, got 10000000000": lambda: generator.sample(
            key, 4, steps=10**10
        ),
        "steps >= 2, got 0": lambda: generator.sample(key, 4, steps=0),
        "takes S_churn as a number, got '1'": lambda: generator.sample(key, 4, S_churn="1"),
        "takes last_denoise as True or False, got 1": lambda: generator.sample(key, 4, last_denoise=1),
        "takes grid as a word, got 3": lambda: generator.sample(key, 4, grid=3),
        "guidance must be a number, got '2'": lambda: generator.sample(key, 4, guidance="2"),
        "D must be a number, got 'inf'": lambda: generator.sample(key, 4, D="inf"),
        "frames must be 0 or more": lambda: generator.sample(key, 4, frames=-1),
        "first must be at least 0": lambda: generator.sample(key, 4, first=-1),
    }
    for words, call in refused.items():
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_network_that_always_saw_a_class_is_not_asked_without_one():
    made, x = make(conditional=True), np.zeros((2, 8, 8, 1), np.float32)
    calls = (
        lambda labels: made.denoise(x, 1.0, labels),
        lambda labels: made.encode(x, labels, "euler", steps=2),
        lambda labels: made.log_likelihood(x, jax.random.key(0), labels),
        lambda labels: made.restore(x, "denoise", n=1, key=jax.random.key(0), labels=labels, level=0.3),
    )
    for call in calls:
        for labels in (None, -1, [3, -1]):
            with pytest.raises(UserError, match="needs a label: give labels") as caught:
                call(labels)
            assert "\n" not in str(caught.value)
    assert made.denoise(x, 1.0, 3).shape == x.shape


def test_samples_without_a_key_are_those_of_the_seed(capsys):
    made = make()
    images, _ = made.sample(n=8)
    again, _ = made.sample(n=8)
    np.testing.assert_array_equal(images, made.sample(jax.random.key(made.config.sample.seed), 8)[0])
    np.testing.assert_array_equal(images, again)
    assert capsys.readouterr().err == "no key: sampling from seed 0, the run's own\n"  # once


def test_what_it_says_of_itself(generator, told):
    text = repr(generator)
    for words in ("8×8×1 digits", "unconditional", "pfgmpp, D = 128", "network unet", "parameters", "images"):
        assert words in text
    assert "class-conditional, 10 classes" in repr(told) and text.count("\n") == 1


# ---- programs


def test_a_few_sizes_serve_every_n(generator):
    key = jax.random.key(1)
    whole, _ = generator.sample(key, 16)
    programs = batches.compiled.cache_info().misses
    for n in (9, 12, 15):
        images, stats = generator.sample(key, n)
        np.testing.assert_array_equal(images, whole[:n])
        assert stats.sample_nfe.shape == (n,)
    assert batches.compiled.cache_info().misses == programs
    sizes = [batches.batch_size(n, 256, "heun", (), 1) for n in range(1, 257)]
    assert sorted(set(sizes)) == [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert all(n <= size <= 1.5 * n for n, size in enumerate(sizes, 1) if n > 5)
    assert batches.batch_size(90, 100, "heun", (), 1) == 96 and batches.batch_size(1000, 100, "heun", (), 1) == 100
    # What shares its steps is neither joined nor filled up.
    assert batches.batch_size(5, 256, "rk45", (), 1) == batches.batch_size(5, 256, "predictor_corrector", (), 1) == 5
    assert batches.batch_size(5, 256, "rk45", (("per_sample", True),), 1) == 8


@pytest.mark.parametrize("solver", ["heun", "rk45"])
def test_the_states_of_the_first_samples_come_from_the_same_solve(generator, solver):
    key, options = jax.random.key(1), dict(solver=solver, frames=3)
    plain, _ = generator.sample(key, 16, solver=solver)
    whole, every = generator.sample(key, 16, **options)
    images, stats = generator.sample(key, 16, framed=5, **options)
    np.testing.assert_array_equal(images, plain)
    np.testing.assert_array_equal(whole, plain)
    assert stats.trajectory.shape == (3, 5, 8, 8, 1)
    np.testing.assert_array_equal(stats.trajectory, every.trajectory[:, :5])
    _, one = generator.sample(key, 16, framed=1, **options)  # fewer than a device has
    np.testing.assert_array_equal(one.trajectory, every.trajectory[:, :1])


@pytest.mark.parametrize("solver, options", [("heun", {}), ("rk45", dict(rtol=1e-2, atol=1e-2)),
                                             ("rk45", dict(per_sample=True, rtol=1e-2, atol=1e-2))])  # fmt: skip
def test_progress_changes_nothing_and_reaches_the_end(generator, monkeypatch, capsys, solver, options):
    key = jax.random.key(1)
    expected, _ = generator.sample(key, 16, solver=solver, progress=False, **options)
    heard = []
    monkeypatch.setattr(batches, "LONG", 0.0)
    monkeypatch.setattr(progress.Bar, "_reach", lambda self, sigma: heard.append(sigma))
    images, _ = generator.sample(key, 16, solver=solver, **options)
    jax.effects_barrier()
    np.testing.assert_array_equal(images, expected)
    assert f"compiling {solver} for 16 samples at once" in capsys.readouterr().err
    high, low = generator.process.sigma_max, generator.process.sigma_min
    assert max(heard) == pytest.approx(high, rel=1e-5) and min(heard) == pytest.approx(low, rel=1e-3)
    del heard[:]
    generator.sample(key, 16, solver=solver, progress=False, **options)
    jax.effects_barrier()
    assert not heard  # nothing is compiled in where nothing is shown


def test_a_bar_moves_by_levels():
    bar = progress.Bar("x", 2, [8.0, 4.0, 2.0, 1.0])
    with bar.listening():
        for sigma, position in ((8.0, 0), (4.0, 1), (6.0, 1), (1.0, 3)):  # σ may rise again, by churn
            progress._hear(sigma)
            assert bar._bar.n == position
        bar.batch()
        progress._hear(2.0)
        assert bar._bar.n == 5
    progress._hear(1.0)  # a late call finds nobody
    assert bar._bar.n == 5


@pytest.mark.parametrize(("name", "shape", "classes"), [("digits", (8, 8, 1), 0), ("bloodmnist28", (28, 28, 3), 8)])
def test_weights_that_come_with_the_package(name, shape, classes):
    g = pfgm_jax.load(f"pretrained:{name}")
    assert (g.shape, g.num_classes) == (shape, classes) and not g.config.data.dir
    assert g.classes == () or g.classes[0] == "basophil"
    card = (stored_run.PRETRAINED / name / "README.md").read_text()
    assert "licence of the data | CC BY 4.0" in card and "EMA weights after" in card
    noise = 0.5 * np.random.default_rng(0).normal(size=(2, *shape))  # drawn towards the data, which are within ±1
    assert np.abs(g.denoise(noise, 0.5)).mean() < 1


def test_a_notebook_shows_what_it_is_and_its_picture():
    g = pfgm_jax.load("pretrained:digits")
    shown, picture = g._repr_html_(), g._repr_png_()
    assert shown.startswith("<table><tr><th>Generator</th><th>pretrained:digits") and "8×8×1 digits" in shown
    assert picture.startswith(b"\x89PNG") and base64.b64encode(picture).decode() in shown
    alone = pfgm_jax.Generator(g.run, g.params)  # made in memory: no folder, no picture
    assert "<img" not in alone._repr_html_() and alone._repr_png_() is None


def test_a_part_of_a_large_set_needs_the_memory_of_the_part(generator, monkeypatch):
    asked = []
    monkeypatch.setattr(arguments, "require_memory", lambda name, n, shape: asked.append(n))
    generator.sample(jax.random.key(0), 2, first=50)
    assert max(asked) == 2
