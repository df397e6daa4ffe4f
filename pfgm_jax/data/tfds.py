"""Image sets of TensorFlow Datasets that are prepared on this machine: `data.name="tfds:NAME[/CONFIG][:VERSION]"`.

They are read without TensorFlow, by random access, which needs the file format array_record. `data.dir` is TFDS's own
data_dir, as `tfds build --data_dir` fills it. The folder is found here and nothing is asked of the network: tfds itself
would look for an absent set in the cloud, for minutes where there is no way out.

Images of any sizes become squares of `data.size` px as those of a folder do, or as published: see RECIPES.
"""

import io
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pfgm_jax.data import celeba, images
from pfgm_jax.data.dataset import Dataset, LazyImages, Split
from pfgm_jax.data.download import one_line
from pfgm_jax.data.splits import NAMES, TEST, TRAIN, VAL, hold_out
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.storage import atomic

PREFIX = "tfds:"
INSTALL = "pip install tensorflow-datasets importlib_resources array_record"
CALLED = {"train": TRAIN, "validation": VAL, "valid": VAL, "val": VAL, "test": TEST}  # tfds's splits
CHUNK = 1024  # records read at once


class Recipe(NamedTuple):
    """How images become squares: the side of the central crop (None: the shorter side), and Pillow's filter."""

    crop: int | None = None
    resample: Image.Resampling = Image.Resampling.LANCZOS


# As the papers prepared them, see celeba.py and lsun.py.
RECIPES = {
    "celeb_a": Recipe(celeba.CROP, Image.Resampling.BILINEAR),
    "lsun": Recipe(None, Image.Resampling.BICUBIC),
}


def load(data_config) -> Dataset:
    """The prepared set `data_config.name`, its images as squares of `size` px.

    The image is the feature called image, or the only Image; the label the one called label, or the only ClassLabel,
    and without any all images are of one class. Validation and test images that the set does not have, or whose labels
    it hides (−1), are taken from the training images: the shares data.val and data.test, by data.split_seed. More than
    HOST_BYTES of pixels stay in their files and are decoded as they are needed.

    Raises:
      UserError: a set, config or version that is not prepared, a missing package, a file format without random access,
        or features that are no images with at most one label.
    """
    images.check_size(data_config.size)
    folder = _find(data_config)
    builder = _open(folder)
    info, what = builder.info, data_config.name
    image, label = _features(info.features, what)
    depth = info.features[image].shape[-1]
    shape = (data_config.size, data_config.size, data_config.channels or (1 if depth == 1 else 3))
    classes = tuple(info.features[label].names) if label else ("image",)

    tfds = _import()
    found = {CALLED[split]: split for split in info.splits if split in CALLED and info.splits[split].num_examples}
    if TRAIN not in found:
        raise UserError(f"{what} has no split called train, only {', '.join(info.splits)}")
    sources, labels = {}, {}
    for part, split in found.items():
        source = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
        values = _labels(source, label, f"{what} {split}")
        if part != TRAIN and len(values) and values.max() < 0:
            continue
        if values.min() < 0 or values.max() >= len(classes):
            raise UserError(
                f"{what} has {split} labels from {values.min()} to {values.max()}, not 0 to {len(classes) - 1}"
            )
        sources[part], labels[part] = source, values

    parts = np.full(len(labels[TRAIN]), TRAIN)
    missing = [part for part in (VAL, TEST) if part not in sources]
    if missing:
        parts = hold_out(parts, labels[TRAIN], data_config, missing)
    keep = images.fits(sum(map(len, labels.values())), shape)
    splits = {}
    for part, name in enumerate(NAMES):
        origin = TRAIN if part in missing else part
        rows = np.flatnonzero(parts == part) if origin == TRAIN else np.arange(len(labels[part]))
        pixels = _lazily(sources[origin], rows, image, shape, RECIPES.get(info.name, Recipe()), what)
        pixels = images.in_memory(pixels, f"{what} {name}") if keep else pixels
        splits[name] = Split(pixels, labels[origin][rows])
    licence = info.redistribution_info.license or "none stated by TensorFlow Datasets"
    return Dataset(what, **splits, classes=classes, licence=licence, source=f"TensorFlow Datasets, {info.full_name}")


def _find(data_config) -> Path:
    """The folder of the set, its config and version; UserError where there is none."""
    what = data_config.name
    match = re.fullmatch(r"tfds:([\w-]+)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?", what)
    if not match:
        raise UserError(f"data.name={what} is not tfds:NAME, tfds:NAME/CONFIG or either with :1.2.3 behind it")
    name, config, version = match.groups()
    given = data_config.dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = atomic.expanded(given)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give TensorFlow Datasets' data_dir with data.dir=FOLDER")
    folder = _child(root, name, f"{what} is not prepared in {root}", _how(f"{name}/{config}" if config else name, root))
    if config:
        folder = _child(folder, config, f"{name} has no config {config}", _how(f"{name}/{config}", root))
    elif not _versions(folder):
        configs = sorted(path.name for path in folder.iterdir() if path.is_dir() and _versions(path))
        if len(configs) != 1:
            some = f"write one of {', '.join(f'{PREFIX}{name}/{c}' for c in configs)}" if configs else _how(name, root)
            raise UserError(f"{what} is not one prepared set: {some}")
        folder /= configs[0]
    versions = _versions(folder)
    if version and version not in versions:
        raise UserError(f"{what}: prepared in {folder} is version {', '.join(versions) or 'none'}")
    if not versions:
        raise UserError(f"{what} is not prepared in {folder}: {_how(name, root)}")
    return folder / (version or versions[-1])


def _child(folder, name, complaint, advice):
    there = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if name not in there:
        raise UserError(f"{complaint}; {advice}{nearest(name, there)}")
    return folder / name


def _versions(folder):
    """Names of the finished versions in a folder, the newest last."""
    finished = (path.parent.name for path in folder.glob("*/dataset_info.json"))
    return sorted(
        (name for name in finished if re.fullmatch(r"\d+\.\d+\.\d+", name)), key=lambda v: [*map(int, v.split("."))]
    )


def _how(name, root):
    return (
        "prepare it, which needs TensorFlow: pip install 'pfgm_jax[tfds-prepare]' and "
        f"tfds build {name} --data_dir={root} --file_format=array_record"
    )


def _import():
    """The package tensorflow_datasets, or UserError."""
    try:
        import array_record  # noqa: F401  tfds asks for it only when it reads
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(f"tfds:NAME needs packages that are missing ({one_line(error)}): {INSTALL}") from None
    return tensorflow_datasets


def _open(folder):
    """tfds's builder of a prepared folder; UserError for one that is damaged or cannot be read at random."""
    tfds = _import()
    try:
        # tfds imports the modules that this file names: only its own are let through.
        text = (folder / "features.json").read_text()
        names = _class_names(json.loads(text))
        foreign = [name for name in names if not name.startswith("tensorflow_datasets.")]
        if any(name.endswith(".Video") for name in names):
            raise UserError(f"{folder} has videos, and images are needed")
        if foreign:
            raise UserError(f"{folder} has features of a kind that tfds does not define: {foreign[0]}")
        builder = tfds.builder_from_directory(folder)
        builder.info.splits  # noqa: B018  read now
    except UserError:
        raise
    except Exception as error:  # tfds raises nearly anything over damage
        raise UserError(
            f"{folder} cannot be read by TensorFlow Datasets ({one_line(error)}): prepare it again"
        ) from None
    found = builder.info.file_format
    if found is None or found.value != "array_record":
        raise UserError(
            f"{folder} is in the format {found and found.value}, without random access: prepare it again with "
            "tfds build --file_format=array_record"
        )
    return builder


def _class_names(feature):
    """Every pythonClassName in a features.json."""
    if isinstance(feature, list):
        return [name for inner in feature for name in _class_names(inner)]
    if not isinstance(feature, dict):
        return []
    own = [str(feature["pythonClassName"])] if "pythonClassName" in feature else []
    return own + [name for inner in feature.values() for name in _class_names(inner)]


def _features(features, what):
    """(key of the image, key of the label or None)."""
    tfds = _import()
    listed = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in features.items())

    def only(kind, called):
        keys = [key for key, feature in features.items() if isinstance(feature, kind)]
        return called if called in keys else keys[0] if len(keys) == 1 else None

    image = only(tfds.features.Image, "image")
    if image is None:
        raise UserError(f"{what} has no feature that is an image (or several, none called image); it has {listed}")
    if features[image].np_dtype not in (np.uint8, np.uint16):
        raise UserError(f"{what} has images of {features[image].np_dtype}; they must have 8 or 16 bits")
    return image, only(tfds.features.ClassLabel, "label")


def _labels(source, key, what):
    """int32 [n] labels of a data source; zeros where there is no such feature."""
    labels = np.zeros(len(source), np.int32)
    for start in range(0, len(source) if key else 0, CHUNK):
        rows = range(start, min(start + CHUNK, len(source)))
        labels[start : rows.stop] = [record[key] for record in _records(source, rows, what)]
    return labels


def _records(source, rows, what):
    try:
        return source.__getitems__([int(row) for row in rows])
    except Exception as error:  # array_record raises nearly anything over damage
        raise UserError(f"{what} cannot be read ({one_line(error)}): prepare it again") from None


def _lazily(source, rows, key, shape, recipe, what) -> LazyImages:
    """The images of `rows` [n] of a data source, as squares."""
    square = images.Square(shape[0], shape[2], recipe.resample, recipe.crop, shrink=recipe.crop is None)

    def decode(record):
        return images.decode(io.BytesIO(record[key]), square).pixels

    def read(indices):
        records = _records(source, rows[indices], what)
        try:
            return np.stack(list(images.pool().map(decode, records)))
        except images.Unreadable as error:
            raise UserError(f"{what} has an image that cannot be decoded ({', '.join(error.args)})") from None

    return LazyImages((len(rows), *shape), read)
