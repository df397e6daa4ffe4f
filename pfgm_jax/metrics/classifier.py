"""A compact classifier of a data set's own classes: trained on its training images in minutes, features of its domain.

    uint8 images -> halved until no side exceeds 32 px -> 3 x 3 convolution, 32 channels
                 -> at half the size each: two residual blocks of 64 and 128 channels -> mean over pixels = features
                 -> class logits

Its features tell apart what tells the classes apart, which a network of photographs need not (medical images, digits);
but they know nothing beyond that, so a Fréchet distance in them is a second opinion and compares only figures of the
same classifier: `name` says which it was, with its accuracy on test images.
"""

import functools
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax import lax
from jaxtyping import Array, Float, Int, Num, UInt8
from tqdm.auto import tqdm

from pfgm_jax.array_types import Arrays, PRNGKey
from pfgm_jax.data.dataset import to_unit
from pfgm_jax.data.download import cache_dir
from pfgm_jax.data.shuffle import epoch_order
from pfgm_jax.errors import UserError
from pfgm_jax.models import layers
from pfgm_jax.storage import array_cache, digests

# Weights that come with the package: trained elsewhere they would be others, and figures would not compare.
PACKAGED = pathlib.Path(__file__).parent / "classifiers"
VERSION = 1  # of what follows: a change that gives other features is another version
SIDE = 32
WIDTHS = (32, 64, 128)
BATCH = 64
LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 2e-3, 0.05, 0.1  # the last as a share of the steps
LEAST_STEPS, MOST_STEPS, EPOCHS = 300, 1500, 10  # EPOCHS within the two bounds
SCANNED = 25  # steps in one program; their number is rounded up to a multiple
MOST_IMAGES = 100_000  # of more training images, so many are drawn
SHIFTED_FROM = 16  # px; smaller images are all subject: shifts cost the digits of 8 px 3 points of accuracy
EXAMINED = 256  # images that are looked at together outside of training


class Network(nn.Module):
    """Class logits [B, classes] and features [B, 128] of images [B, H, W, C] in [-1, 1], H and W at most 32.

    canonical: see `layers.canonical_conv`; for training on a CPU.
    """

    classes: int
    canonical: bool = False

    @nn.compact
    def __call__(self, x):
        def conv(x, width, name):
            options = dict(use_bias=False, conv_general_dilated=layers.convolution(self.canonical), name=name)
            return nn.Conv(width, (3, 3), **options)(x)

        norm = lambda x, name: nn.relu(layers.group_norm(x, jnp.float32, name))
        h = conv(x, WIDTHS[0], "first")
        for i, width in enumerate(WIDTHS[1:]):
            h = layers.downsample(h) if min(h.shape[1:3]) > 4 else h
            y = norm(h, f"norm{i}_0")
            skip = nn.Dense(width, use_bias=False, name=f"skip{i}")(y)
            y = conv(y, width, f"conv{i}_0")
            h = skip + conv(norm(y, f"norm{i}_1"), width, f"conv{i}_1")
        features = norm(h, "norm").mean(axis=(1, 2))
        return nn.Dense(self.classes, name="out")(features), features


class Classifier:
    """A trained network: `classifier(images)` gives features, as `Inception` does.

    Attributes:
      params: of `Network`.
      classes: their names.
      confusion: int [K, K], true class by predicted class, over images that it was not trained on; zeros if there are
        none.
      name: what to print beside figures computed with it.
      fingerprint: SHA-256 of its weights. about: what else belongs to a protocol.
      distances: what a Fréchet and a kernel distance of these features are called.
    """

    distances = ("fd", "kd")

    def __init__(self, params, classes, confusion, protocol):
        self.params, self.classes, self.confusion = params, classes, confusion
        digest = array_cache.digest(traverse_util.flatten_dict(params, sep="/"))
        self.fingerprint = digests.sha256(f"{VERSION}", digest)
        accuracy = f"{self.accuracy:.2%}" if confusion.any() else "not known, as there are no test images"
        self.name = f"{protocol}, test accuracy {accuracy}"
        self.about = f", SHA-256 of the weights {self.fingerprint}"

    @property
    def accuracy(self) -> float:
        """Share of the test images whose class it finds."""
        return float(np.trace(self.confusion) / max(1, self.confusion.sum()))

    @property
    def recall(self) -> Float[np.ndarray, "K"]:
        """Share found of each class's test images, [K]; NaN for a class without any."""
        return recall(self.confusion)

    def features(self, images: Any) -> Float[np.ndarray, "n 128"]:
        """Features [n, 128], float32, of uint8 images [n, H, W, C], an array or what can be sliced like one."""
        return apply(self.params, len(self.classes), images)[1]

    __call__ = features

    def predict(self, images: Any) -> Int[np.ndarray, "n"]:
        """Classes int [n] of uint8 images [n, H, W, C]."""
        return apply(self.params, len(self.classes), images)[0].argmax(axis=1)


def classifier(dataset, seed: int = 0, steps: int | None = None, flip: bool = False) -> Classifier:
    """The Classifier of a Dataset, trained on its training images; from the package or the cache if it was made before.

    It is tested on the test split, or on the validation split where that is empty.

    Args:
      seed: of the first weights, the order and the shifts.
      steps: of BATCH images; None: 10 epochs, but at least 300 and at most 1500 steps. Rounded up to a multiple of 25.
      flip: half of the images are seen left-right mirrored, for data where that leaves the class as it is.

    Raises:
      UserError: one class alone, or points in place of images.
    """
    train, test = dataset.train, dataset.test if len(dataset.test) else dataset.val
    check(dataset)
    steps = steps_for(len(train), steps)
    settings = [VERSION, seed, steps, flip]
    content = array_cache.content
    parts = [[content(split.images), content(split.labels)] if len(split) else [] for split in (train, test)]
    key = digests.of_json([*parts, dataset.num_classes, settings])
    file = f"{dataset.name}-{dataset.shape[0]}-{key[:16]}.safetensors"
    packaged, path = PACKAGED / file, cache_dir().parent / "classifier" / file
    shape = "×".join(map(str, dataset.shape))
    protocol = (
        f"a classifier (v{VERSION}) trained on {min(len(train), MOST_IMAGES)} images of "
        f"{dataset.name} {shape}, {steps} steps of {BATCH}, seed {seed}" + (", mirrored" if flip else "")
    )
    if packaged.exists() or path.exists():
        arrays = array_cache.load(packaged if packaged.exists() else path)
        confusion = arrays.pop("confusion")
        return Classifier(traverse_util.unflatten_dict(arrays, sep="/"), dataset.classes, confusion, protocol)
    progress = f"classifier of {dataset.name}"
    params = fit(*gather(train), dataset.num_classes, steps, seed, flip, progress)
    confusion = confusion_of(params, *gather(test), dataset.num_classes)
    array_cache.save(path, traverse_util.flatten_dict(params, sep="/") | {"confusion": confusion}, protocol)
    return Classifier(params, dataset.classes, confusion, protocol)


def check(dataset):
    """UserError unless a Dataset has images of two classes to tell apart."""
    if dataset.train.images.dtype != np.uint8:
        raise UserError(f"{dataset.name} holds points: a classifier needs images")
    if len(np.unique(dataset.train.labels)) < 2:
        raise UserError(
            f"all training images of {dataset.name} have one class, and a classifier needs two or more: give a "
            "set with labels, or measure with the Inception network"
        )


def steps_for(n: int, steps: int | None = None) -> int:
    """Optimiser steps for n training images, or `steps` if given, as a multiple of SCANNED."""
    steps = min(MOST_STEPS, max(LEAST_STEPS, EPOCHS * n // BATCH)) if steps is None else steps
    return -(-steps // SCANNED) * SCANNED


def gather(split) -> tuple[UInt8[np.ndarray, "m h w C"], Int[np.ndarray, "m"]]:
    """A Split's (images uint8 [m, h, w, C] after `shrink`, labels [m]); of more than MOST_IMAGES, so many are drawn."""
    n = len(split)
    if n <= MOST_IMAGES:
        return shrink(split.images), split.labels
    chosen = np.sort(np.random.default_rng(0).choice(n, MOST_IMAGES, replace=False))
    return shrink(split.images, chosen), split.labels[chosen]


def shrink(images: Any, indices: Int[np.ndarray, "m"] | None = None) -> UInt8[np.ndarray, "m h w C"]:
    """uint8 [n, H, W, C], or those at `indices`, halved (means over 2 x 2 pixels) until no side exceeds SIDE.

    images: an array or what can be sliced like one; small images come back as they are.
    """
    if max(images.shape[1:3]) <= SIDE:
        return np.asarray(images if indices is None else images[indices])
    indices = np.arange(len(images)) if indices is None else indices
    chunks = [_halved(images[indices[i : i + EXAMINED]]) for i in range(0, len(indices), EXAMINED)]
    return np.concatenate(chunks or [_halved(np.zeros((0, *images.shape[1:]), np.uint8))])


def _halved(images):
    x: Any = jnp.asarray(images, jnp.float32)
    while max(np.shape(x)[1:3]) > SIDE:
        x = layers.downsample(x)
    return np.asarray(jnp.round(x).astype(jnp.uint8))


def fit(
    images: UInt8[np.ndarray, "n h w C"],
    labels: Int[np.ndarray, "n"],
    num_classes: int,
    steps: int,
    seed: int = 0,
    flip: bool = False,
    progress: str | None = None,
) -> Any:
    """Trained parameters of `Network`.

    AdamW at a rate that warms up and then falls along a cosine, on `shifted` images.

    Args:
      images: uint8 [n, h, w, C] that `shrink` leaves alone; labels: int [n].
      steps: a multiple of SCANNED.
      progress: what to call it where it takes more than a few seconds.
    """
    n, (height, width, channels) = len(images), images.shape[1:]
    network = Network(num_classes, canonical=jax.default_backend() == "cpu")
    init_key, key = jax.random.split(jax.random.key(seed))
    params = jax.jit(network.init)(init_key, jnp.zeros((1, height, width, channels)))["params"]
    state = params, _optimiser().init(params)
    rates = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, max(1, int(WARM_UP * steps)), steps)
    train = _trainer(network, flip)  # pyrefly: ignore[bad-argument-type]  # flax makes networks hashable
    every = 0.2 if sys.stderr.isatty() else 10.0  # a terminal gets a live bar, a file a line now and then
    bar = tqdm(total=steps, desc=progress, unit="step", delay=5, mininterval=every, disable=progress is None)
    for start in range(0, steps, SCANNED):
        positions = np.arange(start * BATCH, (start + SCANNED) * BATCH).reshape(SCANNED, BATCH)
        chosen = epoch_order(seed, positions, n)
        at = np.arange(start, start + SCANNED)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, at)
        state = jax.block_until_ready(train(state, images[chosen], labels[chosen], rates(at + 1), keys))
        bar.update(SCANNED)
    bar.close()
    return jax.tree.map(np.asarray, state[0])


def _optimiser():
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), optax.add_decayed_weights(WEIGHT_DECAY)
    )


@functools.cache
def _trainer(network, flip):
    """The compiled program of SCANNED steps: (state, images uint8 [k, B, h, w, C], labels, rates, keys) -> state."""

    def loss(params, images, labels):
        logits, _ = network.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state, batch):
        images, labels, rate, key = batch
        params, moments = state
        gradient = jax.grad(loss)(params, shifted(key, to_unit(images), flip), labels)
        updates, moments = _optimiser().update(gradient, moments, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        return (params, moments), None

    return jax.jit(lambda state, *batches: lax.scan(step, state, batches)[0])


def shifted(key: PRNGKey, images: Num[Arrays, "B h w C"], flip: bool) -> Num[Array, "B h w C"]:
    """Each image [B, h, w, C] moved by its own whole pixels, up to an eighth of a side, and mirrored or not.

    Images below SHIFTED_FROM stay in place.
    """
    B, height, width, channels = images.shape
    reach = (height // 8, width // 8) if min(height, width) >= SHIFTED_FROM else (0, 0)
    padded = jnp.pad(images, ((0, 0), *((r, r) for r in reach), (0, 0)), mode="edge")
    shift_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(shift_key, (B, 2), 0, 2 * jnp.array(reach) + 1)
    cut = lambda image, corner: lax.dynamic_slice(image, (*corner, 0), (height, width, channels))
    images = jax.vmap(cut)(padded, corners)
    if not flip:
        return images
    mirrored = jax.random.bernoulli(flip_key, 0.5, (B, 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


@functools.cache
def _reader(num_classes):
    """The compiled network: (params, uint8 [B, h, w, C]) -> (logits, features)."""
    return jax.jit(lambda params, images: Network(num_classes).apply({"params": params}, to_unit(images)))


def apply(params: Any, num_classes: int, images: Any) -> tuple[Float[np.ndarray, "n K"], Float[np.ndarray, "n 128"]]:
    """Logits [n, K] and features [n, 128], float32, of uint8 images [n, H, W, C] of any size."""
    if images.dtype != np.uint8 or len(images.shape) != 4:
        raise ValueError(f"images must be uint8 [n, H, W, C], not {images.dtype} {images.shape}")
    read, parts = _reader(num_classes), []
    n = len(images)
    size = min(EXAMINED, n)
    for start in range(0, n, size or 1):
        part = shrink(images[start : start + size])
        padded = np.zeros((size, *part.shape[1:]), np.uint8)
        padded[: len(part)] = part
        parts.append([np.asarray(x)[: len(part)] for x in read(params, padded)])
    if not parts:
        return np.zeros((0, num_classes), np.float32), np.zeros((0, WIDTHS[-1]), np.float32)
    logits, features = (np.concatenate(x) for x in zip(*parts, strict=True))
    return logits, features


def confusion_of(params: Any, images: Any, labels: Int[Arrays, "n"], num_classes: int) -> Int[np.ndarray, "K K"]:
    """Counts int [K, K] of images by true class and by predicted class."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, apply(params, num_classes, images)[0].argmax(axis=1)), 1)
    return counts


def recall(confusion: Int[np.ndarray, "K K"]) -> Float[np.ndarray, "K"]:
    """Share found of each class [K] from `confusion_of`; NaN for a class without images."""
    total = confusion.sum(axis=1)
    return np.where(total > 0, np.diag(confusion) / np.maximum(total, 1), np.nan)
