"""What stops a command from outside is one line; a bug keeps its traceback; what is printed never crashes."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from pfgm_jax import config_file, config_rules, failures, main
from pfgm_jax.errors import UserError, counted, nearest, quoted
from pfgm_jax.training import dry_run

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = f"--config={ROOT}/configs/digits.py:quick"


def start(*argv, out=subprocess.PIPE, **environment):
    """The command line in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""} | environment
    command = [sys.executable, "-m", "pfgm_jax.main", *map(str, argv)]
    return subprocess.run(command, stdout=out, stderr=subprocess.PIPE, env=environment)


@pytest.fixture
def fails(monkeypatch, capsys):
    """Runs main with a perform that raises: (exit code, stderr)."""

    def run(error, *argv):
        def perform(*_):
            raise error

        monkeypatch.setattr(main, "perform", perform)
        monkeypatch.setattr(sys, "argv", ["pfgm_jax", *(argv or (DIGITS, "--workdir=x"))])
        with pytest.raises(SystemExit) as stop:
            main.main()
        return stop.value.code, capsys.readouterr().err

    return run


class XlaError(RuntimeError):
    pass


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/r/a.npz"), ["/r/a.npz", "no space", "free some"]),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/r"), ["/r", "read-only"]),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/r"), ["/r", "permission denied"]),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/r/x"), ["/r/x", "moved or removed"]),
        (ValueError("RESOURCE_EXHAUSTED: write failed [No space left on device]"), ["no space left", "free some"]),
        (MemoryError("Unable to allocate 1 TiB"), ["train.batch", "remat", "sample.batch", "1 TiB", "advise"]),
        (MemoryError(), ["out of memory", "train.batch"]),
        (XlaError("RESOURCE_EXHAUSTED: Out of memory\nallocating"), ["train.batch", "remat"]),
        (XlaError("Unable to initialize backend 'gpu': none"), ["no device", "JAX_PLATFORMS=cpu"]),
        (ModuleNotFoundError("No module named 'flax'", name="flax"), ["flax", "pip install"]),
        (UserError("a \x1b[31mred name"), [r"a \x1b[31mred name"]),
        (UserError("x" * 10**6), ["…"]),
    ],
)
def test_what_is_no_bug_is_one_line(fails, error, words):
    code, err = fails(error)
    assert code == 2 and err.count("\n") == 1 and err.startswith("pfgm_jax: ") and len(err) < 2000
    assert all(word in err for word in words), err


def test_the_cause_counts_too(fails):
    error = ValueError("the save failed")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/r")
    assert "no space left" in fails(error)[1]


def test_memory_hints_are_those_of_the_mode():
    assert "sample.n" in failures.explain(MemoryError(), "sample") and "train" not in failures.explain(
        MemoryError(), "sample"
    )
    assert "data.size" in failures.explain(MemoryError(), "data")


@pytest.mark.parametrize("error", [TypeError("x"), XlaError("INTERNAL: x"), KeyError("x"), OSError("cannot identify")])
def test_a_bug_keeps_its_traceback_below_a_line(monkeypatch, capsys, error):
    def perform(*_):
        raise error

    monkeypatch.setattr(main, "perform", perform)
    monkeypatch.setattr(sys, "argv", ["pfgm_jax", "--mode=data", DIGITS])
    with pytest.raises(type(error)):
        main.main()
    err = capsys.readouterr().err
    assert "bug in pfgm_jax" in err and "--mode=data" in err and err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = start("--help", out=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout():
    with open("/dev/full", "w") as full:
        done = start("--help", out=full)
    assert done.returncode == 2 and b"no space left" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_terminal_without_unicode(tmp_path, settings):
    config = tmp_path / "c.py"
    config.write_text("print('σ')\nfrom pfgm_jax.errors import UserError\nraise UserError('needs σ')", encoding="utf-8")
    done = start(f"--config={config}", "--workdir=x", **settings)
    assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    assert b"cannot write" in start(DIGITS, f"--workdir={tmp_path}/run").stderr


@pytest.fixture
def of_a_person(tmp_path, monkeypatch, capsys):
    """Runs the text of a config file: what it raises, and stderr."""

    def run(text):
        path = tmp_path / "mine.py"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setattr(sys, "argv", ["pfgm_jax", f"--config={path}", f"--workdir={tmp_path}/run"])
        with pytest.raises(BaseException) as raised:
            main.main()
        assert not (tmp_path / "run").exists()
        return raised.type, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "text, words",
    [
        ("x = 1\ndef get_config(:\n", ["mine.py, line 2", "syntax"]),
        ("\nimport nosuchpackage\n", ["mine.py, line 2", "nosuchpackage"]),
        ("from pfgm_jax.recipes import nothing\n", ["mine.py, line 1", "nothing"]),
        ("x = 1\n", ["no function get_config"]),
        ("get_config = 3\n", ["must take one argument"]),
        ("def get_config():\n    pass\n", ["must take one argument"]),
        ("def get_config(arg):\n    pass\n", ["must return a modified config.default(), not NoneType"]),
        (b"\x80\x04\x95\xff\xfe", ["mine.py"]),
    ],
)
def test_mistakes_in_a_config_file_are_one_line(of_a_person, text, words):
    kind, err = of_a_person(text)
    assert kind is SystemExit and err.count("\n") == 1 and all(word in err for word in words), err


@pytest.mark.parametrize(
    "text", ["def get_config(arg):\n    return 1 / 0\n", "from pfgm_jax import recipes\nx = recipes.halflife('a', 1)\n"]
)
def test_a_bug_in_a_config_file_is_said_to_be_there(of_a_person, text):
    kind, err = of_a_person(text)
    assert issubclass(kind, Exception) and "your config file" in err and "mine.py, line 2" in err


ABSURD = ["train.batch=1000000000000", "model.channels=1000000000", "data.size=1000000", "model.multipliers=1000000",
          "sample.max_steps=1000000000000", "sample.frames=1000000000", "process.T=1000000000000", "optim.lr=inf",
          "process.P_mean=nan", "model.blocks=1000000", "sample.batch=1000000000000"]  # fmt: skip


@pytest.mark.parametrize("override", ABSURD)
def test_absurd_numbers_are_refused_before_they_take_memory(override):
    key, _, value = override.partition("=")
    config = config_file.load_config(f"{ROOT}/configs/digits.py:quick", {key: value})
    with pytest.raises(UserError, match=key):
        config_rules.check(config)


def test_a_network_that_no_machine_holds():
    config = config_file.load_config(f"{ROOT}/configs/digits.py:quick", {"model.channels": "16384"})
    with pytest.raises(UserError, match=r"parameters takes .* GiB .* lower model.channels=16384"):
        dry_run.prepare(config)


def test_words():
    assert [counted(n, "class") for n in (0, 1, 1437)] == ["0 classes", "1 class", "1,437 classes"]
    assert nearest("12", ["1", "2", "10"]) == "" and nearest("huen", ["heun"]) == "; did you mean 'heun'?"
    assert quoted("a\x1bb") == r"'a\x1bb'" and len(quoted("x" * 5000)) < 100
