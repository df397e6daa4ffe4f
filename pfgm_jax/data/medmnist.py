"""MedMNIST v2, the 2-D single-label sets at 28, 64, 128 and 224 px (Yang et al. 2023, https://medmnist.com).

A file is read from `data.dir`, or from a cache that fills itself from the official URL. URL, MD5, class names
and licence come from one place, the table INFO of the package `medmnist`. A cached file always has the
table's MD5; one in `data.dir` may differ with `data.check_md5=False`, and needs no table.
"""

import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple

from pfgm_jax.data.dataset import Dataset
from pfgm_jax.data.download import cached, verify
from pfgm_jax.data.npz import read_splits
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.storage import atomic

NAMES = (
    "bloodmnist", "breastmnist", "chestmnist", "dermamnist", "octmnist", "organamnist", "organcmnist",
    "organsmnist", "pathmnist", "pneumoniamnist", "retinamnist", "tissuemnist",
)  # fmt: skip
SIZES = (28, 64, 128, 224)
INSTALL = "pip install --no-deps medmnist"


class Official(NamedTuple):
    """What medmnist's table says of one file."""

    url: str
    md5: str
    classes: tuple[str, ...]
    licence: str


def load(data_config) -> Dataset:
    """The set `data_config.name` at `size` px, from the folder `dir` or, where that is empty, from the cache.

    `check_md5`, True where absent, holds files of `dir` to the official MD5. UserError for an unknown name or
    size, and for a file that is missing, damaged, not the official one, or not of MedMNIST's format.
    """
    name, size = data_config.name, data_config.size
    if name not in NAMES:
        raise UserError(f"{name} is not a 2-D MedMNIST set; they are {', '.join(NAMES)}{nearest(name, NAMES)}")
    if name == "chestmnist":
        raise UserError(
            "chestmnist is multi-label (an image may have several of 14 findings) and only single-label sets "
            "are read: choose another, such as data.name=pneumoniamnist"
        )
    if size not in SIZES:
        raise UserError(f"data.size={size}: MedMNIST comes at {', '.join(map(str, SIZES))} px")

    file = f"{name}.npz" if size == 28 else f"{name}_{size}.npz"
    official = _official(name, size)
    if data_config.dir:
        path = atomic.expanded(data_config.dir) / file
        _require(path)
        verified = official is not None and getattr(data_config, "check_md5", True)
        if verified:
            verify(path, official.md5, "replace it, or pass data.check_md5=False if it is your own")
    else:
        if official is None:
            raise UserError(
                f"the official URL and MD5 of {file} are in a package that is not installed: {INSTALL}; "
                f"or, with {file} in a folder of yours, pass data.dir=FOLDER"
            )
        path, verified = cached(official.url, file, official.md5), True

    splits = read_splits(path, size)
    if official is None:
        note = f"MD5 not checked and classes not named, as medmnist's table is missing ({INSTALL})"
        print(f"{path}: {note}", file=sys.stderr)
    highest = max(int(split.labels.max()) for split in splits.values())
    classes = official.classes if official else tuple(str(label) for label in range(highest + 1))
    if highest >= len(classes):
        raise UserError(
            f"{path} has a label {highest}, but the classes of {name} are 0 to {len(classes) - 1}: "
            f"relabel it or give another data.dir"
        )
    return Dataset(
        name,
        **splits,
        classes=classes,
        licence=official.licence if official else "not known here; see https://medmnist.com",
        source=f"MedMNIST v2, {file}, " + (f"MD5 {official.md5}" if verified else "MD5 not checked"),
    )


def _official(name: str, size: int) -> Official | None:
    """medmnist's entry for a file, or None where medmnist is not installed."""
    try:
        # Without torch, which its table does not need, medmnist prints a complaint.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from medmnist import INFO
    except ImportError:
        return None
    entry, suffix = INFO[name], "" if size == 28 else f"_{size}"
    if f"url{suffix}" not in entry or f"MD5{suffix}" not in entry:
        raise UserError(f"the installed medmnist has no {name} at {size} px: {INSTALL} --upgrade")
    classes = tuple(entry["label"][str(i)] for i in range(len(entry["label"])))
    return Official(entry[f"url{suffix}"], entry[f"MD5{suffix}"], classes, entry["license"])


def _require(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"data.dir={path.parent} is not a folder: give one with {path.name} in it")
    if not path.is_file():
        raise UserError(f"{path} does not exist: put it there, or leave out data.dir to download it")
