"""Eight CPU devices for every test, so that device counts can be compared in one process."""

import fnmatch
import importlib.metadata
import os
import pathlib
import sys

import jaxtyping
import pytest
import variants

TESTS = pathlib.Path(__file__).parent

# Tests compile far more than they compute: the optimisation of machine code would take most of their time, and the CPU
# compiler's newer fusion emitters nearly twice as long as its older ones, which later versions have no more.
OLDER = " --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else ""
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + OLDER
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No test reads or fills the cache of the person who runs it.
os.environ["PFGM_JAX_CACHE"] = os.path.join(os.path.dirname(__file__), "../.pytest_cache/pfgm_jax")
# Tests that train the same network share its programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.dirname(__file__), "../.pytest_cache/xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

# Packages whose annotations, shapes among them, are checked at every call: before anything of the package is imported.
CHECKED = ["flow", "sampling", "inference", "metrics", "generator"]
jaxtyping.install_import_hook([f"pfgm_jax.{package}" for package in CHECKED], "checked.types")


def pytest_collection_modifyitems(config, items):
    unused = {(path, test, p) for path, tests in variants.QUICK.items() for test, kept in tests.items() for p in kept}
    waiting = {(path, test) for path, test, _ in unused}
    for item in items:
        path = item.path.relative_to(TESTS).as_posix()
        test, _, variant = item.name.partition("[")
        patterns = variants.QUICK.get(path, {}).get(test, {"*"})
        quick = {pattern for pattern in patterns if fnmatch.fnmatchcase(variant.removesuffix("]"), pattern)}
        unused -= {(path, test, pattern) for pattern in quick}
        if test in variants.SLOW.get(path, ()) or not quick:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow") is None:
            waiting.discard((path, test))
    # Where all are collected: a variant that was renamed, or that is slow by a mark of its own, would wait in silence.
    if config.args == ["tests"] and (unused or waiting):
        raise pytest.UsageError(f"tests/variants.py keeps no quick variant here: {sorted(unused) + sorted(waiting)}")


@pytest.fixture
def x64():
    """float64 inside the test, for oracles that need more digits than float32 holds."""
    import jax  # not before the environment is set

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs are many memory maps each, and a process may hold only so many (65530 on Linux)."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs main in this process: (exit code, stdout, stderr)."""
    from pfgm_jax import main

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["pfgm_jax", *map(str, argv)])
        code = 0
        try:
            main.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
