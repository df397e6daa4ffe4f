"""One training step, and what is measured of a network beside its loss: pure functions, mapped over devices.

Everything random about example i of a run (its image, σ, noise, dropout mask) is a function of (seed, i) alone, i
counting examples over all steps and devices. So one device, eight devices and a resumed run see the same numbers, and
no iterator or random state is saved.
"""

import functools
import math
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from jax import lax

from pfgm_jax import build, field, losses, models, parallel, process
from pfgm_jax.data import epoch_order, to_unit
from pfgm_jax.parametrization import denoiser

# Queries at which the distance to the truth is measured, at each noise level.
TRUTH_QUERIES = 128


@flax.struct.dataclass
class TrainState:
    """step [], params, their exponential moving average and the optimiser's state."""

    step: jax.Array
    params: dict
    ema: dict
    opt_state: tuple


@flax.struct.dataclass
class StepMetrics(clu_metrics.Collection):
    """Averages over the steps between two log lines."""

    loss: clu_metrics.Average.from_output("loss")
    grad_norm: clu_metrics.Average.from_output("grad_norm")


class Cadence(NamedTuple):
    """Steps between events: every interval of the config, which is in images, as whole device calls."""

    per_call: int
    total: int
    log: int
    evaluate: int
    sample: int
    save: int


def make_cadence(config):
    """Intervals and length rounded to whole calls of `steps_per_call` steps, so that no call crosses an event."""
    per_call = config.train.steps_per_call or (8 if jax.default_backend() == "cpu" else 32)
    c, images_per_call = config.train, per_call * config.train.batch

    def steps(images):
        return max(1, round(images / images_per_call)) * per_call

    return Cadence(per_call, *(steps(i) for i in (c.images, c.log_every, c.eval_every, c.sample_every, c.save_every)))


class Task(NamedTuple):
    """What training needs to know, fixed for a run and hashable."""

    process: process.Process
    parametrization: object
    model: object
    optimizer: optax.GradientTransformation
    seed: int
    batch: int
    large_batch: int
    ema_halflife: int
    ema_ramp: float


def make_task(config, derived):
    """The Task of a checked config."""
    model = build.make_model(config, derived)
    if hasattr(model, "canonical_conv"):
        # See `layers.canonical_conv`: on a CPU this makes a step inside lax.scan 20 times faster.
        model = model.clone(canonical_conv=jax.default_backend() == "cpu")
    return Task(
        build.make_process(config, derived),
        build.make_parametrization(config, derived),
        model,
        make_optimizer(config, derived),
        config.seed,
        config.train.batch,
        config.train.large_batch,
        config.train.ema_halflife,
        config.train.ema_ramp,
    )


def learning_rate(config, derived):
    """Schedule step -> learning rate: linear warm-up over optim.warmup images, then constant or a cosine to lr_end."""
    batch, c = config.train.batch, config.optim
    steps = make_cadence(config).total
    warmup = c.warmup // batch

    def schedule(step):
        ramp = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
        if c.decay == "constant":
            return derived["lr"] * ramp
        progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
        return derived["lr"] * ramp * (c.lr_end + (1 - c.lr_end) * 0.5 * (1 + jnp.cos(math.pi * progress)))

    return schedule


def make_optimizer(config, derived):
    """Adam with warm-up, clipping by the global norm and decoupled weight decay, as far as the config asks for them."""
    c = config.optim
    clip = optax.identity() if math.isinf(c.clip) else optax.clip_by_global_norm(c.clip)
    rate = learning_rate(config, derived)
    return optax.chain(clip, optax.adamw(rate, c.beta1, c.beta2, c.eps, weight_decay=c.weight_decay))


def init_state(task, shape):
    """The state before the first step, for images of `shape` (H, W, C): host arrays."""
    # One compiled program, so that the compilation cache serves it too. It runs once and is not worth optimising.
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

    @functools.partial(jax.jit, compiler_options=quickly if jax.default_backend() == "cpu" else None)
    def init(key):
        params = models.init(task.model, shape, key)
        return TrainState(jnp.zeros((), jnp.int32), params, params, task.optimizer.init(params))

    return jax.device_get(init(jax.random.fold_in(jax.random.key(task.seed), 0)))


def example_losses(task, params, images, labels, indices, references, keys, train):
    """Loss of each example, [b]: the objective of training and of validation.

    Args:
      images, labels: uint8 [n, H, W, C] and [n], on the device.
      indices: [b] the examples.
      references: [R] the large batch, which holds them (−1 is padding), or None for the clean-image target.
      keys: [b] one per example. train: whether dropout is on.
    """
    y = to_unit(images[indices])
    told = labels[indices] if task.model.num_labels else None
    noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    x, sigma = process.training_pairs(task.process, noise_keys, y)
    mean = y
    if references is not None:
        allowed = jnp.broadcast_to(references >= 0, (len(y), len(references)))
        if told is not None:
            # A network that is told the label learns the field of that label's images.
            allowed &= told[:, None] == labels[references]
        mean = losses.posterior_target(task.process, x, sigma, y, to_unit(images[references]), allowed)

    def network(x, noise):
        return task.model.apply({"params": params}, x, noise, told, dropout_keys if train else None)

    return losses.squared_error(task.parametrization, task.process, network, x, sigma, mean)


def loss_and_gradient(task, params, step, images, labels):
    """(loss, gradient) of the batch of `step`, averaged over all devices; inside a mapped function."""
    key = jax.random.key(task.seed)
    order_key, example_key = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    n = len(images)
    start = step.astype(jnp.uint32) * task.batch
    first, count = parallel.axis_slice(task.batch)
    positions = start + (first + jnp.arange(count)).astype(jnp.uint32)
    indices = epoch_order(order_key, positions, n)
    if task.large_batch == 0:
        references = None
    elif task.large_batch >= n:  # never an image twice
        references = jnp.arange(n)
    else:
        # The small batch is the first rows of the large one, which is the same on every device.
        references = epoch_order(order_key, start + jnp.arange(task.large_batch, dtype=jnp.uint32), n)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(example_key, positions)

    def loss(params):
        return jnp.mean(example_losses(task, params, images, labels, indices, references, keys, train=True))

    return parallel.mean(jax.value_and_grad(loss)(params))


def train_step(task, state, images, labels):
    """One step, on every device the same: (new state, StepMetrics); inside a mapped function."""
    loss, gradient = loss_and_gradient(task, state.params, state.step, images, labels)
    updates, opt_state = task.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    halflife = jnp.asarray(task.ema_halflife, loss.dtype)
    if task.ema_ramp > 0:
        halflife = jnp.minimum(halflife, state.step * task.batch * task.ema_ramp)
    decay = 0.5 ** (task.batch / jnp.maximum(halflife, 1e-8))
    ema = jax.tree.map(lambda e, p: p + (decay * (e - p)).astype(p.dtype), state.ema, params)
    metrics = StepMetrics.single_from_model_output(loss=loss, grad_norm=optax.global_norm(gradient))
    return TrainState(state.step + 1, params, ema, opt_state), metrics


@functools.partial(parallel.pmap, in_axes=(None, 0, 0, 0, None), static_broadcasted_argnums=(0, 4), donate_argnums=(1,))
def train_steps(task, state, images, labels, steps):
    """`steps` steps in one device call: (state, StepMetrics over all of them), both with a device axis."""
    state, metrics = lax.scan(lambda state, _: train_step(task, state, images, labels), state, length=steps)
    return state, metrics.reduce()


@functools.partial(parallel.pmap, in_axes=(None, 0, 0, 0, None), static_broadcasted_argnums=(0,))
def evaluate_losses(task, ema, images, labels, batches):
    """Mean loss over `batches` [k, B] of indices (−1 is padding), with the same noise each time; on every device."""
    key = jax.random.fold_in(jax.random.key(task.seed), 3)

    def body(sums, batch_positions):
        batch, positions = batch_positions
        first, count = parallel.axis_slice(batch.size)
        mine, places = (lax.dynamic_slice_in_dim(a, first, count) for a in (batch, positions))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        # The clean image is the target wherever it is valid, so that runs with other targets compare; elsewhere the
        # field of all the evaluated images is.
        references = None if task.process.training_law.from_kernel else batches.reshape(-1)
        each = example_losses(task, ema, images, labels, jnp.maximum(mine, 0), references, keys, train=False)
        return (sums[0] + jnp.sum(jnp.where(mine >= 0, each, 0)), sums[1] + jnp.sum(mine >= 0)), None

    positions = jnp.arange(batches.size).reshape(batches.shape)
    zero = (jnp.zeros((), jnp.result_type(float)), jnp.zeros((), jnp.int32))
    total, count = parallel.total(lax.scan(body, zero, (batches, positions))[0])
    return total / count


def truth_errors(task, ema, images, labels, sigmas):
    """Distance to the truth: rms error per pixel of the network against the exact posterior mean of the training set.

    Queries are training images perturbed by the kernel at each of `sigmas` [L], the same every time. Returns [L],
    equal on all devices; inside a mapped function.
    """
    key = jax.random.fold_in(jax.random.key(task.seed), 4)
    first, count = parallel.axis_slice(TRUTH_QUERIES - TRUTH_QUERIES % parallel.device_count())
    places = (first + jnp.arange(count)).astype(jnp.uint32)
    indices = epoch_order(key, places, len(images))
    told = labels[indices] if task.model.num_labels else None
    allowed = None if told is None else told[:, None] == labels
    network = lambda x, noise: task.model.apply({"params": ema}, x, noise, told)
    denoise = denoiser(task.parametrization, task.process, network)
    y, points = to_unit(images[indices]), to_unit(images)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)

    def one_level(sigma):
        sigma = jnp.full(count, sigma)
        x = process.perturb(task.process, keys, y, sigma)
        truth = field.posterior_mean(x, sigma, points, task.process.D, allowed=allowed)
        return jnp.sqrt(parallel.mean(jnp.mean(jnp.square(denoise(x, sigma) - truth))))

    return lax.map(one_level, sigmas)


distance_to_truth = parallel.pmap(truth_errors, in_axes=(None, 0, 0, 0, None), static_broadcasted_argnums=(0,))


def truth_levels(process):
    """Seven noise levels over the range in which a posterior mean is neither the image nor the data's mean."""
    return np.geomspace(max(0.05, process.sigma_min), min(20.0, process.sigma_max), 7)


def make_batches(n, limit, batch, key):
    """Indices [k, B] of `limit` of n examples, without replacement, −1 for padding: the same at every evaluation."""
    chosen = np.asarray(epoch_order(key, np.arange(min(n, limit), dtype=np.uint32), n))
    padded = np.full(math.ceil(len(chosen) / batch) * batch, -1)
    padded[: len(chosen)] = chosen
    return padded.reshape(-1, batch)
