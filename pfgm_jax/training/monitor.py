"""What is watched of a network while it trains: losses and distance to the truth, a picture of samples, divergence."""

import collections
import math
import pathlib
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax import generator, parallel, plots, sampling
from pfgm_jax.data import to_uint8
from pfgm_jax.errors import UserError
from pfgm_jax.run import make_run, weighs_by_class
from pfgm_jax.training import flow_ends
from pfgm_jax.training.validation import (
    choose,
    distance_to_truth,
    evaluate_losses,
    make_batches,
    truth_levels,
    truth_queries,
)

# The distance to the truth costs queries × training images × pixels multiplications; above this, which CIFAR-10 and
# 64 px images of a MedMNIST set are below, it is not measured.
TRUTH_LIMIT = 2e8
# A loss above so many times the median of the last logged ones has left their range.
RANGE, REMEMBERED = 10, 20
# Steps of an adaptive solver for a picture while training, unless sample.max_steps says another number: an early
# network may ask for a thousand, which take longer than the training between two pictures.
PICTURE_STEPS = 50
RESTORED = 12  # images of the picture of an image-conditional network


def evaluation(config, task, dataset, source, log):
    """`evaluate(ema, seen)`: logs validation loss, the gap to the training images, and the distance to the truth.

    It returns them, {} where there is nothing to measure.
    """
    splits = (dataset.train, dataset.val)
    number = min(config.train.eval_images, *map(len, splits))  # as many of each, so that the gap is of images alone
    batches, held = make_batches(number, task.batch), []
    for split in splits if number else ():
        chosen = np.sort(choose(task.seed, len(split), number))  # in the order of the file, which reads faster
        held.append(parallel.replicate((split.images[chosen], split.labels[chosen])))
    truth = _truth(task, dataset, source)

    def evaluate(ema, seen):
        values, parts = {}, []
        if held:
            on_train, on_val = (float(evaluate_losses(task, ema, *split, batches)[0]) for split in held)
            values |= {"eval/train": on_train, "eval/val": on_val, "eval/gap": on_val - on_train}
            parts.append(f"loss {on_train:.4f} on training images, {on_val:.4f} on validation")
        if truth:
            levels, errors = truth(ema)
            values |= {f"truth/sigma={level:.2g}": error for level, error in zip(levels, errors, strict=True)}
            each = (f"{error:.3f} at σ {level:.2g}" for level, error in list(zip(levels, errors, strict=True))[::2])
            parts.append("rms error to the truth " + ", ".join(each))
        if parts:
            log.scalars(seen, values)
            log.say(f"{seen:>10,} images: " + "; ".join(parts))
        return values

    return evaluate


def _truth(task, dataset, source):
    """`ema -> (levels [L], rms errors to the truth [L])`; None where it is too costly, or unknown.

    The truth is the exact posterior mean of the training images, and for a tuned network the end of its flow.
    """
    images = dataset.train.images
    if task.tuning:
        return flow_ends.distance(task, dataset.train) if flow_ends.known(task, dataset.train) else None
    if task.condition:  # the truth would be that of each measurement
        return None
    if math.prod(images.shape) > TRUTH_LIMIT or weighs_by_class(task.order, task.model.num_labels):
        return None
    levels = truth_levels(task.process)
    whole = source or parallel.replicate((np.asarray(images), dataset.train.labels))
    queries = truth_queries(task.seed, len(images))
    return lambda ema: (levels, np.asarray(distance_to_truth(task, ema, *whole, queries, jnp.asarray(levels)))[0])


def picture_path(workdir, step):
    """Where the picture of a step's samples is."""
    return pathlib.Path(workdir, "samples", f"step_{step:08d}.png")


def picture(config, derived, workdir, split, log):
    """`show(ema, step)`: a picture of samples, beside the `split`'s where they are points.

    An early network that the solver cannot follow is no reason to stop.
    """
    run = make_run(config, derived)
    adaptive = "max_steps" in sampling.find(config.sample.solver)[1] and not config.sample.fixed_steps
    limit = {"max_steps": config.sample.max_steps or PICTURE_STEPS} if adaptive else {}

    def show(ema, step):
        seen, trained = step * config.train.batch, generator.Generator(run, ema, step)
        key = jax.random.key(config.sample.seed)
        try:
            if run.condition:
                drawn = restored(trained, split, key)
            else:
                drawn = plots.picture(trained.sample(key, progress=False, **limit)[0], split.images)
        except UserError as error:
            log.say(f"{seen:>10,} images: no samples yet: {error}")
            return
        if not parallel.is_first():
            return
        path = picture_path(workdir, step)
        path.parent.mkdir(exist_ok=True)
        plots.save(drawn, path)
        log.picture(seen, "samples", drawn)

    return show


def restored(trained, split, key):
    """A picture of what an image-conditional network makes of measurements of the first images of a Split."""
    images = np.asarray(split.images[:RESTORED])
    labels = split.labels[:RESTORED] if trained.classes else None
    measurement, how = trained.measured(images, key)
    result = trained.restore(measurement, n=2, key=key, labels=labels, progress=False, **how)
    seen = to_uint8(
        np.asarray(trained.run.condition.as_channels(measurement, how.get("mask")))[..., : images.shape[-1]]
    )
    draws = to_uint8(result.draws)
    return plots.labelled_rows([("given", seen), ("draw 1", draws[0]), ("draw 2", draws[1]), ("truth", images)])


class LossWatch:
    """Says once when the loss leaves its running range, and again only after it was back.

    Such a loss is finite, and so stops nothing: a spike may heal.
    """

    def __init__(self, losses=()):
        """losses: those logged before."""
        self._recent, self._outside = collections.deque(maxlen=REMEMBERED), False
        for loss in losses:
            self(loss)

    def __call__(self, loss):
        """A line about the next logged loss, or None."""
        recent, was_outside = self._recent, self._outside
        self._outside = bool(recent) and loss > RANGE * statistics.median(recent)
        if not self._outside:
            recent.append(loss)
        if not self._outside or was_outside:
            return None
        return (
            f"the loss, {loss:.3g}, has left its range, {min(recent):.3g} to {max(recent):.3g} over the last "
            f"{len(recent)} log lines: training may be diverging; a lower optim.lr or an optim.clip of 1 helps"
        )
