"""The Generator: the same seed gives the same samples, whatever the batch; labels and options are checked."""

import jax
import numpy as np
import pytest

from configs import digits
from pfgm_jax import build, data, models
from pfgm_jax.errors import UserError
from pfgm_jax.generator import Generator


def make(conditional=False, process="pfgmpp"):
    """A Generator with an untrained network whose last layer is not zero, so that its samples are not trivial."""
    config = digits.get_config(f"process={process}")
    config.model.update(channels=4, multipliers=(1,), embedding_channels=8, noise_channels=8, conditional=conditional)
    config.sample.update(solver="heun", steps=4)
    derived = build.derive(config, data.load(config.data))
    made = Generator(config, derived, None)
    params = models.init(made.model, made.shape)
    noise = np.random.default_rng(0)
    made.params = jax.tree.map(lambda p: np.asarray(p + 0.1 * noise.standard_normal(p.shape), p.dtype), params)
    return made


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
    generator.config.sample.batch = 8
    in_batches, stats = generator.sample(key, 20)
    generator.config.sample.batch = 256
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


def test_labels():
    made = make(conditional=True)
    key = jax.random.key(0)
    zeros, _ = made.sample(key, 4, labels=[0, 0, 0, 0])
    ones, _ = made.sample(key, 4, labels=np.ones(4, int))
    assert (zeros != ones).any()
    drawn = made._labels(key, 2000, None)
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
    with pytest.raises(UserError, match="step limit"):
        generator.sample(jax.random.key(0), 2, solver="rk45", max_steps=2)
