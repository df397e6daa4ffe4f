"""Figures of images against real ones, with intervals, the protocol, and what real images reach themselves.

`Measure` holds what is common to all images that are measured: the reference, its neighbour radii, its floor.
"""

from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from pfgm_jax.data.dataset import to_unit
from pfgm_jax.errors import UserError, counted, nearest
from pfgm_jax.metrics import estimate, frechet, kernel_distance, neighbours, per_class, real_floor, reference
from pfgm_jax.metrics.intervals import REPLICATES
from pfgm_jax.metrics.references import cached_at, kept_indices
from pfgm_jax.metrics.tables import aligned, as_html

FEATURES = ("pixels", "inception", "inception64", "domain")
LEAST = 12  # images, of which halves still have five neighbours
TITLES = {"fid": "FID", "kid": "KID", "fd": "Fréchet distance", "kd": "kernel distance",
          "is": "Inception score"}  # fmt: skip
K, DENSITY_K = 3, 5
SPLITS = ("train", "val", "test")


class Pixels:
    """The pixels themselves as features, in [-1, 1]: enough for images as small as the digits."""

    name, fingerprint, distances = "pixels in [-1, 1]", "pixels", ("fd", "kd")
    about = ""

    def __call__(self, images):
        """Features float32 [n, H W C] of uint8 images [n, H, W, C]."""
        return to_unit(np.asarray(images)).reshape(len(images), -1)


def extractor(features, dataset, path=""):
    """What makes features: one of FEATURES.

    "inception" has weights from a file `path` or, if that is "", from the cache; "inception64" are the same network's
    64 channels behind its first maximum pool; "domain" is a classifier of the
    Dataset's own classes, which is trained where it is not in the cache (`metrics.classifier`).

    Raises:
      UserError: an unknown word, weights that are not to be had, or a data set that no classifier can be trained on.
    """
    if features == "pixels":
        return Pixels()
    if features == "domain":
        from pfgm_jax.metrics import classifier

        return classifier.classifier(dataset)
    if features in ("inception", "inception64"):
        from pfgm_jax.metrics import inception_weights

        return inception_weights.load(path, early=features == "inception64")
    there = ", ".join(FEATURES)
    raise UserError(f"evaluate.features={features} is not one of {there}{nearest(features, FEATURES)}")


def default_features(name):
    """The features for a data set of this name where none are asked for."""
    return "pixels" if name == "digits" else "inception"


class Measured(NamedTuple):
    """Figures of n images, all with their protocol.

    scores: {row: {"n": images, figure: value}}, of the images measured ("samples") and of real ones.
    intervals: {figure: (low, high)}, at 95 %, of the samples.
    by_class: {class: {"n": images, figure: value}} or {}.
    protocol: {what: words}.
    """

    scores: dict
    intervals: dict
    by_class: dict
    protocol: dict

    def record(self):
        """As JSON."""
        return self._asdict()

    def _repr_html_(self):
        protocol = [["protocol", ""], *([what, words] for what, words in self.protocol.items())]
        return "".join(as_html(rows) for rows in [*tables(self), protocol])

    def __str__(self):
        return "\n".join([table(self), "", *(f"{what}: {words}" for what, words in self.protocol.items())])


class Measure:
    """Compares images with the split of a Dataset by the features of an extractor: `measure(features, labels)`.

    The reference's features are made once and cached (`metrics.reference`).

    Raises:
      UserError: floats in place of images, a split that is too small, or an unknown one.
    """

    def __init__(self, dataset, split, extractor):
        check_real(dataset, split)
        real = getattr(dataset, split)
        self.dataset, self.split, self.extractor = dataset, split, extractor
        self.reference = reference(dataset, split, extractor)
        self.identity = cached_at(dataset, split, extractor).stem  # one name for one reference and extractor
        self.labels = real.labels[kept_indices(len(real))]
        self.metric = self._against(self.reference.features, self.reference.statistics)
        self._floors = {}

    def features(self, images):
        """The features of uint8 images."""
        return self.extractor(images)

    def _against(self, features, statistics=None):
        """`fake features -> {figure: value}` against real features, and statistics of more of them."""
        distance, by_kernel = self.extractor.distances
        own = getattr(self.extractor, "own", lambda fake: {})
        parts = [
            frechet.against(features if statistics is None else statistics),
            kernel_distance.against(features),
            neighbours.against(features, K, DENSITY_K),
            own,
        ]
        names = {"fid": distance, "kid": by_kernel}
        return lambda fake: {names.get(k, k): value for part in parts for k, value in part(fake).items()}

    def floor(self, n):
        """{row: {"n": images, figure: value}}: what real images reach against real ones, at n as far as there are any.

        Training images against the rest of them, and test images as samples are measured.
        """
        if n in self._floors:
            return self._floors[n]
        test = None
        if self.split == "train" and len(self.dataset.test) >= LEAST:
            test = reference(self.dataset, "test", self.extractor).features
        floors = real_floor(self._against, self.reference.features, n, test)
        rows = {"train": f"real, part of {self.split}", "test": "real, test"}
        self._floors[n] = {rows[part]: figures for part, figures in floors.items()}
        for figures in self._floors[n].values():
            del figures["reference"]
        return self._floors[n]

    def __call__(self, features, labels=None, samples="", by_class=False):
        """Measured images.

        Args:
          features: [n, d] of the images.
          labels: [n] classes that were requested, or None.
          samples: words for the protocol: how the images were made.
          by_class: measure each class by itself too; needs `labels`.

        Raises:
          UserError: too few images.
        """
        n = len(features)
        check_count(n)
        figures = self.estimate(features)
        scores = {"samples": {"n": n} | {name: figure.value for name, figure in figures.items()}} | self.floor(n)
        intervals = {name: (figure.low, figure.high) for name, figure in figures.items()}
        classes = self._by_class(features, labels) if by_class else {}
        protocol = ({"samples": samples} if samples else {}) | self.protocol(bool(classes))
        if n < features.shape[1]:
            width, title = features.shape[1], TITLES[self.extractor.distances[0]]
            protocol["few"] = f"{title} of fewer samples than features ({width}) lies far above that of many"
        return Measured(scores, intervals, classes, protocol)

    def estimate(self, features):
        """Every figure of features [n, d] with its interval; shows its progress if it is long."""
        with tqdm(total=REPLICATES + 1, desc="figures and intervals", delay=5) as bar:

            def counted(fake):
                figures = self.metric(fake)
                bar.update()
                return figures

            return estimate(counted, features)

    def protocol(self, by_class=False):
        """{what: words} of everything but how the images were made."""
        n_kept, total = len(self.reference.features), self.reference.statistics.n
        distance = TITLES[self.extractor.distances[0]]
        some = f"; {distance} by all of them, the other figures by {n_kept} at random" if n_kept < total else ""
        features = f"{self.extractor.name}, {self.reference.features.shape[1]} features{self.extractor.about}"
        kernel_title = TITLES[self.extractor.distances[1]]
        words = {
            "features": features,
            "reference": f"{total} {self.split} images of {self.dataset.name} ({self.dataset.source}){some}",
            "figures": f"{distance} with covariances over n − 1; {kernel_title} unbiased, cubic kernel, all images; "
            f"precision and recall k = {K}, density and coverage k = {DENSITY_K}",
            "intervals": f"95 %, from {REPLICATES} random halves of the samples: how far other samples of this number "
            "would move the figure, not what another training run would give",
            "real": f"real images in the samples' place, at as many as samples or all there are: {self.split} images "
            "against the rest of that split, test images as samples are measured",
        }
        return words | ({"classes": f"{distance} depends on n: only equal n compare"} if by_class else {})

    def _by_class(self, features, labels):
        """{name of the class: {"n": images, Fréchet distance, kernel distance}}."""
        names = self.extractor.distances

        def both(real, fake):
            return {"n": len(fake), names[0]: frechet.fid(real, fake), names[1]: kernel_distance.kid(real, fake)}

        by_class = per_class(both, self.reference.features, self.labels, features, labels)
        return {self.dataset.classes[c]: figures for c, figures in by_class.items()}


def measure_against(dataset, split, features="", inception=""):
    """The Measure with features by name, "" for the default; wrong data are found before weights are fetched."""
    check_real(dataset, split)
    return Measure(dataset, split, extractor(features or default_features(dataset.name), dataset, inception))


def check_real(dataset, split):
    """Raises UserError for a split that nothing can be measured against."""
    if split not in SPLITS:
        there = ", ".join(SPLITS)
        raise UserError(f"evaluate.split={split} is not one of {there}{nearest(split, SPLITS)}")
    real = getattr(dataset, split)
    if real.images.dtype != np.uint8:
        raise UserError(f"{dataset.name} holds points, and these figures are for images")
    if len(real) < 2 * LEAST:
        hint = "choose another evaluate.split"
        few = counted(len(real), f"{split} image")
        are = "is" if len(real) == 1 else "are"
        raise UserError(f"{few} of {dataset.name} {are} too few to measure against: {hint}")


def check_count(n):
    """Raises UserError for fewer images than figures take."""
    if n < LEAST:
        few = counted(n, "image")
        few += " is too few" if n == 1 else " are too few"
        raise UserError(f"{few} to measure: give {LEAST} or more; figures mean something from 1000 on")


def number(value):
    """A figure with four digits, without exponents where they only hide its size."""
    return f"{value:.5f}" if abs(value) < 0.01 else f"{value:.4g}"


def table(measured):
    """The figures of a Measured as text."""
    return "\n\n".join(aligned(rows) for rows in tables(measured))


def tables(measured):
    """The tables of a Measured, each rows of cells with a header: a line a figure, a column a row of its scores; then
    the classes, if they were measured."""
    rows = measured.scores
    lines = [["", *(f"{name} (n = {figures['n']:,})" for name, figures in rows.items())]]
    for name, (low, high) in measured.intervals.items():
        cells = [number(figures[name]) for figures in rows.values()]
        cells[0] += f" [{number(low)}, {number(high)}]"
        lines.append([TITLES.get(name, name), *cells])
    if not measured.by_class:
        return [lines]
    names = [name for name in next(iter(measured.by_class.values())) if name != "n"]
    classes = [["class", "n", *(TITLES[name] for name in names)]]
    for name, figures in measured.by_class.items():
        classes.append([name, str(figures["n"]), *(number(figures[figure]) for figure in names)])
    return [lines, classes]
