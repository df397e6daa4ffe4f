"""Files from elsewhere cannot run code: nothing in the sources unpickles or evaluates what it reads."""

import ast
import pathlib

import pytest

import pfgm_jax

ROOT = pathlib.Path(pfgm_jax.__file__).parents[1]
SOURCES = sorted(path for place in ("pfgm_jax", "configs", "benchmarks") for path in (ROOT / place).rglob("*.py"))
MODULES = {
    "runpy",
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "_pickle",
    "torch",
    "yaml",
}
CALLS = {"eval", "exec", "compile", "__import__", "exec_module"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# A config file is Python and is run, as --help says: the person who starts the command has chosen it.
# The reader of checkpoints takes the opcodes' numbers from `pickle`, and calls nothing of it.
ALLOWED = {("config_file.py", "exec_module"), ("pickle_machine.py", "pickle")}


def dangers(tree):
    """Names of what in a syntax tree can run code from a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ({alias.name.split(".")[0] for alias in node.names} & MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ({node.module.split(".")[0]} & MODULES)
        elif isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            owner = getattr(getattr(function, "value", None), "id", "")
            if name in CALLS and (isinstance(function, ast.Name) or name not in BUILTINS):  # re.compile is another
                yield name
            if owner == "pickle" or name == "Unpickler":
                yield f"pickle.{name}"
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and getattr(keyword.value, "value", None) is not False:
                    yield "allow_pickle"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles(path):
    found = {(path.name, name) for name in dangers(ast.parse(path.read_text(encoding="utf-8")))}
    assert not found - ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from torch import load", "import yaml", "np.load(f, allow_pickle=True)", "eval(text)",
        "np.load(f, allow_pickle=flag)", "spec.loader.exec_module(module)", "exec(compile(text, 'f', 'exec'))",
    ],
)  # fmt: skip
def test_the_walk_sees(line):
    assert list(dangers(ast.parse(line)))


def test_opcodes_of_pickle_are_no_calls():
    assert set(dangers(ast.parse("import pickle\nstop = pickle.STOP"))) == {"pickle"}
    assert "pickle.loads" in dangers(ast.parse("import pickle\npickle.loads(data)"))
