"""What README.md and docs/ tell people to type."""

import pathlib
import re
import shlex
import shutil

import pytest

from pfgm_jax import config_file, generator, main
from pfgm_jax.study import plan

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for p in ROOT.glob("docs/*.md") if not p.is_symlink())]
)


def blocks(page, *languages):
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands(page):
    lines = [line for text in blocks(page, "sh", "") for line in text.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[3:] for line in lines if line.startswith("python -m pfgm_jax.main")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for argv in commands(page):
        flags, overrides = main.parse(argv)
        if main.MODES[flags.mode].config == "study":
            plan.entries(*plan.load_study(flags.config), flags.workdir, overrides)
        elif flags.config:
            config_file.load_config(flags.config.replace("=PATH", "=."), overrides)
        elif not main.MODES[flags.mode].config:
            main._check_overrides(flags.mode, overrides)


def test_there_are_commands_to_check():
    assert sum(len(commands(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python(page):
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    shutil.copytree(generator.PRETRAINED / "digits", tmp_path / "runs/digits")
    monkeypatch.chdir(tmp_path)
    names = {}
    for text in blocks(ROOT / "README.md", "python"):
        exec(text, names)
    assert names["samples"].shape == names["x"].shape


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_linked_exist(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", prose):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
