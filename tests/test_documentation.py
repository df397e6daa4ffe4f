"""What README.md and docs/ say: commands and settings that exist, Python that runs, links that lead somewhere."""

import doctest
import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys

import documented
import pytest

import pfgm_jax
from pfgm_jax import config_file, main
from pfgm_jax.config import default, flatten, override
from pfgm_jax.study import plan

ROOT, PAGES = documented.ROOT, documented.PAGES
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def commands_of_main(page):
    """The arguments of every whole command of the package on a page."""
    found = [command for command in documented.commands(page) if re.match(documented.MAIN, command)]
    return [shlex.split(re.sub(documented.MAIN, "", command)) for command in found]


@every_page
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for argv in commands_of_main(page):
        flags, overrides = main.parse(argv)
        if main.MODES[flags.mode].config == "study":
            plan.entries(*plan.load_study(flags.config), flags.workdir, overrides)
        elif flags.config:
            config_file.load_config(flags.config.replace("=PATH", "=."), overrides)
        elif not main.MODES[flags.mode].config:
            main._check_overrides(flags.mode, overrides)


def test_there_are_commands_to_check():
    assert sum(len(commands_of_main(page)) for page in PAGES) > 40


@every_page
def test_flags_and_settings_in_prose_exist(page):
    """`--mode=NAME`, `--config.SECTION.FIELD=VALUE` and `SECTION.FIELD=VALUE` are what the command line has."""
    fields = flatten(default())
    for word in " ".join(documented.spans(page)).split():
        if match := re.fullmatch(r"--mode=(\w+)", word):
            assert match[1] in main.MODES, word
        elif match := re.fullmatch(r"(--config\.)?(\w+\.\w+)=(.*)", word):
            _, key, value = match.groups()
            if match[1] or key.partition(".")[0] in default():
                assert key in fields, word
                if value not in ("", "…", "FILE", "FOLDER", "NAME"):
                    override(default(), key, value.strip("'"))


def test_the_configuration_reference_has_every_field_with_its_meaning():
    path = ROOT / "launch/docs_hooks.py"
    spec = importlib.util.spec_from_file_location("docs_hooks", path)
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    first, *rest = hooks.configuration().split("\n## ")
    sections = {"": first} | {text.partition("\n")[0]: text for text in rest}
    for key in flatten(default()):
        section, _, field = key.rpartition(".")
        assert re.search(rf"^\| `{field}` \| `.*?` \| .{{5,}} \|$", sections[section], re.MULTILINE), key


@every_page
def test_python_is_python(page):
    for text in documented.blocks(page, "python"):
        compile(text, page.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/inference.md", "docs/restoration.md"])
def test_python_of_whole_examples_runs(name, tmp_path, monkeypatch):
    """The pages whose examples begin with their imports."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for text in documented.blocks(ROOT / name, "python"):
        exec(text, names)
    if name == "README.md":
        assert names["samples"].shape == names["x"].shape and names["images"].shape == names["x0"].shape


def test_the_readme_shows_rows_of_the_whole_score():
    whole = documented.blocks(ROOT / "docs/measure.md", "")[0].splitlines()
    shown = documented.blocks(ROOT / "README.md", "")[0].splitlines()
    assert shown == [line for line in whole if line in shown] and len(shown) < len(whole)


@every_page
def test_files_that_are_linked_exist(page):
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", documented.prose(page)):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def modules_with_examples():
    """Modules of the package whose docstrings hold an example."""
    package = pathlib.Path(pfgm_jax.__file__).parent
    paths = [path.relative_to(package.parent) for path in package.rglob("*.py") if "    >>> " in path.read_text()]
    return sorted(".".join(path.with_suffix("").parts) for path in paths)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings_are_right(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]' to test it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "configuration/index.html").is_file()
    for page in tmp_path.rglob("index.html"):
        for link in re.findall(r'(?:href|src)="([^"#:?]+)["#?]', page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(tmp_path)} links to {link}"
