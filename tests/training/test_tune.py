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
from pfgm_jax import data, run_record
from pfgm_jax.errors import UserError
from pfgm_jax.storage import checkpoint
from pfgm_jax.training import dry_run, loop, tune
from pfgm_jax.training import step as step_lib

SMALL = {"train.images": 256, "train.eval_every": 256, "train.sample_every": 256, "train.save_every": 128}


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


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A class-conditional run of a few steps."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    loop.train(tiny(**{"model.conditional": True, "train.label_dropout": 0.1}), workdir)
    return workdir


@pytest.fixture(scope="module")
def tuned(source):
    """(workdir, report) of a run that was tuned from it."""
    workdir = source.parent / "tuned"
    overrides = {key: str(value) for key, value in SMALL.items()}
    return workdir, tune.tune(str(source), str(workdir), overrides)


def test_the_record_says_what_was_tuned(source, tuned):
    workdir, report = tuned
    config, _ = run_record.load(workdir)
    teacher = pfgm_jax.load(source)
    assert config.train.objective == "consistency" and config.train.init == str(source)
    assert config.tune.step == teacher.step == 4 and len(config.tune.digest) == 16
    assert config.optim.name == "radam" and config.sample.solver == "consistency"
    assert tune.tuned_config(
        teacher.with_params(jax.tree.map(lambda a: a + 1, teacher.params)), source, {}
    ).tune.digest != (config.tune.digest)
    levels = [float(level) for level in config.sample.levels.split(",")]
    assert levels == sorted(levels, reverse=True) and levels[0] < pfgm_jax.load(workdir).process.sigma_max
    assert f"levels     {config.sample.levels}" in report and "source's flow" in report
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert any("truth/sigma=0.1" in record for record in records)
    assert (workdir / "samples" / "step_00000016.png").exists()


def test_the_same_command_goes_on_where_it_was(source, tuned, capsys):
    workdir, report = tuned
    before = checkpoint.steps(workdir)
    overrides = {key: str(value) for key, value in SMALL.items()}
    assert tune.tune(str(source), str(workdir), overrides) == report
    assert "resumed    at step 16 of 16" in capsys.readouterr().err
    assert checkpoint.steps(workdir) == before
    with pytest.raises(UserError, match="tune.q"):
        tune.tune(str(source), str(workdir), overrides | {"tune.q": "4"})


def test_a_tuned_run_samples_by_consistency_alone(tuned):
    g = pfgm_jax.load(tuned[0])
    images, stats = g.sample(jax.random.key(0), 4)
    assert images.shape == (4, 1, 1, 2) and stats.nfe == 2
    one, stats = g.sample(jax.random.key(0), 4, steps=1, labels="balanced")
    assert stats.nfe == 1 and (one != images).any()
    assert g.flow_end(np.zeros((2, 1, 1, 2), np.float32), 1.0, labels=3).shape == (2, 1, 1, 2)
    assert "of tuning from step 4" in repr(g)
    x = np.zeros((1, 1, 1, 2), np.float32)
    for refused in (
        lambda: g.sample(jax.random.key(0), 4, solver="heun"),
        lambda: g.sample(jax.random.key(0), 4, guidance=2),
        lambda: g.denoise(x, 1.0),
        lambda: g.encode(x),
        lambda: g.log_likelihood(x, jax.random.key(0)),
        lambda: tune.tuned_config(g, "it", {}),
    ):
        with pytest.raises(UserError, match="tuned") as error:
            refused()
        assert "\n" not in str(error.value)


def test_a_run_that_is_not_tuned_has_no_flow_end(source, tuned):
    g = pfgm_jax.load(source)
    for refused in (
        lambda: g.sample(jax.random.key(0), 4, solver="consistency"),
        lambda: g.flow_end(np.zeros((1, 1, 1, 2), np.float32), 1.0),
        lambda: g.sample(jax.random.key(0), 4, guidance=2, guide=str(tuned[0])),
    ):
        with pytest.raises(UserError, match="tuned"):
            refused()


@pytest.mark.parametrize("key", ["process.D", "model.channels", "seed", "train.init", "tune.digest", "train.augment"])
def test_what_belongs_to_the_source_is_refused(source, key):
    with pytest.raises(UserError, match=f"the {key} of its source"):
        tune.tuned_config(pfgm_jax.load(source), source, {key: "1"})


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
    # to where the source's own flow ends (measured: TUNED).
    workdir = tmp_path / "tuned"
    settings = {"train.images": "51200", "train.sample_every": "1000000", "train.eval_every": "1000000"}
    report = tune.tune("pretrained:digits", str(workdir), settings)
    tuned, source, flow = map(float, report.splitlines()[5].split()[1:])
    assert tuned < (source + flow) / 2
    images, stats = pfgm_jax.load(workdir).sample(jax.random.key(0), 16)
    assert images.shape == (16, 8, 8, 1) and stats.nfe == 2
