"""Training: independent of the number of devices, resumed bit for bit, and every objective learns."""

import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_steps import MLP, examples_of, on_one, stacked, tiny

import pfgm_jax
from pfgm_jax import config_rules, data, models, parallel, run_record
from pfgm_jax import run as run_lib
from pfgm_jax.data import to_unit
from pfgm_jax.errors import UserError
from pfgm_jax.flow import field, process
from pfgm_jax.storage import checkpoint
from pfgm_jax.storage.metrics_file import evaluated, read_metrics
from pfgm_jax.training import cadence, dry_run, log, loop, meter, monitor, optimizer, validation, warm_start
from pfgm_jax.training import step as step_lib


@pytest.fixture(autouse=True)
def forget_programs_of_each_test():
    """No test here shares a program in memory: each makes a Task of its own, and eight devices' programs are large."""
    yield
    jax.clear_caches()


OBJECTIVES = {
    "clean": {},
    "posterior mean, labels": {"train.large_batch": 64, "model.conditional": True},
    "PFGM": {"process.name": "pfgm", "process.D": 1.0, "train.large_batch": 64},
    "consistency": {"train.objective": "consistency", "train.init": "x", "sample.solver": "consistency",
                    "optim.name": "radam", "train.large_batch": 0},
}  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("network", [MLP, {}], ids=["mlp", "unet"])
def test_eight_devices_train_as_one_in_float64(x64, network, objective):
    # float64 leaves only the order of sums, about 1e-16 a step times Adam's division by small second moments. The rate
    # is constant: its cosine is float32, and two programs may round it differently.
    settings = {"model.dtype": "float64", "model.dropout": 0.2, "optim.warmup": 0, "optim.decay": "constant"}
    config = tiny(**settings, **network, **OBJECTIVES[objective])
    dataset, _, task, _ = dry_run.prepare(config)

    def run(devices):
        step = parallel.pmap(lambda *args: step_lib.train_step(task, *args), devices=devices)
        state = stacked(step_lib.init_state(task, dataset.shape), devices)
        losses = []
        for k in range(20):
            examples = examples_of(config, dataset, k)
            state, metrics = step(state, examples if len(devices) > 1 else on_one(examples))
            losses.append(metrics.loss[0])
        return np.asarray(losses), jax.tree.map(lambda a: np.asarray(a)[0], state)

    one_losses, one = run(jax.devices()[:1])
    eight_losses, eight = run(jax.devices())
    assert one_losses.dtype == np.float64 and all(a.dtype == np.float64 for a in jax.tree.leaves(one.params))
    np.testing.assert_allclose(eight_losses, one_losses, rtol=1e-9)
    for name in ("params", "ema"):
        a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(getattr(s, name))]) for s in (one, eight))
        assert np.linalg.norm(a - b) <= 1e-9 * np.linalg.norm(a)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, step_lib.init_state(task, dataset.shape).params)
    assert max(jax.tree.leaves(moved)) > 1e-3  # the steps did something


def test_eight_devices_give_the_gradient_of_one_in_float32():
    # Sums of 16 examples in another order: some float32 epsilons, 1.2e-7 each.
    config = tiny(**{"model.dropout": 0.2})
    dataset, _, task, _ = dry_run.prepare(config)
    state = step_lib.init_state(task, dataset.shape)

    def gradient(devices):
        f = parallel.pmap(lambda *args: step_lib.loss_and_gradient(task, *args)[1], devices=devices)
        examples = examples_of(config, dataset, 0)
        trees = (stacked(tree, devices) for tree in (state.params, state.step))
        result = f(*trees, examples if len(devices) > 1 else on_one(examples))
        return np.concatenate([np.asarray(a)[0].ravel() for a in jax.tree.leaves(result)])

    one, eight = gradient(jax.devices()[:1]), gradient(jax.devices())
    assert np.linalg.norm(one - eight) <= 1e-5 * np.linalg.norm(one)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    config = tiny(**MLP, **{"model.dropout": 0.2, "train.keep": 10})
    loop.train(config, workdir)
    return config, workdir, final_items(config, workdir)


def final_items(config, workdir):
    dataset, _, task, cadence = dry_run.prepare(config)
    step, items = checkpoint.restore(workdir, step_lib.items(step_lib.init_state(task, dataset.shape)))
    assert step == cadence.total
    return items


@pytest.mark.parametrize("saves", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_resumed_run_is_equal_bit_for_bit(uninterrupted, tmp_path, monkeypatch, saves):
    config, whole, expected = uninterrupted
    save, count = checkpoint.save, []

    def save_then_die(*args):
        save(*args)
        count.append(None)
        if len(count) == saves:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save_then_die)
    with pytest.raises(Killed):
        loop.train(config, tmp_path)
    monkeypatch.setattr(checkpoint, "save", save)
    loop.train(config, tmp_path)
    for a, b in zip(jax.tree.leaves(final_items(config, tmp_path)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    # metrics.jsonl reads as if nothing had happened, speed apart
    speed = ("images_per_second", "input_wait", "save_wait")
    lines = [
        [{k: v for k, v in json.loads(line).items() if k not in speed} for line in open(d / "metrics.jsonl")]
        for d in (whole, tmp_path)
    ]
    assert lines[0] == lines[1]


def test_a_streamed_run_is_a_resident_one(uninterrupted, tmp_path):
    config, _, expected = uninterrupted
    streamed = config.copy_and_resolve_references()
    streamed.data.resident = False
    loop.train(streamed, tmp_path)
    # Another program of the same sums: float32 rounding, and Adam's division by small second moments.
    for a, b in zip(*map(jax.tree.leaves, (final_items(config, tmp_path)["ema"], expected["ema"])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    records = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert all(0 <= r["input_wait"] <= 1 for r in records if "input_wait" in r)


def stopped_in_call(number, config, workdir, monkeypatch):
    """Trains until SIGTERM arrives at the device call of this number; returns (calls made, exit code)."""
    calls = []

    def steps_then_signal(*args):
        calls.append(None)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_lib.train_steps(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_steps", steps_then_signal)
        with pytest.raises(KeyboardInterrupt) as caught:
            loop.train(config, workdir)
    return len(calls), caught.value.code


def test_an_interrupted_run_is_saved_and_goes_on(uninterrupted, tmp_path, monkeypatch):
    config, _, expected = uninterrupted
    assert stopped_in_call(2, config, tmp_path, monkeypatch) == (2, 143)
    loop.train(config, tmp_path)
    for a, b in zip(jax.tree.leaves(final_items(config, tmp_path)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def same_run(a, b):
    """Whether two run directories hold the same: checkpoints aside, and speed."""
    speed = ("images_per_second", "input_wait", "save_wait")
    lines = [
        [{k: v for k, v in json.loads(line).items() if k not in speed} for line in open(d / "metrics.jsonl")]
        for d in (a, b)
    ]
    pictures = [{path.name: path.read_bytes() for path in d.glob("samples/*")} for d in (a, b)]
    return lines[0] == lines[1] and pictures[0] == pictures[1] and (a / "curves.png").exists() == (
        b / "curves.png").exists()  # fmt: skip


def test_a_death_between_checkpoint_and_picture_is_made_good(uninterrupted, tmp_path, monkeypatch):
    config, whole, _ = uninterrupted

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(monitor.plots, "picture", die)
        with pytest.raises(Killed):
            loop.train(config, tmp_path)
    assert checkpoint.steps(tmp_path)[-1] == 32 and not same_run(whole, tmp_path)
    loop.train(config, tmp_path)
    assert same_run(whole, tmp_path)


def test_a_death_between_checkpoint_and_evaluation_is_made_good(uninterrupted, tmp_path, monkeypatch):
    """A stop that comes with the last step saves it and leaves its evaluation and its picture to the next start."""
    config, whole, _ = uninterrupted
    stopped_in_call(8, config, tmp_path, monkeypatch)
    assert checkpoint.steps(tmp_path)[-1] == 32 and 512 not in evaluated(tmp_path)
    loop.train(config, tmp_path)
    assert same_run(whole, tmp_path)


def test_a_stop_while_a_picture_is_drawn_saves_nothing_twice(tmp_path, monkeypatch, capsys):
    config, saved = tiny(**{"train.images": 192, "train.sample_every": 64, "train.save_every": 64, "train.keep": 1}), []
    draw, save = monitor.plots.picture, checkpoint.save

    def signal_then_draw(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return draw(*args)

    monkeypatch.setattr(monitor.plots, "picture", signal_then_draw)
    monkeypatch.setattr(checkpoint, "save", lambda *args: (saved.append(args[1]), save(*args)))
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path)
    assert saved == [4] and checkpoint.steps(tmp_path) == [4] and not list(tmp_path.glob("samples/*.png*"))
    error = capsys.readouterr().err
    assert "SIGTERM: stopping after this step" in error and "step 4 is saved" in error


def test_a_stop_while_the_network_is_evaluated_leaves_it_and_saves(tmp_path, monkeypatch):
    config = tiny(**{"train.images": 192, "train.eval_every": 64, "train.save_every": 128})

    def evaluation(*args):
        def act(ema, seen):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
            raise AssertionError("the evaluation went on")

        return act

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "evaluation", evaluation)
        with pytest.raises(KeyboardInterrupt) as caught:
            loop.train(config, tmp_path)
    assert caught.value.code == 130 and checkpoint.steps(tmp_path) == [4] and not evaluated(tmp_path)
    loop.train(config, tmp_path)
    assert evaluated(tmp_path) == {64, 128, 192}


def test_a_stop_before_the_first_step_has_nothing_to_save(tmp_path, monkeypatch, capsys):
    prepare = loop.prepare
    monkeypatch.setattr(loop, "prepare", lambda config: (os.kill(os.getpid(), signal.SIGINT), prepare(config))[1])
    with pytest.raises(KeyboardInterrupt) as caught:
        loop.train(tiny(), tmp_path)
    assert caught.value.code == 130 and checkpoint.steps(tmp_path) == []
    assert "before the first step: there is nothing to save" in capsys.readouterr().err


def test_the_checkpoint_with_the_lowest_validation_loss_is_kept(tmp_path, monkeypatch, capsys):
    config = tiny(**{"train.images": 256, "train.eval_every": 64, "train.save_every": 128, "train.keep": 1,
                     "train.log_every": 64})  # fmt: skip
    scripted = iter([9.0, 1.0, 9.0, 0.5, 9.0, math.nan, 9.0, 0.8])  # training and validation images in turn
    monkeypatch.setattr(monitor, "evaluate_losses", lambda *_: [next(scripted)])
    monkeypatch.setattr(monitor, "TRUTH_LIMIT", 0)
    losses = iter([0.4, 0.5, 40.0, 50.0])
    watch = monitor.LossWatch.__call__
    monkeypatch.setattr(monitor.LossWatch, "__call__", lambda self, loss: watch(self, next(losses)))
    loop.train(config, tmp_path)
    assert checkpoint.steps(tmp_path) == [8, 16]
    assert pfgm_jax.load(tmp_path, step="best").step == 8 and pfgm_jax.load(tmp_path).step == 16
    out, err = capsys.readouterr()
    assert err.count("has left its range, 0.4 to 0.5") == 1 and 'step="best"' in err and 'step="best"' in out
    with pytest.raises(UserError, match="there are 8, 16"):
        pfgm_jax.load(tmp_path, step=12)
    with pytest.raises(UserError, match="is not a step"):
        pfgm_jax.load(tmp_path, step="newest")


def test_the_loss_watch_speaks_once_a_departure():
    watch = monitor.LossWatch([1.0, 0.5])
    said = [watch(loss) for loss in (0.4, 30.0, 60.0, 0.6, math.inf, 1.5)]
    assert [line is not None for line in said] == [False, True, False, False, True, False]
    assert "30, has left its range, 0.4 to 1 " in said[1]


# ---- what goes wrong on the way


SHORT = {"train.images": 192, "train.save_every": 64, "train.keep": 1}


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    save = checkpoint.save

    def full(*args, **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def save_until_full(workdir, step, *args):
        if step > 4:
            full()
        save(workdir, step, *args)

    monkeypatch.setattr(checkpoint, "save", save_until_full)
    monkeypatch.setattr(loop.plots, "curves", full)
    with pytest.raises(UserError, match=r"is full: free some space .*; the last checkpoint, of step 4, is kept"):
        loop.train(tiny(**SHORT), tmp_path)
    assert checkpoint.steps(tmp_path) == [4] and not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_vanishes_is_one_line_and_a_bug_keeps_its_traceback(tmp_path, monkeypatch, capsys):
    def vanish(*args):
        shutil.rmtree(tmp_path / "run")
        return step_lib.train_steps(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_steps", vanish)
        with pytest.raises(UserError, match="run is gone: .*; no checkpoint was saved yet"):
            loop.train(tiny(**SHORT), tmp_path / "run")
    assert not (tmp_path / "run").exists()

    def bug(*args):
        raise OSError(errno.EBADF, "not of the folder")

    monkeypatch.setattr(loop, "train_steps", bug)
    with pytest.raises(OSError, match="not of the folder"):
        loop.train(tiny(**SHORT), tmp_path / "run")
    assert "an unexpected error stopped training; no checkpoint was saved yet" in capsys.readouterr().err


# ---- other weights to start from


def test_a_run_starts_from_other_weights(uninterrupted, tmp_path, monkeypatch):
    _, whole, expected = uninterrupted
    config = tiny(**MLP, **{"train.init": str(whole), "train.images": 64, "model.dropout": 0.1})
    begun, run = [], loop._run
    monkeypatch.setattr(loop, "_run", lambda *args: (begun.append(args[1]), run(*args))[1])
    loop.train(config, tmp_path)
    for tree in (begun[0].params, begun[0].ema):
        jax.tree.map(np.testing.assert_array_equal, tree, expected["ema"])
    assert int(begun[0].step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(begun[0].opt_state))
    assert run_record.load(tmp_path)[0].train.init == str(whole)
    monkeypatch.setattr(loop, "start_from", None)  # a resumed run does not read them again
    monkeypatch.setattr(warm_start, "_load", None)
    config.train.images = 128
    loop.train(config, tmp_path)


def test_tuned_weights_are_no_posterior_mean_to_start_from(uninterrupted):
    config, tuned = tiny(**MLP), tiny(**MLP, **OBJECTIVES["consistency"])
    dataset, derived, task, _ = dry_run.prepare(config)
    other = pfgm_jax.Generator(run_lib.make_run(tuned, derived), uninterrupted[2]["ema"], 4)
    assert "train.objective is consistency there and mean here" in warm_start._differences(config, derived, other)


def test_imported_weights_have_seen_an_unknown_number_of_images(uninterrupted, tmp_path, monkeypatch):
    config, _, items = uninterrupted
    run = run_lib.make_run(config, dry_run.prepare(config).derived | {"imported": "other.pkl"})
    monkeypatch.setattr(warm_start.generator, "load", lambda _: pfgm_jax.Generator(run, items["ema"], 0))
    loop.train(tiny(**MLP, **{"train.init": "imported", "train.images": 64}), tmp_path)
    monkeypatch.undo()
    assert "EMA weights after an unknown number + 64 images" in repr(pfgm_jax.load(tmp_path))


def test_a_run_says_how_many_images_its_first_weights_had_seen(uninterrupted, tmp_path):
    before = pfgm_jax.load(uninterrupted[1])
    seen = [before.step * before.config.train.batch]
    for name, init, images in (("second", uninterrupted[1], 64), ("third", tmp_path / "second", 128)):
        loop.train(tiny(**MLP, **{"train.init": str(init), "train.images": images}), tmp_path / name)
        assert f"EMA weights after {sum(seen):,} + {images} images" in repr(pfgm_jax.load(tmp_path / name))
        seen.append(images)
    assert warm_start.origin(tiny(**MLP), tmp_path / "new") == {}  # random weights


def test_weights_of_another_scale_are_said_to_be(uninterrupted, capsys):
    for override in ({}, {"process.sigma_data": 0.3, "process.sigma_max": 40.0}):
        config = tiny(**MLP | {"train.init": str(uninterrupted[1])} | override)
        dataset, derived, task, _ = dry_run.prepare(config)
        state = warm_start.start_from(config, derived, task, step_lib.init_state(task, dataset.shape))
        said = capsys.readouterr().err
        assert int(state.step) == 0 and bool(said) == bool(override)
    assert said.count("\n") == 1 and "σ from 40 to 0.002, σ_data = 0.3: it learns another scale" in said


@pytest.mark.parametrize(
    "override, words",
    [
        ({"model.channels": 8}, "model.channels is 16 there and 8 here"),
        ({"model.conditional": True}, "model.conditional is False there and True here"),
        ({"model.name": "unet"}, "model.name is mlp there and unet here"),
        ({"process.name": "vp", "process.D": math.inf}, "parametrisation is EDM there and Epsilon here"),
        ({"train.init": "nowhere"}, "init=nowhere: nowhere holds no run"),
        ({"train.init": "pretrained:digit"}, "did you mean 'digits'"),
    ],
)
def test_other_weights_that_do_not_fit(uninterrupted, override, words):
    config = tiny(**MLP | {"train.init": str(uninterrupted[1])} | override)
    dataset, derived, task, _ = dry_run.prepare(config)
    with pytest.raises(UserError) as caught:
        warm_start.start_from(config, derived, task, None)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_emptied_run_is_not_begun_again_in_silence(uninterrupted, tmp_path):
    config, whole, _ = uninterrupted
    copy = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    rows = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="trained 512 images"):
        loop.train(config, copy)
    assert (copy / "metrics.jsonl").read_bytes() == rows


def test_a_longer_run_continues_a_finished_one(tmp_path):
    config = tiny(**MLP, **{"train.images": 128})
    loop.train(config, tmp_path)
    config.train.images = 256
    state = loop.train(config, tmp_path)
    assert int(state.step) == 16


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns(tmp_path, objective):
    config = tiny(**{"train.images": 6144, "train.eval_every": 3072, "train.log_every": 3072, "train.save_every": 6144,
                     "train.sample_every": 6144}, **OBJECTIVES[objective])  # fmt: skip
    loop.train(config, tmp_path)
    records = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[-1] < 0.95 * losses[0]
    evaluated = [r for r in records if "eval/val" in r]
    assert evaluated[-1]["eval/val"] < evaluated[0]["eval/val"]
    assert evaluated[0]["eval/gap"] == pytest.approx(evaluated[0]["eval/val"] - evaluated[0]["eval/train"])


def test_validation_loss_counts_each_example_once_whatever_the_padding():
    config = tiny()
    dataset, _, task, _ = dry_run.prepare(config)
    params = parallel.replicate(step_lib.init_state(task, dataset.shape).params)
    chosen = validation.choose(0, 180, 40)
    assert len(set(chosen)) == 40 and chosen.max() < 180
    split = parallel.replicate((dataset.val.images[chosen], dataset.val.labels[chosen]))
    by_batch = [
        float(validation.evaluate_losses(task, params, *split, validation.make_batches(40, batch))[0])
        for batch in (8, 16, 40, 64)
    ]
    np.testing.assert_allclose(by_batch, by_batch[0], rtol=1e-5)


def test_distance_to_truth_is_zero_for_the_truth_and_right_for_a_constant(monkeypatch):
    config = tiny()
    dataset, derived, task, _ = dry_run.prepare(config)
    state = step_lib.init_state(task, dataset.shape)
    images, labels = dataset.train.images, dataset.train.labels
    points = to_unit(images)

    arguments = [parallel.replicate(tree) for tree in (state.params, images, labels)]
    queries = validation.truth_queries(0, len(images))

    def error(denoise):
        monkeypatch.setattr(validation, "denoiser", lambda *_: denoise)
        return np.asarray(
            parallel.pmap(lambda *args: validation.truth_errors(task, *args, jnp.asarray([0.7])))(*arguments, queries)
        )

    exact = field.exact_denoiser(jnp.asarray(points), task.process.D)
    assert error(exact).max() < 1e-6
    np.testing.assert_allclose(error(lambda x, sigma: exact(x, sigma) + 0.25), 0.25, rtol=1e-5)

    # A set that is too large to be taken whole is streamed, here in chunks of 256.
    monkeypatch.setattr(validation, "TRUTH_WHOLE", 0)
    monkeypatch.setattr(field, "MEMORY", 2**17)
    assert field.fitting_chunk(queries.shape[1], images.shape) < len(images)
    assert error(lambda x, sigma: field.posterior_mean(x, sigma, points, task.process.D)).max() < 1e-6


def test_learning_rate_warms_up_decays_and_follows_the_batch():
    config = tiny(**{"optim.warmup": 160, "optim.lr": 1e-3, "optim.lr_batch": 64, "optim.decay": "cosine",
                     "train.images": 1600, "optim.lr_end": 0.1})  # fmt: skip
    dataset = data.load(config.data)
    derived = run_lib.derive(config, dataset)
    assert derived["lr"] == pytest.approx(1e-3 * math.sqrt(16 / 64))
    rate = optimizer.learning_rate(config, derived)
    assert float(rate(0)) == pytest.approx(derived["lr"] / 10)
    assert float(rate(9)) == pytest.approx(derived["lr"])
    assert float(rate(55)) == pytest.approx(derived["lr"] * 0.55)  # the cosine's middle
    assert float(rate(100)) == pytest.approx(derived["lr"] * 0.1)
    # On the host for the log, on the devices for the optimiser: float32 there.
    steps = np.arange(101)
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(steps), [rate(int(step)) for step in steps], rtol=2e-5)
    assert not isinstance(rate(9), jax.Array)


def test_speed_counts_the_time_that_a_log_line_takes(tmp_path, monkeypatch):
    write, clock = log.Log.scalars, [0.0]

    def tick(seconds=1e-6):
        clock[0] += seconds
        return clock[0]

    monkeypatch.setattr(meter, "time", types.SimpleNamespace(perf_counter=tick))
    monkeypatch.setattr(log.Log, "scalars", lambda *args: (tick(10.0), write(*args)))
    loop.train(tiny(**{"train.images": 256}), tmp_path)
    speeds = [r["images_per_second"] for r in read_metrics(tmp_path) if "images_per_second" in r]
    assert len(speeds) == 3  # the first call compiles
    assert speeds[1:] == pytest.approx([64 / 10] * 2, rel=1e-3)


def test_ema_follows_edms_half_life_with_ramp():
    # EDM: decay 0.5^(batch / min(half-life, ramp × images seen)), 0 at the start.
    config = tiny(**MLP, **{"train.ema_halflife": 100, "train.ema_ramp": 0.5, "optim.lr": 0.01})
    dataset, _, task, _ = dry_run.prepare(config)
    devices = jax.devices()
    step = parallel.pmap(lambda *args: step_lib.train_step(task, *args)[0])
    state = stacked(step_lib.init_state(task, dataset.shape), devices)
    ema = None
    for k in range(20):
        state = step(state, examples_of(config, dataset, k))
        halflife = min(100, 0.5 * 16 * k)
        decay = 0.5 ** (16 / halflife) if halflife else 0.0
        params = np.asarray(jax.tree.leaves(state.params)[-1][0], np.float64)
        ema = params if ema is None else decay * ema + (1 - decay) * params
        np.testing.assert_allclose(np.asarray(jax.tree.leaves(state.ema)[-1][0]), ema, rtol=1e-5, atol=1e-6)


def test_clipping_and_weight_decay_reach_the_optimiser():
    config = tiny(**{"optim.clip": 1.0, "optim.weight_decay": 0.1, "optim.warmup": 0, "optim.decay": "constant"})
    derived = run_lib.derive(config, data.load(config.data))
    params, gradient = {"w": jnp.asarray([2.0, 0.0])}, {"w": jnp.asarray([0.0, 300.0])}
    tx = optimizer.make_optimizer(config, derived)
    updates, opt_state = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(updates["w"][0], -derived["lr"] * 0.1 * 2.0, rtol=1e-5)
    moments = optax.tree.get(opt_state, "mu")["w"]
    np.testing.assert_allclose(moments, [0.0, (1 - config.optim.beta1) * 1.0], rtol=1e-5)


def test_intervals_are_whole_calls():
    config = tiny(**{"train.batch": 16, "train.steps_per_call": 4, "train.images": 1000, "train.save_every": 130,
                     "train.log_every": 1})  # fmt: skip
    steps = cadence.make_cadence(config)
    assert steps.per_call == 4 and steps.log == 4
    assert all(number % 4 == 0 for number in steps)
    assert abs(steps.total * 16 - 1000) <= 32 and abs(steps.save * 16 - 130) <= 32


def test_derived_constants_of_pfgm_follow_its_formulas():
    # R = 28.9, N = 2352: M 289, z_max 40.9, largest norm 2487 (arXiv 2209.11178, appendix B, worked by hand).
    M = process.pfgm_M(28.9, 2352)
    flow = process.pfgm(M, 2352)
    assert M == 289
    assert flow.sigma_max == pytest.approx(40.9, abs=0.05)
    assert flow.max_norm == pytest.approx(2487, abs=1)


# ---- what training does to images and labels


def keys_of(n):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(9), np.arange(n))


def test_half_of_the_images_are_mirrored():
    task, n = dry_run.prepare(tiny(**{"train.flip": True}))[2], 4000
    y = np.random.default_rng(0).uniform(-1, 1, (n, 2, 2, 1)).astype(np.float32)
    seen = np.asarray(step_lib._vary(task, keys_of(n), jnp.asarray(y), None)[0])
    mirrored = (seen == y[:, :, ::-1]).all((1, 2, 3))
    assert ((seen == y).all((1, 2, 3)) ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
    # By its own key, whatever the batch.
    np.testing.assert_array_equal(step_lib._vary(task, keys_of(n)[7:9], jnp.asarray(y[7:9]), None)[0], seen[7:9])


def test_the_target_is_the_field_of_what_the_network_is_told(monkeypatch):
    """Its label's images, all of them where the label is hidden, and mirrored ones too where images are mirrored."""
    config = tiny(**{"train.large_batch": 48, "train.label_dropout": 0.5, "model.conditional": True,
                     "train.flip": True, "train.batch": 48})  # fmt: skip
    dataset, _, task, _ = dry_run.prepare(config)
    params = jax.tree.map(jnp.asarray, step_lib.init_state(task, dataset.shape).params)
    examples = jax.tree.map(lambda a: jnp.asarray(a[0]), on_one(examples_of(config, dataset, 0)))
    recorded = {}

    def target(process, x, sigma, y, references, allowed):
        recorded.update(y=np.asarray(y), references=np.asarray(references), allowed=np.asarray(allowed))
        return y

    monkeypatch.setattr(step_lib.losses, "posterior_target", target)
    step_lib.example_losses(task, params, examples, keys_of(48), train=True)
    images, labels = np.asarray(to_unit(examples.images)), np.asarray(examples.labels)
    np.testing.assert_array_equal(recorded["references"], np.concatenate([images, images[:, :, ::-1]]))
    own = np.tile(labels[:, None] == labels, 2)
    any_ = recorded["allowed"].all(axis=1)
    assert 10 < any_.sum() < 38  # 24 of 48, within 4 sigma
    np.testing.assert_array_equal(recorded["allowed"][~any_], own[~any_])
    # What was perturbed is among the references that count, so that the target is never far from it.
    same = (recorded["y"][:, None] == recorded["references"]).all((2, 3, 4))
    assert (same & recorded["allowed"]).any(axis=1).all()
    step_lib.example_losses(task, params, examples, keys_of(48), train=False)
    np.testing.assert_array_equal(
        recorded["allowed"], labels[:, None] == labels
    )  # validation hides and mirrors nothing


class Recorder:
    """A network that returns zeros and keeps what it was told."""

    num_labels = 0

    def apply(self, variables, x, noise, labels, dropout_keys=None, augment=None):
        self.augment = augment
        return jnp.zeros_like(x)


def test_the_network_is_told_how_its_images_were_augmented(monkeypatch):
    config = tiny(**{"train.augment": 0.5, "train.large_batch": 0})
    dataset, derived, task, _ = dry_run.prepare(config)
    assert task.model.augment_channels == 9
    task = dataclasses.replace(task, model=Recorder())
    examples = data.Examples(jnp.asarray(dataset.train.images[:64]), jnp.asarray(dataset.train.labels[:64]), None, None)
    shown, pairs = [], step_lib.process.training_pairs
    monkeypatch.setattr(
        step_lib.process, "training_pairs", lambda flow, keys, y: shown.append(y) or pairs(flow, keys, y)
    )
    step_lib.example_losses(task, {}, examples, keys_of(64), train=True)
    told = np.asarray(task.model.augment)
    changed = (np.asarray(shown[0]) != np.asarray(to_unit(examples.images))).any(axis=(1, 2, 3))
    # An image is changed where its labels are not zero (a mirrored digit may look the same).
    assert told.shape == (64, 9) and not changed[~told.any(axis=1)].any() and changed.mean() > 0.8
    step_lib.example_losses(task, {}, examples, keys_of(64), train=False)
    assert task.model.augment is None
    np.testing.assert_array_equal(shown[1], to_unit(examples.images))


@pytest.mark.parametrize(
    "settings, words",
    [({"train.large_batch": 64}, "use train.large_batch=0"), ({"train.flip": True}, "mirrors half"),
     ({"model.name": "ncsnv2"}, "does not take augmentation labels"), ({"train.augment": 1.5}, "from 0 to 1"),
     ({"process.name": "pfgm", "process.D": 1.0, "train.large_batch": 64}, "for PFGM use train.flip=True")],
)  # fmt: skip
def test_augmentation_that_cannot_be(settings, words):
    config = tiny(**({"train.augment": 0.1, "train.large_batch": 0} | settings))
    with pytest.raises(UserError, match=words):
        config_rules.check(config)


def test_muon_turns_kernels_by_their_singular_vectors_and_leaves_the_rest_to_adam():
    config = tiny(**{"optim.name": "muon", "optim.warmup": 0, "optim.decay": "constant"})
    derived = run_lib.derive(config, data.load(config.data))
    generator = np.random.default_rng(0)
    shapes = {"conv0": {"kernel": (3, 3, 8, 16), "bias": (16,)}, "conv_in": {"kernel": (3, 3, 3, 8)},
              "norm0": {"scale": (8,)}}  # fmt: skip
    made = lambda: jax.tree.map(
        lambda shape: jnp.asarray(generator.normal(size=shape), jnp.float32), shapes, is_leaf=lambda a: type(a) is tuple
    )
    params, gradient = made(), made()
    tx = optimizer.make_optimizer(config, derived)
    updates, _ = tx.update(gradient, tx.init(params), params)
    left, _, right = np.linalg.svd(np.asarray(gradient["conv0"]["kernel"], np.float64).reshape(72, 16), False)
    turned = left.T @ np.asarray(updates["conv0"]["kernel"], np.float64).reshape(72, 16) @ right.T
    stretch = -np.diag(turned) / (derived["lr"] * 0.2 * math.sqrt(72))
    # Five of its Newton-Schulz iterations bring singular values between 0.68 and 1.14 (the published coefficients).
    assert 0.67 < stretch.min() and stretch.max() < 1.15
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-3 * np.abs(turned).max()
    # All else by Adam, whose first step with Nesterov's momentum is the gradient's sign times 1 + β/(1 + β).
    first = derived["lr"] * (1 + config.optim.beta1 / (1 + config.optim.beta1))
    for path in (("conv0", "bias"), ("conv_in", "kernel"), ("norm0", "scale")):
        update, slope = (np.asarray(tree[path[0]][path[1]]) for tree in (updates, gradient))
        np.testing.assert_allclose(update, -first * np.sign(slope), rtol=1e-3)


ENDS = {
    "unet": {"conv_in", "conv_out", "enc1_aux", "enc2_aux", "dec1_conv", "dec2_conv"},
    "adm": {"conv_in", "conv_out"},
    "ncsnv2": {"conv_in", "conv_out"},
    "mlp": {"dense_in", "dense_out", "gain"},
    "dit": {"patch_in", "patch_out"},
}


@pytest.mark.parametrize("name", models.NETWORKS)
def test_muon_leaves_kernels_at_the_ends_of_a_network_to_adam(name):
    network = models.NETWORKS[name]
    fields = {"encoder": "residual", "decoder": "skip", "num_labels": 2, "augment_channels": 2}
    taken = {key: value for key, value in fields.items() if key in models.options(name)}
    shapes = jax.eval_shape(lambda: models.init(network(3, **taken), (32, 32, 3)))
    matrices = jax.tree_util.tree_leaves_with_path(optimizer._matrices(shapes), is_leaf=lambda leaf: leaf is None)
    adams = {path[-2].key for path, matrix in matrices if matrix is None and path[-1].key == "kernel"}
    assert adams == ENDS[name] | ({"label", "augment"} if "num_labels" in taken else set())
    assert any(matrix is not None for _, matrix in matrices)


def test_a_run_of_muon_goes_on_as_if_never_stopped(tmp_path):
    settings = MLP | {"optim.name": "muon", "optim.decay": "constant"}
    for name, lengths in (("whole", (128,)), ("parts", (64, 128))):
        for images in lengths:
            loop.train(tiny(**settings, **{"train.images": images}), tmp_path / name)
    config = tiny(**settings, **{"train.images": 128})
    whole, parts = (final_items(config, tmp_path / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
