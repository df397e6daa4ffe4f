"""The run directory: one training at a time, and nothing forgotten in silence."""

import json
import os
import subprocess
import sys

import pytest

from configs import digits
from pfgm_jax import config as config_lib
from pfgm_jax import data, run_folder
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.storage.metrics_file import read_metrics

LOCKING = """
import fcntl, sys
stream = open(sys.argv[1], "a+")
fcntl.flock(stream, fcntl.LOCK_EX)
stream.truncate(0)
stream.write("process 42 on somewhere")
stream.flush()
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def facts():
    config = digits.get_config("quick")
    return config, run_lib.derive(config, data.load(config.data))


def test_a_second_training_is_refused_and_a_dead_one_forgotten(tmp_path, facts):
    with run_folder.opened(tmp_path, *facts) as recorded:
        assert recorded is None
        with pytest.raises(UserError, match=f"process {os.getpid()} on "), run_folder.opened(tmp_path, *facts):
            pass
    command = [sys.executable, "-c", LOCKING, str(tmp_path / run_folder.LOCK)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        other.stdout.readline()
        with pytest.raises(UserError, match="process 42 on somewhere"), run_folder.opened(tmp_path, *facts):
            pass
    finally:
        other.kill()
        other.communicate()
    with run_folder.opened(tmp_path, *facts) as recorded:  # what the file says of the dead one does not matter
        assert recorded.seed == 0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"optim.decay": "cosine"}, "cosine, which ended at 2,048 images, now ends at 4,096"),
        (
            {"train.objective": "consistency", "train.init": "x"},
            "4 stages of tuning, which ended at 2,048 images, now end at 4,096: the run may go on in an earlier one",
        ),
        ({"train.objective": "consistency", "train.init": "x", "tune.stages": 1}, ""),
    ],
    ids=["cosine", "tuning", "one stage"],
)
def test_what_another_length_of_a_run_changes_is_said(tmp_path, facts, capsys, changes, words):
    config = facts[0].copy_and_resolve_references()
    for key, value in ({"optim.decay": "constant"} | changes).items():
        config_lib.override(config, key, value)
    with run_folder.opened(tmp_path, config, facts[1]):
        pass
    config.train.images *= 2
    with run_folder.opened(tmp_path, config, facts[1]):
        said = capsys.readouterr().err
    assert words in said and bool(said) == bool(words)


def metrics(folder, *lines):
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def test_lost_checkpoints_are_no_new_run(tmp_path, capsys):
    run_folder.accept_empty(tmp_path, 100)
    assert capsys.readouterr().err == ""
    metrics(tmp_path, b'{"images": 50}', b'{"images": 90}')
    run_folder.accept_empty(tmp_path, 100)
    assert "ended at 90 images, before its first checkpoint" in capsys.readouterr().err
    metrics(tmp_path, b'{"images": 50}', b'{"images": 150}')
    with pytest.raises(UserError, match="trained 150 images.* checkpoints are gone"):
        run_folder.accept_empty(tmp_path, 100)


def test_lines_that_are_no_records_are_left_out(tmp_path):
    good = {"images": 8, "loss": 0.5}
    bad = (b"null", b"[1]", b'{"loss": 1}', b'{"images": null}', b"\xff\xfe{", b"\0" * 30, b'{"images": 16, "lo', b"7",
           b'{"images": 9, "loss": "x"}', b"[" * 100_000, b"")  # fmt: skip
    metrics(tmp_path, *bad, json.dumps(good).encode(), *bad)
    assert read_metrics(tmp_path) == [good]


def test_the_best_step_is_that_of_the_lowest_finite_loss(tmp_path):
    rows = [{"images": 16 * step, "eval/val": loss} for step, loss in ((1, 3.0), (2, 1.0), (3, float("nan")), (4, 2.0))]
    metrics(tmp_path, *(json.dumps(row).encode() for row in rows), b'{"images": 32, "loss": 9.0}')
    losses = run_folder.validation_losses(tmp_path, 16)
    assert losses == {1: 3.0, 2: 1.0, 4: 2.0}
    assert run_folder.best_step(tmp_path, losses) is None
    for step in (1, 3, 4):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    assert run_folder.best_step(tmp_path, losses) == 4
