"""What the machine is, and what a planned training step takes of it: memory by the compiler, speed by trying.

Nothing is written but caches: the compiler's, and of data that have to be downloaded.
"""

import dataclasses
import math
import os
import pathlib
import shutil
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax import models, parallel
from pfgm_jax.data import duplicates, pipeline
from pfgm_jax.failures import out_of_memory
from pfgm_jax.training import dry_run
from pfgm_jax.training.step import train_steps

SECONDS = 20.0  # of training steps, over all batch sizes
SMALL = 4  # images a device of the first, cautious trial
HEADROOM = 0.9  # the part of a device's memory that a plan may fill
TRIED_BYTES = 2**28  # of images on the device during a trial
MOST_IMAGES = 2**14  # the largest batch looked for


class Machine(NamedTuple):
    """The devices, bytes of memory for each, bytes of disk that are free, and programs that wait for each core."""

    kind: str
    devices: int
    cpu: bool
    memory: float
    disk: float
    load: float = 0.0


class Trial(NamedTuple):
    """Measurements of a plan.

    memory: bytes a device by the compiler's estimate, for each batch looked at; inf where it does not even compile.
    largest: the largest batch of devices × a power of two whose estimate fits, 0 if none does.
    speed: {batch: (images a second, seconds measured, steps measured)}; batches too slow to try are absent.
    compiling: seconds that compiling and estimating took.
    """

    memory: dict
    largest: int
    speed: dict
    compiling: float


def look_at_machine(folder):
    """The Machine, with the disk of `folder` or of the nearest folder above it that exists."""
    folder = pathlib.Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    devices = parallel.device_count()
    memory = parallel.device_memory()
    load = os.getloadavg()[0] / os.cpu_count() if hasattr(os, "getloadavg") else 0.0  # Windows has none
    cpu = jax.default_backend() == "cpu"
    return Machine(parallel.device_kind(), devices, cpu, memory, shutil.disk_usage(folder).free, load)


def with_batch(task, batch):
    """The task with another batch, in a large batch that holds it, and in parts where they divide it."""
    large_batch = max(task.large_batch, batch) if task.large_batch else 0
    parts = task.microbatch if task.microbatch and batch % task.microbatch == 0 else 0
    return dataclasses.replace(task, batch=batch, large_batch=large_batch, microbatch=parts)


def power_of_two(limit, devices):
    """The largest batch of devices × a power of two that is at most `limit`, 0 if there is none."""
    return devices * 2 ** int(math.log2(limit / devices)) if limit >= devices else 0


def estimate(task, state, dataset, steps, batch, resident):
    """`dry_run.memory_estimate` of a batch."""
    return dry_run.memory_estimate(with_batch(task, batch), state, dataset, steps, resident)


def time_steps(task, state, dataset, steps, seconds, resident):
    """(images a second, seconds, steps) of calls of `steps` training steps, over about `seconds`; None if memory fails.

    The images of the data set go round, or a part of them where they are many. The first call warms up and does not
    count, unless it takes all the time there is. A set that is not `resident` is at most as fast as its images
    are read.
    """
    images = dataset.train.images
    some = duplicates.chosen(images, TRIED_BYTES)
    source, labels = parallel.replicate((np.asarray(images[some]), dataset.train.labels[some])), dataset.train.labels
    indices = pipeline.planner(task.seed, task.order, labels[some], task.batch, task.large_batch)
    batch = pipeline.send(indices(0, steps))
    try:
        state = parallel.replicate(state)
        call = train_steps.lower(task, state, source, batch).compile()
        counted, begun = 0, time.perf_counter()
        while True:
            state, _ = call(state, source, batch)
            jax.block_until_ready(state)
            spent = time.perf_counter() - begun
            if counted == 0 and spent < seconds / 2:
                counted, begun = 1, time.perf_counter()  # warm now
                continue
            done = max(counted, 1)
            if spent + spent / done > seconds:
                speed = done * steps * task.batch / spent
                return min(speed, math.inf if resident else _feed_speed(task, dataset, steps)), spent, done * steps
            counted += 1
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def _feed_speed(task, dataset, steps):
    """Images a second that are read and sent to the devices, over one call's."""
    indices = pipeline.planner(task.seed, task.order, dataset.train.labels, task.batch, task.large_batch)
    begun = time.perf_counter()
    jax.block_until_ready(pipeline.send(indices(0, steps), dataset.train))
    return steps * task.batch / (time.perf_counter() - begun)


def run(task, state, dataset, per_call, machine, resident, say):
    """The Trial of a plan: its memory at two batches, the largest that fits, and its speed.

    A small batch comes first; the plan's own is only run where it fits, and where the small one's time says that a step
    takes less than the seconds that are left.
    """
    limit, planned, begun, trying = HEADROOM * machine.memory, task.batch, time.perf_counter(), 0.0
    small = machine.devices * max(1, min(SMALL, planned // machine.devices // 2))
    memory, speed = {}, {}

    def look(batch, steps):
        if batch not in memory:
            say(f"compiling batch {batch} and counting its memory")
            memory[batch] = estimate(task, state, dataset, steps, batch, resident)
        return memory[batch] <= limit

    def attempt(batch, steps, seconds):
        nonlocal trying
        say(f"training at batch {batch}, about {seconds:.0f} s")
        timing = time_steps(with_batch(task, batch), state, dataset, steps, seconds, resident)
        if timing is None:
            memory[batch] = math.inf
        else:
            speed[batch], trying = timing, trying + timing[1]

    if look(small, 1):
        attempt(small, 1, SECONDS / 4)
    step_seconds = lambda batch: batch / speed[small][0]
    steps = per_call if small in speed and step_seconds(planned) * per_call < SECONDS / 4 else 1
    second = planned if planned > small else 2 * small
    look(second, steps)
    most = power_of_two(min(dataset.train_images, MOST_IMAGES), machine.devices)
    largest = _largest(memory, (small, second), limit, most, machine.devices, lambda batch: look(batch, steps))
    target = planned if memory[planned] <= limit else largest
    left = SECONDS - trying
    if target and target not in speed and small in speed and step_seconds(target) * steps < left:
        attempt(target, steps, left)
        if memory[target] == math.inf:  # it failed where the estimate had it fit
            largest = min(largest, power_of_two(target - 1, machine.devices))
    return Trial(memory, largest, speed, time.perf_counter() - begun - trying)


def _largest(memory, estimated, limit, most, devices, fits):
    """The largest batch up to `most` that fits, by a line through the two `estimated` and then by its own estimate."""
    small, second = estimated
    if memory[small] > limit:
        return 0
    slope = max(1.0, (memory[second] - memory[small]) / (second - small))
    reach = small + (limit - memory[small]) / slope
    batch = min(power_of_two(reach, devices), most)
    while batch > small and not fits(batch):
        batch //= 2
    return max(batch, power_of_two(small, devices))


def operations(model, shape):
    """Operations of loss and gradient of one image, as XLA counts them; None where it does not."""
    params = jax.eval_shape(lambda: models.init(model, shape))
    x, noise = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    labels = jax.ShapeDtypeStruct((1,), jnp.int32) if model.num_labels else None

    def loss(params, x, noise, labels, keys):
        return jnp.mean(jnp.square(model.apply({"params": params}, x, noise, labels, keys)))

    analysis = jax.jit(jax.grad(loss)).lower(params, x, noise, labels, keys).cost_analysis()
    return (analysis or {}).get("flops")


def parameters(model, shape):
    """The number of a network's parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(lambda: models.init(model, shape))))
