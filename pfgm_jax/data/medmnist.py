"""MedMNIST v2, the 2-D single-label sets at 28, 64, 128 and 224 px (Yang et al. 2023, https://medmnist.com).

A file is read from `data.dir`, or from a cache that fills itself from the official URL. URL, MD5, class names
and licence come from one place, the table INFO of the package `medmnist`. A cached file always has the
table's MD5; one in `data.dir` may differ with `data.check_md5=False`, and needs no table.
"""

import contextlib
import hashlib
import http.client
import io
import math
import os
import sys
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.errors import UserError, nearest

NAMES = (
    "bloodmnist", "breastmnist", "chestmnist", "dermamnist", "octmnist", "organamnist", "organcmnist",
    "organsmnist", "pathmnist", "pneumoniamnist", "retinamnist", "tissuemnist",
)  # fmt: skip
SIZES = (28, 64, 128, 224)
SPLITS = ("train", "val", "test")
INSTALL = "pip install --no-deps medmnist"
TIMEOUT = 10  # seconds without a connection, or without a byte
MAX_BYTES = 64 * 10**9  # unpacked; the largest official file is 17 GB


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
        hint = nearest(name, NAMES) or ";"
        raise UserError(f"{name} is not a 2-D MedMNIST set{hint} they are {', '.join(NAMES)}")
    if name == "chestmnist":
        raise UserError(
            "chestmnist is multi-label (an image may have several of 14 findings) and only single-label sets "
            "are read: choose another, such as --config.data.name=pneumoniamnist"
        )
    if size not in SIZES:
        raise UserError(f"--config.data.size={size}: MedMNIST comes at {', '.join(map(str, SIZES))} px")

    file = f"{name}.npz" if size == 28 else f"{name}_{size}.npz"
    official = _official(name, size)
    if data_config.dir:
        path = Path(data_config.dir).expanduser() / file
        _require(path)
        verified = official is not None and getattr(data_config, "check_md5", True)
        if verified:
            _verify(path, official.md5, "replace it, or pass --config.data.check_md5=False if it is your own")
    else:
        if official is None:
            raise UserError(
                f"the official URL and MD5 of {file} are in a package that is not installed: {INSTALL}; "
                f"or, with {file} in a folder of yours, pass --config.data.dir=FOLDER"
            )
        path, verified = cache_dir() / file, True
        if path.exists():
            _verify(path, official.md5, "delete it, the next run downloads it anew")
        else:
            _download(official, path)

    splits = read_npz(path, size)
    if official is None:
        note = f"MD5 not checked and classes not named, as medmnist's table is missing ({INSTALL})"
        print(f"{path}: {note}", file=sys.stderr)
    highest = max(int(split.labels.max()) for split in splits)
    classes = official.classes if official else tuple(str(label) for label in range(highest + 1))
    if highest >= len(classes):
        raise UserError(
            f"{path} has a label {highest}, but the classes of {name} are 0 to {len(classes) - 1}: "
            f"relabel it or give another --config.data.dir"
        )
    return Dataset(
        name,
        *splits,
        classes=classes,
        licence=official.licence if official else "not known here; see https://medmnist.com",
        source=f"MedMNIST v2, {file}, " + (f"MD5 {official.md5}" if verified else "MD5 not checked"),
    )


def cache_dir() -> Path:
    """Where downloaded files are kept: $PFGM_JAX_CACHE/data, else ~/.cache/pfgm_jax/data."""
    return Path(os.environ.get("PFGM_JAX_CACHE") or "~/.cache/pfgm_jax").expanduser() / "data"


def read_npz(path: Path, size: int) -> tuple[Split, Split, Split]:
    """Train, val and test of a file with MedMNIST's six arrays; images [n, size, size] or [n, size, size, 3].

    Nothing is unpickled, and no array is allocated before the sizes that the file declares agree. UserError
    for whatever is wrong with the file.
    """
    again = "download it again, or give another --config.data.dir"
    try:
        with zipfile.ZipFile(path) as archive:
            members = _check_headers(archive, path, size)
            arrays = {key: _read_member(archive, info) for key, info in members.items()}
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} does not fit in memory: take a smaller --config.data.size or set") from error
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            if stream.read(2) != b"PK":
                raise UserError(f"{path} is not an npz file (not a zip archive): {again}") from error
        reason = f"cut short, damaged or unreadable ({_one_line(error)})"
        raise UserError(f"{path} is {reason}: {again}") from error

    splits = []
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
        if labels.min() < 0 or labels.max() >= 2**31:
            span = f"{labels.min()} to {labels.max()}"
            raise UserError(f"{path}: {split}_labels run from {span} and must be 0 or more: {again}")
        splits.append(Split(images if images.ndim == 4 else images[..., None], labels.astype(np.int32)))
    return tuple(splits)


def _check_headers(archive: zipfile.ZipFile, path: Path, size: int) -> dict[str, zipfile.ZipInfo]:
    """The six members by key, after their declared types, shapes and sizes are found to be MedMNIST's."""
    format_hint = "MedMNIST's format is images uint8 [n, s, s] or [n, s, s, 3], labels integer [n, 1] or [n]"
    present = {info.filename: info for info in archive.infolist()}
    keys = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    missing = [key for key in keys if f"{key}.npy" not in present]
    if missing:
        found = ", ".join(name.removesuffix(".npy") for name in list(present)[:6]) or "nothing"
        lack = f"{path} lacks {', '.join(missing)} and has {found}"
        raise UserError(f"{lack}: MedMNIST's arrays are {', '.join(keys)}")
    members = {key: present[f"{key}.npy"] for key in keys}
    unpacked = sum(info.file_size for info in members.values())
    if unpacked > MAX_BYTES:
        raise UserError(
            f"{path} would unpack to {unpacked / 1e9:.0f} GB, over the limit of {MAX_BYTES / 1e9:.0f} GB: "
            f"no MedMNIST file is that large, get it from its official source"
        )

    shapes = {}
    for key, info in members.items():
        shape, dtype = _read_header(archive, info)
        shapes[key] = shape
        if dtype.hasobject:
            raise UserError(f"{path}: {key} is pickled (an object array), never loaded: save it as numbers")
        if key.endswith("_images"):
            square = len(shape) in (3, 4) and shape[1] == shape[2] and shape[3:] in ((), (3,))
            good = dtype == np.uint8 and square
        else:
            good = dtype.kind in "iu" and len(shape) in (1, 2)
        if not good or not shape[0]:
            raise UserError(f"{path}: {key} is {dtype} {list(shape)}: {format_hint}")
        if key.endswith("_images") and shape[1] != size:
            asked = f"not the {size} px of --config.data.size"
            raise UserError(f"{path} has {shape[1]} px images, {asked}: change the size or the file")
        if key.endswith("_labels") and shape[1:] not in ((), (1,)):
            raise UserError(f"{path}: {key} {list(shape)} is multi-label: save one label an image, [n]")

    for split in SPLITS:
        images, labels = shapes[f"{split}_images"], shapes[f"{split}_labels"]
        if images[0] != labels[0]:
            counts = f"{images[0]} {split}_images but {labels[0]} {split}_labels"
            raise UserError(f"{path}: {counts}: give every image one label")
        if images[1:] != shapes["train_images"][1:]:
            raise UserError(f"{path}: {split} and train images differ in shape: {format_hint}")
    return members


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one .npy member; ValueError if its declared size is not what they take."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is packed by a method that numpy does not write")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename} has npy version {version}")
        npy = np.lib.format
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        try:
            shape, _, dtype = read_header(stream)
        except Exception as error:  # numpy evaluates the text as a literal: damage can raise nearly anything
            raise ValueError(f"{info.filename} has a broken header") from error
        needed = stream.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or not dtype.hasobject and needed != info.file_size:
        raise ValueError(f"{info.filename} takes {info.file_size} bytes but its header says {needed}")
    return shape, dtype


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array; zipfile compares its CRC as the last byte is read."""
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


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
        raise UserError(f"the installed medmnist knows no {name} at {size} px: {INSTALL} --upgrade")
    classes = tuple(entry["label"][str(i)] for i in range(len(entry["label"])))
    return Official(entry[f"url{suffix}"], entry[f"MD5{suffix}"], classes, entry["license"])


def _require(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"--config.data.dir={path.parent} is not a folder: give one with {path.name} in it")
    if not path.is_file():
        raise UserError(f"{path} does not exist: put it there, or leave out --config.data.dir to download it")


def _verify(path: Path, expected: str, advice: str, name: str = "") -> None:
    """UserError, naming the file `name` or by its path, unless its MD5 is the expected one."""
    try:
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_one_line(error)})") from error
    if found != expected:
        what = f"{name or path} is not the official file (MD5 expected {expected}, found {found})"
        raise UserError(f"{what}: {advice}")


def _download(official: Official, path: Path) -> None:
    """Fetch the official file: `path` appears whole and checked or not at all, also if two processes try."""
    elsewhere = f"get {path.name} by other means and pass --config.data.dir=FOLDER"
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    request = urllib.request.Request(official.url, headers={"User-Agent": "pfgm_jax"})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response, open(part, "wb") as out:
            length = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=length or None, unit="B", unit_scale=True, desc=path.name) as bar:
                while block := response.read(1 << 20):
                    out.write(block)
                    bar.update(len(block))
        _verify(part, official.md5, f"run again, or {elsewhere}", name=f"what came from {official.url}")
        os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:
        reason = f"cannot download {official.url} ({_one_line(error)})"
        raise UserError(f"{reason}: check the network, or {elsewhere}") from error
    finally:
        part.unlink(missing_ok=True)


def _one_line(error) -> str:
    return " ".join(str(error).split()) or type(error).__name__
