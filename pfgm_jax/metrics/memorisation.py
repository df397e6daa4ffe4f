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

It measures nearness in a space. Pixels miss copies that are mirrored or moved by one pixel, unless `mirror` and `shift`
look for them. Features can see past such changes, but those of a classifier hold all images of a class for alike, and
find few copies. And the shares of classes count: if samples have more of a class whose images lie close together, the
number rises without a copy. So look at the picture.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num, UInt8
from scipy.stats import betabinom, binomtest

from pfgm_jax import plots
from pfgm_jax.array_types import Arrays
from pfgm_jax.data.dataset import to_unit
from pfgm_jax.metrics.classifier import SIDE, shrink
from pfgm_jax.metrics.neighbours import as_features, squared_distances
from pfgm_jax.storage.digests import of_images

QUERIES = 5000  # of more samples or held-out images, so many are drawn
BLOCK = 4096  # training images whose features are in memory together


class TooFew(ValueError):
    """Nearly all held-out images equal training images, and nothing is left to compare with."""


class Closest(NamedTuple):
    """The samples nearest to training images: uint8 [k, H, W, C] and distances [k]; seen as they are nearest."""

    samples: UInt8[np.ndarray, "k H W C"]
    train: UInt8[np.ndarray, "k H W C"]
    held_out: UInt8[np.ndarray, "k H W C"]
    train_distance: Float[np.ndarray, "k"]
    held_out_distance: Float[np.ndarray, "k"]


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
    distances: Float[np.ndarray, "n"]
    nearest: Int[np.ndarray, "n"]
    held_out_distances: Float[np.ndarray, "m"]
    held_out_copies: int
    train_copies: int
    closest: Closest
    protocol: str


class Pixels:
    """Pixels in [-1, 1] as features, of images halved until no side exceeds 32 px: an extractor as `Inception` is."""

    name, fingerprint = f"pixels (images halved to {SIDE} px at most)", f"pixels {SIDE}"

    def __call__(self, images):
        return to_unit(shrink(images)).reshape(len(images), -1)


def memorisation(
    samples: Any,
    train: Any,
    held_out: Any,
    extractor: Any = None,
    train_features: Num[Arrays, "N d"] | None = None,
    *,
    mirror: bool = False,
    shift: int = 0,
    k: int = 10,
    seed: int = 0,
    least: int = 2,
) -> Memorisation:
    """The Memorisation of samples.

    Args:
      samples, train, held_out: uint8 [n, H, W, C], arrays or what can be sliced like one. Held-out are real images that
        the model was not trained on.
      extractor: uint8 images -> features [n, d], with a `name`; None: `Pixels`.
      train_features: [N, d] of the training images, if they are known.
      mirror, shift: images are also looked at left-right mirrored, and moved by up to so many pixels each way (edges
        repeated), and the nearest view counts; for held-out images too. Time grows with the number of views.
      k: closest samples that are kept for the picture.
      seed: of the draw where there are more than QUERIES.
      least: held-out images that are no copies that it takes, 2 or more.

    Raises:
      TooFew: fewer held-out images that are no copies.
      ValueError: no samples.
    """
    extractor, views = extractor or Pixels(), _views(mirror, shift)
    in_train = _digests(train)
    train_set = set(in_train)
    held_out, n_held_out = _drawn(held_out, seed)
    fresh = np.array([digest not in train_set for digest in _digests(held_out)], bool)
    copies, held_out = int((~fresh).sum()), held_out[fresh]
    samples, n_samples = _drawn(samples, seed)
    m, n = len(held_out), len(samples)
    if m < max(2, least):
        raise TooFew(f"{m} held-out images that equal no training image are fewer than {max(2, least)}")
    if not n:
        raise ValueError("there are no samples")

    def features_of(images):
        return as_features(extractor(images))

    def blocks():
        for start in range(0, len(train), BLOCK):
            part = slice(start, start + BLOCK)
            yield start, features_of(train[part]) if train_features is None else as_features(train_features[part])

    both = np.concatenate([samples, held_out])
    distance, nearest, viewed = np.full(n + m, np.inf), np.full(n + m, -1), np.zeros(n + m, int)
    for i, view in enumerate(views):
        view_distance, which = neighbours(features_of(view(both)), blocks)
        nearer = view_distance < distance
        distance[nearer], nearest[nearer], viewed[nearer] = view_distance[nearer], which[nearer], i
    d, d_held_out, nearest = distance[:n], distance[n:], nearest[:n]

    order = max(1, (m + 1) // 100)
    threshold = float(np.sort(d_held_out)[order - 1])
    below = d < threshold
    count = int(below.sum())
    interval = binomtest(count, n).proportion_ci(0.95)

    # Of the training images that samples below the threshold are nearest to: is there another one as near?
    hit, of_hit = np.unique(nearest[below], return_inverse=True)
    among = neighbours(features_of(train[hit]), blocks, exclude=hit)[0] if count else np.zeros(0)

    first = np.argsort(d, kind="stable")[:k]
    shown = np.concatenate([views[viewed[i]](samples[i : i + 1]) for i in first])
    other_distance, other = neighbours(features_of(shown), lambda: [(0, features_of(held_out))])
    counted = lambda used, total: f"{used}" if used == total else f"{used} of {total}, drawn at random,"
    moved = f", moved by up to {shift} px or not" if shift else ""
    return Memorisation(
        share=count / n,
        low=float(interval.low),
        high=float(interval.high),
        expected=order / (m + 1),
        chance=float(betabinom.sf(count - 1, n, order, m + 1 - order)),
        threshold=threshold,
        count=count,
        crowded=int((among < threshold)[of_hit].sum()),
        identical=sum(digest in train_set for digest in _digests(samples)),
        distances=d,
        nearest=nearest,
        held_out_distances=d_held_out,
        held_out_copies=copies,
        train_copies=_with_copy(in_train),
        closest=Closest(shown, np.asarray(train[nearest[first]]), held_out[other], d[first], other_distance),
        protocol=f"{counted(n, n_samples)} samples and {counted(m + copies, n_held_out)} held-out images against "
        f"{len(train)} training images, Euclidean distance in {extractor.name}"
        f"{', mirrored or not' if mirror else ''}{moved}",
    )


class NearCopies(NamedTuple):
    """What `near_copies` found.

    chance: probability that as many fresh images lie so near, for the number of thresholds tried; at most 1.
    count, expected: samples below the most telling threshold, and the fresh images expected there.
    caught: smallest share of samples that would be caught in 19 of 20 draws were they exact copies.
    """

    chance: float
    count: int
    expected: float
    caught: float


def near_copies(
    distances: Num[np.ndarray, "n"], held_out_distances: Num[np.ndarray, "m"], level: float = 1e-3
) -> NearCopies:
    """A sharper test for few copies than `memorisation`'s share below one threshold.

    The k-th smallest held-out distance is the threshold for k = 1, 3, 10, 32, … up to the 1st percentile. The count
    below each is beta-binomial(n, k, m + 1 − k) for fresh images (see the module); the smallest probability counts,
    times their number (Bonferroni). Exact copies show at k = 1, where hardly a fresh image is, noisy ones further up.

    Args:
      distances: [n] of samples to their nearest training image, as `Memorisation` has them.
      held_out_distances: [m] of held-out images, at least 2.
      level: the probability below which copies count as caught.

    Raises:
      ValueError: fewer distances.
    """
    n, m = len(distances), len(held_out_distances)
    if not n or m < 2:
        raise ValueError(f"{n} distances of samples and {m} of held-out images: too few")
    held_out, laws = np.sort(held_out_distances), _fresh_laws(n, m)
    found, caught = [], []
    for k, tail in laws:
        count = int((distances < held_out[k - 1]).sum())
        found.append((float(tail[count]), count, n * k / (m + 1)))
        needed = int(np.argmax(tail < level / len(laws)))
        usual = int(np.argmax(1 - tail[1:] >= 0.05))  # so many fresh images, or more, in 19 of 20 draws
        caught.append(needed - usual + 1)  # one more, as copies take the places of fresh images
    chance, count, expected = min(found)
    return NearCopies(min(1.0, len(laws) * chance), count, expected, min(1.0, min(caught) / n))


@functools.lru_cache(8)
def _fresh_laws(n, m):
    """[(k, P(X >= 0), …, P(X >= n + 1))] of the thresholds of `near_copies`."""
    last = max(1, (m + 1) // 100)
    orders = sorted({*(round(10 ** (i / 2)) for i in range(12) if 10 ** (i / 2) < last), last})
    tails = (np.cumsum(betabinom.pmf(np.arange(n + 1), n, k, m + 1 - k)[::-1])[::-1] for k in orders)
    return [(k, np.append(tail, 0.0)) for k, tail in zip(orders, tails, strict=True)]


def _views(mirror, shift):
    """Functions of images [n, H, W, C]: as they are, and moved and mirrored as `memorisation` says."""

    def moved(down, right, step):
        def view(images):
            height, width = images.shape[1:3]
            padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
            return padded[:, shift - down :, shift - right :][:, :height, :width][:, :, ::step]

        return view

    offsets = sorted(range(-shift, shift + 1), key=abs)
    return [moved(i, j, step) for step in ((1, -1) if mirror else (1,)) for i in offsets for j in offsets]


def neighbours(
    queries: Float[np.ndarray, "n d"], blocks: Callable, exclude: Int[np.ndarray, "n"] | None = None
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
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
            distance = np.linalg.norm(queries[rows] - points[j], axis=1)
            distance[np.isinf(squares[np.arange(len(j)), j])] = np.inf
            nearer = distance < best[rows]
            best[rows], which[rows] = np.where(nearer, distance, best[rows]), np.where(nearer, start + j, which[rows])
    return best, which


def text(result: Memorisation) -> str:
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
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.6, 3])
    top, bottom = parts
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
    plots.use_palette(axes)
    both = np.concatenate([result.distances, result.held_out_distances])
    bins = np.linspace(0, both.max() * 1.02 or 1, 60)
    for values, name in ((result.held_out_distances, "held-out images"), (result.distances, "samples")):
        axes.hist(values, bins, density=True, alpha=0.55, label=f"{len(values)} {name}")
    axes.axvline(result.threshold, color="black", linestyle="--", label=f"{result.expected:.2%} of held-out images")
    title = f"{result.share:.2%} [{result.low:.2%}, {result.high:.2%}] of samples left of the line"
    axes.set(xlabel="distance to the nearest training image", ylabel="density", title=title)
    axes.legend()
    plots.save_figure(figure, path)


def _digests(images):
    """What equal images have in common, [n], read in chunks."""
    chunks = (images[start : start + BLOCK] for start in range(0, len(images), BLOCK))
    return [digest for chunk in chunks for digest in of_images(chunk)]


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
