"""Devices and hosts: the only module that knows how many there are.

A per-device function with collectives over the axis `AXIS` is mapped by `pmap`; the same code runs on one device, eight
devices and several hosts. Arrays with a leading device axis hold one slice for each *local* device.
"""

import functools

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from pfgm_jax.errors import UserError

AXIS = "data"

pmap = functools.partial(jax.pmap, axis_name=AXIS)


def init():
    """Joins this process to the others of a multi-host job, as found by JAX in the environment (TPU pods, Slurm, …)."""
    jax.distributed.initialize()


def device_count():
    return jax.device_count()


def device_kind():
    """What the devices are called, such as "cpu" or "NVIDIA A100"."""
    return jax.devices()[0].device_kind


def is_main_process():
    return jax.process_index() == 0


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
    if batch < 1 or batch % n:
        below = batch // n * n
        options = f"{below} or {below + n}" if below > 0 else f"{n}"
        raise UserError(f"{what}={batch} cannot be shared by {n} devices; use a multiple of {n}, such as {options}")


def replicate(tree):
    """A copy of every array on every device: leading axis of local devices."""
    copy = pmap(lambda _, tree: tree, in_axes=(0, None))
    return copy(np.arange(jax.local_device_count()), tree)


def replicated_shapes(tree):
    """What `replicate` would give, as shapes alone."""
    n = jax.local_device_count()
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape), a.dtype), tree)


def unreplicate(tree):
    """One device's copy, as host arrays."""
    return jax.tree.map(lambda a: np.asarray(a.addressable_data(0)).reshape(a.shape[1:]), tree)


def shard(array):
    """[B, ...], the same on every host -> [local devices, B / devices, ...], this host's share."""
    parts = array.reshape((device_count(), -1) + array.shape[1:])
    first = jax.process_index() * jax.local_device_count()
    return parts[first : first + jax.local_device_count()]


def gather(array):
    """The inverse of `shard`, as a host array [B, ...] on every host."""
    if jax.process_count() > 1:
        array = multihost_utils.process_allgather(array, tiled=True)
    array = np.asarray(array)
    return array.reshape((array.shape[0] * array.shape[1],) + array.shape[2:])
