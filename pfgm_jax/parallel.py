"""Devices and processes: the only module that knows how many there are.

A per-device function with collectives over the axis `AXIS` is mapped by `pmap`; the same code runs on one device, on
all devices of a host, and on those of several hosts, each of which runs the same program in a process of its own. Then
a mapped function takes and returns the part of each array that is of this process's devices, and its collectives are
over all devices.

`pmap`, and not `jit` with shardings: each device's share of a batch and every collective are written down, which is
what makes a run the same numbers on one device and on eight. Only this module would change.
"""

import functools
import json
import os
import pathlib
import re

import jax
import numpy as np
from jax import lax

from pfgm_jax import job, lost
from pfgm_jax.errors import UserError, quoted

AXIS = "data"

pmap = functools.partial(jax.pmap, axis_name=AXIS)


def map_alone(f):
    """`f`, without collectives, mapped over this process's devices: the other processes need not call it."""
    return jax.pmap(f, AXIS, devices=jax.local_devices())


def own_count():
    """How many devices this process has."""
    return jax.local_device_count()


# ---- devices


def device_count():
    return jax.device_count()


def device_kind():
    """What the devices are called, such as "cpu" or "NVIDIA A100"."""
    return jax.devices()[0].device_kind


def unused_cores(batch):
    """How many devices a CPU's cores could make for a batch: 0 where there are several devices, or no CPU alone.

    XLA shares one device's work among the cores badly: of small convolutions two cores do hardly more than one.
    """
    if device_count() > 1 or jax.default_backend() != "cpu":
        return 0
    allowed = getattr(os, "sched_getaffinity", None)  # Linux
    cores = len(allowed(0)) if allowed else os.cpu_count()
    most = max(n for n in range(1, min(cores, batch) + 1) if batch % n == 0)
    return most if most > 1 else 0


def device_memory():
    """Bytes that a program may take of one device: of its own memory, or of its share of the host's if it has none."""
    own = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return own or host_memory() // jax.local_device_count()


def host_memory():
    """Bytes that a program may still take of this machine, or of its container where that is less."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # no Linux: all that there is
    cgroup = pathlib.Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int((cgroup / limit).read_text()) - int((cgroup / used).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return free


def axis_slice(size):
    """(first, count) of this device's equal share of `size` examples; inside a mapped function."""
    count = size // lax.psum(1, AXIS)
    return lax.axis_index(AXIS) * count, count


def mean(tree):
    """Mean over devices; inside a mapped function."""
    return lax.pmean(tree, AXIS)


def total(tree):
    """Sum over devices; inside a mapped function."""
    return lax.psum(tree, AXIS)


def check_divisible(batch, what):
    """Raises UserError unless `batch` can be shared equally among the devices."""
    n = device_count()
    if batch < 1 and n == 1:
        raise UserError(f"{what} must be at least 1, got {batch}")
    if batch < 1 or batch % n:
        below = batch // n * n
        options = f"{below} or {below + n}" if below > 0 else f"{n}"
        raise UserError(
            f"{what}={batch} cannot be split evenly over {n} devices; use a multiple of {n}, such as {options}"
        )


# ---- arrays with a leading axis of this process's devices


def place(tree):
    """Host arrays with a leading axis of devices, each part on its device; returns while they are on their way."""
    devices = jax.local_devices()
    sharding = jax.NamedSharding(jax.sharding.Mesh(np.asarray(devices), (AXIS,)), jax.P(AXIS))

    def one(a):
        # Part by part: a mapped function that returns its argument would hold every array twice while it ran.
        parts = [jax.device_put(a[i : i + 1], device) for i, device in enumerate(devices)]
        return jax.make_array_from_single_device_arrays(a.shape, sharding, parts)

    return jax.tree.map(one, tree)


def copies(array):
    """A leading axis of devices, along which a host array is the same; no memory is taken."""
    return np.broadcast_to(np.asarray(array), (jax.local_device_count(), *np.shape(array)))


def replicate(tree):
    """A copy of every array on every device: a leading axis of devices."""
    return place(jax.tree.map(copies, tree))


def replicated_shapes(tree):
    """What `replicate` would give, as shapes alone."""
    n = jax.local_device_count()
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape), a.dtype), tree)


def unreplicate(tree):
    """One device's copy, as host arrays."""
    return jax.tree.map(lambda a: np.asarray(a.addressable_data(0)).reshape(a.shape[1:]), tree)


def mine(array):
    """[all devices, ...], the same in every process -> [devices, ...] of this process's devices."""
    local = jax.local_device_count()
    return array[process() * local :][:local]


def shard(array):
    """[B, ...], the same in every process -> the shares [devices, B / all devices, ...] of this process's devices."""
    return mine(array.reshape((device_count(), -1) + array.shape[1:]))


def gather(array):
    """The inverse of `shard`, as a host array [B, ...] in every process."""
    whole = gathered(array)
    return whole.reshape((whole.shape[0] * whole.shape[1],) + whole.shape[2:])


def gathered(array):
    """[devices, ...] of this process's devices -> [all devices, ...], as a host array in every process."""
    if process_count() == 1:
        return np.asarray(array)
    return unreplicate(_gathered(array))


@functools.partial(jax.pmap, axis_name=AXIS)
def _gathered(part):
    return lax.all_gather(part, AXIS)


# ---- processes

PROCESS = "PFGM_JAX_PROCESS"
_STARTS = 5  # in times of `job.patience()`: how long the others may take to start


def process_count():
    return jax.process_count()


def process():
    """The number of this process, from 0."""
    return jax.process_index()


def is_first():
    """Whether this is the process that writes files and prints."""
    return process() == 0


def connect():
    """Joins the other processes of a job, if PFGM_JAX_PROCESS says that there are any; before JAX computes anything.

    It is "auto" where JAX can find them itself (the workers of a TPU, Slurm, Open MPI, Kubernetes), or
    NUMBER/ALL@HOST:PORT: "1/4@10.0.0.7:1234" is process 1 of 4, the first of which, 0, is at that address.

    Raises:
      UserError: a variable that cannot be read, or processes that do not find each other.
    """
    text = os.environ.get(PROCESS, "")
    if not text:
        return
    given = re.fullmatch(r"(\d+)/(\d+)@([^@\s]+:\d+)", text)
    if text != "auto" and not (given and int(given[1]) < int(given[2])):
        raise UserError(
            f"{PROCESS}={quoted(text)[1:-1]} is not valid: write auto, or NUMBER/ALL@HOST:PORT like 0/2@10.0.0.7:1234"
        )
    where = {}
    if given:
        if int(given[2]) == 1:
            return
        where = dict(process_id=int(given[1]), num_processes=int(given[2]), coordinator_address=given[3])
        where["cluster_detection_method"] = "deactivate"
    patience = job.patience()
    lost.watch()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which `interrupt` hears
    try:
        jax.distributed.initialize(
            **where, heartbeat_timeout_seconds=patience, initialization_timeout=_STARTS * patience
        )
    except (RuntimeError, ValueError) as error:
        line = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UserError(f"{PROCESS}={text}: the processes cannot connect: {line}") from None
    if process_count() > 1:
        from jax._src import distributed  # public JAX has no way to say a word to the other processes

        job.start(distributed.global_state.client, process())


def finish():
    """Waits for the other processes at the end of a command."""
    if job.joined():
        job.stop()
        jax.distributed.shutdown()


def is_loss(error):
    """Whether an exception says that a collective failed, which is what a process that has gone looks like."""
    return job.joined() and isinstance(error, RuntimeError) and bool(re.search("Gloo|NCCL|coordination", str(error)))


def largest(number, bounded=False):
    """The largest of the processes' whole numbers, in all of them: they meet here.

    bounded: they do the same work, so that one that waits long for another one takes it to hang, and ends.
    """
    if process_count() == 1:
        return number
    job.meet(bounded)
    return int(unreplicate(_largest(copies(np.int32(number)))))


@functools.partial(jax.pmap, axis_name=AXIS)
def _largest(number):
    return lax.pmax(number, AXIS)


def of_first(tree):
    """The first process's arrays, bit for bit, in all of them, which have arrays of the same shapes."""
    if process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    raw = np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8)
    words = np.zeros(-(-raw.size // 4) * 4, np.uint8)
    if is_first():
        words[: raw.size] = raw
    # On one device of the first process the words, elsewhere 0: their sum, of whole numbers, is the words again.
    parts = np.zeros((jax.local_device_count(), words.size // 4), np.uint32)
    parts[0] = words.view(np.uint32)
    job.meet(bounded=False)
    sent = unreplicate(_sum(parts)).tobytes()
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    whole = [
        np.frombuffer(sent, leaf.dtype, leaf.size, int(end) - leaf.nbytes).reshape(leaf.shape).copy()
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, whole)


@functools.partial(jax.pmap, axis_name=AXIS)
def _sum(part):
    return lax.psum(part, AXIS)


def from_first(make):
    """What `make()` returns in the first process, which alone calls it, in all of them: what JSON can hold."""
    if process_count() == 1:
        return make()
    text = json.dumps(make()).encode() if is_first() else b""
    size = 1 << largest(len(text)).bit_length()  # few sizes, so that few programs are compiled
    held = np.zeros(size, np.uint8)
    held[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(of_first(held).tobytes().rstrip(b"\0"))
