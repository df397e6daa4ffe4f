"""Devices: the only module that knows how many there are.

A per-device function with collectives over the axis `AXIS` is mapped by `pmap`; the same code runs on one device and on
all devices of a host.
"""

import functools
import os
import pathlib

import jax
import numpy as np
from jax import lax

from pfgm_jax.errors import UserError

AXIS = "data"

pmap = functools.partial(jax.pmap, axis_name=AXIS)


def device_count():
    return jax.device_count()


def device_kind():
    """What the devices are called, such as "cpu" or "NVIDIA A100"."""
    return jax.devices()[0].device_kind


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
        raise UserError(f"{what}={batch} is not possible: at least 1")
    if batch < 1 or batch % n:
        below = batch // n * n
        options = f"{below} or {below + n}" if below > 0 else f"{n}"
        raise UserError(f"{what}={batch} cannot be shared by {n} devices; use a multiple of {n}, such as {options}")


def place(tree):
    """Host arrays with a leading axis of devices, each part on its device; returns while they are on their way."""
    devices = jax.devices()
    sharding = jax.NamedSharding(jax.sharding.Mesh(np.asarray(devices), (AXIS,)), jax.P(AXIS))

    def one(a):
        # Part by part: a mapped function that returns its argument would hold every array twice while it ran.
        parts = [jax.device_put(a[i : i + 1], device) for i, device in enumerate(devices)]
        return jax.make_array_from_single_device_arrays(a.shape, sharding, parts)

    return jax.tree.map(one, tree)


def replicate(tree):
    """A copy of every array on every device: a leading axis of devices."""
    return place(jax.tree.map(lambda a: np.broadcast_to(np.asarray(a), (device_count(), *np.shape(a))), tree))


def replicated_shapes(tree):
    """What `replicate` would give, as shapes alone."""
    n = device_count()
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape), a.dtype), tree)


def unreplicate(tree):
    """One device's copy, as host arrays."""
    return jax.tree.map(lambda a: np.asarray(a.addressable_data(0)).reshape(a.shape[1:]), tree)


def shard(array):
    """[B, ...] -> [devices, B / devices, ...]."""
    return array.reshape((device_count(), -1) + array.shape[1:])


def gather(array):
    """The inverse of `shard`, as a host array [B, ...]."""
    return np.asarray(array).reshape((array.shape[0] * array.shape[1],) + array.shape[2:])
