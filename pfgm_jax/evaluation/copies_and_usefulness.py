"""Memorisation checks and usefulness of images, as lines of text and as files."""

import json
from typing import NamedTuple

import numpy as np

from pfgm_jax.errors import UserError
from pfgm_jax.evaluation.score import check_count
from pfgm_jax.metrics import memorisation, usefulness
from pfgm_jax.storage import atomic

HELD_OUT = 50  # images without which nothing is said of copies: their 1st percentile would be a single image


class Destination(NamedTuple):
    """Files to write.

    Attributes:
      stem: their path without suffix; None to write nothing.
      samples: how the images were made, for the protocol.
      full: whether the images are as many as figures need to be shown anywhere (a model card leaves others out).
      weights: the digest of the weights that made the images, "" for images from elsewhere.
    """

    stem: str | None = None
    samples: str = ""
    full: bool = True
    weights: str = ""

    def write(self, suffix, scores, protocol):
        """Writes STEM-SUFFIX.json."""
        protocol |= {"samples": self.samples} if self.samples else {}
        record = {"scores": scores, "protocol": protocol, "full": self.full, "weights": self.weights}
        atomic.write_text(f"{self.stem}-{suffix}.json", json.dumps(record, indent=1) + "\n")


NOWHERE = Destination()


def copies(dataset, images, to=NOWHERE, extractor=None, mirror=False):
    """Whether images are nearer to training images than held-out ones are: lines, and STEM-copies.json and .png.

    Args:
      dataset: the real images; val and test are held out.
      images: uint8 [n, H, W, C].
      to: a Destination.
      extractor: of features; None looks at pixels. mirror: look for mirrored copies too.
    """
    held_out = [split.images[:] for split in (dataset.val, dataset.test) if len(split)]
    number = sum(map(len, held_out))
    if number < HELD_OUT:
        return [f"copies     not looked for: {number} held-out images of {dataset.name} are fewer than {HELD_OUT}"]
    check_count(len(images))
    train, others = dataset.train.images, np.concatenate(held_out)
    try:
        result = memorisation.memorisation(images, train, others, extractor, mirror=mirror, least=HELD_OUT)
    except memorisation.TooFew as error:
        return [f"copies     not looked for: of {dataset.name}, {error}"]
    lines = [f"copies     {line}" for line in memorisation.text(result).split("\n")]
    if to.stem:
        figures = ("share", "low", "high", "expected", "chance", "threshold", "count", "crowded", "identical",
                   "held_out_copies", "train_copies")  # fmt: skip
        scores = {"samples": {name: float(getattr(result, name)) for name in figures}}
        to.write("copies", scores, {"copies": result.protocol})
        memorisation.plot(result, f"{to.stem}-copies.png")
        lines += [f"  copies     {to.stem}-copies.png, {to.stem}-copies.json"]
    return lines


def use(dataset, images, labels, to=NOWHERE, seeds=3, steps=None, arms=usefulness.ARMS):
    """What a classifier learns from labelled images, beside real ones: lines, and STEM-usefulness-SEEDS.json.

    Args: as for `copies`; labels int [n] or None. seeds, steps, arms: as for `usefulness.usefulness`.

    Raises:
      UserError: images without labels, a set of one class, or fewer than two seeds.
    """
    if labels is None:
        raise UserError("usefulness needs labels: train with model.conditional=True, or give images with their labels")
    if seeds < 2:
        raise UserError(f"evaluate.seeds={seeds}: error bars need 2 or more")
    result = usefulness.usefulness(dataset, images, np.asarray(labels), seeds, steps, arms=arms)
    if to.stem:
        mean = lambda values: {"mean": float(np.mean(values)), "error": float(_error(values))}
        scores = {
            name: {"accuracy": mean(arm.accuracy), "balanced accuracy": mean(arm.balanced)}
            | {f"recall of {label}": mean(arm.recall[:, c]) for c, label in enumerate(result.classes)}
            for name, arm in result.arms.items()
        }
        to.write(f"usefulness-{seeds}", scores, {"usefulness": result.protocol})
    return ["", usefulness.table(result), *([f"  usefulness {to.stem}-usefulness-{seeds}.json"] if to.stem else [])]


def _error(values):
    return np.std(values, ddof=1) / np.sqrt(len(values))
