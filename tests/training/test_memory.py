"""A step that memory is too short for ends in a line with what to choose."""

import re

import jax
import pytest
from training_steps import tiny

from pfgm_jax import parallel
from pfgm_jax.errors import UserError
from pfgm_jax.training import dry_run, loop, memory

MIB = 2**20


@pytest.fixture
def short(monkeypatch, tmp_path):
    """`short(there)`: the line of a run whose step takes 100 MiB and 2 MiB an image, on devices of `there` MiB."""

    def line(there, error, **settings):
        plan = dry_run.prepare(tiny(**{"train.batch": 64} | settings))

        def estimate(task, *_):
            return (100 + 2 * (task.microbatch or task.batch)) * MIB

        def fails(*_):
            raise error

        monkeypatch.setattr(memory, "memory_estimate", estimate)
        monkeypatch.setattr(parallel, "device_memory", lambda: there * MIB)
        monkeypatch.setattr(loop, "train_steps", fails)
        training = loop.Training(tiny(**{"train.batch": 64} | settings), plan, tmp_path)
        with pytest.raises(UserError) as caught, memory.explained(training, True):
            loop.train_steps()
        return str(caught.value)

    return line


XLA = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")


@pytest.mark.parametrize("error", [XLA, MemoryError()])
def test_the_largest_part_that_fits_is_named_with_its_estimate(short, error):
    line = short(140, error)
    assert (
        "a step of train.batch=64, which takes 228 MiB a device by the compiler's estimate; a device has 140 MiB"
        in line
    )
    # 100 + 2 × 16 = 132 MiB fit, 100 + 2 × 32 = 164 MiB do not.
    assert "train.microbatch=16 takes the same steps in parts, about 132 MiB" in line and "model.remat=True" in line


def test_parts_of_parts_and_nothing_that_fits(short):
    line = short(140, XLA, **{"train.microbatch": 32, "model.remat": True})
    assert "with train.microbatch=32, which takes 164 MiB" in line and "train.microbatch=16 takes" in line
    assert "remat" not in line
    line = short(110, XLA)
    assert "In the smallest parts it would take 116 MiB: set model.remat=True, or choose a smaller network" in line


def test_other_errors_pass(short):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.explained(None, True):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
    with pytest.raises(RuntimeError, match="other"), memory.explained(None, True):
        raise RuntimeError("other")


def test_a_run_ends_with_that_line_before_anything_is_written(tmp_path, monkeypatch):
    def fails(*_):
        raise XLA

    monkeypatch.setattr(loop, "train_steps", fails)
    monkeypatch.setattr(memory, "memory_estimate", lambda task, *_: (task.microbatch or task.batch) * 2**40)
    with pytest.raises(
        UserError, match=re.escape("out of memory in a step of train.batch=16, which takes 16384.0 GiB")
    ):
        loop.train(tiny(**{"model.name": "mlp"}), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
