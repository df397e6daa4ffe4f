"""Checkpoints are written while training goes on: whole, in order, and with their errors heard."""

import errno
import threading

import jax
import numpy as np
import pytest
from training_steps import tiny

from pfgm_jax.errors import UserError
from pfgm_jax.storage import checkpoint
from pfgm_jax.storage.metrics_file import read_metrics
from pfgm_jax.training import loop, monitor
from pfgm_jax.training.saver import Saver

MLP = {"model.name": "mlp", "model.channels": 8, "model.blocks": 1, "train.images": 256, "train.save_every": 64,
       "train.eval_every": 512, "train.sample_every": 512}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch):
    """Neither evaluations nor pictures: they take most of the time of such short runs."""
    monkeypatch.setattr(monitor, "evaluation", lambda *_: lambda ema, seen: {})
    monkeypatch.setattr(monitor, "picture", lambda *_: lambda ema, step: None)


def test_one_is_written_after_the_other_and_the_end_waits_for_the_last():
    written, allowed = [], threading.Event()

    def write(number):
        assert allowed.wait(30)
        written.append(number)

    with Saver(write) as saver:
        saver.begin(1)
        saver.check()
        assert written == []  # nothing waits yet
        threading.Timer(0.05, allowed.set).start()
        saver.begin(2)
        assert written[0] == 1
    assert written == [1, 2]


def test_an_error_is_raised_where_the_thread_is_asked_next():
    def write():
        raise OSError(errno.ENOSPC, "full")

    for ask in (Saver.wait, Saver.begin):
        with pytest.raises(OSError, match="full"), Saver(write) as saver:
            saver.begin()
            ask(saver)
    with pytest.raises(OSError, match="full"), Saver(write) as saver:
        saver.begin()  # and the end of the block asks too
    with pytest.raises(KeyError), Saver(write) as saver:
        saver.begin()
        raise KeyError  # what ended the block is what counts


def test_training_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    # A disk that takes the first checkpoint only when all steps but the last call's are done.
    save, steps, calls, later = checkpoint.save, loop.train_steps, [], threading.Event()

    def slow(workdir, step, held, *args):
        if step == 4:
            assert later.wait(60)
        save(workdir, step, held, *args)

    def count(*args):
        calls.append(None)
        if len(calls) == 2:
            assert checkpoint.steps(tmp_path / "slow") == []
            later.set()
        return steps(*args)

    config = tiny(**MLP, **{"train.keep": 9})
    loop.train(config, tmp_path / "fast")
    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(loop, "train_steps", count)
    state = loop.train(config, tmp_path / "slow")
    # What was saved is the state of its step, though the next step has long taken the devices' memory.
    assert checkpoint.steps(tmp_path / "slow") == checkpoint.steps(tmp_path / "fast") == [4, 8, 12, 16]
    like = {"params": state.params, "opt_state": state.opt_state}
    for step in (4, 8, 12, 16):
        a, b = (checkpoint.restore(tmp_path / name, like, step)[1] for name in ("fast", "slow"))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)
    assert all(record["save_wait"] >= 0 for record in read_metrics(tmp_path / "slow") if "loss" in record)


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    # Each step is finite, and the weights that the last one leads to are not.
    steps, calls = loop.train_steps, []

    def overflow(*args):
        calls.append(None)
        state, metrics = steps(*args)
        return state if len(calls) < 4 else state.replace(ema=jax.tree.map(lambda a: a * np.inf, state.ema)), metrics

    monkeypatch.setattr(loop, "train_steps", overflow)
    with pytest.raises(UserError, match="at step 16 are not finite: they are not saved; the last .* step 12, is kept"):
        loop.train(tiny(**MLP, **{"train.keep": 1}), tmp_path)
    assert checkpoint.steps(tmp_path) == [12]
