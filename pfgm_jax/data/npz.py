"""npz files: MedMNIST's six arrays, and images of a person's own (the source "npz").

Nothing is unpickled, and no array is allocated before the sizes that the file declares agree.
"""

import contextlib
import math
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from tqdm.utils import CallbackIOWrapper

from pfgm_jax import parallel
from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.data.download import one_line
from pfgm_jax.data.splits import NAMES, TRAIN, hold_out, warn_missing
from pfgm_jax.errors import UserError, counted, printable
from pfgm_jax.storage import atomic

MAX_BYTES = 64 * 10**9  # unpacked; MedMNIST's largest file is 17 GB
MAX_CLASSES = 100_000  # a larger label is no class but a mistake
AGAIN = "download it again, or give another data.dir"
PLAIN = ("images", "x"), ("labels", "y")  # keys of a file without splits


def load(data_config) -> Dataset:
    """Images uint8 [n, size, size(, 1 or 3)] of the file `dir`, or of the one npz file in the folder `dir`.

    The file holds train_images and train_labels, and the like for val and test as far as it has them; or images and
    labels (or x and y), without splits. Splits that are missing are taken from the training images: the shares
    data.val and data.test, by data.split_seed. Without labels all images are of one class; `classes`, an array of
    words, may name them. UserError for whatever is wrong with the file.
    """
    path = _find(data_config)
    with opened(path) as archive:
        present = _present(archive)
        splits = [name for name in NAMES if f"{name}_images" in present]
        if "train" in splits:
            keys = {name: (f"{name}_images", f"{name}_labels") for name in splits}
        else:
            images, labels = (next((key for key in pair if key in present), pair[0]) for pair in PLAIN)
            if images not in present:
                contents = ", ".join(list(present)[:6]) or "nothing"
                raise UserError(f"{path} has {contents}: name the arrays images and labels, or train_images and so on")
            splits, keys = ["train"], {"train": (images, labels)}
        labelled = [labels in present for _, labels in keys.values()]
        if any(labelled) and not all(labelled):
            lacking = [labels for _, labels in keys.values() if labels not in present]
            raise UserError(f"{path} lacks {', '.join(lacking)}: give every split its labels, or none")
        wanted = [key for pair in keys.values() for key in pair if key in present]
        names = ["classes"] if "classes" in present else []
        # Splits that are held out are copies, beside the whole that they are taken from.
        copies = 1 if {*NAMES} <= {*splits} else 2
        arrays = read_arrays(archive, path, [*wanted, *names], data_config.size, empty=True, copies=copies)
    by_split = make_splits(path, arrays, keys)
    missing = [part for part, name in enumerate(NAMES) if name not in by_split]
    if missing:
        whole = by_split["train"]
        parts = hold_out(np.full(len(whole), TRAIN), whole.labels, data_config, missing)
        for part in (TRAIN, *missing):
            by_split[NAMES[part]] = Split(whole.images[parts == part], whole.labels[parts == part])
        counts = " and ".join(f"{len(by_split[NAMES[part]])} {NAMES[part]}" for part in missing)
        line = f"{path}: {counts} images are taken from {counted(len(whole), 'training image')}"
        print(printable(line), file=sys.stderr)
    if not len(by_split["train"]):
        raise UserError(f"{path}: nothing to train on: lower data.val and data.test")
    highest = max(int(split.labels.max(initial=0)) for split in by_split.values())
    default = [str(label) for label in range(highest + 1)] if all(labelled) else ["images"]
    classes = tuple(arrays["classes"].tolist() if names else default)
    if highest >= len(classes):
        named = counted(len(classes), "class")
        raise UserError(f"{path} has a label {highest} and names {named}: name {highest + 1} or relabel")
    dataset = Dataset(data_config.name, **by_split, classes=classes, licence="that of your file", source=path.name)
    warn_missing(dataset)
    return dataset


def read_splits(path: Path, size: int, splits=NAMES) -> dict[str, Split]:
    """The `splits` of a file with MedMNIST's arrays, each with images [n, size, size(, 1 or 3)] and labels, n >= 1.

    UserError for whatever is wrong with the file.
    """
    keys = {split: (f"{split}_images", f"{split}_labels") for split in splits}
    wanted = [key for pair in keys.values() for key in pair]
    with opened(path) as archive:
        present = _present(archive)
        missing = [key for key in wanted if key not in present]
        if missing:
            contents = ", ".join(list(present)[:6]) or "nothing"
            raise UserError(
                f"{path} lacks {', '.join(missing)} and has {contents}: MedMNIST's arrays are {', '.join(wanted)}"
            )
        arrays = read_arrays(archive, path, wanted, size)
    return make_splits(path, arrays, keys)


def split_names(path: Path) -> list[str]:
    """Those of train, val and test of which a file has images; UserError if it is no npz file."""
    with opened(path) as archive:
        present = _present(archive)
    return [name for name in NAMES if f"{name}_images" in present]


@contextlib.contextmanager
def opened(path: Path):
    """The npz file as a ZipFile; what goes wrong in reading it becomes a UserError."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise UserError(f"{path} is not a file: give an npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} does not fit in memory: use a smaller data.size or data set") from error
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            if stream.read(2) != b"PK":
                raise UserError(f"{path} is not an npz file (not a zip archive): {AGAIN}") from error
        raise UserError(f"{path} is cut short, damaged or unreadable ({one_line(error)}): {AGAIN}") from error


def read_arrays(archive, path, keys, size, empty=False, copies=1) -> dict[str, np.ndarray]:
    """The arrays of those keys, after their declared types, shapes and sizes are found right.

    Images (keys that end in images, or x) are uint8 [n, size, size(, 1 or 3)], all of one shape; `classes` words;
    others labels, one an image. With `empty`, val and test may be without images. Memory is to hold them `copies`
    times.
    """
    present = _present(archive)
    unpacked = sum(present[key].file_size for key in keys)
    if unpacked > MAX_BYTES:
        raise UserError(
            f"{path} would unpack to {unpacked / 1e9:.0f} GB, over the limit of {MAX_BYTES / 1e9:.0f} GB: "
            f"no MedMNIST file is that large, get it from its official source"
        )
    free = parallel.host_memory()
    if copies * unpacked > free:
        packed, unpacked, needed, free = (
            f"{size / 1e9:.3g} GB" for size in (path.stat().st_size, unpacked, copies * unpacked, free)
        )
        raise UserError(
            f"{path} ({packed}) unpacks to {unpacked} and takes {needed} of memory, of which {free} are free: make it "
            "smaller, or save image files for data.name=folder, which are read as they are needed"
        )
    shapes = {}
    for key in keys:
        shapes[key], dtype = _read_header(archive, present[key])
        if dtype.hasobject:
            raise UserError(f"{path}: {key} is pickled (an object array), which is never loaded: save it as numbers")
        _check_array(path, key, shapes[key], dtype, size, empty and key.startswith(("val", "test")))
    images = [key for key in keys if _is_images(key)]
    for key in images:
        labels = key.removesuffix("images") + "labels" if key != "x" else "y"
        labels = next((k for k in (labels, "labels", "y") if k in keys), None)
        if labels and shapes[labels][0] != shapes[key][0]:
            counts = f"{shapes[key][0]} {key} but {shapes[labels][0]} {labels}"
            raise UserError(f"{path}: {counts}: give every image one label")
        if shapes[key][1:] != shapes[images[0]][1:]:
            names = f"{key.removesuffix('_images')} and {images[0].removesuffix('_images')}"
            raise UserError(f"{path}: {names} images differ in shape: {FORMAT}")
    with tqdm(total=unpacked, unit="B", unit_scale=True, desc=f"reading {path.name}", delay=1) as bar:
        return {key: _read_member(archive, present[key], bar) for key in keys}


FORMAT = "images are uint8 [n, s, s] or [n, s, s, 3], labels integer [n, 1] or [n]"


def _check_array(path, key, shape, dtype, size, may_be_empty):
    """UserError unless an array's declared shape and type are those of its key."""
    described = f"{path}: {key} is {dtype} {list(shape)}"
    if key == "classes":
        if dtype.kind != "U" or len(shape) != 1:
            raise UserError(f"{described}: save the classes' names as numpy.array of words, one a label")
        return
    if _is_images(key):
        square = len(shape) in (3, 4) and shape[1] == shape[2] and shape[3:] in ((), (1,), (3,))
        good = dtype == np.uint8 and square
        if len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3]:
            raise UserError(f"{described}: channels come last, save numpy.moveaxis({key}, 1, -1)")
    else:
        good = dtype.kind in "iu" and len(shape) in (1, 2)
    if not good or not shape[0] and not may_be_empty:
        raise UserError(f"{described}: {FORMAT}")
    if _is_images(key) and shape[1] != size:
        requested = f"not the {size} px of data.size"
        raise UserError(f"{path} has {shape[1]} px images, {requested}: change the size or the file")
    if not _is_images(key) and shape[1:] not in ((), (1,)):
        raise UserError(f"{path}: {key} {list(shape)} is multi-label: save one label an image, [n]")


def make_splits(path, arrays, keys) -> dict[str, Split]:
    """Splits by name of `arrays`; keys: {name: (key of the images, key of the labels)}. Absent labels are all 0."""
    splits = {}
    for name, (images_key, labels_key) in keys.items():
        images = arrays[images_key]
        labels = arrays[labels_key].reshape(-1) if labels_key in arrays else np.zeros(len(images), np.int32)
        if len(labels) and (labels.min() < 0 or labels.max() >= MAX_CLASSES):
            span = f"{labels_key} run from {labels.min()} to {labels.max()}"
            raise UserError(f"{path}: {span} and must be at least 0 and below {MAX_CLASSES:,}: {AGAIN}")
        splits[name] = Split(images if images.ndim == 4 else images[..., None], labels.astype(np.int32))
    return splits


def _find(data_config):
    """The file that `dir` is or, if it is a folder, the one npz file in it."""
    if not data_config.dir:
        raise UserError("give the file: data.dir=FILE.npz")
    path = atomic.expanded(data_config.dir)
    if path.is_file():
        return path
    if not path.is_dir():
        what = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"data.dir={path} {what}: give an npz file, or a folder with one")
    files = sorted(file for file in path.glob("*.npz") if file.is_file())
    if len(files) != 1:
        contents = counted(len(files), "npz file") if files else "no npz file"
        raise UserError(f"{path} holds {contents}: give the file itself, data.dir={path}/FILE.npz")
    return files[0]


def _present(archive):
    """Members of the archive by key."""
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def _is_images(key):
    return key.endswith("images") or key == "x"


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one .npy member; ValueError if its declared size is not what they take."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed by a method that numpy does not use")
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


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, bar) -> np.ndarray:
    """One array, with its progress; zipfile compares its CRC as the last byte is read."""
    with archive.open(info) as stream:
        return np.lib.format.read_array(CallbackIOWrapper(bar.update, stream, "read"), allow_pickle=False)
