"""Consistency tuning of a run: what is recorded, what the tuned run can and cannot do, and that it learns."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfgm_jax
from configs import toy
from pfgm_jax import config as config_lib
from pfgm_jax import data, generator, run_record
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.generator import Generator
from pfgm_jax.storage import checkpoint
from pfgm_jax.training import dry_run, loop, tune
from pfgm_jax.training import step as step_lib


def tiny(**overrides):
    """Points in the plane and a small dense network, whose programs compile quickly."""
    config = toy.get_config("quick,dataset=gaussians")
    small = {
        "model.channels": 8, "model.blocks": 1, "model.embedding_channels": 8, "train.batch": 16, "train.images": 64,
        "train.large_batch": 0, "train.steps_per_call": 4, "train.eval_images": 32, "train.eval_every": 10_000,
        "train.sample_every": 10_000, "sample.steps": 3, "sample.n": 4, "sample.batch": 32, "sample.frames": 0,
    }  # fmt: skip
    for key, value in (small | overrides).items():
        config_lib.override(config, key, value)
    return config


SETTINGS = {"train.images": "256", "train.eval_every": "256", "train.sample_every": "256", "train.save_every": "128"}


@pytest.fixture(scope="module")
def teacher():
    return pfgm_jax.load("pretrained:digits")


@pytest.fixture(scope="module")
def untrained(teacher):
    """A tuned run before its first step, as a Generator."""
    run = run_lib.make_run(tune.tuned_config(teacher, "pretrained:digits", {}), teacher.derived)
    return Generator(run, teacher.params)


def test_the_config_says_what_is_tuned(teacher, untrained):
    config, own = untrained.config, teacher.config
    assert config.train.objective == "consistency" and config.train.init == "pretrained:digits"
    assert config.tune.step == teacher.step > 0 and len(config.tune.digest) == 16
    assert config.optim.name == "radam" and config.sample.solver == "consistency"
    assert config.process == own.process and config.model == own.model and config.data == own.data
    moved = teacher.with_params(jax.tree.map(lambda a: a + 1, teacher.params))
    assert tune.tuned_config(moved, "pretrained:digits", {}).tune.digest != config.tune.digest
    changed = tune.tuned_config(teacher, "pretrained:digits", {"tune.q": "256", "optim.lr": "1e-3"})
    assert changed.tune.q == 256 and changed.optim.lr == 1e-3


def test_a_tuned_run_samples_by_consistency_alone(untrained):
    images, stats = untrained.sample(jax.random.key(0), 8)
    assert images.shape == (8, 8, 8, 1) and stats.nfe == 2
    x = np.zeros((1, 8, 8, 1), np.float32)
    # The same weights: before the first step it is the teacher's posterior mean.
    assert untrained.flow_end(x, 1.0).shape == x.shape
    assert "of tuning from step" in repr(untrained)
    for refused in (
        lambda: untrained.sample(jax.random.key(0), 4, solver="heun"),
        lambda: untrained.sample(jax.random.key(0), 4, guidance=2),
        lambda: untrained.denoise(x, 1.0),
        lambda: untrained.encode(x),
        lambda: untrained.log_likelihood(x, jax.random.key(0)),
        lambda: tune.tuned_config(untrained, "it", {}),
    ):
        with pytest.raises(UserError, match="tuned") as error:
            refused()
        assert "\n" not in str(error.value)


def test_a_run_that_is_not_tuned_has_no_flow_end(teacher, untrained):
    for refused in (
        lambda: teacher.sample(jax.random.key(0), 4, solver="consistency"),
        lambda: teacher.flow_end(np.zeros((1, 8, 8, 1), np.float32), 1.0),
        lambda: teacher.guide(guidance=2, guide=untrained),
    ):
        with pytest.raises(UserError, match="tuned"):
            refused()


def test_a_longer_run_keeps_its_levels_until_its_end(tmp_path, monkeypatch):
    """Stopped before it chooses again, it samples by those that it chose before."""

    def stopped(config, workdir):
        run_record.save(workdir, config, {})
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", stopped)
    levels = lambda: run_record.load(tmp_path)[0].sample.levels
    for asked, expected in ({}, None), ({"sample.levels": "0.8,0.3"}, "0.8,0.3"), ({}, "0.8,0.3"):
        with pytest.raises(KeyboardInterrupt):
            tune.tune("pretrained:digits", tmp_path, asked)
        assert levels() == expected


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path, capsys):
    """A class-conditional run of points, tuned, tuned again by the same command, and sampled."""
    source, workdir = tmp_path / "source", tmp_path / "tuned"
    loop.train(tiny(**{"model.conditional": True, "train.label_dropout": 0.1}), source)
    report = tune.tune(str(source), str(workdir), SETTINGS)
    config, _ = run_record.load(workdir)
    assert config.train.init == str(source) and config.tune.step == 4
    levels = [float(level) for level in config.sample.levels.split(",")]
    assert levels == sorted(set(levels), reverse=True) and levels[0] < pfgm_jax.load(workdir).process.sigma_max
    assert f"levels     {config.sample.levels}" in report and "source's flow" in report
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert any("truth/sigma=0.1" in record for record in records)
    assert (workdir / "samples" / "step_00000016.png").exists()

    before = checkpoint.steps(workdir)
    capsys.readouterr()
    assert tune.tune(str(source), str(workdir), SETTINGS) == report
    assert "resumed    at step 16 of 16" in capsys.readouterr().err
    assert checkpoint.steps(workdir) == before
    with pytest.raises(UserError, match="tune.q"):
        tune.tune(str(source), str(workdir), SETTINGS | {"tune.q": "4"})

    g = pfgm_jax.load(workdir)
    one, stats = g.sample(jax.random.key(0), 8, steps=1, labels="balanced")
    assert stats.nfe == 1 and one.shape == (8, 1, 1, 2)
    assert g.flow_end(one, 1.0, labels=3).shape == one.shape


@pytest.mark.parametrize("key", ["process.D", "model.channels", "seed", "train.init", "tune.digest", "train.augment"])
def test_what_belongs_to_the_source_is_refused(teacher, key):
    with pytest.raises(UserError, match=f"the {key} of its source"):
        tune.tuned_config(teacher, "pretrained:digits", {key: "1"})


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ({"train.init": ""}, "--mode=tune"),
        ({"process.name": "pfgm", "process.D": 1.0}, "pfgmpp with D=1"),
        ({"tune.q": 1.0}, "greater than 1"),
        ({"tune.stages": 0}, "at least 1"),
        ({"tune.c": -1.0}, "0 or more"),
        ({"sample.solver": "heun"}, "consistency"),
    ],
)
def test_bad_settings_are_one_line(overrides, word):
    tuned = {"train.objective": "consistency", "train.init": "x", "sample.solver": "consistency"}
    with pytest.raises(UserError, match=word) as error:
        dry_run.prepare(tiny(**tuned | overrides))
    assert "\n" not in str(error.value)


def test_the_command_answers_mistakes(command, tmp_path):
    for argv, word in [
        (("--mode=tune", f"--workdir={tmp_path / 'new'}"), "needs --source"),
        (
            ("--mode=tune", "--source=pretrained:digits", f"--workdir={tmp_path / 'new'}", "--config=x.py"),
            "--config=FILE",
        ),
        (("--mode=tune", f"--source={tmp_path}", f"--workdir={tmp_path / 'new'}"), "holds no run"),
        (
            ("--mode=tune", "--source=pretrained:digits", f"--workdir={tmp_path / 'new'}", "--config.process.D=2"),
            "process.D",
        ),
    ]:
        code, _, err = command(*argv)
        assert code == 2 and word in err and len(err.strip().splitlines()) == 1
        assert not (tmp_path / "new").exists()


def loss_of(config, step=None):
    """(loss [b] as a function of parameters, parameters) of a batch of 8 points."""
    plan = dry_run.prepare(config)
    images, labels = (jnp.asarray(a[:8]) for a in (plan.dataset.train.images, plan.dataset.train.labels))
    keys = jax.random.split(jax.random.key(5), 8)
    params = step_lib.init_state(plan.task, plan.dataset.shape).params
    # The last layers begin near 0, where nothing could be told apart.
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params)
    examples = data.Examples(images, labels, None, None)
    loss = functools.partial(step_lib.example_losses, plan.task)
    return lambda params: loss(params, examples, keys, train=True, step=step), params


def test_a_pair_shares_its_dropout_mask():
    # The step of q = 1e5 is 1e-5 to 5e-5 of t. With masks of their own the two outputs would differ by about 1, and the
    # loss, which is per length of the step, would be some 1e4.
    settings = {"train.objective": "consistency", "train.init": "x", "sample.solver": "consistency", "tune.q": 1e5,
                "tune.stages": 1, "model.dropout": 0.5}  # fmt: skip
    loss, params = loss_of(tiny(**settings))
    assert 0 < np.median(np.asarray(jax.jit(loss)(params))) < 100


def test_stages_follow_the_step():
    settings = {
        "train.objective": "consistency",
        "train.init": "x",
        "sample.solver": "consistency",
        "train.large_batch": 0,
    }
    config = tiny(**settings, **{"train.images": 16 * 16})
    losses = [np.asarray(loss_of(config, step)[0](loss_of(config)[1])) for step in (0, 3, 4, 15, None)]
    np.testing.assert_array_equal(losses[0], losses[1])  # 16 steps in four stages
    assert (losses[1] != losses[2]).any()
    np.testing.assert_array_equal(losses[3], losses[4])


def test_levels_are_chosen_whatever_the_batch(monkeypatch):
    """Three of them, falling; from more samples than there are validation images, as fewer do not resolve them."""
    monkeypatch.setattr(tune, "SAMPLES", 96)
    g = generator.load("pretrained:digits")
    split = data.load(g.config.data).val
    chosen = {tune.choose_levels(g.with_overrides({"sample.batch": size}), split) for size in (96, 48)}
    assert len(chosen) == 1
    levels = [float(level) for level in chosen.pop().split(",")]
    assert len(levels) == tune.MOST_LEVELS and levels == sorted(set(levels), reverse=True)
    for size in (1, 0):
        assert tune.choose_levels(g, data.Split(split.images[:size], split.labels[:size])) is None


def test_energy_distance_of_normals():
    # E‖x − y‖ of normals a apart in one dimension is √2 times the folded normal's mean; 4 standard errors are 0.02.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 1)), rng.normal(1.0, size=(4000, 1))
    folded = lambda a: (
        2 / np.sqrt(np.pi) * np.exp(-(a**2) / 4) + a * (2 * 0.5 * (1 + float(jax.scipy.special.erf(a / 2))) - 1)
    )
    assert tune.energy_distance(x, y) == pytest.approx(2 * folded(1.0) - 2 * folded(0.0), abs=0.04)
    assert abs(tune.energy_distance(x, rng.normal(size=(4000, 1)))) < 0.01


@pytest.mark.slow
def test_tuning_approaches_the_flow_map(tmp_path):
    # At the largest σ one evaluation of the source is the mean image. Tuning goes more than half of the way from there
    # to where the source's own flow ends (measured at 64 images: 0.398 between 0.533 and 0.371).
    workdir = tmp_path / "tuned"
    settings = {"tune.q": "256", "tune.stages": "1", "train.images": "102400", "train.sample_every": "102400"}
    report = tune.tune("pretrained:digits", str(workdir), settings)
    tuned, source, flow = map(float, report.splitlines()[5].split()[1:])
    assert tuned < (source + flow) / 2
    images, stats = pfgm_jax.load(workdir).sample(jax.random.key(0), 16)
    assert images.shape == (16, 8, 8, 1) and stats.nfe == 2
