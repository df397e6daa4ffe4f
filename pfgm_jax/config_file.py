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

# The config files that come with the package: in a checkout a link to the folder configs/, in a wheel a copy of it.
SHIPPED = pathlib.Path(__file__).parent / "configs"


def load_config(argument, overrides=None):
    """The config of `FILE[:ARGS]` with the overrides; FILE is a path, or the name of a built-in config ("digits").

    Raises:
      UserError: no such file, one that is not Python or whose imports fail, no get_config in it, or an unknown argument
        or key. Other exceptions of the file's code pass through.
    """
    config, _ = call(argument, "get_config", ConfigDict, "a modified config.default()")
    for key, text in (overrides or {}).items():
        override(config, key, text)
    return config


def call(argument, function, kind, what):
    """(result of a function of FILE for ARGS, path of FILE), for `FILE[:ARGS]`; UserError as `load_config`.

    Args:
      function: its name. kind: the required type of the result, `what` in words.
    """
    name, _, args = (argument or "").partition(":")
    if not name:
        raise UserError("--config=FILE is missing: give a built-in config, such as --config=digits, or your own file")
    path = find(name)
    there = getattr(_execute(path), function, None)
    if there is None:
        raise UserError(f"--config={path} has no function {function}(arg)")
    try:
        inspect.signature(there).bind(args or None)
    except (TypeError, ValueError):
        raise UserError(f"{function} of {path} must take one argument: the text behind FILE:, or None") from None
    result = there(args or None)
    if not isinstance(result, kind):
        raise UserError(f"{function} of {path} must return {what}, not {type(result).__name__}")
    return result, path


def find(name):
    """The path of a config file: the file called `name`, or else the package's own of that name ("digits").

    Raises:
      UserError: neither exists.
    """
    path, shipped = atomic.expanded(name), SHIPPED / f"{name}.py"
    if path.is_file():
        return path
    if shipped.parent == SHIPPED and shipped.is_file():
        return shipped
    names = [file.stem for file in sorted(SHIPPED.glob("*.py"))]
    near = [str(file) for folder in {path.parent, pathlib.Path("configs")} for file in sorted(folder.glob("*.py"))]
    hint = nearest(str(path), near + names) or f"; the package has {', '.join(names)}"
    raise UserError(f"--config={path}: no such file{hint}")


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
    """The innermost line of a file in an exception's traceback; None if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(path)]
    return lines[-1] if lines else None
