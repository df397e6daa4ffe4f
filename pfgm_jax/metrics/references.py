"""What figures are measured against: features of real images, kept between runs, and what real images reach."""

import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Num

from pfgm_jax.array_types import Arrays
from pfgm_jax.data.download import cache_dir
from pfgm_jax.errors import UserError, counted
from pfgm_jax.metrics import frechet
from pfgm_jax.storage import array_cache, digests

# For the metrics that need features themselves, so many are kept (164 MB at 2048 features), of images drawn at random.
KEPT = 20_000
CHUNK_BYTES = 2**30  # images in memory together


class Reference(NamedTuple):
    """The statistics of all images of a split, features [n, d] of `kept` images, the name to print beside figures."""

    name: str
    statistics: frechet.Statistics
    features: Num[np.ndarray, "n d"]


def kept_indices(total: int) -> Int[np.ndarray, "n"]:
    """Indices of the images whose features a Reference keeps, of `total`: all, or KEPT at random, the same always."""
    if total <= KEPT:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).choice(total, KEPT, replace=False))


def reference(dataset, split: str, extractor: Any) -> Reference:
    """The Reference of a split ("train", "val" or "test") of a Dataset; from the cache if it was made before.

    Args:
      extractor: uint8 images -> features [n, d], with a `fingerprint` and a `name`, such as `inception.Inception`.

    Raises:
      UserError: an empty split, or a damaged file in the cache.
    """
    images = getattr(dataset, split).images
    if len(images) < 2:
        raise UserError(
            f"{dataset.name} has {counted(len(images), 'image')} in its {split} split: choose another reference"
        )
    shape = "×".join(map(str, images.shape[1:]))
    path = cached_at(dataset, split, extractor)
    name = f"{len(images)} {split} images of {dataset.name} {shape}, {extractor.name}"
    if path.exists():
        return _load(path, name)
    rows = max(2, CHUNK_BYTES // math.prod(images.shape[1:]))
    statistics, parts, chosen = [], [], kept_indices(len(images))
    for start in range(0, len(images), rows):
        features = extractor(images[start : start + rows])
        statistics.append(frechet.statistics(features))
        parts.append(features[chosen[(chosen >= start) & (chosen < start + rows)] - start])
    statistics, features = functools.reduce(frechet.merge, statistics), np.concatenate(parts)
    _save(path, statistics, features, name)
    return Reference(name, statistics, features)


def cached_at(dataset, split: str, extractor: Any) -> pathlib.Path:
    """The file of the cache that holds what `reference` gives for these arguments, once it is made."""
    images = getattr(dataset, split).images
    content = array_cache.content(images)
    facts = [dataset.name, dataset.source, split, list(images.shape), content, extractor.fingerprint, KEPT]
    key = digests.of_json(facts)
    folder = cache_dir().parent / "reference"
    return folder / f"{dataset.name}-{images.shape[1]}-{split}-{key[:16]}.safetensors"


def per_class(
    metric: Callable,
    real: Num[Arrays, "n d"],
    real_labels: Int[Arrays, "n"] | Sequence[int],
    fake: Num[Arrays, "m d"],
    fake_labels: Int[Arrays, "m"] | Sequence[int],
) -> dict[int, Any]:
    """{class: metric(real, fake)} of each class's features alone, such as `frechet.fid` or `kernel.kid`.

    Classes without two images on each side are left out. A Fréchet distance depends on n: classes of different sizes
    compare only with the same class of another model.
    """
    fake_labels, real_labels = np.asarray(fake_labels), np.asarray(real_labels)
    counts = {c: min((fake_labels == c).sum(), (real_labels == c).sum()) for c in np.unique(real_labels).tolist()}
    return {c: metric(real[real_labels == c], fake[fake_labels == c]) for c, count in counts.items() if count >= 2}


def real_floor(
    against: Callable, train: Num[Arrays, "N d"], n: int, test: Num[Arrays, "M d"] | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """What real images reach against real ones, at n samples: {"train": figures, "test": figures}, the lower limit.

    "train" are n random training images against the other ones, "test" n random test images (at most all) against all
    training images, as samples are measured. Each holds "n" and "reference", the numbers of images.

    Args:
      against: such as `frechet.against`.
      train, test: features [N, d].
      n: samples; at most half of the training images are taken.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train))
    n_train = min(n, len(train) // 2)
    drawn, others = train[order[:n_train]], train[order[n_train:]]
    floor = {"train": {"n": n_train, "reference": len(others)} | against(others)(drawn)}
    if test is not None:
        drawn = test[rng.permutation(len(test))[:n]]
        floor["test"] = {"n": len(drawn), "reference": len(train)} | against(train)(drawn)
    return floor


def _save(path, statistics, features, name):
    arrays = {"n": np.array([statistics.n]), "mean": statistics.mean, "scatter": statistics.scatter}
    array_cache.save(path, arrays | {"features": features}, f"features of {name}")


def _load(path, name):
    arrays = array_cache.load(path)
    statistics = frechet.Statistics(int(arrays["n"][0]), arrays["mean"], arrays["scatter"])
    return Reference(name, statistics, arrays["features"])
