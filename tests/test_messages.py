"""What the command line says: hints that help, nouns that fit their number, answers without JAX, no folder left."""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import medmnist
from pfgm_jax import config as config_lib
from pfgm_jax import config_file, generator, main, parallel, presets, recipes, sampling, stored_run
from pfgm_jax.data import class_labels
from pfgm_jax.errors import UserError
from pfgm_jax.exchange import import_run
from pfgm_jax.storage import atomic, torch_files
from pfgm_jax.training import dry_run

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = f"{ROOT}/configs/digits.py"


def refused(*argv):
    with pytest.raises(UserError) as raised:
        main.run([*map(str, argv)])
    return str(raised.value)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["sample", "--workdir=x"], "did you mean --mode=sample?"),
        (["sample.n=3", "--workdir=x"], "written --config.sample.n=3"),
        (["--train.batch=8", "--workdir=x"], "written --config.train.batch=8"),
        (["--lr=3", "--workdir=x"], "did you mean --config.optim.lr=3?"),
        (["--steps=18", "--workdir=x"], "--config.sample.steps=18 or "),
        (["--mode=sample", "--steps=18", "--workdir=x"], "did you mean --config.sample.steps=18?"),
        (["--mode=verify", "--steps=18", "--workdir=x"], "; see --help"),
        ([], "nothing to do: try --config=digits --workdir=runs/digits, or --help"),
        (["--dry-run"], "did you mean '--dry_run'?"),
        (["--dry_run=1"], "--dry_run takes no value"),
        (["--mode=smaple"], "; did you mean 'sample'?"),
        (["--mode=" + "x" * 5000], "…"),
        (["--config.sample.n"], "--config.sample.n has no value"),
        (["--config.model.conditional", "--dry_run"], "--config.model.conditional has no value"),
        (["--mode=sample", "--config=c.py", "--workdir=x"], "leave out --config=FILE"),
        (["--mode=compare", "--workdir=x"], "needs --source=PATH: the run to compare with"),
        (["--config=configs/digit.py", "--workdir=x"], "did you mean 'configs/digits.py'?"),
        (["--workdir=~nosuchuser/x"], "no home folder"),
    ],
)
def test_hints_for_flags(monkeypatch, argv, words):
    monkeypatch.chdir(ROOT)
    message = refused(*argv)
    assert words in message and len(message) < 300


def test_a_space_serves_for_the_equals_sign():
    argv = ["--config", "c.py", "--config.sample.n", "3", "--config.optim.lr", "-1e-3", "--config.model.remat", "True",
            "--workdir", "x"]  # fmt: skip
    flags, overrides = main.parse(argv)
    assert overrides == {"sample.n": "3", "optim.lr": "-1e-3", "model.remat": "True"}
    assert (flags.config, flags.workdir) == ("c.py", "x")


@pytest.mark.parametrize(
    "text, words",
    [
        ("size", "takes a whole number, such as size=28"),
        ("size=big", "takes a whole number, got 'big'"),
        ("D", "takes a number, such as D=128"),
        ("cpu=3", "takes True or False, got '3'"),
        ("network", "takes a word, such as network=NAME"),
        ("size=32", "MedMNIST comes at 28, 64, 128 or 224 px"),
        ("size=0,network=ddpmpp", "MedMNIST comes at"),
    ],
)
def test_config_arguments(text, words):
    with pytest.raises(UserError) as raised:
        medmnist.get_config(text)
    assert words in str(raised.value)


def test_sizes_are_those_that_have_networks():
    assert medmnist.SIZES == tuple(int(n.removeprefix("medical_")) for n in presets.PRESETS if n.startswith("medical_"))
    with pytest.raises(UserError, match="8 px or more"):
        recipes.published_network("ddpmpp", 0)


def test_no_number_is_a_misspelt_number():
    ask = lambda wanted: class_labels.class_labels(wanted, 4, jax.random.key(0), ["0", "1", "2"], [1, 1, 1])
    for wanted, words in (("12", "no class is called '12'; labels are"), ("balance", "did you mean 'balanced'?")):
        with pytest.raises(UserError) as raised:
            ask(wanted)
        assert words in str(raised.value) and ("did you mean" in str(raised.value)) == (wanted == "balance")
    with pytest.raises(UserError, match="labels must be 4 integers from 0 to 2"):
        ask(np.zeros(3, int))


@pytest.mark.parametrize("devices, words", [(1, "at least 1"), (8, "a multiple of 8, such as 8")])
def test_batch_0(monkeypatch, devices, words):
    monkeypatch.setattr(parallel, "device_count", lambda: devices)
    with pytest.raises(UserError, match=words):
        parallel.check_divisible(0, "--config.train.batch")


def test_the_table_of_solver_options_is_that_of_the_solvers():
    section = config_lib.default().sample
    options = {name: section.get_type(name) for name, value in section.items() if value is None and name != "D"}
    assert options == sampling.option_kinds()


# ---- what is answered without JAX


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--mode=x"],
        [f"--config={DIGITS}:quik", "--workdir=x"],
        [f"--config={DIGITS}", "--workdir=x", "--config.optim.lrr=1"],
        [f"--config={DIGITS}", "--workdir=x", "--config.optim.lr=much"],
        [f"--config={ROOT}/configs/medmnist.py:size=32", "--workdir=x"],
        ["--config=absent.py", "--workdir=x"],
        ["--mode=sample", "--workdir=absent"],
        ["--mode=compare", "--workdir=absent", "--source=absent"],
        ["--mode=import", "--source=absent", "--workdir=x"],
    ],
)
def test_mistakes_are_answered_without_jax(argv):
    program = (
        "import sys; from pfgm_jax import main; sys.argv = ['main', *sys.argv[1:]]\n"
        "try: main.main()\nfinally: print(sorted({'jax', 'flax', 'numpy.random'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, env=environment)
    assert done.returncode == (0 if argv == ["--help"] else 2)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


def test_help_names_every_mode(capsys):
    with pytest.raises(SystemExit):
        main.parse(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {mode}" in text for mode in main.MODES) and text.count("\n  pfgm-jax --") == 3


# ---- paths


def test_home_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PFGM_JAX_CACHE")
    flags, _ = main.parse(["--mode=compare", "--workdir=~/a", "--source=~/b"])
    assert (flags.workdir, flags.source) == (f"{tmp_path}/a", f"{tmp_path}/b")
    assert atomic.cache_root() == tmp_path / ".cache/pfgm_jax"
    monkeypatch.setenv("PFGM_JAX_CACHE", "~/c")
    assert atomic.cache_root() == tmp_path / "c"
    for path in (tmp_path / "a.py", tmp_path / "run"):
        with pytest.raises(UserError, match=str(path)):
            config_file.load_config("~/a.py", {}) if path.suffix else generator.load("~/run")
    (tmp_path / "a.py").write_text(pathlib.Path(DIGITS).read_text())
    assert config_file.load_config("~/a.py:quick", {}).sample.n == 16
    with pytest.raises(UserError, match="no home folder"):
        atomic.expanded("~nosuchuser/x")


def test_a_refusal_leaves_no_empty_folder(tmp_path):
    kept = tmp_path / "run"
    (kept / "old").mkdir(parents=True)
    new = tmp_path / "a" / "b"
    with pytest.raises(UserError), atomic.without_traces(kept, new):
        (kept / "results").mkdir()
        (kept / "samples").mkdir()
        (kept / "samples" / "x.png").touch()
        new.mkdir(parents=True)
        raise UserError("no")
    assert {path.name for path in kept.iterdir()} == {"old", "samples"} and not (tmp_path / "a").exists()
    with atomic.without_traces(new):
        new.mkdir(parents=True)
    assert new.exists()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run that can be sampled from: the weights that come with the package."""
    return shutil.copytree(stored_run.PRETRAINED / "digits", tmp_path_factory.mktemp("runs") / "digits")


@pytest.mark.parametrize(
    "argv",
    [
        ["--mode=evaluate", "--config.evaluate.features=domain", "--config.evaluate.split=tset"],
        ["--mode=evaluate", "--config.evaluate.features=pixels", "--config.data.name=npz", "--config.data.dir=/nope"],
        ["--mode=curve", "--config.evaluate.solvers=huen"],
        ["--mode=sample", "--config.sample.guide=/nope", "--config.sample.guidance=2"],
        ["--mode=compare", "--source=/nope"],
        ["--mode=export", "--config.sample.labels=3"],
    ],
)
def test_a_refused_mode_leaves_the_run_as_it_was(run_folder, argv):
    before = sorted(run_folder.rglob("*"))
    assert refused(*argv, f"--workdir={run_folder}") and sorted(run_folder.rglob("*")) == before


@pytest.mark.parametrize("mode", ["train", "data", "advise", "audit", "import"])
def test_a_refused_plan_makes_no_folder(tmp_path, mode):
    (tmp_path / "a.pkl").write_bytes(b"<html>")
    argv = [f"--mode={mode}", f"--workdir={tmp_path}/x/run"]
    argv += [] if mode == "import" else [f"--config={DIGITS}", "--config.data.name=npz", "--config.data.dir=/nope"]
    assert refused(*argv, *([f"--source={tmp_path}/a.pkl"] if mode in ("audit", "import") else []))
    assert not (tmp_path / "x").exists()


# ---- foreign files


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a.pth", "a.safetensors"])
@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"<html>\x1b[31m</html>", "a web page"),
        (b"\x1f\x8b\x08\x00" + bytes(30), "compressed with gzip"),
    ],
)
def test_what_is_obviously_no_checkpoint(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        torch_files.read(tmp_path / name)
    assert words in str(raised.value) and "\n" not in str(raised.value) and name in str(raised.value)


def test_a_genuine_pickle_passes(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"<html>": [1]}))
    assert torch_files.read(tmp_path / "a.pkl") == {"<html>": [1]}


def test_runs_need_no_import(tmp_path):
    exported = stored_run.PRETRAINED / "digits"
    for source in (exported, exported / "model.safetensors"):
        with pytest.raises(UserError) as raised:
            import_run.import_run(source, tmp_path / "x")
        assert f"pfgm_jax.load({str(exported)!r})" in str(raised.value)
    with pytest.raises(UserError, match="is a folder: give the checkpoint file in it"):
        import_run.import_run(tmp_path, tmp_path / "x")


# ---- the dry run


def test_the_dry_run_begins_with_what_matters(monkeypatch):
    config = config_file.load_config(f"{DIGITS}:quick", {"optim.warmup": "0"})
    monkeypatch.setattr(dry_run, "memory_estimate", lambda *_: 2**33)
    monkeypatch.setattr(parallel, "device_memory", lambda: 2**32)
    lines = dry_run.dry_run(config).splitlines()
    begins = [line.split()[0] for line in lines[:8] if line]
    assert begins == ["data", "process", "network", "training", "devices", "memory", "warning"]
    assert "8.0 GiB" in lines[5] and "4.0 GiB" in lines[6] and "train.batch" in lines[6]
    text = "\n".join(lines)
    assert "multipliers: [1, 2]" in text and "!!python" not in text and text.index("\nmodel:") < text.index("\nTotal:")
    monkeypatch.setattr(parallel, "device_memory", lambda: 2**34)
    assert "warning" not in dry_run.dry_run(config)


def test_the_printed_config_is_what_the_command_line_takes():
    config = config_file.load_config(f"{DIGITS}:quick", {})
    other, section = config_lib.default(), ""
    for line in config_lib.described(config).splitlines():
        key, _, value = line.partition(": ")
        if line.endswith(":"):
            section = line[:-1]
        else:
            name = f"{section}.{key.strip()}" if line.startswith(" ") else key
            config_lib.override(other, name, "" if value == "''" else value)
    assert json.dumps(config_lib.flatten(other), default=str) == json.dumps(config_lib.flatten(config), default=str)
