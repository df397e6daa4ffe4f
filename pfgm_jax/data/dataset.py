"""What every data source returns, and the conversion between bytes and the unit scale [-1, 1]."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax.errors import UserError, printable

HOST_BYTES = 4 * 2**30  # sources keep images of at most so many decoded bytes in memory, and read others as needed
SAMPLED, SAMPLED_BYTES = 10_000, 2**30  # at most, images of a `LazyImages` that stand for all of them in `moments`


class LazyImages:
    """Images uint8 [n, H, W, C] that stay in their files: indexing reads the chosen ones, as a NumPy array.

    shape: (n, H, W, C). read(indices int64 [b]) -> uint8 [b, H, W, C].
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, shape, read):
        self.shape, self._read = tuple(shape), read

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))
    nbytes = size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        """images[3], images[2:9], images[[4, 1]] or images[mask]; IndexError for what is not there."""
        chosen = np.arange(len(self))[index]
        images = np.empty((0, *self.shape[1:]), np.uint8)
        if chosen.size:
            images = self._read(chosen.reshape(-1).astype(np.int64))
        return images.reshape(*chosen.shape, *self.shape[1:])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels int32 [n]; ValueError for anything else.

    Images are uint8 [n, H, W, C] with C = 1 or 3; data other than images are float32 [n, H, W, C] in the unit scale.
    """

    images: np.ndarray | LazyImages
    labels: np.ndarray
    groups: np.ndarray | None = None  # int64 [n], such as the number of each image's patient, where that is known

    def __post_init__(self):
        images, labels = self.images, self.labels
        good = images.dtype == np.float32 or images.dtype == np.uint8 and images.shape[-1:] in ((1,), (3,))
        if not good or images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [n, H, W, 1 or 3] or float32 [n, H, W, C], not {images.dtype} {images.shape}"
            )
        if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be int32 {images.shape[:1]}, not {labels.dtype} {labels.shape}")
        if self.groups is not None and self.groups.shape != labels.shape:
            raise ValueError(f"groups must be {labels.shape}, not {self.groups.shape}")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of images of one shape; labels index `classes`. ValueError where that does not hold.

    val and test are empty where a source has none. Names that come from files are made printable.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    licence: str
    source: str
    stands_for: int = 0  # training images in whose place a few random ones are; 0: these are the data
    window: tuple[float, float] | None = None  # values that became 0 and 255, of images of more than 8 bits

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(map(printable, self.classes)))
        object.__setattr__(self, "source", printable(self.source))
        for split in (self.train, self.val, self.test):
            if split.images.shape[1:] != self.shape:
                raise ValueError(f"{self.name}: splits of shapes {self.shape} and {split.images.shape[1:]}")
            if len(split) and not 0 <= split.labels.min() <= split.labels.max() < self.num_classes:
                raise ValueError(f"{self.name}: labels outside [0, {self.num_classes})")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.train.images.shape[1:]

    @property
    def train_images(self) -> int:
        """How many images there are to train on."""
        return self.stands_for or len(self.train)

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def to_unit(images):
    """uint8 -> u / 127.5 - 1 in [-1, 1], any shape: float32 from numpy arrays, JAX's own float from JAX's.

    Floats are in the unit scale already and keep their values.

    Raises:
      UserError: whole numbers of another type, whose black and white nobody can know.
    """
    images = images[:] if isinstance(images, LazyImages) else images
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images must be uint8, or floats in [-1, 1], got {images.dtype}: convert them first")
    dtype = jnp.result_type(float) if isinstance(images, jax.Array) else np.float32
    unit = images.astype(dtype)
    return unit / 127.5 - 1 if images.dtype == np.uint8 else unit


def empty_split(shape) -> Split:
    """A split without images, of a set whose images have `shape` (H, W, C)."""
    return Split(np.zeros((0, *shape), np.uint8), np.zeros(0, np.int32))


def to_uint8(x):
    """[-1, 1] -> uint8, numpy or JAX, any shape: clip(127.5 x + 128, 0, 255), truncated.

    The inverse of `to_unit`, exact on all 256 values: 128 is 127.5 and the half by which truncation rounds. uint8 is
    kept as it is.

    Raises:
      UserError: whole numbers of another type.
    """
    if x.dtype == np.uint8:
        return x
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"images must be floats in [-1, 1], or uint8, got {x.dtype}: convert them first")
    xp = jnp if isinstance(x, jax.Array) else np
    scaled = x * np.float32(127.5) + 128  # a strong float32, so that half precision is widened first
    return xp.clip(scaled, 0, 255).astype(xp.uint8)


class Moments(NamedTuple):
    """Facts of a set of images in unit scale, float64. Norms are L2, over all H W C values of an image."""

    mean: float
    std: float
    mean_norm: float
    mean_square_norm: float
    largest_norm: float


def _sampled(images):
    """The images as an array; of many `LazyImages` some, drawn alike every time."""
    most = min(SAMPLED, max(1, SAMPLED_BYTES // math.prod(images.shape[1:])))
    if isinstance(images, LazyImages) and len(images) > most:
        return images[np.sort(np.random.RandomState(0).permutation(len(images))[:most])]
    return np.asarray(images)


def moments(images: np.ndarray | LazyImages) -> Moments:
    """Moments of images [n, ...], n >= 1, uint8 or float32 in unit scale; ValueError if empty.

    For uint8, sums run over the integers 255 x = 2u - 255, so no chunking or order of summation changes the result.
    """
    if not images.size:
        raise ValueError(f"moments of an empty array, shape {images.shape}")
    images = _sampled(images)
    flat = images.reshape(len(images), -1)
    if images.dtype != np.uint8:
        values = flat.astype(np.float64)
        norms = np.linalg.norm(values, axis=1)
        return Moments(*map(float, (values.mean(), values.std(), norms.mean(), np.square(norms).mean(), norms.max())))
    n, d = flat.shape
    rows = max(1, 2**20 // d)  # 8 MiB of int64 at a time
    total, squares = 0, []
    for start in range(0, n, rows):
        values = 2 * flat[start : start + rows].astype(np.int64) - 255
        total += int(values.sum())
        squares.append(np.square(values, out=values).sum(axis=1))
    squares = np.concatenate(squares)  # (255 |x|)^2 of each image
    total_squares = int(squares.sum())
    return Moments(
        mean=total / (255 * n * d),
        std=math.sqrt(n * d * total_squares - total**2) / (255 * n * d),
        mean_norm=float(np.sqrt(squares).mean()) / 255,
        mean_square_norm=total_squares / (255**2 * n),
        largest_norm=math.sqrt(squares.max()) / 255,
    )


def diameter(images: np.ndarray | LazyImages, starts=16) -> float:
    """The largest distance between two of the images [n, ...], uint8 or float32, in unit scale.

    Searched from the `starts` images farthest from the mean: from each to the image farthest from it, and on from
    there, while the distance grows. That takes a few passes over the data; the result may be slightly below the true
    diameter, never above.
    """
    images = _sampled(images)
    flat = images.reshape(len(images), -1)
    rows = max(1, 2**24 // flat.shape[1])
    chunks = [flat[i : i + rows] for i in range(0, len(flat), rows)]

    def squares_to(points):
        """Squared distances [n, k] in the images' own units, summed in float64."""
        norms = np.square(points).sum(axis=1)
        return np.concatenate(
            [np.square(c, dtype=np.float64).sum(axis=1)[:, None] + norms - 2 * (c @ points.T) for c in chunks]
        )

    ends = np.argsort(squares_to(flat.mean(axis=0, dtype=np.float64, keepdims=True))[:, 0])[-starts:]
    largest = -1.0
    while True:
        squares = squares_to(flat[ends].astype(np.float64))
        if squares.max() <= largest:
            return math.sqrt(largest) / (127.5 if images.dtype == np.uint8 else 1)
        largest, ends = float(squares.max()), np.unique(squares.argmax(axis=0))
