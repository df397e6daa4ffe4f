"""Steps that are not finite, or far out of range: what they change, what is said of them, and how a run goes on."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_steps import tiny

from pfgm_jax import parallel
from pfgm_jax.data import pipeline
from pfgm_jax.errors import UserError
from pfgm_jax.storage import checkpoint
from pfgm_jax.storage.metrics_file import read_metrics
from pfgm_jax.training import dry_run, loop, monitor, outliers
from pfgm_jax.training import step as step_lib

MLP = {
    "model.name": "mlp", "model.channels": 8, "model.blocks": 1, "train.eval_every": 512, "train.sample_every": 512,
    "train.images": 256, "train.save_every": 128, "optim.warmup": 0, "optim.decay": "constant",
}  # fmt: skip
BAD = 10  # the step, counted from 0


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch):
    """Neither evaluations nor pictures: they take most of the time of such short runs."""
    monkeypatch.setattr(monitor, "evaluation", lambda *_: lambda ema, seen: {})
    monkeypatch.setattr(monitor, "picture", lambda *_: lambda ema, step: None)


@pytest.fixture
def spoilt(monkeypatch):
    """`spoilt(how)`: in step BAD the "loss" or the "gradient" alone is not finite, or the gradient is "large"."""
    original = step_lib.example_losses

    def spoil(how):
        def example_losses(task, params, examples, keys, train, step=None):
            losses = original(task, params, examples, keys, train, step)
            if not train:
                return losses
            bad, total = step == BAD, sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))
            if how == "loss":
                return losses + jax.lax.stop_gradient(jnp.where(bad, jnp.nan, 0.0))
            if how == "large":
                return losses + jnp.where(bad, 1e6, 0.0) * (total - jax.lax.stop_gradient(total))
            # The root has no derivative at 0.
            return losses + jnp.sqrt(jnp.where(bad, 0.0, 1.0) + 0 * total) - jnp.where(bad, 0.0, 1.0)

        monkeypatch.setattr(step_lib, "example_losses", example_losses)

    return spoil


def call(task, state, dataset, first, steps):
    indices = pipeline.planner(task.seed, task.order, dataset.train.labels, task.batch, 0)(first, steps)
    state, metrics = step_lib.train_steps(task, parallel.replicate(state), None, pipeline.send(indices, dataset.train))
    return parallel.unreplicate(state), step_lib.StepMetrics(*(np.asarray(a)[0] for a in metrics))


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_nor_do_those_after_it(spoilt, how):
    spoilt(how)
    dataset, _, task, _ = dry_run.prepare(tiny(**MLP))
    early, _ = call(task, step_lib.init_state(task, dataset.shape), dataset, 0, 5)  # one program serves all
    before, _ = call(task, early, dataset, 5, 5)
    after, metrics = call(task, before, dataset, BAD, 5)
    again, later = call(task, after, dataset, BAD + 5, 5)
    assert metrics.taken.tolist() == later.taken.tolist() == [False] * 5 and not before.halted and again.halted
    assert np.isfinite(metrics.loss[0]) == (how == "gradient") and not np.isfinite(
        metrics.grad_norm[0] * metrics.loss[0]
    )
    for state in (after, again):
        assert state.step == BAD
        for a, b in zip(*(jax.tree.leaves(step_lib.items(s)) for s in (state, before)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step_lib.items(after)))


def test_a_run_ends_at_such_a_step_and_says_what_it_was(spoilt, tmp_path):
    spoilt("gradient")
    config = tiny(**MLP)
    with pytest.raises(UserError) as caught:
        loop.train(config, tmp_path)
    dataset, derived, task, _ = dry_run.prepare(config)
    images = pipeline.planner(task.seed, "real", dataset.train.labels, 16, 0)(BAD, 1).examples[0].tolist()
    facts = json.loads((tmp_path / "not_finite.json").read_text())
    assert facts["step"] == BAD + 1 and facts["images"] == images and facts["grad_norm"] == "nan"
    assert facts["lr"] == pytest.approx(derived["lr"])
    for words in (
        f"step {BAD + 1} is not finite (loss ", f"norm nan, learning rate {derived['lr']:.3g}) and was not taken",
        "the last checkpoint, of step 8, is kept", f"Lower optim.lr={config.optim.lr:g} or set optim.clip=1",
        "train.skip_outliers=10", f"training images {', '.join(map(str, images))}",
    ):  # fmt: skip
        assert words in str(caught.value)
    assert checkpoint.steps(tmp_path) == [8]
    # The same run goes on past that step.
    config.train.skip_outliers = 10.0
    state = loop.train(config, tmp_path)
    assert state.step == 16 and state.outliers.skipped == 1
    assert [r["skipped"] for r in read_metrics(tmp_path) if "skipped" in r] == [1, 1]  # those at steps 12 and 16


@pytest.mark.slow
def test_skipped_steps_are_counted_and_resume_bit_for_bit(spoilt, tmp_path, monkeypatch):
    spoilt("large")
    monkeypatch.setattr(outliers, "REMEMBERED", 5)
    config, states = tiny(**MLP, **{"train.skip_outliers": 100.0}), []
    states.append(loop.train(config, tmp_path / "whole"))
    steps, calls = loop.train_steps, []

    def steps_then_signal(*args):
        calls.append(None)
        if len(calls) == 3:  # of the step that is skipped
            os.kill(os.getpid(), signal.SIGTERM)
        return steps(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_steps", steps_then_signal)
        loop.train(config, tmp_path / "stopped")
    assert checkpoint.steps(tmp_path / "stopped")[-1] == 12
    states.append(loop.train(config, tmp_path / "stopped"))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)
    for folder in ("whole", "stopped"):
        records = [r for r in read_metrics(tmp_path / folder) if "loss" in r]
        assert [r["skipped"] for r in records] == [0, 0, 1, 1] and all(r["grad_norm"] < 1e3 for r in records)


@pytest.mark.slow
def test_a_run_that_skips_without_end_is_ended(spoilt, tmp_path, monkeypatch):
    spoilt("loss")
    monkeypatch.setattr(outliers, "REMEMBERED", 5)
    original = step_lib.example_losses
    monkeypatch.setattr(
        step_lib, "example_losses",
        lambda task, params, examples, keys, train, step=None:
            original(task, params, examples, keys, train, None if step is None else jnp.minimum(step, BAD)),
    )  # fmt: skip
    with pytest.raises(UserError, match="last 5 steps, to step 15, were all skipped .*Lower optim.lr"):
        loop.train(tiny(**MLP, **{"train.skip_outliers": 10.0}), tmp_path)


def test_the_running_median_is_that_of_numpy():
    rng, k = np.random.default_rng(0), 3.0
    norms = np.exp(rng.normal(size=300)).astype(np.float32)
    norms[[70, 71, 200]] = [1e4, np.inf, np.nan]
    norms[250:] *= 50  # a range that is left for good
    remembered, judge = outliers.unknown(np.float32), jax.jit(outliers.judge, static_argnums=4)
    known, expected, taken = [], [], []
    for step, norm in enumerate(norms):
        median = np.median(known[-63:]) if len(known) >= 63 else np.inf
        if 32 <= len(known) < 63:
            median = np.sort(known)[31]  # of 63 norms, the unknown ones above all
        expected.append(bool(np.isfinite(norm) and norm <= k * median))
        before = remembered
        one, remembered = judge(before, step, norm, bool(np.isfinite(norm)), k)
        taken.append(bool(one))
        if np.isfinite(norm):
            known.append(norm)
        else:  # its place is that of a norm 63 steps ago, which is remembered once more
            known.insert(len(known) - 62, known[-63]) if len(known) >= 63 else None
            np.testing.assert_array_equal(before.norms, remembered.norms)
    assert taken == expected and not all(taken[:250]) and all(taken[:32])
    assert int(remembered.skipped) == taken.count(False) and any(taken[285:])
