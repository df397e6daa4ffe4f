"""The examples of every training step: which they are, and how they come to the devices.

Which they are is a function of (seed, step) alone (`planner`). Where a set fits, its images live on every device and a
call of some steps is sent indices; where not, the images themselves are read on the host and sent. Either way a thread
works `AHEAD` calls in advance, so that the devices need not wait, and the examples are the same.
"""

import contextlib
import queue
import threading
from typing import NamedTuple

import jax
import numpy as np

from pfgm_jax import parallel
from pfgm_jax.data.shuffle import balanced_order, epoch_order

# Calls whose examples are ready, or on their way to the devices, beside the one that runs and the one that follows it.
AHEAD = 2
# A set is kept on the devices if it takes at most this part of a device's memory.
RESIDENT_SHARE = 0.25


class Indices(NamedTuple):
    """Which images: the examples [..., B], and the references [..., R] of the posterior-mean target or None."""

    examples: np.ndarray
    references: np.ndarray | None


class Examples(NamedTuple):
    """The images themselves, with labels: [..., B, H, W, C] and [..., B]; references [..., R, H, W, C] and [..., R]."""

    images: np.ndarray
    labels: np.ndarray
    references: np.ndarray | None
    reference_labels: np.ndarray | None


def take(images, labels, indices):
    """The `Examples` of `Indices`, on the host or on a device."""
    examples, references = indices
    known = (None, None) if references is None else (images[references], labels[references])
    return Examples(images[examples], labels[examples], *known)


def planner(seed, order, labels, batch, large_batch):
    """`indices(step, steps) -> Indices` [steps, B] and [steps, R] of that many steps from `step` on.

    Args:
      seed: of the run.
      order: "real" for every image once an epoch, "balanced" for every class as often.
      labels: [n] classes of the training images, which matter where the order is balanced.
      batch: B. large_batch: R, 0 for no references; a large batch of all images holds each of them once.
    """
    n = len(labels)
    if order == "balanced":
        ordered = lambda positions: balanced_order((seed, 1), positions, labels)
    else:
        ordered = lambda positions: epoch_order((seed, 1), positions, n)

    def indices(step, steps):
        starts = (step + np.arange(steps, dtype=np.int64))[:, None] * batch
        examples = ordered(starts + np.arange(batch))
        if not large_batch:
            return Indices(examples, None)
        if order == "real" and large_batch >= n:
            return Indices(examples, np.broadcast_to(np.arange(n, dtype=np.int32), (steps, n)))
        # The small batch is the first rows of the large one (PFGM's algorithm 1).
        return Indices(examples, ordered(starts + np.arange(large_batch)))

    return indices


def is_resident(wanted, images_shape, itemsize=1):
    """Whether images [n, H, W, C] of `itemsize` bytes a value stay on the devices: as `wanted`, or where they fit."""
    if wanted is not None:
        return wanted
    return np.prod(images_shape, dtype=np.int64) * itemsize <= RESIDENT_SHARE * parallel.device_memory()


def on_devices(examples, references=None):
    """[steps, B, ...] in equal shares, and [steps, R, ...] whole, on every device: host arrays with a device axis."""
    steps, devices = len(examples), parallel.device_count()
    shared = examples.reshape(steps, devices, -1, *examples.shape[2:]).swapaxes(0, 1)
    return parallel.mine(shared), None if references is None else parallel.copies(references)


def send(indices, split=None):
    """The `Indices` of a call on the devices, or the `Examples` that they are of a split that stays on the host."""
    if split is None:
        return parallel.place(Indices(*on_devices(*indices)))
    examples, references = indices
    if references is None:  # no process reads what another one's devices see
        return parallel.place(take(split.images, split.labels, Indices(*on_devices(examples))))
    if np.array_equal(references[:, : examples.shape[1]], examples):
        # The small batch is part of the large one: each image is read once.
        whole = take(split.images, split.labels, Indices(references, None))
        mine = slice(None), slice(examples.shape[1])
        chosen = Examples(whole.images[mine], whole.labels[mine], whole.images, whole.labels)
    else:
        chosen = take(split.images, split.labels, indices)
    images, references = on_devices(chosen.images, chosen.references)
    labels, reference_labels = on_devices(chosen.labels, chosen.reference_labels)
    return parallel.place(Examples(images, labels, references, reference_labels))


@contextlib.contextmanager
def ahead(make, items):
    """An iterator of `make(item)`, made in order by a thread that is `AHEAD` items in advance.

    What goes wrong in the thread is raised where its result is asked for; leaving the context ends the thread.
    """
    results, stop = queue.Queue(maxsize=AHEAD - 1), threading.Event()  # one more is in the thread's hands

    def work():
        try:
            for item in items:
                offer(make(item), None)
                if stop.is_set():
                    return
            offer(None, StopIteration())
        except BaseException as error:
            offer(None, error)

    def offer(*result):
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return results.put(result, timeout=0.1)

    def iterate():
        while True:
            value, error = results.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield value

    thread = threading.Thread(target=work, name="pfgm_jax feed", daemon=True)
    thread.start()
    try:
        yield iterate()
    finally:
        stop.set()
        thread.join()


def call_shapes(split, order, batch, large_batch, steps, resident):
    """(source, batch) of one call of `train_steps` as shapes with a device axis, for the compiler.

    Args:
      split: (images [n, H, W, C], labels [n]) as shapes.
      order, batch, large_batch: as for `planner`. steps: of the call.
      resident: whether the images stay on the devices.
    """
    if order == "real":
        large_batch = min(large_batch, len(split[1].shape) and split[1].shape[0])
    rows = [(steps, batch // parallel.device_count()), (steps, large_batch) if large_batch else None]
    if resident:
        indices = [row and jax.ShapeDtypeStruct(row, np.int32) for row in rows]
        return parallel.replicated_shapes((split, Indices(*indices)))
    images = [row and jax.ShapeDtypeStruct((*row, *a.shape[1:]), a.dtype) for row in rows for a in split]
    return None, parallel.replicated_shapes(Examples(*images))
