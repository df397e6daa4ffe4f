"""Paths as people write them, and files that appear whole or not at all."""

import contextlib
import errno
import os
import pathlib
import re
import tempfile

from pfgm_jax.errors import UserError


def expanded(path):
    """The Path that a person means: ~ is the home folder, ~NAME that of NAME.

    A shell leaves a ~ behind `--workdir=` alone. Raises UserError where there is no such home, and for a bucket's
    address, which would silently become a folder called "gs:".
    """
    if bucket := re.match(r"(gs|s3|hdfs|az)://([^/]*)/*(.*)", str(path)):
        kind, name, rest = bucket.groups()
        mount = f"gcsfuse {name} ~/{name}" if kind == "gs" else "mount it as a folder"
        raise UserError(
            f"{path} is the address of a bucket, not a folder: mount the bucket first ({mount}) and write the "
            f"folder, such as ~/{name}/{rest}"
        )
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no home folder for this ~; write the whole path") from None


def cache_root():
    """The folder of what is kept between runs: PFGM_JAX_CACHE, or ~/.cache/pfgm_jax."""
    return expanded(os.environ.get("PFGM_JAX_CACHE") or "~/.cache/pfgm_jax")


@contextlib.contextmanager
def without_traces(*folders):
    """Removes the empty folders that a failed block has made at or right below `folders`: a refusal leaves nothing."""
    places = [pathlib.Path(folder) for folder in folders]
    before = {path for place in places for path in _with_children(place)}
    parents = [parent for place in places for parent in place.parents if not parent.exists()]
    try:
        yield
    except BaseException:
        created = [path for place in places for path in _with_children(place) if path not in before]
        for path in sorted(created, reverse=True) + parents:
            with contextlib.suppress(OSError):  # not empty, or not a folder
                path.rmdir()
        raise


def _with_children(folder):
    """The folder and the folders right in it, if it is there."""
    try:
        return [folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())]
    except OSError:  # absent, no folder, or not ours to read
        return []


@contextlib.contextmanager
def replacing(path):
    """A temporary path beside `path`, which takes its name when the block ends, or is removed when the block fails.

    A reader sees the old file or the new one, never a part. The temporary name holds the process's number, so that two
    processes do not write into one file.

        with replacing(folder / "config.json") as temporary:
            temporary.write_text(text)
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())  # or a crash of the machine could leave the name without the bytes
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_text(path, text):
    """Writes UTF-8 text in one piece."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def writable(folder):
    """Makes a folder, before anything long is done for it; UserError where nothing can be written there."""
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
    return folder


@contextlib.contextmanager
def writing_to(folder):
    """An OSError of writing to `folder` while the block runs is a UserError: a full disk is no bug."""
    try:
        yield
    except OSError as error:
        if not concerns(folder, error):
            raise
        raise UserError(unwritable(folder, error)) from None


_FULL = (errno.ENOSPC, errno.EDQUOT)


def concerns(folder, error):
    """Whether an OSError is of writing to `folder`: its disk is full or read-only, or the folder is gone."""
    if not os.path.isdir(folder) or error.errno in (*_FULL, errno.EROFS):
        return True
    names = [os.path.abspath(os.fspath(name)) for name in (error.filename, error.filename2) if isinstance(name, str)]
    return any(os.path.commonpath([name, os.path.abspath(folder)]) == os.path.abspath(folder) for name in names)


def unwritable(folder, error):
    """Why the OSError `error` kept a file from being written to `folder`, and what to do: a line for a person."""
    if error.errno in _FULL:
        return f"the disk that holds {folder} is full: free some space and run the same command again"
    if not os.path.isdir(folder):
        return f"{folder} is gone: it was moved or removed, or its disk was unmounted; put it back"
    return f"cannot write to {folder}: {error.strerror or error}"
