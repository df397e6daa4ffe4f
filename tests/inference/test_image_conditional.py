"""Image-conditional networks: their condition, that the loss teaches the posterior, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfgm_jax
from configs import digits, toy
from pfgm_jax import config as config_lib
from pfgm_jax import config_rules, data
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import protocol, restoration
from pfgm_jax.flow import process
from pfgm_jax.generator import Generator
from pfgm_jax.inference.restoration import condition, operators
from pfgm_jax.sampling import heun
from pfgm_jax.training import dry_run, loop
from pfgm_jax.training import step as step_lib


def told_config(text, **overrides):
    config = digits.get_config("quick")
    for key, value in ({"data.condition": text, "train.large_batch": 0} | overrides).items():
        config_lib.override(config, key, value)
    return config


def moved(plan, scale):
    """Parameters of the shapes that a run begins with; the last layers begin near 0, where nothing could be told."""
    shapes = step_lib.state_shapes(plan.task, plan.dataset.shape).params
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), shapes)


@functools.cache
def untrained(text):
    """A Generator of digits conditioned on `text`, with the weights that it begins with, moved away from 0."""
    plan = dry_run.prepare(told_config(text))
    params = moved(plan, 0.05)
    run = run_lib.make_run(told_config(text), plan.derived)
    return Generator(run, params).with_overrides({"sample.batch": 8}), plan


@pytest.mark.parametrize(
    "text", ["inpaint:centre", "inpaint:random:0.1", "superres:2", "deblur:0.5:0.2", "denoise:0.4"]
)
def test_what_is_told(text):
    told, y = condition.parse(text), jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
    assert str(told) == text
    keys = jax.random.split(jax.random.key(1), 3)
    m, mask = told.measure(keys, y)
    channels = np.asarray(told.draw(keys, y))
    assert channels.shape == (3, 8, 8, told.channels(2))
    noiseless = condition.Condition(told.task, told.value, 0.0).measure(keys, y)[0]
    assert np.std(m - noiseless) == pytest.approx(told.level, rel=0.2)
    if told.task == "inpaint":
        seen = np.asarray(mask)
        np.testing.assert_array_equal(channels[..., 2:], seen)
        np.testing.assert_array_equal(channels[..., :2], np.where(seen, m, 0))
    elif told.task == "superres":
        # Means of the repeated pixels are the measurement, whose own means are those of the image.
        np.testing.assert_allclose(operators.average(2, (8, 8, 2)).forward(channels), m, rtol=0, atol=1e-6)
        np.testing.assert_allclose(m, y.reshape(3, 4, 2, 4, 2, 2).mean((2, 4)), rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(channels, m)


@pytest.mark.parametrize("flow", [process.edm(), process.pfgmpp(8.0)], ids=["edm", "pfgmpp"])
def test_what_is_told_has_noise_of_its_own(flow):
    """Not that of the state by the same key, from which the image could be told exactly."""
    y, keys = jnp.zeros((1, 16, 16, 1)), jax.random.split(jax.random.key(0), 1)
    state, told = process.perturb(flow, keys, y, jnp.ones(1)), condition.parse("denoise:1").draw(keys, y)
    # 256 independent pairs: a standard deviation of 1/16.
    assert abs(np.corrcoef(np.ravel(state), np.ravel(told))[0, 1]) < 0.25


def test_each_image_is_told_of_by_its_own_key():
    told, y = condition.parse("inpaint:random:0.3"), jnp.zeros((4, 8, 8, 1))
    keys = jax.random.split(jax.random.key(1), 4)
    np.testing.assert_array_equal(told.draw(keys, y)[2:], told.draw(keys[2:], y[2:]))
    assert (told.draw(keys, y)[0] != told.draw(keys, y)[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("D", [1.0, 128.0, np.inf])
def test_the_flow_of_the_conditional_mean_ends_in_the_posterior(D):
    """Where the network is E[y | x, σ, m] of normal pixels, with m = y + s n: draws have its mean and variance."""
    s, n = 0.5, 4000
    flow, m = process.pfgmpp(D, sigma_max=200.0), 0.7
    v = s**2 / (1 + s**2)  # prior N(0, 1): y | m ~ N(m/(1 + s²), s²/(1 + s²)), in one dimension
    points = m / (1 + s**2) + np.sqrt(v) * np.random.default_rng(0).normal(size=(400, 1))

    def denoise(x, sigma):  # the exact field of draws of the posterior is E[y | x, σ, m]
        from pfgm_jax.flow import field

        return field.posterior_mean(x, sigma, points.astype(np.float32), D)

    x = process.prior(flow, jax.random.split(jax.random.key(0), n), (1,))
    x = np.asarray(heun(flow, denoise, x, steps=30)[0])
    assert x.mean() == pytest.approx(points.mean(), abs=5 * np.sqrt(v / n))
    assert x.var() == pytest.approx(points.var(), rel=0.15)


def test_training_tells_it(monkeypatch):
    """The loss of an image changes with its condition, and such a run's first steps are those of its config."""
    config = told_config("superres:2")
    plan = dry_run.prepare(config)
    params = moved(plan, 0.1)
    assert params["conv_in"]["kernel"].shape[2] == 2 and plan.task.model.condition_channels == 1
    images, labels = (jnp.asarray(a[:4]) for a in (plan.dataset.train.images, plan.dataset.train.labels))
    examples, keys = data.Examples(images, labels, None, None), jax.random.split(jax.random.key(5), 4)
    loss = lambda: np.asarray(jax.jit(lambda: step_lib.example_losses(plan.task, params, examples, keys, train=True))())
    told = loss()
    monkeypatch.setattr(condition.Condition, "as_channels", lambda self, m, mask: jnp.zeros((len(m), 8, 8, 1)))
    assert (told != loss()).all()


def test_restoration_is_conditioned_on_the_measurement():
    g, plan = untrained("inpaint:centre")
    images = plan.dataset.test.images[:3]
    result = g.restore(images, "inpaint", 2, jax.random.key(0), steps=2, progress=False)
    mask = np.asarray(operators.named_mask("centre", (8, 8), jax.random.key(0)))
    np.testing.assert_array_equal(data.to_uint8(result.draws)[:, :, mask], np.stack([images[:, mask]] * 2))
    same = g.restore(images, "inpaint", 2, jax.random.key(0), steps=2, mask=mask, progress=False)
    np.testing.assert_array_equal(result.draws, same.draws)
    # What is hidden does not matter, what is seen does.
    hidden = np.where(mask[..., None], images, 255 - images)
    np.testing.assert_array_equal(result.draws, g.restore(hidden, "inpaint", 2, jax.random.key(0), steps=2).draws)
    other = g.restore(np.where(mask[..., None], 255 - images, images), "inpaint", 2, jax.random.key(0), steps=2)
    assert (other.draws[:, :, ~mask] != result.draws[:, :, ~mask]).mean() > 0.9
    assert "conditioned on inpaint:centre" in repr(g)


@pytest.mark.parametrize("ask, words", [
    (lambda g: g.sample(jax.random.key(0), 2), "this one is conditioned on superres:2: use restore"),
    (lambda g: g.denoise(np.zeros((1, 8, 8, 1), np.float32), 1.0), "use restore"),
    (lambda g: g.encode(np.zeros((1, 8, 8, 1), np.uint8)), "use restore"),
    (lambda g: g.restore(np.zeros((1, 8, 8, 1)), "denoise", level=0.4), "the task is 'superres'"),
    (lambda g: g.restore(np.zeros((1, 2, 2, 1)), "superres", factor=4), "factor=4 contradicts that: leave it out"),
    (lambda g: g.restore(np.zeros((1, 4, 4, 1)), "superres", level=0.1), "level=0.1 contradicts that"),
    (lambda g: g.restore(np.zeros((1, 4, 4, 1)), "superres", method="split_gibbs"), "method=split_gibbs"),
])  # fmt: skip
def test_what_an_image_conditional_network_does_not_do(ask, words):
    with pytest.raises(UserError, match=words) as error:
        ask(untrained("superres:2")[0])
    assert "\n" not in str(error.value)


def test_others_are_told_nothing():
    with pytest.raises(UserError, match="data.condition trains one"):
        pfgm_jax.load("pretrained:digits").restore(np.zeros((1, 4, 4, 1)), "superres", method="conditional")


@pytest.mark.parametrize("text", ["inpant:centre", "inpaint", "inpaint:left", "superres:x", "denoise", "denoise:0",
                                  "deblur:1:2:3", "superres:0", "denoise:-1", "superres:2:nan"])  # fmt: skip
def test_conditions_that_are_none(text):
    with pytest.raises(UserError) as error:
        config_rules.check(told_config(text))
    assert "data.condition" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda: told_config("superres:2", **{"train.large_batch": 1437}), "use train.large_batch=0"),
        (
            lambda: told_config("superres:3"),
            "data.condition=superres:3: factor=3 must be at least 2 and divide the 8×8 pixels",
        ),
        (lambda: told_config("superres:2", **{"model.name": "ncsnv2"}), "does not take a conditioning image"),
    ],
)
def test_configs_that_do_not_go_with_it(config, words):
    with pytest.raises(UserError, match=words) as error:
        dry_run.prepare(config())
    assert "\n" not in str(error.value)


def test_points_have_none():
    config = toy.get_config("quick")
    config_lib.override(config, "data.condition", "denoise:0.1")
    config_lib.override(config, "model.name", "mlp")
    config_lib.override(config, "train.large_batch", 0)
    with pytest.raises(UserError, match="does not take a conditioning image"):
        dry_run.prepare(config)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"restore.factor": 2}, "conditioned on superres:4, and factor=2 contradicts that"),  # though 2 is the default
        ({"restore.sweeps": 3}, "the method conditional has no option 'sweeps'"),
        ({"restore.mask": "right"}, "restore.mask=right is for restore.task=inpaint, not for superres"),
    ],
)
def test_given_settings_that_contradict_the_condition(settings, words, tmp_path, monkeypatch):
    settings = {"restore.task": "superres"} | settings
    made = untrained("superres:4")[0].with_overrides(settings)
    monkeypatch.setattr(protocol, "open_run", lambda workdir, overrides, conditioned: made)
    with pytest.raises(UserError, match=words):
        restoration.restore(tmp_path, "nowhere", settings)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["inpaint:random", "denoise:0.4"])
def test_a_run_from_end_to_end(text, command, tmp_path):
    """Trained, its picture drawn, and restored with from the command line, where its own values are the defaults."""
    run, images = tmp_path / "run", data.load(digits.get_config().data).test.images[:3]
    small = {"train.images": 512, "train.log_every": 512, "train.save_every": 512, "train.sample_every": 512}
    loop.train(told_config(text, **small), run)
    assert list((run / "samples").glob("*.png"))
    np.savez(tmp_path / "images.npz", images=images)
    task = text.split(":")[0]
    code, out, err = command(
        "--mode=restore", f"--workdir={run}", f"--source={tmp_path / 'images.npz'}", f"--config.restore.task={task}",
        "--config.restore.simulate=True", "--config.restore.n=2", "--config.restore.steps=2",
    )  # fmt: skip
    assert code == 0 and "by conditional (steps 2)" in out, err
    assert list(run.glob("restored/*/sheet.png"))
    for mode in ("sample", "evaluate"):
        code, _, err = command(f"--mode={mode}", f"--workdir={run}")
        assert code == 2 and f"conditioned on {text}: use restore" in err and len(err.strip().splitlines()) == 1
