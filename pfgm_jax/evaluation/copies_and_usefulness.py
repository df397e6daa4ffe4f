"""What distances do not tell of images: whether they are copies of training images, and what they are good for."""

import json

import numpy as np

from pfgm_jax.errors import UserError
from pfgm_jax.evaluation.score import check_count
from pfgm_jax.metrics import memorisation, usefulness
from pfgm_jax.storage import atomic

HELD_OUT = 50  # images without which nothing is said of copies: their 1st percentile would be a single image


def copies(dataset, images, stem, made="", extractor=None, mirror=False, full=True):
    """Whether images are nearer to training images than held-out ones are: lines, and STEM-copies.json and .png.

    Args:
      dataset: the real images; val and test are held out.
      images: uint8 [n, H, W, C].
      stem: path without suffix, or None to write nothing. made: words for the protocol.
      extractor: of features; None looks at pixels. mirror: look for mirrored copies too.
      full: whether the images are as many as figures need to be shown anywhere (a model card leaves others out).
    """
    held_out = [split.images[:] for split in (dataset.val, dataset.test) if len(split)]
    number = sum(map(len, held_out))
    if number < HELD_OUT:
        return [f"copies     not looked for: {number} held-out images of {dataset.name} are fewer than {HELD_OUT}"]
    check_count(len(images))
    found = memorisation.memorisation(images, dataset.train.images, np.concatenate(held_out), extractor, mirror=mirror)
    lines = [f"copies     {line}" for line in memorisation.text(found).split("\n")]
    if stem:
        figures = ("share", "low", "high", "expected", "chance", "threshold", "count", "crowded", "identical",
                   "held_out_copies", "train_copies")  # fmt: skip
        scores = {"samples": {name: float(getattr(found, name)) for name in figures}}
        protocol = {"copies": found.protocol} | ({"samples": made} if made else {})
        _write(f"{stem}-copies.json", {"scores": scores, "protocol": protocol, "full": full})
        with atomic.replacing(f"{stem}-copies.png") as temporary:
            memorisation.plot(found, temporary)
        lines += [f"  copies     {stem}-copies.png, {stem}-copies.json"]
    return lines


def use(dataset, images, labels, stem, made="", seeds=3, steps=None, full=True):
    """What a classifier learns from labelled images, beside real ones: lines, and STEM-usefulness-SEEDS.json.

    Args: as for `copies`; labels int [n] or None. seeds, steps: as for `usefulness.usefulness`.

    Raises:
      UserError: images without labels, a set of one class, or fewer than two seeds.
    """
    if labels is None:
        raise UserError("usefulness needs labels: train with model.conditional=True, or give images with their labels")
    if seeds < 2:
        raise UserError(f"evaluate.seeds={seeds}: error bars need 2 or more")
    found = usefulness.usefulness(dataset, images, np.asarray(labels), seeds, steps)
    if stem:
        mean = lambda values: {"mean": float(np.mean(values)), "error": float(_error(values))}
        scores = {
            name: {"accuracy": mean(arm.accuracy), "balanced accuracy": mean(arm.balanced)}
            | {f"recall of {label}": mean(arm.recall[:, c]) for c, label in enumerate(found.classes)}
            for name, arm in found.arms.items()
        }
        protocol = {"usefulness": found.protocol} | ({"samples": made} if made else {})
        _write(f"{stem}-usefulness-{seeds}.json", {"scores": scores, "protocol": protocol, "full": full})
    return ["", usefulness.table(found), *([f"  usefulness {stem}-usefulness-{seeds}.json"] if stem else [])]


def _error(values):
    return np.std(values, ddof=1) / np.sqrt(len(values))


def _write(path, record):
    atomic.write_text(path, json.dumps(record, indent=1) + "\n")
