"""The public face: every name is there, and none costs anything before it is used."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import pfgm_jax as pf


@pytest.mark.parametrize("name", pf.__all__)
def test_every_name_is_there_and_in_the_table_of_contents(name):
    value = getattr(pf, name)
    assert name in dir(pf) and vars(pf)[name] is value
    # Words of the contents, and not parts of others ("load_data") or of attributes ("Generator.restore").
    contents = pf.__doc__.partition("\nRuns\n")[2]
    assert re.search(rf"(?<![\w.]){name}(?!\w)", contents), name
    assert name == "SOLVERS" or value.__doc__


def test_a_type_checker_sees_the_same_names():
    tree = ast.parse(pathlib.Path(pf.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for line in block.body:
        seen |= {alias.asname: (line.module, alias.name) for alias in line.names}
    assert seen.keys() == pf._MODULES.keys()
    for name, (module, there) in seen.items():
        assert getattr(importlib.import_module(module), there) is getattr(pf, name), name


def test_importing_it_imports_no_jax():
    check = "import sys, pfgm_jax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_a_misspelt_name_gets_the_right_one():
    with pytest.raises(AttributeError, match="no 'exact_denoise'; did you mean 'exact_denoiser'"):
        pf.exact_denoise  # noqa: B018
