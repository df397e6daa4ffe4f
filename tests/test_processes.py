"""Several processes as one: two of them with two CPU devices each, on the loopback interface."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from pfgm_jax import job, parallel
from pfgm_jax.errors import UserError
from pfgm_jax.storage import checkpoint
from pfgm_jax.storage.metrics_file import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
PATIENCE = 15
# Twenty steps of training, with all that is random in them; in float64, where only the order of sums differs.
SETTINGS = {
    "train.images": 320, "train.batch": 16, "train.steps_per_call": 4, "train.log_every": 64, "train.eval_every": 320,
    "train.save_every": 64, "train.sample_every": 320, "train.eval_images": 48, "train.keep": 10, "train.augment": 0.5,
    "train.large_batch": 0, "sample.n": 4, "sample.solver": "heun", "sample.steps": 3, "sample.frames": 0,
    "model.name": "mlp", "model.channels": 16, "model.blocks": 1, "model.embedding_channels": 8,
    "model.noise_channels": 8, "model.dropout": 0.2, "model.dtype": "float64", "optim.warmup": 0,
    "optim.decay": "constant", "data.resident": False,
}  # fmt: skip


def command(workdir, **changed):
    settings = [f"--config.{name}={value}" for name, value in (SETTINGS | changed).items()]
    return [sys.executable, "-m", "pfgm_jax.main", "--config=configs/digits.py", f"--workdir={workdir}", *settings]


def start(commands, devices=2, x64=True):
    """A process for each command, all of one job; one alone is a job of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    started = []
    for number, words in enumerate(commands):
        env = os.environ | {
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(ROOT),
            "JAX_ENABLE_X64": str(int(x64)), job.PATIENCE: str(PATIENCE),
        }  # fmt: skip
        if len(commands) > 1:
            env[parallel.PROCESS] = f"{number}/{len(commands)}@127.0.0.1:{port}"
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(subprocess.Popen(words, cwd=ROOT, env=env, **pipes))
    return started


def ended(processes, timeout=400):
    """[(exit code, stdout, stderr)] of processes, which are killed after `timeout` seconds."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def arrays(workdir):
    """The newest checkpoint: (step, {name: array})."""
    import orbax.checkpoint as ocp

    step = checkpoint.steps(workdir)[-1]
    with ocp.CheckpointManager((workdir / "checkpoints").absolute()) as manager:
        restored = manager.restore(step)
    trees = {item: tree for item, tree in restored.items() if item in ("params", "ema", "opt_state")}
    return step, {f"{item}{path}": np.asarray(leaf) for item, tree in trees.items() for path, leaf in tree.items()}


def losses(workdir):
    """Of training, and of the evaluation at the end: a run that was made longer has one at its first end too."""
    records, end = read_metrics(workdir), SETTINGS["train.images"]
    training = [record["loss"] for record in records if "loss" in record]
    keys = ("eval/val", "truth/sigma=0.05")
    return training + [r[key] for r in records for key in keys if key in r and r["images"] == end]


def assert_same_run(a, b, rtol):
    (step, mine), (other_step, others) = arrays(a), arrays(b)
    assert step == other_step == 20 and mine.keys() == others.keys()
    for name in mine:
        scale = np.linalg.norm(mine[name].astype(float)) or 1.0
        assert np.linalg.norm(mine[name].astype(float) - others[name]) <= rtol * scale, name
    np.testing.assert_allclose(losses(a), losses(b), rtol=rtol)
    assert len(losses(a)) == 7  # five of training, and an evaluation


PRIMITIVES = """
import json, sys, numpy as np, jax
from pfgm_jax import job, parallel
parallel.connect()
me, devices = parallel.process(), parallel.device_count()
batch = np.arange(24.0).reshape(8, 3)
share = parallel.shard(batch)
double = parallel.pmap(lambda a: 2 * a + 0 * parallel.total(a).sum())
first = {"a": np.array([-0.0, np.nan, 1e300 + me]), "b": np.float32(0.1 + me), "c": np.arange(5, dtype=np.uint8) + me}
got = parallel.of_first(first)
print(json.dumps({
    "me": me, "devices": devices, "share": share[:, :, 0].tolist(), "double": parallel.gather(double(share)).tolist(),
    "placed": parallel.gather(double(parallel.place(share))).tolist(),
    "index": parallel.gathered(parallel.pmap(lambda a: jax.lax.axis_index("data") + a)(parallel.copies(0))).tolist(),
    "first": b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(got)).hex(),
    "dtypes": [str(got[k].dtype) for k in "abc"],
    "largest": parallel.largest(3 - 2 * me), "from_first": parallel.from_first(lambda: {"from": me, "text": "é" * 300}),
}), flush=True)
if me == 1:
    job.leave(2, "no such file")
parallel.largest(1)  # the other one never comes
"""


def test_two_processes_share_gather_agree_and_end_as_one():
    done = ended(start([[sys.executable, "-c", PRIMITIVES]] * 2), 120)
    assert [code for code, _, _ in done] == [2, 2], done
    # Each tells the same, in a line, and nothing is seen of what the libraries chat about.
    assert [errors.strip() for _, _, errors in done] == [
        "pfgm_jax: process 1: no such file",
        "pfgm_jax: no such file",
    ]
    batch = np.arange(24.0).reshape(8, 3)
    expected = np.array([-0.0, np.nan, 1e300]).tobytes() + np.float32(0.1).tobytes() + bytes(range(5))
    for me, words in enumerate(json.loads(out) for _, out, _ in done):
        assert words["me"] == me and words["devices"] == 4
        assert words["share"] == batch[4 * me : 4 * me + 4, 0].reshape(2, 2).tolist()
        assert words["double"] == words["placed"] == (2 * batch).tolist()
        assert words["index"] == [0, 1, 2, 3]
        assert words["first"] == expected.hex() and words["dtypes"] == ["float64", "float32", "uint8"]
        assert words["largest"] == 3 and words["from_first"] == {"from": 0, "text": "é" * 300}


@pytest.mark.parametrize("text", ["1", "2/2@host:1", "0/2@host", "all", "0/2@ host:1"])
def test_a_variable_that_says_nothing_is_told(monkeypatch, text):
    monkeypatch.setenv(parallel.PROCESS, text)
    with pytest.raises(UserError, match="NUMBER/ALL@HOST:PORT"):
        parallel.connect()


def test_alone_there_is_no_job(monkeypatch):
    monkeypatch.setenv(parallel.PROCESS, "0/1@127.0.0.1:1")
    parallel.connect()
    assert not job.joined() and parallel.largest(4) == 4 and parallel.from_first(lambda: [1]) == [1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run as one process with one device makes it."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ((code, _, errors),) = ended(start([command(workdir)], devices=1))
    assert code == 0, errors
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"train.large_batch": 32, "train.augment": 0.0, "train.flip": True}])
def test_two_processes_train_as_one_device(alone, tmp_path, more):
    if more:
        alone = tmp_path / "alone"
        assert ended(start([command(alone, **more)], devices=1))[0][0] == 0
    done = ended(start([command(tmp_path / "run", **more), command(tmp_path / "elsewhere", **more)]))
    assert [code for code, _, _ in done] == [0, 0], done
    assert_same_run(tmp_path / "run", alone, 1e-9)
    assert (tmp_path / "run/samples/step_00000020.png").exists() and (tmp_path / "run/curves.png").exists()
    assert not (tmp_path / "elsewhere").exists() and not done[1][1]  # one writes, and one speaks
    assert "Sample from it" in done[0][1] and "train" in done[0][2]
    assert done[1][2] == ""


@pytest.mark.slow
def test_two_processes_resume_what_one_began_and_the_other_way_round(alone, tmp_path):
    for first, then in ((1, 2), (2, 1)):
        workdir = tmp_path / f"{first}{then}"
        half = [command(workdir, **{"train.images": 128})] * first
        assert [code for code, _, _ in ended(start(half))] == [0] * first
        done = ended(start([command(workdir)] * then))
        assert [code for code, _, _ in done] == [0] * then, done
        assert "resumed    at step 8 of 20" in done[0][2]
        assert_same_run(workdir, alone, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["heun", "rk45"])
def test_two_processes_sample_as_one_device(alone, tmp_path, solver):
    # In float64 a pixel differs only where its value is a rounding's edge.
    drawn = []
    for name, processes, devices in (("one", 1, 1), ("two", 2, 2)):
        workdir = shutil.copytree(alone, tmp_path / name)
        words = [f"--config.sample.{key}" for key in (f"solver={solver}", "n=10", "frames=4")]
        start_line = [sys.executable, "-m", "pfgm_jax.main", "--mode=sample", f"--workdir={workdir}", *words]
        done = ended(start([start_line] * processes, devices))
        assert [code for code, _, _ in done] == [0] * processes, done
        assert all(not out and not errors for _, out, errors in done[1:]), done
        (file,) = (workdir / "samples").glob(f"{solver}*.npz")
        assert file.with_suffix(".png").exists()
        assert any(path.suffix in (".gif", ".webp") for path in file.parent.iterdir())
        drawn.append(np.load(file)["images"].astype(int))
    assert drawn[0].shape == drawn[1].shape == (10, 8, 8, 1) and drawn[0].std() > 1
    assert np.abs(drawn[0] - drawn[1]).max() <= 1 and np.mean(drawn[0] != drawn[1]) < 0.01


COLLECT = """
import dataclasses, sys, pathlib, numpy as np
from pfgm_jax import generator, parallel
from pfgm_jax.evaluation import sample_cache
class Sums:
    fingerprint = "a" * 64
    def __call__(self, images):
        return images.reshape(len(images), -1).sum(axis=1, dtype=np.float64)[:, None]
parallel.connect()
run, folder = generator.load(sys.argv[1]), pathlib.Path(sys.argv[2])
for n in (8, 20):  # the second one finds a part of what it needs
    settings = dataclasses.replace(run.settings, n=n, batch=8)
    samples = sample_cache.collect(run, settings, *((folder, Sums()) if parallel.is_first() else (None, None)))
if parallel.is_first():
    np.save(folder / "features.npy", samples.features)
parallel.finish()
"""


@pytest.mark.slow
def test_two_processes_measure_as_one_device(alone, tmp_path):
    scores, features = [], []
    for name, processes, devices in (("one", 1, 1), ("two", 2, 2)):
        workdir = shutil.copytree(alone, tmp_path / name)
        words = [
            "--mode=evaluate",
            f"--workdir={workdir}",
            "--config.sample.solver=heun",
            "--config.evaluate.num_samples=40",
        ]
        done = ended(start([[sys.executable, "-m", "pfgm_jax.main", *words]] * processes, devices))
        assert [code for code, _, _ in done] == [0] * processes, done
        assert "confidence" in done[0][1] and all(not out and not errors for _, out, errors in done[1:])
        (path,) = (workdir / "results").glob("pixel_score*.json")
        scores.append(json.loads(path.read_text())["scores"])
        done = ended(
            start([[sys.executable, "-c", COLLECT, str(workdir), str(workdir / "results")]] * processes, devices)
        )
        assert [code for code, _, _ in done] == [0] * processes, done
        features.append(np.load(workdir / "results" / "features.npy"))
        assert len(list((workdir / "results").glob("samples-*/*.npz"))) == 6
    assert scores[0] == scores[1]
    assert features[0].shape == (20, 1) and np.abs(features[0] - features[1]).max() <= 2


LONG = {"train.images": 32_000_000, "train.eval_every": 32_000_000, "train.sample_every": 32_000_000}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "how"), [(0, "KILL"), (1, "KILL"), (0, "STOP"), (1, "STOP")])
def test_when_one_dies_or_hangs_the_other_ends_with_a_line(tmp_path, number, how):
    processes = start([command(tmp_path / "run", **LONG)] * 2)
    until = time.monotonic() + 300
    while not checkpoint.steps(tmp_path / "run"):
        assert time.monotonic() < until and all(process.poll() is None for process in processes)
        time.sleep(0.2)
    processes[number].send_signal(getattr(signal, f"SIG{how}"))
    begun, survivor = time.monotonic(), processes[1 - number]
    code, _, errors = ended([survivor], timeout=120)[0]
    took = time.monotonic() - begun
    processes[number].kill()
    lines = [line for line in errors.splitlines() if line.startswith("pfgm_jax:")]
    print(f"{how} of {number}: exit code {code} after {took:.1f} s: {lines}")
    assert code in (75, -6) and took < 3 * PATIENCE + 30, errors
    assert len(lines) == 1 and "lost" in lines[0], errors
    assert "stack trace" not in errors and "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path, number):
    processes = start([command(tmp_path / "run", **LONG)] * 2)
    until = time.monotonic() + 300
    while not checkpoint.steps(tmp_path / "run"):
        assert time.monotonic() < until and all(process.poll() is None for process in processes)
        time.sleep(0.2)
    processes[number].send_signal(signal.SIGTERM)
    done = ended(processes, 120)
    assert [code for code, _, _ in done] == [143, 143], done
    step = int(re.search(r"stopped: step (\d+) is saved", done[0][2])[1])
    assert checkpoint.steps(tmp_path / "run")[-1] == step


@pytest.mark.slow
def test_other_settings_are_refused(tmp_path):
    done = ended(start([command(tmp_path / "run"), command(tmp_path / "run", **{"optim.lr": 1e-4})]))
    assert [code for code, _, _ in done] == [2, 2], done
    assert "process 1: this process has a different data, optim.lr than the first one" in done[0][2]
