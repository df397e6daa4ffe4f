"""The shape of the package: imports go downwards only."""

import ast
import pathlib

import jax
import jaxtyping
import numpy as np
import pytest
import variants

import pfgm_jax
from pfgm_jax.flow import process

LAYERS = [
    {"errors", "array_types"},
    {"failures", "interrupt", "presets", "job", "lost", "storage"},
    {"parallel"},
    {"flow", "models", "data", "plots", "averages"},
    {"sampling", "metrics"},
    {"inference"},
    {"run"},
    {"config"},
    {"config_rules"},
    {"recipes", "run_record", "config_file"},
    {"run_folder"},
    {"stored_run"},
    {"generator"},
    {"training", "evaluation", "lessons"},
    {"exchange", "explorer", "study", "doctor"},
    {"modes"},
    {"main"},
]
PACKAGE = pathlib.Path(pfgm_jax.__file__).parent


def imported(path):
    """Rooms of the package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pfgm_jax":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("pfgm_jax."))


def test_imports_go_downwards():
    level = {package: i for i, packages in enumerate(LAYERS) for package in packages}
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if package == "__init__":
            continue
        for other in imported(path):
            if other in level and other != package:
                assert level[other] < level[package], f"{path.name} imports {other}, which is not below {package}"


def test_every_room_has_a_level():
    files = [p for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]  # not the weights
    packages = {p.stem for p in files if not p.name.startswith("__")}
    assert packages == set().union(*LAYERS)


def test_shapes_are_checked_in_tests():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(jaxtyping.TypeCheckError):
        process.perturb(process.edm(), jax.random.split(jax.random.key(0), 2), x, np.ones(3, np.float32))


def test_only_parallel_knows_devices():
    words = ("jax.device_count", "jax.local_device", "jax.process_", "jax.distributed", "jax.pmap", "axis_index")
    for path in PACKAGE.rglob("*.py"):
        if path.name != "parallel.py":
            assert not [word for word in words if word in path.read_text()], path


def test_what_is_marked_slow_is_there():
    tests = pathlib.Path(__file__).parent
    for path in {*variants.SLOW, *variants.QUICK}:
        defined = {n.name for n in ast.walk(ast.parse((tests / path).read_text())) if isinstance(n, ast.FunctionDef)}
        assert variants.SLOW.get(path, set()) | variants.QUICK.get(path, {}).keys() <= defined, path
