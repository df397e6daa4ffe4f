"""One training step: pure functions, mapped over devices.

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
from jax import lax

from pfgm_jax import averages as averages_lib
from pfgm_jax import models, parallel
from pfgm_jax import run as run_lib
from pfgm_jax.data import augment, take, to_unit
from pfgm_jax.flow import losses, process
from pfgm_jax.flow.parametrization import denoiser
from pfgm_jax.inference.restoration import condition
from pfgm_jax.training import example_keys
from pfgm_jax.training import outliers as outliers_lib
from pfgm_jax.training.cadence import make_cadence
from pfgm_jax.training.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """What a step changes.

    step: []. params, their exponential moving average, and the optimiser's state. halted: bool [], whether a step that
    was not finite has ended the training. outliers: None unless steps are skipped (train.skip_outliers). averages: None
    unless two more averages are tracked (train.power_ema, `averages`).
    """

    step: jax.Array
    params: dict
    ema: dict
    opt_state: tuple
    halted: jax.Array = np.False_
    outliers: outliers_lib.Outliers | None = None
    averages: dict | None = None


def items(state):
    """What a checkpoint holds of a TrainState; the step is its name."""
    saved = {"params": state.params, "ema": state.ema, "opt_state": state.opt_state}
    others = {"outliers": state.outliers, "averages": state.averages}
    return saved | {name: item for name, item in others.items() if item is not None}


# Of these items, what checkpoints lack that were made without them.
OPTIONAL = ("outliers",)


class StepMetrics(NamedTuple):
    """Of one step, each []: loss, gradient norm, whether it was taken, and how many were skipped since the start."""

    loss: jax.Array
    grad_norm: jax.Array
    taken: jax.Array
    skipped: jax.Array


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
    microbatch: int
    large_batch: int
    flip: bool
    augment: float
    label_dropout: float
    ema_halflife: int
    ema_ramp: float
    skip_outliers: float
    power_ema: bool
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
        microbatch=c.microbatch,
        large_batch=c.large_batch,
        flip=c.flip,
        augment=c.augment,
        label_dropout=c.label_dropout,
        ema_halflife=c.ema_halflife,
        ema_ramp=c.ema_ramp,
        skip_outliers=c.skip_outliers,
        power_ema=c.power_ema,
        tuning=tuning,
        condition=condition.parse(config.data.condition),
    )


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
    state = TrainState(jnp.zeros((), jnp.int32), params, params, task.optimizer.init(params))
    if task.power_ema:
        state = state.replace(averages=averages_lib.start(params))
    if task.skip_outliers:
        state = state.replace(outliers=outliers_lib.unknown(jnp.result_type(*jax.tree.leaves(params))))
    return state


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

    channels = task.condition and task.condition.draw(keys, y)

    def network(x, noise, params=params):
        x = models.concat_condition(x, channels)
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

    A batch is taken in parts of task.microbatch examples, if that is not 0: the sums are the same in another order.

    examples: this device's share of the batch, and the whole large batch.
    """
    first, count = parallel.axis_slice(task.batch)
    keys = example_keys.example_keys(
        jax.random.fold_in(jax.random.key(task.seed), 2), step, task.batch, first + jnp.arange(count)
    )

    def loss(params, images, labels, keys):
        own = examples._replace(images=images, labels=labels)
        return jnp.mean(example_losses(task, params, own, keys, train=True, step=step))

    of_part, whole = jax.value_and_grad(loss), (examples.images, examples.labels, keys)
    parts = task.batch // task.microbatch if task.microbatch else 1
    if parts == 1:
        return parallel.mean(of_part(params, *whole))

    def add(total, part):
        return jax.tree.map(jnp.add, total, of_part(params, *part)), None

    split = jax.tree.map(lambda a: a.reshape(parts, count // parts, *a.shape[1:]), whole)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_part, params, *whole))
    total, _ = lax.scan(add, zero, split)
    return parallel.mean(jax.tree.map(lambda a: a / parts, total))


def train_step(task, state, examples):
    """One step, on every device the same: (new state, StepMetrics); inside a mapped function.

    A step whose loss or gradient is not finite changes nothing and halts the state: no later step changes it either.
    With task.skip_outliers, such a step and one far out of range are passed over, with the optimiser's own count, which
    is that of the learning rate.
    """
    loss, gradient = loss_and_gradient(task, state.params, state.step, examples)
    norm = optax.global_norm(gradient)
    finite, skipped = jnp.isfinite(loss) & jnp.isfinite(norm), jnp.zeros((), jnp.int32)
    taken, halted, remembered = finite & ~state.halted, ~finite | state.halted, None
    if task.skip_outliers:
        taken, remembered = outliers_lib.judge(state.outliers, state.step, norm, finite, task.skip_outliers)
        halted, skipped = state.halted, remembered.skipped
    kept = state.params, state.ema, state.opt_state, state.averages
    params, ema, opt_state, averages = jax.tree.map(
        lambda new, old: jnp.where(taken, new, old), _updated(task, state, gradient), kept
    )
    step = state.step + (~halted).astype(jnp.int32)
    new = TrainState(step, params, ema, opt_state, halted, remembered, averages)
    return new, StepMetrics(loss, norm, taken, skipped)


def _updated(task, state, gradient):
    """(params, their average, the optimiser's state, further averages or None) after a step along the gradient."""
    updates, opt_state = task.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    precision = jnp.result_type(float)
    halflife = jnp.asarray(task.ema_halflife, precision)
    if task.ema_ramp > 0:
        seen = state.step.astype(precision) * task.batch  # as an int32 it would pass 2³¹
        halflife = jnp.minimum(halflife, seen * task.ema_ramp)
    # Not `optax.incremental_update`: its sum of two products moves an average that equals the parameters.
    decay = 0.5 ** (task.batch / jnp.maximum(halflife, 1e-8))
    ema = jax.tree.map(lambda e, p: p + (decay * (e - p)).astype(p.dtype), state.ema, params)
    averages = averages_lib.advanced(state.averages, params, state.step + 1) if task.power_ema else None
    return params, ema, opt_state, averages


@functools.partial(parallel.pmap, in_axes=(None, 0, 0, 0), static_broadcasted_argnums=(0,), donate_argnums=(1,))
def train_steps(task, state, source, batches):
    """Some steps in one device call: (state, StepMetrics [steps]), both with a device axis.

    Args:
      source: (images, labels), the training set on every device, or None.
      batches: what the steps see, [steps, ...]: `data.Indices` into the source, or without one `data.Examples`.
    """

    def one_step(state, batch):
        return train_step(task, state, batch if source is None else take(*source, batch))

    return lax.scan(one_step, state, batches)
