"""Draws of many images' posteriors by a network: batches over all devices."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pfgm_jax import parallel
from pfgm_jax.errors import UserError
from pfgm_jax.inference.batches import Weighted, over_batches
from pfgm_jax.inference.restoration import noise as noises
from pfgm_jax.inference.restoration import operators
from pfgm_jax.inference.restoration.condition import Condition
from pfgm_jax.inference.restoration.methods import METHODS, Problem
from pfgm_jax.inference.restoration.tasks import Task


class Way(NamedTuple):
    """What a compiled program depends on of a Task: hashable. An operator of None is each image's mask."""

    operator: operators.Operator | None
    kind: str
    method: str
    options: tuple
    condition: Condition | None


class Restoration(NamedTuple):
    """Draws of the posterior of each of B measurements, in the unit scale.

    Attributes:
      draws: [n, B, H, W, C].
      mean: [B, H, W, C] of the draws.
      std: [B, H, W, C] their standard deviation, the uncertainty of each pixel; 0 of a single draw.
      level: [B] of the noise, as given or as estimated.
    """

    draws: Float[np.ndarray, "n B H W C"]
    mean: Float[np.ndarray, "B H W C"]
    std: Float[np.ndarray, "B H W C"]
    level: Float[np.ndarray, "B"]


def restore(
    weighted: Weighted,
    measurement: np.ndarray,
    task: Task,
    n: int,
    key,
    labels: np.ndarray,
    spread: float,
    progress=True,
) -> Restoration:
    """The Restoration of measurements [B, *M], floats in the unit scale.

    Args:
      n: draws of each. key: draw i of image j is a function of (key, i, j).
      labels: int32 [B] classes that the network is given, −1 for none.
      spread: the data's standard deviation.

    Raises:
      UserError: a network that returned NaN or inf.
    """
    B, network = len(measurement), weighted.network
    level = _levels(weighted, measurement, task, key, labels, progress)
    everywhere = np.ones((1,) * (1 + len(task.measured)), bool)
    mask = everywhere if task.mask is None else task.mask.reshape(-1, *task.mask.shape[-3:])
    mask = np.broadcast_to(mask, (B, *mask.shape[1:]))
    measurement = np.where(mask, measurement, 0) if task.mask is not None else measurement
    draws = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    keys = draws(jax.random.split(jax.random.fold_in(key, 1), n), np.arange(B)).reshape(n * B)
    each = lambda a: np.tile(a, (n,) + (1,) * (a.ndim - 1))
    noiseless = bool(np.all(level == 0))
    way = Way(task.operator, task.kind, task.method, task.options, task.condition)
    program = compiled(network, way, noiseless, float(spread))
    run = lambda *arrays: program(*arrays, weighted.params)
    arrays = (each(measurement), each(mask), each(level), jax.random.key_data(keys), each(labels))
    what = f"{task.name} by {task.method}"
    x = over_batches(run, arrays, min(weighted.batch, n * B), what, progress)
    if not np.isfinite(x).all():
        raise UserError(f"{what} returned NaN or inf: the network's weights or the settings are unusable")
    x = x.reshape(n, B, *x.shape[1:])
    return Restoration(x, x.mean(axis=0), x.std(axis=0, ddof=1) if n > 1 else np.zeros_like(x[0]), level)


@functools.lru_cache(maxsize=32)
def compiled(network, way, noiseless, spread):
    """The mapped `(measurement, mask, level, keys, labels, params) -> x` of a `Way`."""

    def per_device(measurement, mask, level, keys, labels, params):
        operator = operators.masked(mask) if way.operator is None else way.operator
        problem = Problem(measurement, operator, way.kind, level, noiseless, mask, spread)
        denoise = network.denoiser(params, labels, way.condition and way.condition.as_channels(measurement, mask))
        keys = jax.random.wrap_key_data(keys)
        return METHODS[way.method].run(problem, denoise, network.process, keys, **dict(way.options))

    return parallel.pmap(per_device, in_axes=(0, 0, 0, 0, 0, None))


@functools.lru_cache(maxsize=8)
def estimating(network):
    """The mapped `(x, keys, labels, params) -> levels` of `noise.estimated`."""
    process = network.process

    def per_device(x, keys, labels, params):
        denoise = network.denoiser(params, labels)
        return noises.estimated(denoise, jax.random.wrap_key_data(keys), x, process.sigma_min, process.sigma_max)[
            :, None
        ]

    return parallel.pmap(per_device, in_axes=(0, 0, 0, None))


def _levels(weighted, measurement, task, key, labels, progress):
    """The noise level of each measurement [B]."""
    if task.level is not None:
        return np.full(len(measurement), task.level, np.float32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 0), jnp.arange(len(measurement)))
    run = lambda *arrays: estimating(weighted.network)(*arrays, weighted.params)
    arrays = (measurement, jax.random.key_data(keys), labels)
    rms = over_batches(run, arrays, min(weighted.batch, len(measurement)), "noise level", progress)[:, 0]
    # From a root mean square to the level of the kind of noise.
    return (rms / np.asarray(noises.deviation(task.kind, np.ones(len(rms), np.float32), measurement))).astype(
        np.float32
    )
