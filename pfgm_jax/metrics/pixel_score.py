"""A score that tells whether generated small images are good, from pixels alone (no network).

Samples are compared with the training images; features are pixels in [-1, 1]. The first four figures are then
divided by what held-out real images reach with the same number of samples: 1 means "as good as real".

    confidence   mean largest class probability of a random forest fitted to the training images
    density      Naeem et al. 2020 (arXiv 2002.09797): low off the data, high when samples crowd its middle
    coverage     of the same paper: low when parts of the data are missing
    distance     median distance to the nearest training image
    classes      smallest and largest share of samples by the forest's class
    copies       share of samples nearer to a training image than half the held-out median distance

No single figure is enough: `controls` makes sets of bad images, each of which fails at least one.
"""

import dataclasses
from typing import Any

import numpy as np

from pfgm_jax.data.dataset import to_uint8, to_unit
from pfgm_jax.metrics.neighbours import ball_counts, expected_coverage, nearest_distance
from pfgm_jax.metrics.tables import aligned

# (smallest, largest) accepted value. Set on scikit-learn's 8x8 digits with ten balanced classes and about 360
# samples: held-out digits lie inside and every set of `controls` outside, over several splits.
CRITERIA = {
    "confidence": (0.93, np.inf),
    "density": (0.8, 1.4),
    "coverage": (0.92, np.inf),
    "distance": (0.7, 1.08),
    "smallest_class": (0.03, 1.0),
    "largest_class": (0.0, 0.25),
    "copies": (0.0, 0.02),
}


@dataclasses.dataclass(frozen=True)
class Score:
    """Figures of n samples: four relative to held-out images, then three shares of the samples."""

    n: int
    confidence: float
    density: float
    coverage: float
    distance: float
    smallest_class: float
    largest_class: float
    copies: float

    @property
    def failed(self) -> list[str]:
        """Names of the criteria that are not met; NaN meets none."""
        return [name for name, (low, high) in CRITERIA.items() if not low <= getattr(self, name) <= high]

    @property
    def passed(self) -> bool:
        """Whether every criterion is met."""
        return not self.failed

    def failures(self) -> list[str]:
        """One line for each criterion that is not met; an empty list when the samples pass."""
        return [f"{_words(name)} {getattr(self, name):.4g}, not {range_text(name)}" for name in self.failed]


class PixelScorer:
    """Scores images against real ones; the forest and the held-out figures are made once.

    train_images, held_out_images: uint8 [N, H, W, C]; train_labels: int [N]; k: the neighbour of density and
    coverage. `protocol` is the line to print next to the figures. Raises ValueError for images of another
    kind or shape, and for held-out images that are copies of training images or unlike all of them.
    """

    def __init__(self, train_images, train_labels, held_out_images, seed=0, k=5, trees=300):
        from sklearn.ensemble import RandomForestClassifier

        self.shape = np.shape(train_images)[1:]
        self.k = k
        self.train = _pixels(train_images, self.shape)
        held_out = _pixels(held_out_images, self.shape)
        # One thread: threads would add the trees' votes in an order of their own and change the last digits.
        self.forest = RandomForestClassifier(trees, random_state=seed).fit(self.train, train_labels)
        self.held_out_size = len(held_out)
        self.held_out_counts = ball_counts(self.train, held_out, k)
        self.held_out_confidence = self.forest.predict_proba(held_out).max(axis=1).mean()
        self.held_out_distance = np.median(nearest_distance(held_out, self.train))
        if not (self.held_out_distance > 0 and self.held_out_counts.any()):
            raise ValueError("the held-out images must be other images of the training images' kind")
        self.protocol = (
            f"pixels in [-1, 1] ({self.train.shape[1]} features), {len(self.train)} training and "
            f"{len(held_out)} held-out images, k = {k}, forest of {trees} trees, seed {seed}; "
            "confidence, density, coverage and distance relative to held-out images at the same n"
        )

    def score(self, samples: Any) -> Score:
        """Score of uint8 samples [n, H, W, C].

        Only coverage depends on n by itself; its held-out value is the expectation over random subsets of n
        held-out images, hence ValueError unless n <= the number of held-out images. The criteria suit about
        360 samples: with 90, chance alone refuses one set of real digits in ten or more.
        """
        fake = _pixels(samples, self.shape)
        n = len(fake)
        if n > self.held_out_size:
            raise ValueError(f"{n} samples: pass at most {self.held_out_size}, the number of held-out images")
        probability = self.forest.predict_proba(fake)
        classes = np.bincount(probability.argmax(axis=1), minlength=probability.shape[1]) / n
        counts = ball_counts(self.train, fake, self.k)
        held_out_coverage = expected_coverage(self.held_out_counts, self.held_out_size, n)
        distance = nearest_distance(fake, self.train)
        return Score(
            n=n,
            confidence=float(probability.max(axis=1).mean() / self.held_out_confidence),
            density=float(counts.sum() / n / (self.held_out_counts.sum() / self.held_out_size)),
            coverage=float((counts > 0).mean() / held_out_coverage),
            distance=float(np.median(distance) / self.held_out_distance),
            smallest_class=float(classes.min()),
            largest_class=float(classes.max()),
            copies=float((distance < self.held_out_distance / 2).mean()),
        )


def controls(train_images, train_labels, held_out_images, held_out_labels, seed=0):
    """Bad images that a useful score must refuse: {name: uint8 [n, H, W, C]}, n = number of held-out images.

    Gaussians have the mean and covariance of the training pixels; blends are means of two different training
    images; the noise has standard deviation 0.1 on the [-1, 1] scale. Each class needs two training images.
    """
    rng = np.random.default_rng(seed)
    shape = np.shape(train_images)[1:]
    train, held_out = _pixels(train_images, shape), _pixels(held_out_images, shape)
    train_labels, held_out_labels = np.asarray(train_labels), np.asarray(held_out_labels)
    n = len(held_out)
    numbers, labels = np.arange(len(train)), rng.choice(train_labels, n)

    def gaussian(members, size):
        return rng.multivariate_normal(members.mean(axis=0), np.cov(members.T), size, method="eigh")

    def blends(partners):
        first = rng.choice(len(train), n, replace=False)
        second = [rng.choice(numbers[partners(i)]) for i in first]
        return (train[first] + train[second]) / 2

    per_class = [gaussian(train[train_labels == c], (labels == c).sum()) for c in np.unique(labels)]
    kept = held_out[np.isin(held_out_labels, np.unique(held_out_labels)[::2])]
    sets = {
        "uniform noise": rng.uniform(-1, 1, held_out.shape),
        "one Gaussian": gaussian(train, n),
        "Gaussian per class": np.concatenate(per_class),
        "blends within a class": blends(lambda i: (train_labels == train_labels[i]) & (numbers != i)),
        "blends across classes": blends(lambda i: train_labels != train_labels[i]),
        "every second class": np.resize(kept, held_out.shape),  # repeats the kept images to n
        "held-out + 0.1 noise": held_out + 0.1 * rng.standard_normal(held_out.shape),
        "training images": train[rng.choice(len(train), n, replace=False)],
    }
    return {name: to_uint8(pixels).reshape(n, *shape) for name, pixels in sets.items()}


def table(rows: dict[str, Score]) -> str:
    """Text table of {name: Score} for the terminal: one line a row, accepted ranges under the titles."""
    columns = ["confidence", "density", "coverage", "distance"]
    classes = f"{CRITERIA['smallest_class'][0]:.0%} to {CRITERIA['largest_class'][1]:.0%}"
    lines = [
        ["samples", "n", *columns, "classes", "copies", "verdict"],
        ["accepted", "", *map(range_text, columns), classes, f"<= {CRITERIA['copies'][1]:.0%}", ""],
    ]
    for name, score in rows.items():
        lines.append(
            [
                name,
                str(score.n),
                *(f"{getattr(score, column):.2f}" for column in columns),
                f"{score.smallest_class:.0%} to {score.largest_class:.0%}",
                f"{score.copies:.1%}",
                "pass" if score.passed else "FAIL: " + ", ".join(map(_words, score.failed)),
            ]
        )
    return aligned(lines, left=(0, -1))


def _words(name):
    return name.replace("_", " ")


def range_text(name: str) -> str:
    """The accepted range of a criterion in words: ">= 0.93", "0.8 to 1.4", "<= 0.02"."""
    low, high = CRITERIA[name]
    if high in (1.0, np.inf):
        return f">= {low:g}"
    return f"<= {high:g}" if low == 0 else f"{low:g} to {high:g}"


def _pixels(images, shape):
    """uint8 [n, *shape] -> float64 [n, d] in [-1, 1]."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape or len(images) == 0:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"expected uint8 images [n, {expected}], not {images.dtype} of shape {images.shape}")
    return to_unit(images).reshape(len(images), -1).astype(np.float64)
