"""The truth of a tuned network: where the exact field's own flow leads from perturbed training images."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax import parallel
from pfgm_jax.data import epoch_order, to_unit
from pfgm_jax.flow import field, process
from pfgm_jax.flow.parametrization import denoiser
from pfgm_jax.run import weighs_by_class
from pfgm_jax.sampling import single_step

QUERIES, LEVELS = 32, 5  # perturbed images at each noise level, and levels
LIMIT = 3e7  # values of a training set at most: an evaluation of its field, of 325, costs queries × values
STEPS = 32


class Ends(NamedTuple):
    """Perturbed images at some levels and the ends of their flow.

    sigmas: [L]. x, ends: [L, q, H, W, C]. labels: [q], or None for a network without labels.
    """

    sigmas: np.ndarray
    x: jax.Array
    ends: jax.Array
    labels: jax.Array | None


def known(task, split):
    """Whether the exact field of the training images is what a network learns, and not too costly to follow."""
    weighed = weighs_by_class(task.order, task.model.num_labels)
    return not weighed and math.prod(split.images.shape) <= LIMIT


def queries(task, split):
    """(levels [L], x [L, q, H, W, C] drawn from the kernel around training images, labels [q] or None)."""
    chosen = np.sort(epoch_order((task.seed, 4), np.arange(min(QUERIES, len(split))), len(split)))
    y, labels = to_unit(jnp.asarray(split.images[chosen])), jnp.asarray(split.labels[chosen])
    flow = task.process
    sigmas = np.geomspace(max(0.1, 2 * flow.sigma_min), min(20.0, flow.sigma_max), LEVELS)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(task.seed), 4), (LEVELS, len(chosen)))
    x = [process.perturb(flow, k, y, jnp.full(len(y), s, y.dtype)) for k, s in zip(keys, sigmas, strict=True)]
    return sigmas, jnp.stack(x), labels if task.model.num_labels else None


def exact_ends(task, split):
    """Ends of `queries` by the exact field of the training images.

    A network that knows labels has the field of its label's images; mirrored images count where training mirrors.
    """
    sigmas, x, labels = queries(task, split)
    images, own = jnp.asarray(np.asarray(split.images)), jnp.asarray(split.labels)
    if task.flip:
        images, own = jnp.concatenate([images, jnp.flip(images, axis=-2)]), jnp.tile(own, 2)
    allowed = None if labels is None else labels[:, None] == own
    chunk, D = field.fitting_chunk(x.shape[1], images.shape), task.process.D

    def exact(images):
        return lambda x, sigma: field.posterior_mean(x, sigma, images, D, chunk=chunk, allowed=allowed, prepare=to_unit)

    return Ends(sigmas, x, followed(task.process, exact, images, sigmas, x), labels)


def followed(flow, denoiser_of, values, sigmas, x):
    """[L, q, H, W, C]: where the flow of `denoiser_of(values)`, a posterior mean, leads from x at each of the levels.

    By STEPS steps of Heun's method on EDM's grid from each level to σ_min, and then to E[y | x, σ_min]: one compiled
    program for all levels, where RK45 would be one for each.
    """

    @jax.jit
    def end(values, x, sigma):
        low, high = flow.sigma_min ** (1 / 7), sigma ** (1 / 7)
        grid = (high + jnp.linspace(0, 1, STEPS + 1, dtype=x.dtype) * (low - high)) ** 7
        denoise = lambda x, level: denoiser_of(values)(x, jnp.full(len(x), level, x.dtype))
        step = lambda x, interval: (single_step.heun_step(denoise, x, *interval), None)
        x, _ = jax.lax.scan(step, x, (grid[:-1], grid[1:]))
        return denoise(x, flow.sigma_min)

    return jnp.stack([end(values, x, jnp.asarray(s, x.dtype)) for x, s in zip(x, sigmas, strict=True)])


def errors(ends, reached):
    """rms per pixel [L] between the Ends and what was `reached` [L, q, H, W, C] from the same points."""
    return np.sqrt(np.mean(np.square(np.asarray(reached) - np.asarray(ends.ends)), axis=(1, 2, 3, 4)))


def distance(task, split):
    """`ema -> (levels [L], errors [L])`: that of a tuned network, its weights with a device axis, to `exact_ends`."""
    exact, reach = functools.cache(lambda: exact_ends(task, split)), one_evaluation(task)

    def measured(ema):
        ends = exact()
        return ends.sigmas, errors(ends, reach(parallel.unreplicate(ema), ends.x, ends.sigmas, ends.labels))

    return measured


def one_evaluation(task):
    """The compiled `(params, x [L, q, H, W, C], sigmas [L], labels) -> [L, q, H, W, C]`: a network evaluated once."""

    @jax.jit
    def reach(params, x, sigmas, labels):
        network = lambda x, noise: task.model.apply({"params": params}, x, noise, labels)
        denoise = denoiser(task.parametrization, task.process, network)
        level = lambda row: denoise(row[0], jnp.full(len(row[0]), row[1], x.dtype))
        return jax.lax.map(level, (x, jnp.asarray(sigmas, x.dtype)))

    return reach
