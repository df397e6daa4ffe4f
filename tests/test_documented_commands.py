"""Every command of README.md, CONTRIBUTING.md and docs/ is executed: here at quick settings, or where ELSEWHERE says.

A command runs in a folder of its own, with stand-ins for what it names: small runs, images, files that would be
downloaded. Settings that make it quick are added behind it; its own stay, but for AMOUNTS, which are always small.
"""

import contextlib
import multiprocessing
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import documented
import foreign_files as ff
import numpy as np
import pytest
from exchange import test_import as published
from fixtures import networks
from PIL import Image

from pfgm_jax import main

ROOT = documented.ROOT
MAIN = documented.MAIN
COMMANDS = sorted({command for page in documented.PAGES for command in documented.commands(page)})

# What is executed by other tests or scripts, or needs what no test has. A name of a test is one that exists.
ELSEWHERE = {
    r"pip install .*|bash launch/wheel\.sh .*|tensorboard .*": "launch/wheel.sh, launch/environment.sh",  # installs
    r"(PFGM_JAX_PYTHON=\S+ )?bash launch/test\.sh|pre-commit install|pyrefly check": "launch/test.sh",
    r"python -m pytest .*": "tests",  # they themselves
    r"tfds build .*": "tests/data/test_tfds.py::test_a_prepared_set",  # what it makes, in its format
    MAIN + "--mode=doctor": "tests/test_doctor.py::test_a_sound_installation_is_called_well",
    MAIN + "--mode=study .*": "tests/study/test_study.py::test_the_quick_study_from_the_command_line",
    MAIN + "--mode=lessons .*": "tests/lessons/test_lessons.py::test_the_command_needs_no_config",
    r"PFGM_JAX_PROCESS=\S+ .*": "tests/test_processes.py::test_",
    r"bash launch/tpu/babysit\.sh .*": "tests/test_launch_tpu.py::test_babysitting_outlives_preemption",
    r"sbatch .*": "tests/test_launch_tpu.py::test_slurm_requeues_what_was_stopped",
    r"bash launch/queue\.sh .*": "tests/test_queue.py::test_runs_take_turns_and_a_failure_holds_up_nothing",
    r"bash launch/docs\.sh": "tests/test_documentation.py::test_the_site_is_built_without_a_warning",
    r"python -m benchmarks\.kills .*": "tests/training/test_kills.py::test_",
}

NARROW = {"model.channels": 8, "model.multipliers": "1,1", "model.attention": "", "model.blocks": 1}
SHORT = {"train.images": 128, "train.batch": 16, "train.large_batch": 0, "train.log_every": 64, "train.eval_every": 64,
         "train.sample_every": 128, "train.save_every": 64, "train.eval_images": 32}  # fmt: skip
FEW = {"sample.n": 4, "sample.frames": 3, "sample.solver": "heun", "sample.steps": 3}
FILES = {"data.dir": "files", "data.check_md5": False}
# Settings by mode, and by config where it has one.
QUICK = {
    "train": SHORT | FEW,
    "tune": SHORT,
    "average": {},
    "data": {},
    "advise": {},
    "sample": {},
    "evaluate": {"evaluate.num_samples": 24, "evaluate.features": "pixels"},
    "compare": {"evaluate.num_samples": 24},
    "curve": {"evaluate.num_samples": 24, "evaluate.steps": "3,5"},
    "diagnose": {"diagnose.quick": True},
    "likelihood": {"likelihood.n": 8, "likelihood.steps": 4},
    "interpolate": {"latents.n": 2, "latents.points": 3, "latents.steps": 4},
    "restore": {"restore.n": 2, "restore.steps": 3},
    "schedule": {"schedule.steps": "4", "schedule.draws": 8},
    "stats": {"evaluate.features": "pixels"},
    "audit": {"evaluate.features": "pixels"},
    "verify": {},
    "export": {"export.samples": 64, "export.force": True},
    "import": {},
    "explore": {},
}
AMOUNTS = ("train.images", "evaluate.num_samples")  # what a command may not ask for here: minutes, and nothing else
QUICK_CONFIGS = {
    "toy": {"train.images": 512, "train.batch": 64, "sample.batch": 4},
    "medmnist": NARROW | FILES,
    "folder": NARROW,
    "cifar10": NARROW | FILES,
    ("import", "cifar10"): {"model.channels": 16, "model.multipliers": "1,2", "model.attention": "16",
                            "model.blocks": 1, "model.noise_channels": 16, "model.embedding_channels": 64},
}  # fmt: skip
# Benchmarks: figures of a few seconds in place of theirs.
QUICK_BENCHMARKS = {
    "field": "--queries=4 --points=64 --dim=8 --repeats=1",
    "processes": "--processes=pfgmpp --sets=1 --train_images=2048",
    "few": "--record=few.json --picture=few.png",
    "few field": "--record=few.json --set=digits --images=64",
    "few show": "--picture=few.png",
    "floors": "--set=digits --features=pixels --record=floors.json",
    "cost": "--networks=cpu_28 --no_memory",
    "cost --check": "--only='28 px, cpu_28'",
    "training": "--quick",
    "feed": "--size=8 --batch=8 --calls=1",
    "augment": "--arg=size=28,quick --batch=8 --calls=1 --dir=files",
    "collectives": "digits:quick",
    "inference": "--n=4 --calls=20",
    "restoration": "--images=4 --calls=20 --task=denoise",
    "restoration robust": "--images=4 --picture=robust.png",
}


def elsewhere(command):
    return next((where for pattern, where in ELSEWHERE.items() if re.fullmatch(pattern, command)), None)


def here(command):
    """How a command is executed here: the function, or None."""
    if re.match(MAIN, command):
        return run_main
    if command.startswith("python -m benchmarks."):
        return run_benchmark
    return {"bash": run_shell, "cp": run_copy}.get(command.split()[0])


def test_every_command_is_executed_somewhere():
    assert len(COMMANDS) > 60
    assert [command for command in COMMANDS if not (elsewhere(command) or here(command))] == []
    for command in COMMANDS:
        if here(command) is run_main and not elsewhere(command):
            settings(shlex.split(command))  # QUICK has its mode


def test_the_lists_hold_what_there_is():
    for pattern, where in ELSEWHERE.items():
        assert any(re.fullmatch(pattern, command) for command in COMMANDS), f"no page has {pattern}"
        path, _, test = where.partition("::")
        for name in path.split(", "):
            assert (ROOT / name).exists(), f"there is no {name}"
        if test:
            assert f"def {test}" in (ROOT / path).read_text(), where
    for name in QUICK_BENCHMARKS:
        assert any(c.startswith(f"python -m benchmarks.{name}") for c in COMMANDS if not elsewhere(c)), name


# ---- stand-ins


def images(seed, n, size, channels=3):
    """uint8 [n, size, size, channels]: blurred noise, of classes that differ in brightness."""
    rng = np.random.default_rng(seed)
    rough = rng.normal(0, 40, (n, size // 4, size // 4, channels)).repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(60 + 10 * (np.arange(n) % 8)[:, None, None, None] + rough, 0, 255).astype(np.uint8)


def put(folder, pixels):
    """A folder of images, a subfolder a class."""
    for i, image in enumerate(pixels):
        path = folder / f"class {i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)


def standard_file(path, size, classes=8):
    """An npz file with MedMNIST's arrays."""
    parts = {}
    for seed, (split, n) in enumerate({"train": 96, "val": 64, "test": 64}.items()):
        parts |= {f"{split}_images": images(seed, n, size), f"{split}_labels": np.arange(n)[:, None] % classes}
    np.savez(path, **parts)


def checkpoint():
    """What PFGM saves: the network, here a narrow DDPM++, and its moving averages."""
    arrays = networks.state(networks.load("pfgm_ddpmpp"))
    tensors = {f"module.{name}": ff.tensor(array, f"raw{i}") for i, (name, array) in enumerate(arrays.items())}
    averages = [ff.tensor(array, f"ema{i}") for i, array in enumerate(arrays.values())]
    return {"optimizer": {}, "model": tensors, "ema": {"decay": 0.9999, "shadow_params": averages}, "step": 7}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A folder with the files and folders that the commands name."""
    stage = tmp_path_factory.mktemp("stage")
    (stage / "files").mkdir()
    standard_file(stage / "files/bloodmnist.npz", 28)
    standard_file(stage / "files/retinamnist.npz", 28, classes=5)
    standard_file(stage / "files/cifar10.npz", 32)
    put(stage / "PATH", images(0, 60, 40))
    put(stage / "IMAGES", images(1, 40, 32))
    put(stage / "FOLDER", images(2, 8, 8, 1))
    put(stage / "SMALL", images(2, 8, 4, 1))
    np.save(stage / "POINTS.npy", np.random.default_rng(0).normal(size=(40, 2)))
    (stage / "edm-cifar10-32x32-uncond-vp.pkl").write_bytes(ff.dumps(published.snapshot("edm")))
    state = published.snapshot("edm")
    (stage / "training-state.pt").write_bytes(ff.zipped({"net": state["ema"], "optimizer_state": {}}))
    (stage / "checkpoint.pth").write_bytes(ff.zipped(checkpoint()))
    for name in ("configs", "launch", "benchmarks", "pfgm_jax", "setup.cfg", "pyproject.toml"):
        (stage / name).symlink_to(ROOT / name)
    return stage


RUNS = {  # what makes the runs that commands open
    "digits": "--config=digits:conditional,quick --workdir=runs/digits",
    "toy": "--config=toy:quick --workdir=runs/toy",
    "bloodmnist": "--config=configs/medmnist.py:dataset=bloodmnist,conditional,quick --workdir=runs/bloodmnist "
    "--config.train.power_ema=True",
    "digits_tuned": "--mode=tune --source=runs/digits --workdir=runs/digits_tuned",
    "superres": "--config=digits:quick --workdir=runs/superres --config.data.condition=superres:2 "
    "--config.train.large_batch=0",
}
SCHEDULE = "--mode=schedule --workdir=runs/digits --config.schedule.steps=4,5,6,8,10 --config.schedule.draws=8"


def run(stage, name):
    """The folder of a small trained run, made when it is first asked for."""
    folder = stage / "runs" / name
    if not folder.exists():
        if name == "digits_tuned":
            run(stage, "digits")
        argv = shlex.split(RUNS[name])
        with contextlib.chdir(stage):
            main.run([*argv, *settings(argv)])
            if name == "digits":  # noise at finite D and searched grids take one
                main.run(SCHEDULE.split())
    return folder


def settings(argv):
    """The settings that make a command line of `main` quick."""
    words = dict(word.split("=", 1) for word in argv if "=" in word)
    mode = words.get("--mode", "train")
    config = pathlib.Path(words.get("--config", "").partition(":")[0]).stem
    quick = QUICK[mode] | (QUICK_CONFIGS.get((mode, config)) or QUICK_CONFIGS.get(config, {}))
    if "--config.evaluate.usefulness" in words:
        quick |= {"evaluate.seeds": 2}
    return [
        f"--config.{key}={value}" for key, value in quick.items() if key in AMOUNTS or f"--config.{key}" not in words
    ]


def template(*paths):
    """The name of the run that stands in for the run called paths[0]: its own, or that of one that it goes with."""
    return next((name for path in paths if (name := pathlib.Path(path or "").name) in RUNS), "digits")


# ---- execution: each function does what a command says in the folder `place`


def run_main(command, place, stage):
    words = shlex.split(command)
    argv = words[3:] if words[0] == "python" else words[1:]
    flags, _ = main.parse(argv)
    mode = main.MODES[flags.mode]
    opened = [flags.workdir] if not mode.config else []
    opened += (flags.source or "").split(",") if mode.runs or (flags.source or "").startswith("runs/") else []
    for path in filter(None, opened):
        shutil.copytree(run(stage, template(path, flags.workdir)), place / path)
    if "superres" in str(flags.workdir) and flags.source:  # measurements of its own size
        (place / "FOLDER").unlink()
        (place / "FOLDER").symlink_to(place / "SMALL")
    main.run([*argv, *settings(argv)])


def run_benchmark(command, place, stage):
    name, *own = command.removeprefix("python -m benchmarks.").split()
    more = QUICK_BENCHMARKS.get(" ".join([name, *own[:1]]), QUICK_BENCHMARKS[name])
    if any(word.endswith("RUN") for word in own):
        shutil.copytree(run(stage, "digits_tuned" if "--tuned=RUN" in own else "digits"), place / "RUN")
    finish([sys.executable, "-m", f"benchmarks.{name}", *own, *shlex.split(more)], place)


def run_copy(command, place, stage):
    _, _, source, target = shlex.split(command)
    shutil.copytree(run(stage, "bloodmnist"), place / source)
    (place / "pfgm_jax").unlink()
    (place / target).parent.mkdir(parents=True)
    finish(shlex.split(command), place)


def run_shell(command, place, stage):
    """launch/demo.sh in a copy of the launch folder, whose environment is this one and whose digits are quick."""
    for name in ("launch", "configs"):
        (place / name).unlink()
        shutil.copytree(ROOT / name, place / name)
    quick = (place / "configs/digits.py").read_text().replace("quick=False", "quick=True")
    (place / "configs/digits.py").write_text(quick)
    venv = place / "venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (venv / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (venv / "bin" / name).chmod(0o755)
    stamp = 'cat setup.cfg pyproject.toml | cksum | tr " " "-"'
    (venv / "stamp").write_text(finish(["sh", "-c", stamp], place))
    said = finish(shlex.split(command), place, PFGM_JAX_VENV=str(venv))
    assert "made before" in said and "verdict" in said


def finish(words, place, **variables):
    """The output of a command that must succeed."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def worker():
    """A process with one device, as most readers have, that keeps its compiled programs from command to command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), quicken) as pool:
            yield pool


def quicken():
    """What no setting shortens: the trial of a plan, and the training of a classifier."""
    from pfgm_jax.metrics import classifier
    from pfgm_jax.training.advise import trial

    trial.SECONDS, classifier.LEAST_STEPS = 0.5, 25


def execute(command, place, stage):
    with contextlib.chdir(place):
        here(command)(command, place, stage)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if not elsewhere(command)])
def test_a_command_runs(command, worker, stage, tmp_path):
    for path in stage.iterdir():
        if path.name != "runs":
            (tmp_path / path.name).symlink_to(path)
    worker.submit(execute, command, tmp_path, stage).result()
