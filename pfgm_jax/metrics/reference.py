"""What figures are measured against: features of real images, kept between runs, and what real images reach."""

import hashlib
import json
import math
from typing import NamedTuple

import numpy as np

from pfgm_jax.data.download import cache_dir
from pfgm_jax.errors import UserError
from pfgm_jax.metrics import frechet, kept

# Features are kept up to so many (164 MB at 2048 features), for the metrics that need them; of more, statistics only.
KEPT = 20_000
CHUNK_BYTES = 2**30  # images in memory together where only statistics are kept


class Reference(NamedTuple):
    """A split's statistics, its features [n, d] themselves or None, and the name to print beside figures."""

    name: str
    statistics: frechet.Statistics
    features: np.ndarray | None


def reference(dataset, split, extractor):
    """The Reference of a split ("train", "val" or "test") of a Dataset; from the cache if it was made before.

    Args:
      extractor: uint8 images -> features [n, d], with a `fingerprint` and a `name`, such as `inception.Inception`.

    Raises:
      UserError: an empty split, or a damaged file in the cache.
    """
    images = getattr(dataset, split).images
    if len(images) < 2:
        raise UserError(f"{dataset.name} has {len(images)} images in its {split} split: choose another reference")
    shape = "×".join(map(str, images.shape[1:]))
    facts = [dataset.name, dataset.source, split, list(images.shape), kept.content(images), extractor.fingerprint]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    name = f"{len(images)} {split} images of {dataset.name} {shape}, {extractor.name}"
    path = cache_dir().parent / "reference" / f"{dataset.name}-{images.shape[1]}-{split}-{key[:16]}.safetensors"
    if path.exists():
        return _load(path, name)
    rows = max(2, CHUNK_BYTES // math.prod(images.shape[1:]))
    chunks = (images[i : i + rows] for i in range(0, len(images), rows))
    made = map(extractor, chunks)
    features = np.concatenate(list(made)) if len(images) <= KEPT else None
    statistics = frechet.accumulate(made if features is None else [features])
    _save(path, statistics, features, name)
    return Reference(name, statistics, features)


def per_class(metric, real, real_labels, fake, fake_labels):
    """{class: metric(real, fake)} of each class's features alone, such as `frechet.fid` or `kernel.kid`.

    Classes without two images on each side are left out. A Fréchet distance depends on n: classes of different sizes
    compare only with the same class of another model.
    """
    fake_labels, real_labels = np.asarray(fake_labels), np.asarray(real_labels)
    counts = {c: min((fake_labels == c).sum(), (real_labels == c).sum()) for c in np.unique(real_labels).tolist()}
    return {c: metric(real[real_labels == c], fake[fake_labels == c]) for c, count in counts.items() if count >= 2}


def real_floor(against, train, n, test=None, seed=0):
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
    kept.save(path, arrays | ({} if features is None else {"features": features}), f"features of {name}")


def _load(path, name):
    arrays = kept.load(path)
    statistics = frechet.Statistics(int(arrays["n"][0]), arrays["mean"], arrays["scatter"])
    return Reference(name, statistics, arrays.get("features"))
