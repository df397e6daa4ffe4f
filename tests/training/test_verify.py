"""A run directory checked: what is sound, what is damaged and where, what can still be done."""

import json
import shutil

import jax
import numpy as np
import pytest

import pfgm_jax
from configs import digits
from pfgm_jax import config as config_lib
from pfgm_jax import data, run_record
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.storage import atomic, checkpoint, safetensors
from pfgm_jax.training import step as step_lib

SMALL = {"model.channels": 4, "model.multipliers": (1,), "model.blocks": 1, "model.embedding_channels": 8,
         "train.batch": 16, "train.images": 512, "train.steps_per_call": 4}  # fmt: skip


def values(config, derived, seed):
    """What a checkpoint holds, with random values: nothing is trained, nothing compiled."""
    shapes = step_lib.items(step_lib.state_shapes(step_lib.make_task(config, derived), derived["shape"]))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with the steps 4 and 8, of which 4 is the best, and an export."""
    folder, config = tmp_path_factory.mktemp("run"), digits.get_config("quick")
    for key, value in SMALL.items():
        config_lib.override(config, key, value)
    derived = run_lib.derive(config, data.load(config.data))
    run_record.save(folder, config, derived)
    fixed = run_record.fixed(run_record.record(config, derived))
    for step in (4, 8):
        checkpoint.save(folder, step, values(config, derived, step), run=fixed)
    rows = [{"images": 64, "eval/val": 1.0}, {"images": 128, "eval/val": 2.0}]
    atomic.write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    export = folder / "export"
    export.mkdir()
    about = {safetensors.CONFIG: run_record.fingerprint(run_record.record(config, derived))}
    safetensors.save(export / safetensors.EXPORTED, values(config, derived, 8)["ema"], about)
    run_record.save(export, config, derived)
    return folder


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(bytes(content))


def test_a_sound_run(run, command):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, err = command("--mode=verify", f"--workdir={run}")
    assert code == 0 and not err
    assert out.count("all finite, as they were saved") == 2 and "sound: weights and config.json" in out
    assert "continues from step 8 of 32" in out and "step 4 by pfgm_jax.load" in out and 'step="best" is 4' in out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    code, out, _ = command("--mode=verify", f"--workdir={run / 'export'}")
    assert code == 0 and "can be opened" in out


def test_damage_is_named_with_what_is_left(run, command):
    spoilt = max((run / "checkpoints" / "8").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    flip(spoilt)
    (run / "checkpoints" / "4" / "stray").write_bytes(b"")
    code, _, err = command("--mode=verify", f"--workdir={run}")
    assert code == 2 and "damaged in 2 places" in err
    assert f"{spoilt.relative_to(run / 'checkpoints' / '8')} was changed" in err and "stray is a stray file" in err
    assert "continues from step 4 of 32" in err


def test_a_changed_setting_or_derived_number_is_named_and_nothing_opens(run, command):
    record = run_record.read(run)
    for section, key, value in (("config", "process.P_mean", -1.3), ("derived", "sigma_data", 0.7)):
        changed = record | {section: record[section] | {key: value}}
        atomic.write_text(run / "config.json", json.dumps(changed))
        with pytest.raises(UserError, match=rf"made with (derived\.)?{key}=.* config.json says {value}"):
            pfgm_jax.load(run)
        code, _, err = command("--mode=verify", f"--workdir={run}")
        assert code == 2 and key in err and "no checkpoint to continue from" in err
    use = record | {"config": record["config"] | {"sample.n": 3}}  # its own business
    atomic.write_text(run / "config.json", json.dumps(use))
    assert pfgm_jax.load(run).step == 8


def test_values_that_are_not_finite_are_no_sound_step(run, command, monkeypatch):
    config, derived = run_record.load(run)
    spoilt = values(config, derived, 8)
    jax.tree.leaves(spoilt["ema"])[0].flat[0] = np.nan
    with pytest.raises(checkpoint.NotFinite):
        checkpoint.save(run, 12, spoilt)
    with monkeypatch.context() as patch:  # as a run of an older version may hold
        patch.setattr(checkpoint, "_not_finite", lambda items: [])
        checkpoint.save(run, 12, spoilt)
    code, _, err = command("--mode=verify", f"--workdir={run}")
    assert code == 2 and "values that are not finite" in err and "continues from step 8" in err


def test_a_damaged_export_and_lines_that_are_no_records(run, command):
    flip(run / "export" / safetensors.EXPORTED, at=1)  # a value
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"images": 14')
    code, _, err = command("--mode=verify", f"--workdir={run}")
    assert code == 2 and "export (" in err and "its checksum does not match" in err
    assert "metrics.jsonl (1 line without a record)" in err and "continues from step 8" in err


def test_a_schedule_that_is_none_is_damage(run, command):
    (run / "schedule.json").write_text("{")
    code, _, err = command("--mode=verify", f"--workdir={run}")
    assert code == 2 and "schedule.json is not a schedule" in err and "continues from step 8" in err


def test_an_emptied_run(run, command):
    shutil.rmtree(run / "checkpoints")
    code, out, _ = command("--mode=verify", f"--workdir={run}")
    assert code == 0 and "no checkpoint to continue from: put a copy back" in out


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_bucket_is_refused_in_one_line(command, scheme):
    code, _, err = command("--mode=verify", f"--workdir={scheme}://mine/runs/a")
    assert code == 2 and err.count("\n") == 1 and "mount the bucket first" in err and "~/mine/runs/a" in err
