"""The files of a checkpoint's folder, listed in it with their sizes and SHA-256: so that damage can be named.

The list is written after the folder has its name. It guards nothing by itself: the values are checked array by array
(`checkpoint`), with the list or without it, as in the folders of older versions.
"""

import json
import os
import pathlib

from pfgm_jax.errors import printable
from pfgm_jax.storage import atomic, digests

LIST = "files.json"


def write(folder):
    """Lists what lies in `folder`, in `folder`."""
    folder = pathlib.Path(folder)
    files = {name: [(folder / name).stat().st_size, digests.of_file(folder / name)] for name in _files(folder)}
    atomic.write_text(folder / LIST, json.dumps({"files": files, "sha256": digests.of_json(files)}, indent=1) + "\n")


def changes(folder):
    """What is not as it was listed, a line each, in the order of names: files that are missing, changed or strays.

    All of them are read. Without a list there is nothing to say.
    """
    folder = pathlib.Path(folder)
    try:
        files = _listed(folder)
    except ValueError as error:
        return [str(error)]
    if files is None:
        return []
    there = set(_files(folder))
    lines = dict.fromkeys(files.keys() - there, "is missing") | _strays(folder, files)
    for name in files.keys() & there:
        try:
            if (folder / name).lstat().st_size != files[name][0]:
                lines[name] = "was cut off or has grown"
            elif digests.of_file(folder / name) != files[name][1]:
                lines[name] = "was changed"
        except OSError as error:
            lines[name] = f"cannot be read: {error.strerror or error}"
    return [f"{printable(name)} {line}" for name, line in sorted(lines.items())]


def strays(folder):
    """The lines of `changes` about files and folders that are not listed: no file is read for them."""
    folder = pathlib.Path(folder)
    try:
        files = _listed(folder)
    except ValueError as error:
        return [str(error)]
    return (
        [] if files is None else [f"{printable(name)} {line}" for name, line in sorted(_strays(folder, files).items())]
    )


def _listed(folder):
    """{name: [bytes, SHA-256]} as listed, None where nothing is; ValueError for a damaged list."""
    try:
        recorded = json.loads((folder / LIST).read_text(encoding="utf-8"))
        if recorded["sha256"] == digests.of_json(recorded["files"]):
            return recorded["files"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{LIST} is damaged")


def _strays(folder, files):
    parents = {str(parent) for name in files for parent in pathlib.PurePath(name).parents}
    lines = dict.fromkeys(set(_files(folder)) - files.keys() - {LIST}, "is a stray file")
    return lines | dict.fromkeys(_folders(folder) - parents, "is a stray folder")


def _files(folder):
    """Names below `folder` of all that is no folder."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(os.fspath(path.relative_to(folder)) for path in found)


def _folders(folder):
    found = (path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())
    return {os.fspath(path.relative_to(folder)) for path in found}
