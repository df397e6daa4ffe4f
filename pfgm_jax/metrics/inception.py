"""The Inception network of the FID (Szegedy et al. 2016, arXiv 1512.00567; the TensorFlow graph of 2015-12-05).

    uint8 images [n, H, W, 1 or 3] -> 299 px, bilinear as in that graph -> (x - 128) / 128 -> network -> 2048 features

Features are the means over 8 x 8 positions of the last block ("pool3"). Figures compare with published ones only when
all of this is as in the graph: the resize takes source coordinate i H / 299 (no half-pixel shift, no antialiasing),
3 x 3 average pools leave padding out of their mean, and in the last block the pooling branch is a maximum.

The 64 channels behind the first maximum pool, averaged over positions, are a second kind of feature: low-level ones,
whose covariance 65 images determine. Figures of BloodMNIST that others print with "feature=64" are of these.

Parameters are {layer: {"kernel" HWIO, "bias"}} with batch norm folded in (`inception_weights.py` makes them), and, from
files that have it, "output" {"kernel" [2048, 1008], "bias"}.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Num
from scipy.special import logsumexp
from tqdm.auto import tqdm

from pfgm_jax import parallel
from pfgm_jax.array_types import Arrays
from pfgm_jax.errors import UserError
from pfgm_jax.storage import digests

SIDE = 299
FEATURES, EARLY = 2048, 64  # of pool3, and behind the first maximum pool
# Images that a device works on at once. On a CPU larger batches are no faster, and 16 take 0.5 GB.
BATCH_CPU, BATCH = 16, 128
STEM = ("conv", "conv_1", "conv_2")  # layers
_PRECISION = lax.Precision.HIGHEST  # TF32 or bfloat16 passes would shift features by 1e-3


def bilinear_matrix(size: int) -> Float[np.ndarray, "299 size"]:
    """Weights [299, size] of TensorFlow's first bilinear resize along one axis, float32: coordinate i size / 299."""
    at = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
    low = np.minimum(at.astype(int), size - 1)
    high, part = np.minimum(low + 1, size - 1), at - low
    matrix = np.zeros((SIDE, size), np.float32)
    np.add.at(matrix, (np.arange(SIDE), low), 1 - part)
    np.add.at(matrix, (np.arange(SIDE), high), part)
    return matrix


def resize(images: Num[Arrays, "B H W C"]) -> Float[Array, "B 299 299 D"]:
    """uint8 [B, H, W, C] -> float32 [B, 299, 299, 3] of values 0 to 255; grey is repeated to three channels."""
    _, height, width, channels = images.shape
    rows, columns = bilinear_matrix(height), bilinear_matrix(width)
    x = jnp.einsum("ih,bhwc->biwc", rows, images.astype(jnp.float32), precision=_PRECISION)
    x = jnp.einsum("jw,biwc->bijc", columns, x, precision=_PRECISION)
    return jnp.broadcast_to(x, (*x.shape[:3], 3)) if channels == 1 else x


def max_pool(x: Float[Arrays, "B H W C"], stride: int = 2, padding: str = "VALID") -> Float[Array, "B h w C"]:
    """3 x 3 maximum."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def mean_pool(x: Float[Arrays, "B H W C"]) -> Float[Array, "B H W C"]:
    """3 x 3 mean, stride 1, of the positions inside the image: 4 at corners, 6 at edges."""
    total = lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def _conv(params, x, name, stride=1, padding="SAME"):
    layer = params[name]
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x, layer["kernel"], (stride, stride), padding, dimension_numbers=dimensions, precision=_PRECISION
    )
    return jax.nn.relu(y + layer["bias"])


def _inner(params, x, name):
    """A 3 x 3 convolution without padding. As a part of one with padding it takes half the time on a CPU."""
    return _conv(params, x, name)[:, 1:-1, 1:-1]


def stem(params: dict, x: Float[Arrays, "B 299 299 3"]) -> Float[Array, "B 73 73 c"]:
    """The network up to its first maximum pool, of x in [-1, 1): the layers STEM."""
    x = _conv(params, x, STEM[0], 2, "VALID")
    return max_pool(_conv(params, _inner(params, x, STEM[1]), STEM[2]))


def early(params: dict, x: Float[Arrays, "B 299 299 3"]) -> Float[Array, "B c"]:
    """Features [B, 64] of x [B, 299, 299, 3] in [-1, 1): the stem's channels, averaged over positions."""
    return stem(params, x).mean(axis=(1, 2))


def network(params: dict, x: Float[Arrays, "B 299 299 3"]) -> Float[Array, "B d"]:
    """Features [B, 2048] of x [B, 299, 299, 3] in [-1, 1)."""
    conv, inner = functools.partial(_conv, params), functools.partial(_inner, params)

    def tower(x, name, layers, reduce=False):
        """`layers` convolutions, the last of them onto half the size with `reduce`."""
        for i in range(layers):
            last = reduce and i == layers - 1
            x = conv(x, f"{name}.conv_{i}" if i else f"{name}.conv", *((2, "VALID") if last else ()))
        return x

    def same(x, name, towers):
        """Blocks that keep the size: 1 x 1, towers of so many layers, and a pooled 1 x 1."""
        deep = [tower(x, f"{name}.tower_{i}" if i else f"{name}.tower", layers) for i, layers in enumerate(towers)]
        pooled = conv(mean_pool(x), f"{name}.tower_{len(towers)}.conv")
        return jnp.concatenate([conv(x, f"{name}.conv"), *deep, pooled], axis=-1)

    def last(x, name, pool):
        """Blocks at 8 px, whose towers end in two convolutions side by side."""
        a = conv(x, f"{name}.tower_conv")
        b = conv(conv(x, f"{name}.tower_1_conv"), f"{name}.tower_1_conv_1")
        ends = [
            conv(y, f"{name}.{tower}_mixed_conv{i}") for y, tower in ((a, "tower"), (b, "tower_1")) for i in ("", "_1")
        ]
        return jnp.concatenate([conv(x, f"{name}.conv"), *ends, conv(pool(x), f"{name}.tower_2_conv")], axis=-1)

    x = stem(params, x)
    x = max_pool(inner(conv(x, "conv_3"), "conv_4"))
    for name in ("mixed", "mixed_1", "mixed_2"):
        x = same(x, name, (2, 3))
    reduced = [conv(x, "mixed_3.conv", 2, "VALID"), tower(x, "mixed_3.tower", 3, reduce=True), max_pool(x)]
    x = jnp.concatenate(reduced, axis=-1)
    for name in ("mixed_4", "mixed_5", "mixed_6", "mixed_7"):
        x = same(x, name, (3, 5))
    reduced = [tower(x, "mixed_8.tower", 2, reduce=True), tower(x, "mixed_8.tower_1", 4, reduce=True), max_pool(x)]
    x = jnp.concatenate(reduced, axis=-1)
    x = last(x, "mixed_9", mean_pool)
    x = last(x, "mixed_10", lambda x: max_pool(x, 1, "SAME"))
    return x.mean(axis=(1, 2))


@functools.cache
def _program(layer):
    """`network` or `early`, compiled over own devices: (replicated params, uint8 [devices, B, H, W, C]) -> features."""
    return parallel.map_alone(lambda params, images: layer(params, (resize(images) - 128) / 128))


class Inception:
    """The network with its weights: `inception(images)` gives features.

    Attributes:
      name: what to print beside figures that were made with it.
      fingerprint: SHA-256 of the weights that make the features. about: what else belongs to a protocol.
      params: see the module; `"output" in params` tells whether there are logits.
      layer: `network`, or `early` with the weights of the STEM alone.
      distances: what a Fréchet and a kernel distance of these features are called.
    """

    distances = ("fid", "kid")

    def __init__(self, params: dict, name: str, layer: Callable = network):
        self.params, self.name, self.layer, self.fingerprint = params, name, layer, fingerprint(params)
        self.about = f", resized to 299 px bilinearly as in that graph, SHA-256 of the weights {self.fingerprint}"
        self._copies = None

    def own(self, features: Float[Arrays, "n d"]) -> dict[str, float]:
        """Figures of features that need no reference: the Inception score, where the weights have the class layer."""
        if "output" not in self.params:
            return {}
        return {"is": inception_score(logits(self.params, features), min(10, len(features)))[0]}

    def __call__(self, images: Any, batch: int | None = None) -> Float[np.ndarray, "n d"]:
        """Features [n, 2048 or 64], float32, of uint8 images [n, H, W, 1 or 3] of any size.

        Shows its progress if it is long.

        Args:
          images: an array, or what can be sliced like one.
          batch: images at once on each device; None: 16 on a CPU, else 128.
        """
        if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(f"images must be uint8 [n, H, W, 1 or 3], not {images.dtype} {images.shape}")
        if self._copies is None:
            self._copies = parallel.replicate({k: v for k, v in self.params.items() if k != "output"})
        n, devices = len(images), parallel.own_count()
        batch = batch or (BATCH_CPU if parallel.device_kind() == "cpu" else BATCH)
        step = min(batch, -(-n // devices)) * devices
        features = []
        # A terminal gets a live bar; a file gets a line now and then; what takes five seconds gets nothing.
        bar = tqdm(total=n, unit="img", desc="inception", delay=5, mininterval=0.2 if sys.stderr.isatty() else 10.0)
        with bar:
            for start in range(0, n, step):
                part = np.asarray(images[start : start + step])
                padded = np.zeros((step, *part.shape[1:]), np.uint8)
                padded[: len(part)] = part
                shares = _program(self.layer)(self._copies, padded.reshape(devices, -1, *part.shape[1:]))
                features.append(np.asarray(shares).reshape(step, -1)[: len(part)])
                bar.update(len(part))
        return np.concatenate(features)


def fingerprint(params: dict) -> str:
    """SHA-256 of the weights of all layers but "output", as hexadecimal text."""
    parts = []
    for name in sorted(params.keys() - {"output"}):
        for part in ("kernel", "bias"):
            array = np.asarray(params[name][part], "<f4")
            parts += [f"{name}/{part} {array.shape}", array]
    return digests.sha256(*parts)


def logits(params: dict, features: Num[Arrays, "n d"]) -> Float[np.ndarray, "n K"]:
    """Class logits [n, 1008], float64, of features [n, 2048]: the last layer without its bias, as for published scores.

    Raises:
      UserError: the weights came from a file without that layer.
    """
    if "output" not in params:
        raise UserError(
            "these weights have no class layer, which the Inception score needs: give a file that has it, such as "
            "pt_inception-2015-12-05-6726825d.pth, as evaluate.inception=FILE"
        )
    return np.asarray(features, np.float64) @ np.asarray(params["output"]["kernel"], np.float64)


def inception_score(logits: Num[Arrays, "n K"], splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(c|x) || p(c)) of logits [n, classes] (Salimans et al. 2016, arXiv 1606.03498): mean, std over splits.

    The splits are consecutive parts of the samples, as published, and p(c) is each one's own mean. Raises ValueError
    unless each split has a sample.
    """
    logits = np.asarray(logits, np.float64)
    if not 1 <= splits <= len(logits):
        raise ValueError(f"{splits} splits of {len(logits)} samples")
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    bounds = [i * len(logits) // splits for i in range(splits + 1)]
    scores = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        part = log_p[start:end]
        marginal = logsumexp(part, axis=0) - np.log(len(part))
        scores.append(np.exp((np.exp(part) * (part - marginal)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
