"""The public face: every name is there, and none costs anything before it is used."""

import subprocess
import sys

import pytest

import pfgm_jax as pf


@pytest.mark.parametrize("name", pf.__all__)
def test_every_name_is_there_and_in_the_table_of_contents(name):
    value = getattr(pf, name)
    assert value is getattr(pf, name) and name in dir(pf)
    assert name in pf.__doc__
    assert name == "SOLVERS" or value.__doc__


def test_importing_it_imports_no_jax():
    check = "import sys, pfgm_jax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_a_misspelt_name_gets_the_right_one():
    with pytest.raises(AttributeError, match="no 'exact_denoise'; did you mean 'exact_denoiser'"):
        pf.exact_denoise  # noqa: B018
