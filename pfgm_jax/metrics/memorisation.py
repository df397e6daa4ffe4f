"""Are samples copies of training images? How near they come to them, beside how near fresh real images come.

    d(x) = distance of x to its nearest training image
    t    = k-th smallest d of m held-out images, k = max(1, ⌊(m + 1) / 100⌋): about their 1st percentile
    share of samples with d < t;  k / (m + 1), about 1 %, is expected of fresh images

Where samples and held-out images are of one law, the number of n samples below t is beta-binomial(n, k, m + 1 − k),
whatever that law and the distance are, as t is an order statistic. So `chance`, the probability that fresh images give
as many or more, is exact. The interval is for the share of all samples below this t (Clopper and Pearson 1934).

Copies that are in the data already are no memory of a model, and are accounted for:
* held-out images that equal a training image, byte by byte, are left out of t and counted;
* near-copies among held-out images stay: a fresh image may be one;
* of the samples below t, those are counted as "in a crowd" whose training image has another one nearer than t too: they
  may be one more of the same kind, not a copy.

It measures nearness in a space. Pixels miss copies that are shifted by a pixel, or turned (`mirror` looks for mirrored
ones); features see past that, but may also hold different images for alike. And the shares of classes count: if samples
have more of a class whose images lie close together, the number rises without a copy. So look at the picture.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from scipy.stats import betabinom, binomtest

from pfgm_jax.data.dataset import to_unit
from pfgm_jax.metrics.classifier import SIDE, shrink
from pfgm_jax.metrics.neighbours import as_features, squared_distances

QUERIES = 5000  # of more samples or held-out images, so many are drawn
BLOCK = 4096  # training images whose features are in memory together


class Closest(NamedTuple):
    """The samples nearest to training images: uint8 [k, H, W, C] and distances [k]; mirrored where that was nearer."""

    samples: np.ndarray
    train: np.ndarray
    held_out: np.ndarray
    train_distance: np.ndarray
    held_out_distance: np.ndarray


class Memorisation(NamedTuple):
    """What `memorisation` found.

    share, low, high: of samples below the threshold, with its interval at 95 %.
    expected, chance: the share expected of fresh images, and how probable they give as many samples or more.
    threshold: distance t. count: samples below it. crowded: those of them in a crowd.
    identical: samples that equal a training image.
    distances [n], nearest [n]: of each sample that was looked at, the distance to its nearest training image and which.
    held_out_distances [m]: of the held-out images that are no copies. held_out_copies: how many were.
    train_copies: training images that have an exact copy among them.
    """

    share: float
    low: float
    high: float
    expected: float
    chance: float
    threshold: float
    count: int
    crowded: int
    identical: int
    distances: np.ndarray
    nearest: np.ndarray
    held_out_distances: np.ndarray
    held_out_copies: int
    train_copies: int
    closest: Closest
    protocol: str


class Pixels:
    """Pixels in [-1, 1] as features, of images halved until no side exceeds 32 px: an extractor as `Inception` is."""

    name, fingerprint = f"pixels (images halved to {SIDE} px at most)", f"pixels {SIDE}"

    def __call__(self, images):
        return to_unit(shrink(images)).reshape(len(images), -1)


def memorisation(samples, train, held_out, extractor=None, train_features=None, mirror=False, k=10, seed=0):
    """The Memorisation of samples.

    Args:
      samples, train, held_out: uint8 [n, H, W, C], arrays or what can be sliced like one. Held-out are real images that
        the model was not trained on.
      extractor: uint8 images -> features [n, d], with a `name`; None: `Pixels`.
      train_features: [N, d] of the training images, if they are known.
      mirror: a left-right mirrored image is looked at as well, and the nearer one counts; for held-out images too.
      k: closest samples that are kept for the picture.
      seed: of the draw where there are more than QUERIES.

    Raises:
      ValueError: fewer than two held-out images that are no copies, or no samples.
    """
    extractor = extractor or Pixels()
    in_train = _digests(train)
    train_set = set(in_train)
    held_out, n_held_out = _drawn(held_out, seed)
    fresh = np.array([digest not in train_set for digest in _digests(held_out)], bool)
    copies, held_out = int((~fresh).sum()), held_out[fresh]
    samples, n_samples = _drawn(samples, seed)
    if len(held_out) < 2 or not len(samples):
        raise ValueError(f"{len(samples)} samples and {len(held_out)} held-out images that are no copies: too few")

    def features_of(images):
        return as_features(extractor(images))

    def blocks():
        for start in range(0, len(train), BLOCK):
            part = slice(start, start + BLOCK)
            yield start, features_of(train[part]) if train_features is None else as_features(train_features[part])

    queries = [samples, held_out]
    queries += [images[:, :, ::-1] for images in queries] if mirror else []
    features = [features_of(images) for images in queries]
    distance, nearest = neighbours(np.concatenate(features), blocks)
    ends = np.cumsum([len(images) for images in queries])[:-1]
    distances, nearests = np.split(distance, ends), np.split(nearest, ends)
    turned = np.zeros(len(samples), bool)
    if mirror:
        turned = distances[2] < distances[0]
        nearests[0] = np.where(turned, nearests[2], nearests[0])
        distances = [np.minimum(distances[i], distances[i + 2]) for i in (0, 1)]
    d, d_held_out = distances[:2]

    m, n = len(held_out), len(samples)
    order = max(1, (m + 1) // 100)
    threshold = float(np.sort(d_held_out)[order - 1])
    below = d < threshold
    count = int(below.sum())
    interval = binomtest(count, n).proportion_ci(0.95)

    # Of the training images that samples below the threshold are nearest to: is there another one as near?
    hit, of_hit = np.unique(nearests[0][below], return_inverse=True)
    crowded = 0
    if count:
        among = neighbours(features_of(train[hit]), blocks, exclude=hit)[0] if len(train) > 1 else np.full(1, np.inf)
        crowded = int((among < threshold)[of_hit].sum())

    first = np.argsort(d, kind="stable")[:k]
    shown = np.where(turned[first, None, None, None], samples[first][:, :, ::-1], samples[first])
    shown_features = (
        np.where(turned[first, None], features[2][first], features[0][first]) if mirror else features[0][first]
    )
    other_distance, other = neighbours(shown_features, lambda: [(0, features[1])])
    closest = Closest(shown, np.asarray(train[nearests[0][first]]), held_out[other], d[first], other_distance)
    counted = lambda found, all_: f"{found}" if found == all_ else f"{found} of {all_}, drawn at random,"
    protocol = (
        f"{counted(n, n_samples)} samples and {counted(m + copies, n_held_out)} held-out images against {len(train)} "
        f"training images, Euclidean distance in {extractor.name}{', mirrored or not' if mirror else ''}"
    )
    identical = sum(digest in train_set for digest in _digests(samples))
    return Memorisation(
        count / n, float(interval.low), float(interval.high), order / (m + 1),
        float(betabinom.sf(count - 1, n, order, m + 1 - order)), threshold, count, crowded, identical, d, nearests[0],
        d_held_out, copies, _with_copy(in_train), closest, protocol,
    )  # fmt: skip


def neighbours(queries, blocks, exclude=None):
    """Distance to the nearest point and which it is, float [n] and int [n], of queries [n, d].

    Args:
      blocks: called, it gives (index of the first, features [b, d]) of the points, part by part.
      exclude: int [n], a point that is passed over for each query.
    """
    best, which = np.full(len(queries), np.inf), np.full(len(queries), -1)
    for start, points in blocks():
        for rows, squares in squared_distances(queries, points):
            if exclude is not None:
                at = exclude[rows] - start
                inside = np.flatnonzero((at >= 0) & (at < len(points)))
                squares[inside, at[inside]] = np.inf
            j = squares.argmin(axis=1)
            # Computed anew, as the expansion loses the digits near 0.
            found = np.linalg.norm(queries[rows] - points[j], axis=1)
            found[np.isinf(squares[np.arange(len(j)), j])] = np.inf
            nearer = found < best[rows]
            best[rows], which[rows] = np.where(nearer, found, best[rows]), np.where(nearer, start + j, which[rows])
    return best, which


def text(result):
    """A few lines for the terminal."""
    r = result
    lines = [
        f"{r.share:.2%} [{r.low:.2%}, {r.high:.2%}] of samples are nearer to a training image than {r.expected:.2%} of "
        f"held-out images are; fresh images give as many with probability {r.chance:.2g}",
        f"{r.count} samples lie below that distance, {r.threshold:.4g}; of them {r.crowded} in a crowd of training "
        f"images; {r.identical} equal a training image",
        f"in the data: {r.held_out_copies} held-out images equal a training image and are left out, {r.train_copies} "
        "training images have an exact copy",
        r.protocol,
    ]
    return "\n".join(lines)


def plot(result, path):
    """Writes a PNG: the closest samples over their nearest training and held-out image, and histograms of distances."""
    from matplotlib.figure import Figure  # no pyplot: no global state and no screen

    closest, columns = result.closest, len(result.closest.samples)
    figure = Figure(figsize=(max(7, 1.05 * columns + 1.3), 7.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3.6, 3])
    rows = [
        ("closest\nsamples", closest.samples, None),
        ("nearest\ntraining\nimage", closest.train, closest.train_distance),
        ("nearest\nheld-out\nimage", closest.held_out, closest.held_out_distance),
    ]
    for axes, (name, images, distances) in zip(top.subplots(3, columns, squeeze=False), rows, strict=True):
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for i, (cell, image) in enumerate(zip(axes, images, strict=True)):
            cell.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
            cell.set(xticks=[], yticks=[])
            cell.set_xlabel("" if distances is None else f"{distances[i]:.3g}", fontsize="small", labelpad=2)
    axes = bottom.subplots()
    both = np.concatenate([result.distances, result.held_out_distances])
    bins = np.linspace(0, both.max() * 1.02 or 1, 60)
    for values, name in ((result.held_out_distances, "held-out images"), (result.distances, "samples")):
        axes.hist(values, bins, density=True, alpha=0.55, label=f"{len(values)} {name}")
    axes.axvline(result.threshold, color="black", linestyle="--", label=f"{result.expected:.2%} of held-out images")
    title = f"{result.share:.2%} [{result.low:.2%}, {result.high:.2%}] of samples left of the line"
    axes.set(xlabel="distance to the nearest training image", ylabel="density", title=title)
    axes.legend()
    figure.savefig(path, dpi=110)


def _digests(images):
    """What equal images have in common, [n], read in chunks."""
    chunks = (images[start : start + BLOCK] for start in range(0, len(images), BLOCK))
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for chunk in chunks for image in chunk]


def _with_copy(digests):
    seen = {}
    for digest in digests:
        seen[digest] = seen.get(digest, 0) + 1
    return sum(times for times in seen.values() if times > 1)


def _drawn(images, seed):
    """Images as an array, at most QUERIES of them, and how many there were."""
    n = len(images)
    if n <= QUERIES:
        return np.asarray(images), n
    return np.asarray(images[np.sort(np.random.default_rng(seed).choice(n, QUERIES, replace=False))]), n
