"""CIFAR-10 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html) from its official binary archive.

All 50 000 training images are for training, as in the papers; of the 10 000 test images the first 1 000 are val, the
other 9 000 test. The archive is read as it is: an image is one byte of label and 3072 of pixels, channel by channel.
The same images come as Python pickles, which are never loaded.
"""

import tarfile
import zlib
from pathlib import Path

import numpy as np

from pfgm_jax.data import published
from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.data.download import cache_dir, cached, one_line, verify
from pfgm_jax.data.npz import split_names
from pfgm_jax.data.splits import NAMES
from pfgm_jax.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE, MD5 = "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = [f"data_batch_{i}.bin" for i in range(1, 6)]
FILES = [*TRAIN_FILES, "test_batch.bin"]
RECORDS = 10_000  # images in a file
RECORD = 1 + 3 * 32 * 32  # bytes
PICKLES = ("cifar-10-python.tar.gz", "cifar-10-batches-py", "data_batch_1")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SETS = {"cifar10": published.Facts(32, 50_000, CLASSES, "none stated; cite Krizhevsky 2009")}


def load(data_config) -> Dataset:
    """CIFAR-10 from `data.dir`, or downloaded to the cache where that is empty.

    `dir` is a folder with cifar10.npz, cifar-10-binary.tar.gz or cifar-10-batches-bin, or one of these itself. The
    archive has its official MD5 unless `check_md5` is False. UserError for whatever is wrong with a file.
    """
    facts = SETS[data_config.name]
    facts.check(data_config)
    path = find(data_config)
    if path is None and data_config.dir:
        raise UserError(_absent(published.folder(data_config)))
    if path is None or not data_config.dir:
        path = cached(URL, ARCHIVE, MD5)
    elif path.name.endswith(".tar.gz") and data_config.check_md5:
        verify(path, MD5, "replace it, or pass data.check_md5=False if it is your own")
    if path.suffix == ".npz":
        has_val = "val" in split_names(path)
        splits = published.from_npz(data_config, path, facts, NAMES if has_val else ("train", "test"))
    else:
        has_val, files = False, _from_folder(path) if path.is_dir() else _from_archive(path)
        train = np.concatenate([_records(path, name, files[name]) for name in TRAIN_FILES])
        splits = {"train": _split(train), "test": _split(_records(path, FILES[-1], files[FILES[-1]]))}
    if not has_val:
        images, labels = splits["test"].images, splits["test"].labels
        held = len(labels) // 10
        splits["val"], splits["test"] = Split(images[:held], labels[:held]), Split(images[held:], labels[held:])
    checked = path.name == ARCHIVE and (data_config.check_md5 or not data_config.dir)
    source = f"{path.name}, " + (f"MD5 {MD5}" if checked else "not checked")
    return published.dataset(data_config, facts, splits, source)


def find(data_config) -> Path | None:
    """What there is without a download: the npz file, the archive or the folder of its files, or None."""
    given = published.folder(data_config)
    if given is None:
        path = cache_dir() / ARCHIVE
        return path if path.is_file() else None
    if given.is_file() and given.name.endswith((".npz", ".tar.gz")) and given.name not in PICKLES:
        return given
    for path in (given / "cifar10.npz", given / ARCHIVE):
        if path.is_file():
            return path
    return next((path for path in (given / FOLDER, given) if (path / FILES[0]).is_file()), None)


def _absent(given):
    """Why a folder is no CIFAR-10, and what to do."""
    if given.name in PICKLES or any((given / name).exists() for name in PICKLES):
        return f"{given} holds CIFAR-10 as Python pickles, which are never loaded: get the binary version, {URL}"
    if not given.exists():
        return f"data.dir={given} does not exist: leave it out to download CIFAR-10"
    return f"{given} has no cifar10.npz, {ARCHIVE} or {FOLDER}: get {URL}, or leave out data.dir"


def _from_archive(path):
    """{name: bytes} of the archive's six files; nothing is unpacked to the disk."""
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in FILES or not member.isfile():
                    continue
                _check_length(path, name, member.size)
                files[name] = archive.extractfile(member).read()
            while archive.fileobj.read(2**20):  # gzip compares its CRC at the very end
                pass
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(
            f"{path} is cut short, damaged or not a .tar.gz archive ({one_line(error)}): get {URL} again"
        ) from error
    missing = [name for name in FILES if name not in files]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: get {URL}")
    return files


def _from_folder(path):
    """{name: bytes} of the six files in a folder."""
    files = {}
    for name in FILES:
        try:
            _check_length(path, name, (path / name).stat().st_size)
            files[name] = (path / name).read_bytes()
        except OSError as error:
            raise UserError(f"{path / name} cannot be read ({one_line(error)}): extract {ARCHIVE} again") from error
    return files


def _check_length(path, name, length):
    """UserError unless a file is as long as its records."""
    if length != RECORDS * RECORD:
        raise UserError(f"{path}: {name} has {length} bytes, not {RECORDS} × {RECORD}: get {URL} again")


def _records(path, name, content):
    """uint8 [RECORDS, RECORD], whose first bytes are found to be labels."""
    if len(content) != RECORDS * RECORD:
        raise UserError(f"{path}: {name} ends after {len(content)} bytes: get {URL} again")
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, RECORD)
    if records[:, 0].max() >= len(CLASSES):
        raise UserError(f"{path}: {name} has a label {records[:, 0].max()}, above 9: get {URL} again")
    return records


def _split(records):
    """The images, which lie channel by channel, as NHWC."""
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), records[:, 0].astype(np.int32))
