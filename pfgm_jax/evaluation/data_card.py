"""The data card of a data set: what it holds, implies and lacks, before anything is trained."""

import math
import pathlib
import re
import sys
import time
from typing import NamedTuple

import numpy as np

from pfgm_jax import data, plots
from pfgm_jax import run as run_lib
from pfgm_jax.data import duplicates
from pfgm_jax.data.splits import shared_groups
from pfgm_jax.errors import counted
from pfgm_jax.flow import process
from pfgm_jax.metrics.neighbours import squared_distances
from pfgm_jax.metrics.tables import markdown
from pfgm_jax.storage import atomic

SPLITS = ("train", "val", "test")
QUANTILES = (1, 10, 50, 90)  # of nearest distances, in per cent
FEW = 10  # a class with fewer training images is warned of
NEAR = 0.2  # a near copy is closer than this part of the median distance from a training image to the next
MOST_CLASSES = 40  # rows of the table and of the overview
# Queries of a nearest-neighbour search: at most QUERIES, fewer for a large set, but LEAST, as far as memory allows.
QUERIES, LEAST, MULTIPLICATIONS, HELD = 2000, 256, 2e11, 2**26
_BLOCK = 2**24  # values of the searched set in float64 at a time: 128 MiB


class Nearest(NamedTuple):
    """Distances [k], in unit scale, from some images to the nearest of a set, and how many there were of each."""

    distances: np.ndarray
    images: int  # of which the k were drawn
    searched: int


def nearest(images, others=None):
    """Distances from images to the nearest of `others`, or to the nearest other image of `images`: a Nearest.

    Queries are drawn with a fixed seed; the searched set is whole up to `duplicates.EXAMINED_BYTES`. Distances are L2
    over all values, exact for bytes: a copy is at 0.
    """
    alone, others = others is None, images if others is None else others
    searched, pool = duplicates.chosen(others), duplicates.chosen(images)
    width = math.prod(images.shape[1:])
    most = max(1, min(QUERIES, HELD // width, max(LEAST, int(MULTIPLICATIONS / (len(searched) * width)))))
    if len(pool) > most:
        pool = np.sort(np.random.default_rng(1).choice(pool, most, replace=False))
    features = lambda block: block.reshape(len(block), -1).astype(np.float64)
    queries = features(np.concatenate([block for _, block in duplicates.chunks(images, pool)]))
    best, where = np.full(len(pool), np.inf), np.zeros(len(pool), int)
    for place, block in duplicates.chunks(others, searched, max(1, _BLOCK // width) * images.dtype.itemsize * width):
        for rows, squares in squared_distances(queries, features(block)):
            if alone:
                squares[pool[rows, None] == searched[None, place]] = np.inf
            at = squares.argmin(axis=1)
            smallest = squares[np.arange(len(at)), at]
            closer = smallest < best[rows]
            best[rows] = np.where(closer, smallest, best[rows])
            where[rows] = np.where(closer, searched[place][at], where[rows])
    # Once more without the expansion of the square, which loses the digits near 0.
    exact = np.empty(len(pool))
    for rows, block in duplicates.chunks(others, where):
        exact[rows] = np.linalg.norm(queries[rows] - features(block), axis=1)
    scale = 127.5 if images.dtype == np.uint8 else 1.0
    return Nearest(exact / scale, len(images), len(searched))


class Card(NamedTuple):
    """What a card says; the censuses are of train, val and test, and `nearest` is by split name."""

    dataset: object
    counts: np.ndarray  # int [3, classes]
    censuses: list
    copies: duplicates.Copies
    moments: object
    diameter: float
    nearest: dict


def make(dataset, say=lambda text: None):
    """The Card of a Dataset; `say` is called with what is being done."""
    splits = [getattr(dataset, name) for name in SPLITS]
    say("reading every image")
    censuses = [duplicates.take(split.images) for split in splits]
    say("moments and diameter")
    train = dataset.train.images
    result = {}
    facts, widest = data.moments(train), data.diameter(train)
    for name, split in zip(SPLITS, splits, strict=True):
        if len(split) > (name == "train"):
            say(f"nearest training image of {name} images")
            result[name] = nearest(split.images, None if name == "train" else train)
    counts = np.stack([np.bincount(split.labels, minlength=dataset.num_classes) for split in splits])
    return Card(dataset, counts, censuses, duplicates.copies(censuses), facts, widest, result)


def warnings(card):
    """What a person should look at before training, as sentences."""
    dataset, splits = card.dataset, [getattr(card.dataset, name) for name in SPLITS]
    labels, lines = [split.labels for split in splits], []
    for name, split, counts in zip(SPLITS, splits, card.counts, strict=True):
        absent = [dataset.classes[c] for c in np.flatnonzero(counts == 0)]
        if not len(split):
            lines.append(f"the {name} split is empty")
        elif absent:
            lines.append(f"no {name} image of {_few(absent)}")
    small = [f"{dataset.classes[c]} ({n})" for c, n in enumerate(card.counts[0]) if 0 < n < FEW]
    if small:
        lines.append(f"fewer than {FEW} training images of {_few(small)}: they will be memorised, or never drawn")
    for one, other in ((1, 0), (2, 0), (2, 1)):
        pairs = card.copies.between(one, other)
        if pairs:
            apart = sum(labels[s][i] != labels[t][j] for (s, i), (t, j) in pairs)
            lines.append(
                f"leak: {counted(len(pairs), SPLITS[one] + ' image')} also in {SPLITS[other]}"
                + (f", {apart} of them there with another label" if apart else "")
            )
    for (one, other), shared in shared_groups(_groups(dataset)).items():
        lines.append(f"leak: {counted(shared, 'patient')} with images in both {one} and {other}")
    images, pairs, apart = card.copies.among(0, labels)
    if apart:
        lines.append(f"{apart} of {pairs} pairs of equal training images have different labels")
    if math.prod(dataset.shape[:2]) > 1:
        constant = {name: int(c.constant.sum()) for name, c in zip(SPLITS, card.censuses, strict=True)}
        if sum(constant.values()):
            lines.append(f"images of one colour throughout: {_per_split(constant)}")
    if dataset.shape[-1] == 3 and all(c.grey.all() for c in card.censuses):
        lines.append("all images are grey, stored as three equal channels: one channel is a third of the work")
    return lines


def text(card):
    """The card as Markdown that also reads in a terminal."""
    dataset, facts, N = card.dataset, card.moments, math.prod(card.dataset.shape)
    sizes = [len(getattr(dataset, name)) for name in SPLITS]
    order = np.argsort(-card.counts[0], kind="stable")
    present = card.counts[0][card.counts[0] > 0]
    M = process.pfgm_M(facts.mean_norm, N)
    pfgm = process.pfgm(M, N)
    parts = [
        f"# Data card: {dataset.name}",
        _list([
            ("image", "×".join(map(str, dataset.shape))),
            ("images", ", ".join(f"{n:,} {name}" for name, n in zip(SPLITS, sizes, strict=True))),
            ("classes", f"{dataset.num_classes}; the largest has {present.max() / present.min():.3g} times as many "
                        "training images as the smallest"),
            *_patients(dataset),
            *_window(dataset),
            ("licence", dataset.licence),
            ("source", dataset.source),
        ]),
        "## Warnings\n\n" + ("\n".join(f"* {line}" for line in warnings(card)) or "None."),
        f"## Classes\n\n{_classes(card, order)}",
        "## Values in [-1, 1], training images\n\n" + _list([
            ("mean", f"{facts.mean:+.3f}"),
            ("standard deviation", f"{facts.std:.3f}: σ_data"),
            ("norm of an image", f"{facts.mean_norm:.1f} on average, {facts.largest_norm:.1f} at most"),
            ("σ_max, pfgmpp and edm", f"{run_lib.sigma_max_of(facts.mean_square_norm):.1f}: a prior at most "
                                      f"{run_lib.PRIOR_NATS} nats from the data"),
            ("M, pfgm", f"{M}: z_max {pfgm.sigma_max:.1f}, largest prior norm {pfgm.max_norm:.0f}"),
            ("σ_max, ve", f"{card.diameter:.1f}: the largest distance of two images"),
        ]),
        f"## Exact copies\n\n{_copies(card)}",
        f"## Distance to the nearest training image\n\n{_distances(card)}",
    ]  # fmt: skip
    parts += _notes(card)
    return "\n\n".join(parts)


def _groups(dataset):
    """{split: groups int [n]} of the splits whose images have groups, patients for one."""
    groups = {name: getattr(dataset, name).groups for name in SPLITS}
    return {name: own for name, own in groups.items() if own is not None}


def _patients(dataset):
    """A row on patients, where they are known: how many each split has, and how many are in several."""
    groups = _groups(dataset)
    if groups:
        numbers = ", ".join(f"{len(np.unique(own)):,} {name}" for name, own in groups.items())
        shared = [f"{n:,} in {one} and {other} both" for (one, other), n in shared_groups(groups).items()]
        yield "patients", f"{numbers}; {', '.join(shared) or 'none in two splits'}"


def _window(dataset):
    """A row on the values of images of more than 8 bits, where there are any."""
    if dataset.window:
        low, high = dataset.window
        yield "window", f"of images of more than 8 bits, the value {low:g} became black and {high:g} white"


def _classes(card, order):
    """Images of each class and split, most frequent first; the bars show the tail."""
    dataset, (train, val, test) = card.dataset, card.counts
    shown, left_out = _shown(order)
    share = lambda n, all_n: f"{n:,}" + (f" ({100 * n / all_n:.1f} %)" if all_n else "")
    rows = [
        (
            _class(dataset, c),
            *(share(counts[c], counts.sum()) for counts in (train, val, test)),
            "█" * math.ceil(20 * train[c] / train.max()),
        )
        for c in shown
    ]
    note = f"\n\nLeft out: {counted(left_out, 'class')} between the most and the least frequent." if left_out else ""
    return markdown(("class", *SPLITS, ""), rows) + note


def _copies(card):
    labels = [getattr(card.dataset, name).labels for name in SPLITS]
    rows = []
    for split, name in enumerate(SPLITS):
        images, pairs, apart = card.copies.among(split, labels)
        rows.append((f"within {name}", f"{images:,}", f"{pairs:,}", f"{apart:,}"))
    for one, other in ((1, 0), (2, 0), (2, 1)):
        pairs = card.copies.between(one, other)
        apart = sum(labels[s][i] != labels[t][j] for (s, i), (t, j) in pairs)
        rows.append((f"{SPLITS[one]} in {SPLITS[other]}", f"{len(pairs):,}", f"{len(pairs):,}", f"{apart:,}"))
    return markdown(("", "images with a copy", "pairs", "pairs of different labels"), rows)


def _distances(card):
    reference = np.median(card.nearest["train"].distances) if "train" in card.nearest else math.nan
    rows = []
    for name, result in card.nearest.items():
        d, k = result.distances, len(result.distances)
        near = np.mean((d > 0) & (d < NEAR * reference))
        asked = f"{k:,}" if k == result.images else f"{k:,} of {result.images:,}"
        rows.append(
            (name + (", itself left out" if name == "train" else ""), asked, f"{result.searched:,}",
             *(f"{q:.2f}" for q in np.percentile(d, QUANTILES)),
             f"{np.median(d) / reference:.2f}" if reference > 0 else "–",
             f"{np.mean(d == 0):.1%}", f"{near:.1%}")
        )  # fmt: skip
    quantiles = [f"{q} %" for q in QUANTILES]
    header = ("from", "queries", "searched", *quantiles, "median / train's", "copies", "near copies")
    return markdown(header, rows) + (
        f"\n\nL2 over the values of an image; quantiles. A near copy is closer than {NEAR:g} of train's median and no "
        "copy. A median ratio well above 1: the split is farther from train than train is from itself."
    )


def _notes(card):
    """Where not every image was examined."""
    part = [
        f"{len(c.indices):,} of {len(getattr(card.dataset, name)):,} {name}"
        for name, c in zip(SPLITS, card.censuses, strict=True)
        if len(c.indices) < len(getattr(card.dataset, name))
    ]
    limit = duplicates.EXAMINED_BYTES / 2**30
    return [f"Of images beyond {limit:g} GiB a subset was examined, drawn with a fixed seed: {_few(part)}."] * bool(
        part
    )


def _shown(order):
    """(the classes to show, how many are left out): the most and the least frequent."""
    if len(order) <= MOST_CLASSES:
        return order, 0
    least = MOST_CLASSES // 4
    return np.concatenate([order[: MOST_CLASSES - least], order[-least:]]), len(order) - MOST_CLASSES


def _few(names):
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _class(dataset, c):
    """A class by number and name, or by one of them where they are the same."""
    name = dataset.classes[c]
    return _short(name) if name == str(c) else f"{c} {_short(name)}"


def _short(name, most=32):
    return name if len(name) <= most else name[: most - 1] + "…"


def _per_split(numbers):
    return ", ".join(f"{n} {name}" for name, n in numbers.items() if n)


def _list(rows):
    width = max(len(name) for name, _ in rows) + 1
    return "\n".join(f"* {name + ':':{width}} {value}" for name, value in rows)


def draw(card, folder):
    """Writes overview.png, classes/NN_name.png and, where splits share images, shared.png; returns what was written."""
    dataset, train = card.dataset, card.dataset.train
    order = np.argsort(-card.counts[0], kind="stable")

    def sample(c, most):
        of_class = np.flatnonzero(train.labels == c)
        picked = np.random.default_rng(c).permutation(of_class)[:most]
        return np.asarray(train.images[picked]) if len(picked) else np.empty((0, *dataset.shape), np.uint8)

    (folder / "classes").mkdir(exist_ok=True)
    for c in np.flatnonzero(card.counts[0]):
        name = re.sub(r"\W+", "_", dataset.classes[c])[:40].strip("_")
        plots.save(plots.grid(sample(c, 64)), folder / "classes" / f"{c:02d}_{name}.png")
    shown, _ = _shown(order)
    rows = [(f"{_class(dataset, c)}\n{counted(card.counts[0][c], 'image')}", sample(c, 12)) for c in shown]
    plots.save(plots.labelled_rows(rows, columns=12), folder / "overview.png")
    written = ["overview.png", "classes/"]
    pairs = [pair for one, other in ((1, 0), (2, 0), (2, 1)) for pair in card.copies.between(one, other)][:12]
    if pairs:
        rows = []
        for pair in pairs:
            splits = [(getattr(dataset, SPLITS[s]), SPLITS[s], i) for s, i in pair]
            title = "\n".join(f"{name} {i}: {_class(dataset, split.labels[i])}" for split, name, i in splits)
            rows.append((title, np.concatenate([np.asarray(split.images[i : i + 1]) for split, _, i in splits])))
        plots.save(plots.labelled_rows(rows), folder / "shared.png")
        written.append("shared.png")
    return written


def write(config, workdir=None):
    """The data card of config.data as text; with `workdir`, it and its pictures are written there.

    Raises:
      UserError: data that cannot be loaded, or a folder that cannot be written.
    """
    begun = time.perf_counter()
    say = lambda doing: print(f"data       {time.perf_counter() - begun:4.0f} s  {doing}", file=sys.stderr, flush=True)
    folder = pathlib.Path(workdir) if workdir else None
    if folder:
        atomic.writable(folder)  # before what takes long
    dataset = data.load(config.data)
    card = make(dataset, say)
    content = text(card)
    if not folder:
        return f"{content}\n\nWith a workdir this goes to its data_card.md, with pictures beside it."
    drawable = dataset.train.images.dtype == np.uint8
    written = draw(card, folder) if drawable else []
    linked = "".join(f"\n\n![{name}]({name})" for name in written if name.endswith(".png"))
    atomic.write_text(folder / "data_card.md", content + linked + "\n")
    return f"{content}\n\nWritten to {folder}: {', '.join(['data_card.md', *written])}"
