"""A config file: Python with a function get_config(arg) that returns a config."""

import importlib.util
import inspect
import os
import pathlib
import traceback

from ml_collections import ConfigDict

from pfgm_jax.config import override
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.storage import atomic


def load_config(argument, overrides=None):
    """The config that `FILE[:ARGS]` and the overrides make.

    Raises:
      UserError: no such file, one that is no Python or imports what there is not, no get_config in it, or an argument
        or key that it does not know. Other exceptions of the file's code pass through.
    """
    path, _, args = (argument or "").partition(":")
    if not path:
        raise UserError("--config=FILE is missing, such as --config=configs/digits.py")
    path = atomic.expanded(path)
    if not path.is_file():
        near = [str(file) for folder in {path.parent, pathlib.Path("configs")} for file in sorted(folder.glob("*.py"))]
        raise UserError(f"--config={path}: there is no such file{nearest(str(path), near)}")
    get_config = getattr(_execute(path), "get_config", None)
    if get_config is None:
        raise UserError(f"--config={path} has no function get_config(arg)")
    try:
        inspect.signature(get_config).bind(args or None)
    except (TypeError, ValueError):
        raise UserError(f"get_config of {path} must take one argument: the text behind FILE:, or None") from None
    config = get_config(args or None)
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {path} returns {type(config).__name__}: return the changed config.default()")
    for key, text in (overrides or {}).items():
        override(config, key, text)
    return config


def _execute(path):
    """The module of a config file; UserError for one that is no Python or imports what there is not."""
    spec = importlib.util.spec_from_file_location("pfgm_jax_run_config", path)
    if spec is None:
        raise UserError(f"--config={path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from None
    except ImportError as error:
        raise UserError(f"{path}, line {line_in(path, error)}: {error}") from None
    return module


def line_in(path, error):
    """The line of a file that was executed when an exception came, the innermost; None if none was."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(path)]
    return lines[-1] if lines else None
