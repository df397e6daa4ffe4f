"""The command line: bad input gets one line on stderr, exit code 2 and nothing half-written; good input a run."""

import json
import pathlib
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import pfgm_jax
from pfgm_jax import config_file, data, main, models, run_record
from pfgm_jax import run as run_lib
from pfgm_jax.storage import safetensors
from pfgm_jax.training import dry_run

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = f"--config={ROOT}/configs/digits.py"
MEDMNIST = f"--config={ROOT}/configs/medmnist.py"
# A run of seconds: one level, sixteen steps in two calls.
TINY = ["--config.model.channels=4", "--config.model.multipliers=1", "--config.model.embedding_channels=8",
        "--config.train.images=1024", "--config.train.save_every=512", "--config.train.sample_every=512",
        "--config.train.eval_every=512", "--config.sample.solver=heun", "--config.sample.steps=3"]  # fmt: skip


@pytest.fixture
def refused(command, tmp_path):
    """Asserts that a command line is refused as a person's mistake, and gives its one line."""

    def run(*argv, workdir=None):
        workdir = workdir or tmp_path / "run"
        before = sorted(workdir.rglob("*")) if workdir.exists() else None
        code, out, err = command(*argv, f"--workdir={workdir}")
        assert code == 2
        assert err.count("\n") == 1 and err.startswith("pfgm_jax: "), err
        assert not out
        assert (sorted(workdir.rglob("*")) if workdir.exists() else None) == before
        return err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny trained run."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    main.run([f"{DIGITS}:quick", f"--workdir={workdir}", *TINY])
    return workdir


def test_misspelt_config_key_names_the_right_one(refused):
    assert "'train.batch'" in refused(f"{DIGITS}:quick", "--config.train.bacth=64")


def test_misspelt_config_argument_names_the_right_one(refused):
    assert "'process'" in refused(f"{DIGITS}:proces=pfgm")


def test_wrong_type_in_config_argument(refused):
    assert "D" in refused(f"{DIGITS}:D=many")


@pytest.mark.parametrize(
    "override",
    ["train.batch=many", "train.batch=3.5", "process.D=x", "model.conditional=maybe", "model.multipliers=a,b"],
)
def test_wrong_type(refused, override):
    assert override.partition("=")[0] in refused(f"{DIGITS}:quick", f"--config.{override}")


@pytest.mark.parametrize("D", ["0", "-3", "nan", "-inf"])
def test_D_out_of_range(refused, D):
    assert "process.D" in refused(f"{DIGITS}:quick", f"--config.process.D={D}")


def test_batch_that_devices_cannot_share(refused):
    err = refused(f"{DIGITS}:quick", "--config.train.batch=100")
    assert "96 or 104" in err and f"{jax.device_count()} devices" in err


def test_batch_larger_than_the_data(refused):
    assert "1437" in refused(f"{DIGITS}:quick", "--config.train.batch=2048")


def test_image_size_that_the_network_cannot_take(refused):
    assert "model.multipliers" in refused(f"{DIGITS}:quick", "--config.model.multipliers=1,1,1,1,1")


def test_other_impossible_values(refused):
    assert "'heun'" in refused(f"{DIGITS}:quick", "--config.sample.solver=huen")
    assert "large batch" in refused(f"{DIGITS}:process=pfgm", "--config.train.large_batch=0")
    assert "D = 1" in refused(f"{DIGITS}:process=pfgm", "--config.process.D=2")
    assert "'pfgmpp'" in refused(f"{DIGITS}:process=pfgmp")


@pytest.mark.parametrize(
    "override",
    ["optim.lr=none", "train.batch=none", "optim.lr_batch=0", "sample.batch=0", "train.steps_per_call=-1", "seed=-1",
     "optim.beta1=2", "process.sigma_max=0", "process.sigma_data=0", "process.sigma_min=90", "evaluate.num_samples=-1"],
)  # fmt: skip
def test_values_out_of_range(refused, override):
    refused(f"{DIGITS}:quick", f"--config.{override}")


def test_mistakes_in_the_flags(refused, command):
    assert "--workdir" in command(f"{DIGITS}:quick")[2]
    assert "no such file" in refused("--config=configs/digit.py")
    assert "--config=FILE" in refused()
    assert "'sample'" in refused("--mode=smaple")
    assert "--mode=train" in refused("--mode=sample", "--dry_run")
    assert "section.field=value" in refused(f"{DIGITS}:quick", "--config.sample.n")
    assert "'--workdir'" in refused(f"{DIGITS}:quick", "--workdri=x")


def write_npz(path, **changes):
    """A BloodMNIST-like file in MedMNIST's format, of 8 classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 64), ("val", 16), ("test", 16)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 8).astype(np.uint8)[:, None]
    np.savez_compressed(path, **arrays | changes)


def test_missing_npz(refused, tmp_path):
    assert "bloodmnist.npz" in refused(f"{MEDMNIST}:quick", f"--config.data.dir={tmp_path}")


def test_truncated_npz(refused, tmp_path):
    path = tmp_path / "bloodmnist.npz"
    write_npz(path)
    path.write_bytes(path.read_bytes()[:5000])
    err = refused(f"{MEDMNIST}:quick", f"--config.data.dir={tmp_path}", "--config.data.check_md5=False")
    assert "bloodmnist.npz" in err


def test_pickled_npz_is_not_executed(refused, tmp_path):
    class Bomb:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / "executed",)

    write_npz(tmp_path / "bloodmnist.npz", train_images=np.array([Bomb()], dtype=object))
    refused(f"{MEDMNIST}:quick", f"--config.data.dir={tmp_path}", "--config.data.check_md5=False")
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "executed").exists()  # the bomb was live


def test_wrong_md5(refused, tmp_path, monkeypatch):
    # A stand-in for medmnist's table, which is not among the dependencies.
    table = {"bloodmnist": {"MD5": "0" * 32, "url": "https://localhost/bloodmnist.npz", "task": "multi-class",
                            "label": {str(i): f"class {i}" for i in range(8)}, "license": "CC BY 4.0"}}  # fmt: skip
    monkeypatch.setitem(sys.modules, "medmnist", type(sys)("medmnist"))
    sys.modules["medmnist"].INFO = table
    write_npz(tmp_path / "bloodmnist.npz")
    err = refused(f"{MEDMNIST}:quick", f"--config.data.dir={tmp_path}")
    assert "MD5" in err and "0" * 32 in err


def test_workdir_of_another_run_names_the_keys(refused, trained):
    err = refused(f"{DIGITS}:quick", *TINY, "--config.optim.lr=0.5", "--config.process.D=64", workdir=trained)
    assert "optim.lr" in err and "process.D" in err


def test_workdir_of_a_run_on_other_data(refused, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_npz(tmp_path / "a" / "bloodmnist.npz")
    write_npz(
        tmp_path / "b" / "bloodmnist.npz",
        train_images=np.arange(64 * 28 * 28 * 3, dtype=np.uint8).reshape(64, 28, 28, 3) % 7,
    )
    workdir = tmp_path / "run"
    workdir.mkdir()
    config = config_file.load_config(f"{MEDMNIST}:quick".removeprefix("--config="), {"data.check_md5": "False"})
    config.data.dir = str(tmp_path / "a")
    run_record.save(workdir, config, run_lib.derive(config, data.load(config.data)))
    err = refused(
        f"{MEDMNIST}:quick", f"--config.data.dir={tmp_path}/b", "--config.data.check_md5=False", workdir=workdir
    )
    assert "data (std)" in err


def test_unwritable_workdir(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(f"{DIGITS}:quick", workdir=tmp_path / "file" / "run")


def test_no_run_to_sample_from(refused, tmp_path):
    assert "no run" in refused("--mode=sample")
    (tmp_path / "empty").mkdir()
    assert "no run" in refused("--mode=sample", workdir=tmp_path / "empty")


def test_run_without_a_checkpoint(refused, trained, tmp_path):
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "config.json").write_text((trained / "config.json").read_text())
    assert "no checkpoint yet" in refused("--mode=sample", workdir=tmp_path / "early")


def test_checkpoint_of_another_network(refused, trained):
    path = trained / "config.json"
    text = path.read_text()
    record = json.loads(text)
    record["config"]["model.channels"] = 6
    path.write_text(json.dumps(record))
    try:
        assert "model.channels" in refused("--mode=sample", workdir=trained)
    finally:
        path.write_text(text)


def test_sampling_takes_only_its_own_overrides(refused, trained):
    assert "train.batch" in refused("--mode=sample", "--config.train.batch=8", workdir=trained)
    assert "'sample.solver'" in refused("--mode=sample", "--config.sample.sovler=heun", workdir=trained)
    assert "'heun'" in refused("--mode=sample", "--config.sample.solver=huen", workdir=trained)


def test_options_of_another_solver(refused, trained):
    err = refused("--mode=sample", "--config.sample.solver=heun", "--config.sample.rtol=1e-3", workdir=trained)
    assert "solver heun has no option 'rtol'" in err and "steps" in err
    err = refused("--mode=sample", "--config.sample.solver=rk45", "--config.sample.steps=9", workdir=trained)
    assert "solver rk45 has no option 'steps'" in err and "max_steps" in err
    assert "whole number" in refused("--mode=sample", "--config.sample.steps=2.5", workdir=trained)
    assert "takes a whole number" in refused("--mode=sample", "--config.sample.n=None", workdir=trained)


def test_solvers_that_a_trained_process_does_not_admit(refused, trained):
    before = sorted(trained.rglob("*"))
    err = refused("--mode=sample", "--config.sample.solver=ancestral", workdir=trained)
    assert "ancestral is for D = inf only" in err and "D = 128" in err and "rk45" in err
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize(
    "arg, overrides, words",
    [
        ("quick", ["sample.solver=ancestral"], "ancestral is for D = inf only"),
        ("process=pfgm,quick", ["sample.solver=euler_maruyama"], "euler_maruyama is for D = inf only"),
        ("quick", ["sample.solver=ddim", "sample.eta=0.5"], "ddim with eta > 0 is for D = inf only"),
        ("process=vp,quick", ["sample.solver=ancestral", "sample.D=4"], "this process has D = 4"),
        ("process=ddpm,quick", ["sample.solver=euler_maruyama"], "use ancestral or ddim"),
        ("process=ddpm,quick", ["sample.solver=ancestral", "process.T=50"], "50 noise levels, fewer than 1000 steps"),
        ("quick", ["sample.solver=heun", "sample.steps=1"], "steps >= 2"),
        ("quick", ["sample.solver=heun", "sample.grid=lgo"], "did you mean 'log'"),
        ("process=vp,quick", ["process.sigma_max=80"], "process.sigma_max"),
        ("process=vp,quick", ["process.D=128"], "use process=pfgmpp for another D"),
        ("process=vpp,quick", [], "'vp'"),
    ],
)
def test_training_refuses_samples_that_it_could_not_draw(refused, arg, overrides, words):
    assert words in refused(f"{DIGITS}:{arg}", *(f"--config.{item}" for item in overrides))


@pytest.mark.parametrize(
    "process, solver",
    [("ve", "predictor_corrector"), ("vp", "euler_maruyama"), ("subvp", "tsit5"), ("edm", "ancestral")],
)
def test_a_run_of_every_process_can_be_prepared(process, solver):
    config = config_file.load_config(
        f"{DIGITS}:process={process},quick".removeprefix("--config="), {"sample.solver": solver}
    )
    _, derived, task, _ = dry_run.prepare(config)
    assert task.process.name == process and task.process.sigma_max == pytest.approx(derived["sigma_max"])


@pytest.mark.slow
def test_ddpm_from_training_to_samples(command, tmp_path):
    workdir = tmp_path / "run"
    code, _, err = command(
        f"{DIGITS}:process=ddpm,quick", *TINY, "--config.sample.solver=ancestral", "--config.process.T=50",
        "--config.train.images=512", "--config.train.large_batch=0", f"--workdir={workdir}",
    )  # fmt: skip
    assert code == 0 and "ddpm: D = inf" in err and "no samples yet" not in err
    code, out, _ = command("--mode=sample", f"--workdir={workdir}", "--config.sample.n=8", "--config.sample.frames=0")
    assert code == 0 and "ancestral" in out and "3 function evaluations" in out and "steps 3" in out
    assert np.load(workdir / "samples" / "ancestral-n=8.npz")["images"].shape == (8, 8, 8, 1)


def test_sampling_at_another_D_says_so(command, trained):
    code, out, _ = command(
        "--mode=sample", f"--workdir={trained}", "--config.sample.n=8", "--config.sample.frames=0",
        "--config.sample.solver=ancestral", "--config.sample.D=inf", "--config.sample.steps=4",
    )  # fmt: skip
    assert code == 0 and "D = 128, sampled with D = inf" in out and "4 function evaluations" in out


def test_no_traceback_from_a_fresh_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pfgm_jax.main", f"{DIGITS}:quick", "--config.optim.lrr=1", f"--workdir={tmp_path}/x"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "pfgm_jax: unknown config key 'optim.lrr'; did you mean 'optim.lr'?\n"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("number", ["two", "0", "", "1.5"])
def test_a_number_of_devices_that_is_none(command, monkeypatch, number):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", number)
    code, _, err = command("--config=digits:quick", "--dry_run")
    assert (code, err) == (2, f"pfgm_jax: JAX_NUM_CPU_DEVICES must be a positive integer, got {number!r}\n")


def test_dry_run_says_what_it_would_do_and_writes_nothing(command, tmp_path):
    code, out, _ = command(f"{DIGITS}:quick", "--dry_run", f"--workdir={tmp_path}/run")
    assert code == 0 and not (tmp_path / "run").exists()
    for word in ("sigma_max", "σ_data = 0.752", "parameters", "MiB", "conv_in/kernel"):
        assert word in out


def test_training_ends_with_how_to_sample(command, tmp_path):
    code, out, err = command(f"{DIGITS}:quick", *TINY, f"--workdir={tmp_path}/run")
    assert code == 0
    lines = out.strip().splitlines()
    assert lines[1].split("-m", 1)[1] == f" pfgm_jax.main --mode=sample --workdir={tmp_path}/run"
    scope = {}
    exec("\n".join(line.strip() for line in lines[-3:]), scope)
    assert scope["images"].shape == (16, 8, 8, 1)


def test_sampling_writes_grid_images_and_animation(command, trained):
    code, out, err = command("--mode=sample", f"--workdir={trained}", "--config.sample.n=10",
    "--config.sample.frames=5",
                             "--config.sample.solver=rk45")  # fmt: skip
    assert code == 0 and "function evaluations" in out
    images = np.load(trained / "samples" / "rk45-n=10.npz")["images"]
    assert images.shape == (10, 8, 8, 1) and images.dtype == np.uint8
    (film,) = (trained / "samples").glob("rk45-frames=5,n=10.[gw]*")  # a GIF or a WebP
    assert (trained / "samples" / "rk45-frames=5,n=10_paths.png").exists()
    with Image.open(film) as animation:
        assert animation.n_frames > 1
    with Image.open(trained / "samples" / "rk45-n=10.png") as grid:
        assert min(grid.size) > 32
    again, _ = pfgm_jax.load(trained).sample(jax.random.key(0), 10, solver="rk45")
    np.testing.assert_array_equal(images, again)  # the command line and Python draw the same samples


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A folder with an untrained network that is told the digit, as an exported run."""
    workdir = tmp_path_factory.mktemp("told")
    overrides = dict(item.removeprefix("--config.").split("=") for item in TINY)
    config = config_file.load_config(f"{DIGITS}:conditional,quick".removeprefix("--config="), overrides)
    derived = run_lib.derive(config, data.load(config.data))
    run_record.save(workdir, config, derived)
    params = models.init(run_lib.make_model(config, derived), derived["shape"])
    safetensors.save(workdir / safetensors.EXPORTED, jax.device_get(params), {})
    return workdir


def test_samples_of_classes_with_guidance(command, told):
    arguments = ("--mode=sample", f"--workdir={told}", "--config.sample.n=8", "--config.sample.frames=0")
    code, out, _ = command(*arguments, "--config.sample.labels=3,5", "--config.sample.guidance=2")
    assert code == 0 and "labels 3,5, guidance 2 from the network without its label" in out
    assert "5 function evaluations of 2 network calls each" in out and "_classes.png" in out
    (path,) = (told / "samples").glob("heun-*n=8*.npz")
    saved = np.load(path)
    assert saved["images"].shape == (8, 8, 8, 1) and saved["labels"].tolist() == [3, 5] * 4
    with Image.open(f"{path.with_suffix('')}_classes.png") as rows, Image.open(path.with_suffix(".png")) as grid:
        assert rows.height == 2 * 48 + 2 and rows.width > 4 * 50 > grid.width


def test_classes_and_guides_that_there_are_not(refused, told, trained):
    asked = lambda *items, workdir=told: refused(
        "--mode=sample", *(f"--config.sample.{item}" for item in items), workdir=workdir
    )
    assert "no class is called '12'" in asked("labels=12") and "the classes are 0, 1, 2" in asked("labels=12")
    assert "trained without labels" in asked("labels=3", workdir=trained)
    assert "give a weaker network as sample.guide" in asked("guidance=2", workdir=trained)
    assert "has no effect at guidance 1" in asked(f"guide={trained}")
    assert "no/such/run holds no run" in asked("guidance=2", "guide=no/such/run")


def test_a_guide_from_a_folder(command, trained):
    arguments = ("--mode=sample", f"--workdir={trained}", "--config.sample.n=8", "--config.sample.frames=0")
    assert command(*arguments)[0] == 0
    alone = np.load(trained / "samples" / "heun-n=8.npz")["images"]
    kept = set((trained / "samples").glob("heun*.npz"))
    code, out, _ = command(*arguments, "--config.sample.guidance=2", f"--config.sample.guide={trained}")
    assert code == 0 and f", guidance 2 from {trained}," in out
    # Of a guide that is the network itself nothing remains, but for rounding; no labels, no picture of them.
    (path,) = set((trained / "samples").glob("heun*.npz")) - kept
    guided = np.load(path)["images"]
    assert np.abs(guided.astype(int) - alone).max() <= 1 and not list((trained / "samples").glob("*_classes.png"))


def test_training_refuses_guidance_that_it_does_not_prepare(refused):
    assert "train.label_dropout=0.1" in refused(
        f"{DIGITS}:quick", "--config.model.conditional=True", "--config.sample.guidance=2"
    )
    assert "did you mean 'balanced'" in refused(f"{DIGITS}:quick,conditional", "--config.sample.labels=balance")


def test_a_run_directory_is_complete(trained):
    for name in ("config.json", "metrics.jsonl", "curves.png", "checkpoints", "tensorboard"):
        assert (trained / name).exists()
    assert list((trained / "samples").glob("step_*.png"))
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    keys = set().union(*records)
    assert {"loss", "grad_norm", "images_per_second", "eval/val", "eval/gap"} <= keys
    assert any(key.startswith("truth/") for key in keys)
