"""What synthetic images are good for: how well a classifier does on real test images when it is trained on them.

    real        the training images
    synthetic   synthetic images and the labels that were requested (Ravuri and Vinyals 2019, arXiv 1905.10887:
                "classification accuracy score")
    filled      the training images, and synthetic ones of each class up to the largest class's number
    repeated    the training images, those of each class repeated up to the largest class's number: what the balance
                alone does, which "filled" has to beat

Every arm has the same network (`metrics/classifier.py`), the same number of optimiser steps, the same seeds and the
same test images; they differ in nothing but what is seen. The error is that of the mean over seeds (first weights,
order, shifts): it holds neither the chance of the test set nor that of another sampling run.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from pfgm_jax.errors import UserError
from pfgm_jax.metrics import classifier
from pfgm_jax.metrics.tables import aligned

ARMS = ("real", "synthetic", "filled", "repeated")


class Arm(NamedTuple):
    """What one arm found.

    counts: int [K], images of each class that it is trained on, repeats included.
    confusions: int [seeds, K, K], test images by true and by predicted class.
    """

    counts: Int[np.ndarray, "K"]
    confusions: Int[np.ndarray, "seeds K K"]

    @property
    def recall(self) -> Float[np.ndarray, "seeds K"]:
        """Share found of each class's test images, [seeds, K]; NaN for a class without any."""
        return np.stack([classifier.recall(confusion) for confusion in self.confusions])

    @property
    def accuracy(self) -> Float[np.ndarray, "seeds"]:
        """Share of all test images whose class is found, [seeds]."""
        return np.trace(self.confusions, axis1=1, axis2=2) / self.confusions.sum(axis=(1, 2))

    @property
    def balanced(self) -> Float[np.ndarray, "seeds"]:
        """Balanced accuracy [seeds]: the mean recall of the classes."""
        return np.nanmean(self.recall, axis=1)


class Usefulness(NamedTuple):
    """The arms by name, the classes' names, and the protocol to print beside the figures."""

    arms: dict[str, Arm]
    classes: tuple[str, ...]
    protocol: str


def usefulness(
    dataset,
    images: Any,
    labels: Any,
    seeds: int = 3,
    steps: int | None = None,
    *,
    flip: bool = False,
    arms: Sequence[str] = ARMS,
) -> Usefulness:
    """The Usefulness of synthetic images for the classes of a Dataset.

    Args:
      dataset: with labels and a test split (or else a validation split).
      images: uint8 [n, H, W, C]; labels: int [n].
      seeds: training runs of each arm, 2 or more.
      steps, flip: as of `classifier.classifier`; None: the steps that its training images get.
      arms: those of ARMS to train.

    Raises:
      UserError: no images to test on, one class alone, or synthetic images of another kind.
    """
    classifier.check(dataset)
    test = dataset.test if len(dataset.test) else dataset.val
    labels = np.asarray(labels)
    if not len(test):
        raise UserError(f"{dataset.name} has neither test nor validation images: write data.test=0.2")
    if images.shape[1:] != dataset.shape or images.dtype != np.uint8:
        raise UserError(
            f"synthetic images are {images.shape[1:]}, {images.dtype}, those of {dataset.name} {dataset.shape}"
        )
    if labels.shape != images.shape[:1] or not (
        len(labels) and 0 <= labels.min() <= labels.max() < dataset.num_classes
    ):
        raise UserError(
            f"each synthetic image needs a class of {dataset.name}, 0 to {dataset.num_classes - 1}: sample with labels"
        )
    if seeds < 2:
        raise ValueError(f"seeds = {seeds}: a standard error needs at least 2")
    steps = classifier.steps_for(len(dataset.train), steps)
    real, real_labels = classifier.gather(dataset.train)
    test_images, test_labels = classifier.gather(test)
    fake = classifier.shrink(images)
    sets = {
        "real": lambda: (real, real_labels),
        "synthetic": lambda: (fake, labels),
        "filled": lambda: joined(real, real_labels, fake, labels),
        "repeated": lambda: joined(real, real_labels, real, real_labels),
    }
    results = {}
    for arm in arms:
        seen, classes = sets[arm]()
        confusions = []
        for seed in range(seeds):
            progress = f"{arm}, seed {seed + 1} of {seeds}"
            params = classifier.fit(seen, classes, dataset.num_classes, steps, seed, flip, progress)
            confusions.append(classifier.confusion_of(params, test_images, test_labels, dataset.num_classes))
        results[arm] = Arm(np.bincount(classes, minlength=dataset.num_classes), np.stack(confusions))
    protocol = (
        f"{len(test_labels)} test images of {dataset.name} {'×'.join(map(str, dataset.shape))}; classifier "
        f"v{classifier.VERSION}, {steps} steps of {classifier.BATCH} for every row{', mirrored' if flip else ''}; "
        f"mean ± standard error over {seeds} seeds"
    )
    return Usefulness(results, dataset.classes, protocol)


def joined(
    real: Num[np.ndarray, "n *S"],
    real_labels: Int[np.ndarray, "n"],
    more: Num[np.ndarray, "m *S"],
    more_labels: Int[np.ndarray, "m"],
) -> tuple[Num[np.ndarray, "N *S"], Int[np.ndarray, "N"]]:
    """(images, labels) of the real ones and, of every class, as many of `more` as it lacks to the largest class.

    Where `more` has fewer, those that it has, again and again; none where it has none.
    """
    counts = np.bincount(real_labels)
    rng = np.random.default_rng(0)
    chosen = [np.zeros(0, np.int64)]
    for c in np.flatnonzero(counts):
        of_class = rng.permutation(np.flatnonzero(more_labels == c))
        if len(of_class):
            chosen.append(np.resize(of_class, counts.max() - counts[c]))
    chosen = np.concatenate(chosen)
    return np.concatenate([real, more[chosen]]), np.concatenate([real_labels, more_labels[chosen]])


def table(result: Usefulness) -> str:
    """Text of a Usefulness: accuracies by arm, then recall by class, rarest in training first."""
    figure = lambda values: f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}"
    rows = [["trained on", "images", "accuracy", "balanced accuracy"]]
    rows += [[name, str(a.counts.sum()), figure(a.accuracy), figure(a.balanced)] for name, a in result.arms.items()]
    arms = result.arms.values()
    by_class = [["recall", *(f"{name} (images)" for name in result.arms)]]
    for c in np.argsort(next(iter(arms)).counts, kind="stable"):
        by_class.append([result.classes[c], *(f"{figure(a.recall[:, c])} ({a.counts[c]})" for a in arms)])
    return f"{aligned(rows)}\n\n{aligned(by_class)}\n\n{result.protocol}"
