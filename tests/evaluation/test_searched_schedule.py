"""--mode=schedule: grids and the trace of a network, kept with the run and used by its samples."""

import json
import math

import jax
import numpy as np
import pytest
from PIL import Image
from test_generator import make

from pfgm_jax import generator, run_record
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import evaluate, schedule
from pfgm_jax.exchange import export_run
from pfgm_jax.sampling import levels, schedules
from pfgm_jax.storage import safetensors

SMALL = ("--config.schedule.steps=5,8", "--config.schedule.draws=16")


def write(folder, conditional=False):
    """The folder of an exported run with an untrained network, small and not trivial."""
    made = make(conditional, label_dropout=0.1 if conditional else 0.0)
    folder.mkdir(parents=True)
    record = run_record.record(made.config, made.derived | {"step": 0})
    about = {safetensors.CONFIG: run_record.fingerprint(record)}
    safetensors.save(folder / safetensors.EXPORTED, made.params, about)
    run_record.save(folder, made.config, made.derived | {"step": 0})
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Such a folder with a schedule, and what was printed."""
    folder = write(tmp_path_factory.mktemp("runs") / "run")
    return folder, schedule.schedule(str(folder), {"schedule.steps": "5,8", "schedule.draws": "16"})


def test_what_is_kept(kept):
    folder, said = kept
    g, record = generator.load(folder), json.loads((folder / "schedule.json").read_text())
    assert record["field"] == "network" and record["weights"] == g.weights_digest
    assert sorted(g.schedule.grids) == [5, 8]
    for n, grid in g.schedule.grids.items():
        assert len(levels(g.process, grid, n)) == n and set(g.schedule.errors[n]) == {"searched", "edm", "log"}
    trace = g.schedule.trace
    assert trace.D == 128 and len(trace.log_trace) == 32 and np.all(np.diff(trace.log_scale) > 0)
    assert Image.open(folder / "schedule.png").size[0] > 1000
    assert "evaluations" in said and str(folder / "schedule.json") in said and "16 paths" in said


@pytest.mark.slow
def test_an_exported_run_takes_it_along(kept):
    export_run.export(str(kept[0]), {"export.samples": "0", "export.force": "True", "sample.n": "4"})
    there = generator.load(kept[0] / "export")
    assert there.schedule == generator.load(kept[0]).schedule and there.schedule.weights == there.weights_digest


@pytest.mark.slow
def test_a_conditional_network_with_guidance(tmp_path):
    folder = write(tmp_path / "run", conditional=True)
    schedule.schedule(str(folder), {"schedule.steps": "4", "schedule.draws": "8"})
    g = generator.load(folder)
    for ask in (dict(solver="auto", grid="searched", steps=4), dict(solver="sde", steps=4)):
        plain, guided = (g.sample(jax.random.key(0), 8, labels=3, guidance=w, **ask)[0] for w in (1, 3))
        assert np.abs(plain.astype(int) - guided).max() > 0


def test_samples_take_it(kept):
    g = generator.load(kept[0])
    searched = g.schedule.grids[8]
    ask = dict(solver="ipndm", equal_weights=False, steps=8)
    images, stats = g.sample(jax.random.key(0), 4, grid="searched", **ask)
    np.testing.assert_array_equal(images, g.sample(jax.random.key(0), 4, grid=searched, **ask)[0])
    np.testing.assert_array_equal(images, g.sample(jax.random.key(0), 4, solver="auto", grid="searched", steps=8)[0])
    assert stats.nfe == 8
    with pytest.raises(UserError, match="no grid of 7 levels was searched for this run, only of 5, 8"):
        g.sample(jax.random.key(0), 4, solver="ipndm", grid="searched", steps=7)
    assert "grid" not in g.prepared(g.settings.changed(solver="auto", steps=8)).options  # unless it is asked for


@pytest.mark.slow
def test_noise_at_finite_D_takes_its_curve(kept):
    g = generator.load(kept[0])
    noisy, stats = g.sample(jax.random.key(0), 4, solver="sde", steps=5)
    assert stats.nfe == 5 and noisy.std() > 0
    churned, stats = g.sample(jax.random.key(0), 4, solver="heun", steps=4, S_churn=1.0)
    assert stats.nfe == 3 * 4 - 1 and churned.dtype == np.uint8
    other = g.prepared(g.settings.changed(solver="sde", D=8.0)).second_moment
    assert other == g.schedule.trace._replace(D=8.0)
    assert g.prepared(g.settings.changed(solver="sde", D=math.inf)).second_moment is None


@pytest.mark.slow
def test_the_protocol_names_what_auto_took(kept, command):
    code, out, _ = command(
        "--mode=sample", f"--workdir={kept[0]}", "--config.sample.solver=auto", "--config.sample.steps=5",
        "--config.sample.grid=searched", "--config.sample.n=4", "--config.sample.frames=0",
    )  # fmt: skip
    grid = generator.load(kept[0]).schedule.grids[5]
    assert code == 0 and f"auto: ipndm (steps 5, grid {grid}, rho 7.0, equal_weights False)" in out


def test_weights_of_another_step_have_none(kept):
    g = generator.load(kept[0])
    other = g.with_params(jax.tree.map(lambda a: a + 1e-3, g.params))
    for ask, what in (dict(solver="ipndm", grid="searched", steps=8), "step"), (dict(solver="sde"), "step"):
        with pytest.raises(UserError, match=f"schedule.json was made for other weights .{what}.*mode=schedule"):
            other.sample(jax.random.key(0), 2, **ask)


@pytest.mark.parametrize("options, words", [
    (dict(solver="ipndm", grid="searched"), "grid=searched needs the run's schedule.json, which does not exist"),
    (dict(solver="sde"), "sde with noise at D = 128 needs the run's schedule.json, which does not exist"),
    (dict(solver="heun", S_churn=1.0), "heun with noise at D = 128 needs the run's schedule.json"),
    (dict(solver="auto", steps=1), "auto needs steps >= 2"),
])  # fmt: skip
def test_without_a_schedule(options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        generator.load(write(tmp_path / "run")).sample(jax.random.key(0), 2, **options)


@pytest.mark.parametrize("text", ["", "[]", '{"weights": 1}', '{"grids": 3}', "{", "null"])
def test_a_file_that_is_no_schedule(tmp_path, text):
    (tmp_path / "schedule.json").write_text(text)
    with pytest.raises(UserError, match="is not a schedule .*: remove it; mode=schedule makes one"):
        schedules.load(tmp_path)


@pytest.mark.parametrize("override, words", [
    ("schedule.steps=1", "each at least 2"),
    ("schedule.steps=", "each at least 2"),
    ("schedule.steps=62", "from 2 to fine = 61 levels, got steps = (62,)"),
    ("schedule.field=newtork", "did you mean 'network'?"),
    ("schedule.draws=0", "at least 1"),
    ("sample.steps=3", "takes overrides of schedule.* and data.*"),
])  # fmt: skip
def test_refusals(command, tmp_path, override, words):
    write(tmp_path / "run")
    code, _, err = command("--mode=schedule", f"--workdir={tmp_path / 'run'}", f"--config.{override}")
    assert code == 2 and words in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_from_the_command_line_on_the_exact_field(command, tmp_path):
    write(tmp_path / "run")
    code, out, err = command("--mode=schedule", f"--workdir={tmp_path / 'run'}", "--config.schedule.field=data", *SMALL)
    assert code == 0 and "the exact field of the training images" in out
    assert generator.load(tmp_path / "run").schedule.field == "data"


def test_a_run_is_scored_on_its_searched_grid(kept):
    """So is the untrained control, by the levels found for the weights that it stands beside."""
    settings = {
        "evaluate.solvers": "ipndm",
        "evaluate.num_samples": "20",
        "sample.solver": "ipndm",
        "sample.steps": "8",
    }
    said = evaluate.evaluate(str(kept[0]), settings | {"sample.grid": "searched"})
    assert "samples, ipndm" in said and "untrained network" in said


def test_settings_that_are_prepared_need_no_schedule_again(kept):
    g = generator.load(kept[0])
    settings = g.prepared(g.settings.changed(solver="sde", steps=4))
    assert settings.second_moment is not None
    other = g.with_params(jax.tree.map(lambda p: 1.1 * p, g.params))
    assert other.prepared(settings).second_moment == settings.second_moment
    with pytest.raises(UserError, match="made for other weights"):
        other.prepared(g.settings.changed(solver="sde", steps=4))
