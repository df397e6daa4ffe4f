"""What is measured of a network while it trains: losses of held-out images, and its distance to the truth."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pfgm_jax import parallel
from pfgm_jax.data import Examples, epoch_order, to_unit
from pfgm_jax.flow import field, process
from pfgm_jax.flow.parametrization import denoiser
from pfgm_jax.training.step import example_losses

# Queries at which the distance to the truth is measured, at each noise level.
TRUTH_QUERIES = 128
# Training sets of more values are streamed through it.
TRUTH_WHOLE = 5e7


@functools.partial(parallel.pmap, in_axes=(None, 0, 0, 0, None), static_broadcasted_argnums=(0,))
def evaluate_losses(task, ema, images, labels, batches):
    """Mean loss over `batches` [k, B] of indices (−1 is padding), with the same noise each time; on every device.

    The clean image is the target wherever it is valid, so that runs with other targets compare; elsewhere the field of
    all the images is.
    """
    key = jax.random.fold_in(jax.random.key(task.seed), 3)

    def body(sums, batch_positions):
        batch, positions = batch_positions
        first, count = parallel.axis_slice(batch.size)
        mine, places = (lax.dynamic_slice_in_dim(a, first, count) for a in (batch, positions))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        chosen, known = jnp.maximum(mine, 0), (None, None)
        if not task.process.training_law.from_kernel:
            known = images, labels
        each = example_losses(task, ema, Examples(images[chosen], labels[chosen], *known), keys, train=False)
        return (sums[0] + jnp.sum(jnp.where(mine >= 0, each, 0)), sums[1] + jnp.sum(mine >= 0, dtype=jnp.int32)), None

    positions = jnp.arange(batches.size).reshape(batches.shape)
    zero = (jnp.zeros((), jnp.result_type(float)), jnp.zeros((), jnp.int32))
    total, count = parallel.total(lax.scan(body, zero, (batches, positions))[0])
    return total / count


def truth_errors(task, ema, images, labels, queries, sigmas):
    """Distance to the truth: rms error per pixel of the network against the exact posterior mean of the training set.

    Queries are the images of indices `queries` [q], this device's share of `truth_queries`, perturbed by the kernel at
    each of `sigmas` [L], the same every time. Returns [L], equal on all devices; inside a mapped function.
    """
    first, _ = parallel.axis_slice(len(queries) * parallel.device_count())
    places = (first + jnp.arange(len(queries))).astype(jnp.uint32)
    query_labels = labels[queries] if task.model.num_labels else None
    # A small set is taken whole; of a larger one no more than a chunk is ever held as floats.
    chunk = None if images.size <= TRUTH_WHOLE else field.fitting_chunk(len(queries), images.shape)
    y, points = to_unit(images[queries]), images if chunk else to_unit(images)
    if task.flip:
        points, labels = jnp.concatenate([points, jnp.flip(points, axis=-2)]), jnp.tile(labels, 2)
    allowed = None if query_labels is None else query_labels[:, None] == labels
    network = lambda x, noise: task.model.apply({"params": ema}, x, noise, query_labels)
    denoise = denoiser(task.parametrization, task.process, network)
    key = jax.random.fold_in(jax.random.key(task.seed), 4)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)

    def one_level(sigma):
        sigma = jnp.full(len(queries), sigma)
        x = process.perturb(task.process, keys, y, sigma)
        truth = field.posterior_mean(x, sigma, points, task.process.D, chunk=chunk, allowed=allowed, prepare=to_unit)
        return jnp.sqrt(parallel.mean(jnp.mean(jnp.square(denoise(x, sigma) - truth))))

    return lax.map(one_level, sigmas)


distance_to_truth = parallel.pmap(truth_errors, in_axes=(None, 0, 0, 0, 0, None), static_broadcasted_argnums=(0,))


def truth_queries(seed, n):
    """Indices [devices, q] of the training images, of n, at which the distance to the truth is measured."""
    number = TRUTH_QUERIES - TRUTH_QUERIES % parallel.device_count()
    return parallel.shard(epoch_order((seed, 4), np.arange(number), n))


def truth_levels(process):
    """Seven noise levels over the range in which a posterior mean is neither the image nor the data's mean."""
    return np.geomspace(max(0.05, process.sigma_min), min(20.0, process.sigma_max), 7)


def choose(seed, n, limit):
    """Indices [min(n, limit)] of n examples, without replacement: the same at every evaluation."""
    return epoch_order((seed, 5), np.arange(min(n, limit)), n)


def make_batches(n, batch):
    """Indices [k, B] of n examples in order, −1 for padding; B is the batch, made a multiple of the devices."""
    batch = math.ceil(batch / parallel.device_count()) * parallel.device_count()
    padded = np.full(math.ceil(n / batch) * batch, -1)
    padded[:n] = np.arange(n)
    return padded.reshape(-1, batch)
