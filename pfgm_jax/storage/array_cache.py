"""What is dear to make is kept in a file: arrays with their own checksum, never wrong in silence."""

import pathlib
import sys

import numpy as np

from pfgm_jax.errors import UserError
from pfgm_jax.storage import digests, safetensors, torch_files

HASHED = 1000  # of images that are not in memory, so many are read to tell one set from another


def content(images):
    """A hash of the images: of all in memory, else of some that are spread evenly."""
    if not isinstance(images, np.ndarray):
        images = images[np.linspace(0, len(images) - 1, min(HASHED, len(images))).astype(np.int64)]
    return digests.sha256(images)


def digest(arrays):
    """SHA-256 of arrays by name, as bytes [32]."""
    total = digests.sha256(*(arrays[name] for name in sorted(arrays)))
    return np.frombuffer(bytes.fromhex(total), np.uint8)


def save(path, arrays, what):
    """Writes {name: array} and a line that says what it is; only a message where that cannot be."""
    try:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        safetensors.save(path, arrays | {"sha256": digest(arrays)}, {"kept": what})
    except OSError as error:  # then it is made again next time
        print(f"cannot keep {what} in {path}: {error.strerror or error}", file=sys.stderr)


def load(path):
    """What `save` wrote: {name: array}.

    Raises:
      UserError: a damaged file.
    """
    again = "delete it, and the next run makes it again"
    try:
        arrays = torch_files.read(path)
    except UserError as error:
        raise UserError(f"{error}: {again}") from None
    if not np.array_equal(arrays.pop("sha256", None), digest(arrays)):
        raise UserError(f"{path} is damaged: {again}")
    return arrays
