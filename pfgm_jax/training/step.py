"""One training step, and what is measured of a network beside its loss: pure functions, mapped over devices.

Everything random about example i of a run (its image, σ, noise, dropout mask) is a function of (seed, i) alone, i
counting examples over all steps and devices. So one device, eight devices and a resumed run see the same numbers, and
no iterator or random state is saved.
"""

import dataclasses
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

from pfgm_jax import models, parallel
from pfgm_jax import run as run_lib
from pfgm_jax.data import Examples, augment, epoch_order, take, to_unit
from pfgm_jax.flow import field, losses, process
from pfgm_jax.flow.parametrization import denoiser
from pfgm_jax.inference.restoration import condition
from pfgm_jax.training import example_keys

# Queries at which the distance to the truth is measured, at each noise level.
TRUTH_QUERIES = 128
# Training sets of more values are streamed through it.
TRUTH_WHOLE = 5e7
# Images of a call's steps take at most this many bytes, should they be streamed.
CALL_BYTES = 2**28


@flax.struct.dataclass
class TrainState:
    """step [], params, their exponential moving average and the optimiser's state."""

    step: jax.Array
    params: dict
    ema: dict
    opt_state: tuple


def items(state):
    """What a checkpoint holds of a TrainState; the step is its name."""
    return {"params": state.params, "ema": state.ema, "opt_state": state.opt_state}


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

    def due(self, every, step):
        """Whether what happens `every` so many steps, and at the end, happens at `step`."""
        return step % every == 0 or step >= self.total


def make_cadence(config):
    """Intervals and length rounded to whole calls of `steps_per_call` steps, so that no call crosses an event."""
    c = config.train
    per_call = c.steps_per_call or (8 if jax.default_backend() == "cpu" else 32)
    if not c.steps_per_call:
        step_bytes = (c.batch + c.large_batch) * 3 * config.data.size**2
        while per_call > 1 and per_call * step_bytes > CALL_BYTES:
            per_call //= 2

    def steps(images):
        return max(1, round(images / (per_call * c.batch))) * per_call

    return Cadence(
        per_call=per_call,
        total=steps(c.images),
        log=steps(c.log_every),
        evaluate=steps(c.eval_every),
        sample=steps(c.sample_every),
        save=steps(c.save_every),
    )


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Consistency tuning: pairs of levels by `losses.lower_level`, their step shrinking by q after `stage_steps`.

    stages: number of stages. c: Pseudo-Huber constant.
    """

    q: float
    stages: int
    stage_steps: int
    c: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a training step needs to know, fixed for a run: hashable, a static argument of compiled programs."""

    process: process.Process
    parametrization: object
    model: object
    optimizer: optax.GradientTransformation
    seed: int
    order: str
    batch: int
    large_batch: int
    flip: bool
    augment: float
    label_dropout: float
    ema_halflife: int
    ema_ramp: float
    tuning: Tuning | None
    condition: condition.Condition | None


def make_task(config, derived):
    """The Task of a checked config."""
    model = run_lib.make_model(config, derived)
    if hasattr(model, "canonical_conv"):
        # See `layers.canonical_conv`: on a CPU this makes a step inside lax.scan 20 times faster.
        model = model.clone(canonical_conv=jax.default_backend() == "cpu")
    c, flow, tuning = config.train, run_lib.make_process(config, derived), None
    if run_lib.is_tuned(config):
        law = process.LogNormal(config.tune.P_mean, config.tune.P_std, clipped=True)
        flow = dataclasses.replace(flow, training_law=law)
        stage_steps = math.ceil(make_cadence(config).total / config.tune.stages)
        tuning = Tuning(config.tune.q, config.tune.stages, stage_steps, config.tune.c)
    return Task(
        process=flow,
        parametrization=run_lib.make_parametrization(config, derived),
        model=model,
        optimizer=make_optimizer(config, derived),
        seed=config.seed,
        order=c.order,
        batch=c.batch,
        large_batch=c.large_batch,
        flip=c.flip,
        augment=c.augment,
        label_dropout=c.label_dropout,
        ema_halflife=c.ema_halflife,
        ema_ramp=c.ema_ramp,
        tuning=tuning,
        condition=condition.parse(config.data.condition),
    )


def learning_rate(config, derived):
    """Schedule step -> learning rate: linear warm-up over optim.warmup images, then constant or a cosine to lr_end."""
    batch, c = config.train.batch, config.optim
    # Steps are int32 inside a compiled program.
    steps, warmup = (min(n, 2**31 - 1) for n in (make_cadence(config).total, c.warmup // batch))

    # Not `optax.linear_schedule`: it subtracts from the peak, so that the first rates lose digits (errors of 5e-6).
    def schedule(step):
        ramp = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
        if c.decay == "constant":
            return derived["lr"] * ramp
        progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
        return derived["lr"] * ramp * (c.lr_end + (1 - c.lr_end) * 0.5 * (1 + jnp.cos(math.pi * progress)))

    return schedule


def make_optimizer(config, derived):
    """Adam or RAdam, warm-up, clipping by the global norm and decoupled weight decay, as the config asks for them."""
    c = config.optim
    clip = optax.identity() if math.isinf(c.clip) else optax.clip_by_global_norm(c.clip)
    rate = learning_rate(config, derived)
    if c.name == "radam":
        decay = optax.add_decayed_weights(c.weight_decay)
        moments = optax.scale_by_radam(c.beta1, c.beta2, c.eps)
        return optax.chain(clip, moments, decay, optax.scale_by_learning_rate(rate))
    return optax.chain(clip, optax.adamw(rate, c.beta1, c.beta2, c.eps, weight_decay=c.weight_decay))


def init_state(task, shape):
    """The state before the first step, for images of `shape` (H, W, C): host arrays."""
    # One compiled program, so that the compilation cache serves it too. It runs once and is not worth optimising.
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

    @functools.partial(jax.jit, compiler_options=quickly if jax.default_backend() == "cpu" else None)
    def init(key):
        return _first_state(task, shape, key)

    return jax.device_get(init(jax.random.fold_in(jax.random.key(task.seed), 0)))


def state_shapes(task, shape):
    """The state for images of `shape` as shapes alone: nothing is computed."""
    return jax.eval_shape(lambda: _first_state(task, shape, jax.random.key(0)))


def _first_state(task, shape, key):
    params = models.init(task.model, shape, key)
    return TrainState(jnp.zeros((), jnp.int32), params, params, task.optimizer.init(params))


def example_losses(task, params, examples, keys, train, step=None):
    """Loss of each example, [b]: the objective of training and of validation.

    Args:
      examples: `data.Examples`: images uint8 [b, H, W, C], labels [b], and the large batch or None for the clean-image
        target.
      keys: [b] one per example.
      train: whether images are augmented, labels hidden and dropout on.
      step: int32 [] of training, which says the stage of tuning; None for the last.
    """
    y, references = to_unit(examples.images), examples.references
    labels = examples.labels if task.model.num_labels else None
    reference_labels = examples.reference_labels
    noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    augmentation = None
    if references is not None:
        references = to_unit(references)
    if train:
        y, labels, augmentation = _vary(task, keys, y, labels)
        if references is not None and task.flip:  # the images and their mirror images are the data
            references = jnp.concatenate([references, _mirrored(references)])
            reference_labels = jnp.tile(reference_labels, 2)
    x, sigma = process.training_pairs(task.process, noise_keys, y)
    mean = y
    if references is not None:
        # A class-conditional network learns the field of its label's images; -1 stands for all of them.
        allowed = None if labels is None else (labels[:, None] < 0) | (labels[:, None] == reference_labels)
        mean = losses.posterior_target(task.process, x, sigma, y, references, allowed)

    told = task.condition and task.condition.draw(jax.vmap(lambda key: jax.random.fold_in(key, 5))(keys), y)

    def network(x, noise, params=params):
        x = models.beside(x, told)
        return task.model.apply({"params": params}, x, noise, labels, dropout_keys if train else None, augmentation)

    if task.tuning:
        q, stages, stage_steps, c = dataclasses.astuple(task.tuning)
        r = losses.lower_level(sigma, q, stages - 1 if step is None else step // stage_steps, task.process.sigma_min)
        fixed = functools.partial(network, params=lax.stop_gradient(params))
        online, stopped = (denoiser(task.parametrization, task.process, net) for net in (network, fixed))
        return losses.consistency_error(online, stopped, x, sigma, r, mean, c)
    return losses.squared_error(task.parametrization, task.process, network, x, sigma, mean)


def _mirrored(images):
    return jnp.flip(images, axis=-2)


def _vary(task, keys, y, labels):
    """(images, labels, augmentation labels or None) as a step of training sees them: each example by its own key."""

    def own(number):
        return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)

    def coins(number, probability):
        return jax.vmap(lambda key: jax.random.bernoulli(key, probability))(own(number))

    augmentation = None
    if task.flip:
        y = jnp.where(coins(2, 0.5)[:, None, None, None], _mirrored(y), y)
    if task.augment:
        y, augmentation = augment.augment(own(3), y, task.augment)
    if task.label_dropout:
        labels = jnp.where(coins(4, task.label_dropout), -1, labels)
    return y, labels, augmentation


def loss_and_gradient(task, params, step, examples):
    """(loss, gradient) of the batch of `step`, averaged over all devices; inside a mapped function.

    examples: this device's share of the batch, and the whole large batch.
    """
    first, count = parallel.axis_slice(task.batch)
    keys = example_keys.example_keys(
        jax.random.fold_in(jax.random.key(task.seed), 2), step, task.batch, first + jnp.arange(count)
    )

    def loss(params):
        return jnp.mean(example_losses(task, params, examples, keys, train=True, step=step))

    return parallel.mean(jax.value_and_grad(loss)(params))


def train_step(task, state, examples):
    """One step, on every device the same: (new state, StepMetrics); inside a mapped function."""
    loss, gradient = loss_and_gradient(task, state.params, state.step, examples)
    updates, opt_state = task.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    halflife = jnp.asarray(task.ema_halflife, loss.dtype)
    if task.ema_ramp > 0:
        seen = state.step.astype(loss.dtype) * task.batch  # as an int32 it would pass 2³¹
        halflife = jnp.minimum(halflife, seen * task.ema_ramp)
    # Not `optax.incremental_update`: its sum of two products moves an average that equals the parameters.
    decay = 0.5 ** (task.batch / jnp.maximum(halflife, 1e-8))
    ema = jax.tree.map(lambda e, p: p + (decay * (e - p)).astype(p.dtype), state.ema, params)
    metrics = StepMetrics.single_from_model_output(loss=loss, grad_norm=optax.global_norm(gradient))
    return TrainState(state.step + 1, params, ema, opt_state), metrics


@functools.partial(parallel.pmap, in_axes=(None, 0, 0, 0), static_broadcasted_argnums=(0,), donate_argnums=(1,))
def train_steps(task, state, source, batches):
    """Some steps in one device call: (state, StepMetrics over all of them), both with a device axis.

    Args:
      source: (images, labels), the training set on every device, or None.
      batches: what the steps see, [steps, ...]: `data.Indices` into the source, or without one `data.Examples`.
    """

    def one_step(state, batch):
        return train_step(task, state, batch if source is None else take(*source, batch))

    state, metrics = lax.scan(one_step, state, batches)
    return state, metrics.reduce()


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
        points, labels = jnp.concatenate([points, _mirrored(points)]), jnp.tile(labels, 2)
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
    """Indices [k, B] of n examples in order, −1 for padding."""
    padded = np.full(math.ceil(n / batch) * batch, -1)
    padded[:n] = np.arange(n)
    return padded.reshape(-1, batch)
