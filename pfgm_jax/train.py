"""Training: `train(config, workdir)`, from an empty folder or from the last checkpoint there.

Everything random about example i of the run (its image, σ, noise, dropout mask) is a function of (seed, i) alone, i
counting examples over all steps and devices. So one device, eight devices and a resumed run see the same numbers, and
no iterator or random state is saved.
"""

import functools
import math
import pathlib
import shlex
import signal
import sys
import time
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from clu import parameter_overview
from jax import lax

from pfgm_jax import checkpoint, data, field, generator, losses, models, parallel, plots, process
from pfgm_jax import config as config_lib
from pfgm_jax.data import epoch_order, to_unit
from pfgm_jax.errors import UserError
from pfgm_jax.log import Log, read_metrics
from pfgm_jax.parametrization import denoiser

# The distance to the truth costs queries × training images × pixels multiplications; above this it is not measured.
TRUTH_LIMIT = 5e7
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
    model = config_lib.make_model(config, derived)
    # See `layers.canonical_conv`: on a CPU this makes a step inside lax.scan 20 times faster.
    model = model.clone(canonical_conv=jax.default_backend() == "cpu")
    return Task(
        config_lib.make_process(config, derived),
        config_lib.make_parametrization(config, derived),
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
    steps = max(1, math.ceil(config.train.images / batch))
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

    @jax.jit  # one compiled program, so that the compilation cache serves it too
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
    elif task.large_batch >= n:
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
        # Each batch is its own large batch: its field is the target where the objective asks for a field.
        references = batch if task.large_batch else None
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


def memory_estimate(task, state, dataset, steps):
    """Bytes that a device needs to train: the compiler's count of arguments, results and temporaries of one call."""
    shapes = [
        jax.tree.map(lambda a: jax.ShapeDtypeStruct((jax.local_device_count(),) + np.shape(a), a.dtype), tree)
        for tree in (state, dataset.train.images, dataset.train.labels)
    ]
    analysis = train_steps.lower(task, *shapes, steps).compile().memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return held + analysis.temp_size_in_bytes


def describe(config, derived, task, state, dataset, cadence, memory=None):
    """The derived constants of a run in a few lines."""
    p, counts = task.process, sum(a.size for a in jax.tree.leaves(state.params))
    lines = [
        f"data       {dataset.name} {'×'.join(map(str, dataset.shape))}: {len(dataset.train)} train, "
        f"{len(dataset.val)} val, {len(dataset.test)} test, {dataset.num_classes} classes; "
        f"mean {derived['mean']:.3f}, std {derived['std']:.3f}, "
        f"norm {derived['mean_norm']:.1f} (largest {derived['largest_norm']:.1f}); licence {dataset.licence}",
        f"process    {p.name}: D = {p.D:g}, N = {derived['N']}, σ from {p.sigma_max:.4g} to {p.sigma_min:g}"
        + (f", M = {derived['M']}, largest prior norm {p.max_norm:.0f}" if config.process.name == "pfgm" else "")
        + (f", σ_data = {derived['sigma_data']:.3f}" if config.process.name != "pfgm" else ""),
        f"network    {config.model.name}: {counts:,} parameters, {config.model.dtype}",
        f"training   {cadence.total} steps × {config.train.batch} = {cadence.total * config.train.batch:,} images "
        f"({cadence.total * config.train.batch / len(dataset.train):.0f} epochs), learning rate {derived['lr']:.2e} "
        f"(= {config.optim.lr:g} × √({config.train.batch}/{config.optim.lr_batch})), "
        f"target {'clean image' if not config.train.large_batch else f'field of {config.train.large_batch} images'}",
        f"devices    {jax.device_count()} × {jax.devices()[0].device_kind}, {cadence.per_call} steps a call",
    ]
    if memory is not None:
        lines.append(f"memory     {memory / 2**20:.0f} MiB a device for training (compiler's estimate)")
    return "\n".join(lines)


def prepare(config):
    """Checks a config against its data: (dataset, derived, task, cadence)."""
    config_lib.check(config)
    parallel.check_divisible(config.train.batch, "--config.train.batch")
    dataset = data.load(config.data)
    derived = config_lib.derive(config, dataset)
    return dataset, derived, make_task(config, derived), make_cadence(config)


def dry_run(config):
    """What `train` would do, as text; nothing is written."""
    dataset, derived, task, cadence = prepare(config)
    state = init_state(task, dataset.shape)
    memory = memory_estimate(task, state, dataset, cadence.per_call)
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    return f"{config}\n{overview}\n{describe(config, derived, task, state, dataset, cadence, memory)}"


def open_run(workdir, config, derived):
    """Makes the run directory, or accepts the one there if it is the same run.

    Raises:
      UserError: a folder that cannot be written, or a run whose config differs (naming the keys).
    """
    workdir = pathlib.Path(workdir)
    if (workdir / "config.json").exists():
        different = config_lib.differences(config, config_lib.load_run(workdir)[0])
        if different:
            raise UserError(
                f"{workdir} holds a run with another {', '.join(different)}; use another --workdir, or its values"
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        config_lib.save_run(workdir, config, derived)
    except OSError as error:
        raise UserError(f"cannot write to --workdir={workdir}: {error.strerror or error}") from None


def train(config, workdir):
    """Trains the run in `workdir` to config.train.images, resuming from its last checkpoint; returns the final
    TrainState.

    Writes config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/step_*.png and curves.png. SIGTERM and
    Ctrl-C save a checkpoint before they end the run.

    Raises:
      UserError: a config, data file or run directory that a person has to mend.
      FloatingPointError: the loss is not finite; the last checkpoint is kept.
    """
    dataset, derived, task, cadence = prepare(config)
    if parallel.is_main_process():
        open_run(workdir, config, derived)
    state = init_state(task, dataset.shape)
    restored = checkpoint.restore(workdir, _items(state))
    print(describe(config, derived, task, state, dataset, cadence), file=sys.stderr)
    if restored is not None:
        step, items = restored
        state = TrainState(np.asarray(step, np.int32), **items)
        print(f"resumed    at step {int(state.step)} of {cadence.total}", file=sys.stderr)

    pathlib.Path(workdir, "samples").mkdir(exist_ok=True)
    log = Log(workdir, cadence.total * task.batch, int(state.step) * task.batch)
    try:
        with _Interrupt() as interrupt:
            state = _run(config, derived, task, cadence, dataset, state, workdir, log, interrupt)
    finally:
        log.close()
    plots.curves(read_metrics(workdir), pathlib.Path(workdir, "curves.png"))
    print(how_to_sample(workdir), flush=True)
    return state


def _items(state):
    """What a checkpoint holds; the step is its name."""
    return {"params": state.params, "ema": state.ema, "opt_state": state.opt_state}


def _run(config, derived, task, cadence, dataset, state, workdir, log, interrupt):
    """The loop of `train`: from `state` to the end, or to an interrupt."""
    step = int(state.step)
    state = parallel.replicate(state)
    images, labels = parallel.replicate((dataset.train.images, dataset.train.labels))
    val = parallel.replicate((dataset.val.images, dataset.val.labels))
    key = jax.random.fold_in(jax.random.key(task.seed), 5)
    eval_batches = [
        make_batches(len(split), config.train.eval_images, task.batch, key) for split in (dataset.train, dataset.val)
    ]
    show = generator.Generator(config, derived, None)
    rate = learning_rate(config, derived)
    know_truth = len(dataset.train) * derived["N"] <= TRUTH_LIMIT
    levels = truth_levels(task.process)
    metrics, begun, since = None, time.perf_counter(), step

    def due(every):
        return step % every == 0 or step >= cadence.total

    while step < cadence.total and not interrupt.asked:
        # Back onto whole calls, where a run continues with another number of steps per call.
        length = min(cadence.per_call - step % cadence.per_call, cadence.total - step)
        state, new = train_steps(task, state, images, labels, length)
        step += length
        new = jax.tree.map(lambda a: a[0], new)
        metrics = new if metrics is None else metrics.merge(new)
        seen = step * task.batch
        if due(cadence.log):
            values = {name: float(value) for name, value in metrics.compute().items()}
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(
                    f"the loss is {values['loss']} at step {step}; the last checkpoint is kept. Try a lower optim.lr"
                )
            speed = (step - since) * task.batch / (time.perf_counter() - begun)
            log.scalars(seen, values | {"lr": rate(step), "images_per_second": speed})
            log.progress(seen, values["loss"])
            metrics, begun, since = None, time.perf_counter(), step
        else:
            log.progress(seen)
        pause = time.perf_counter()
        if due(cadence.evaluate):
            _evaluate(task, state.ema, (images, labels), val, eval_batches, levels if know_truth else (), seen, log)
        if due(cadence.sample):
            show.params = parallel.unreplicate(state.ema)
            samples, _ = show.sample(jax.random.key(config.sample.seed), config.sample.n)
            picture = plots.grid(samples)
            if parallel.is_main_process():
                picture.save(pathlib.Path(workdir, "samples", f"step_{step:08d}.png"))
            log.picture(seen, "samples", picture)
        if due(cadence.save):
            checkpoint.save(workdir, step, _items(parallel.unreplicate(state)), config.train.keep)
        begun += time.perf_counter() - pause  # images/s is of training alone

    state = parallel.unreplicate(state)
    if interrupt.asked and step < cadence.total and step % cadence.save:
        checkpoint.save(workdir, step, _items(state), config.train.keep)
        log.say(f"interrupted: saved step {step}; the same command continues from there")
    return state


def _evaluate(task, ema, train_split, val_split, batches, levels, seen, log):
    """Validation loss, the gap to the training images, and the distance to the truth at each σ of `levels`."""
    on_train, on_val = (
        float(evaluate_losses(task, ema, *split, indices)[0])
        for split, indices in zip((train_split, val_split), batches, strict=True)
    )
    values = {"eval/train": on_train, "eval/val": on_val, "eval/gap": on_val - on_train}
    line = f"{seen:>10,} images: loss {on_train:.4f} on training images, {on_val:.4f} on validation"
    if len(levels):
        errors = np.asarray(distance_to_truth(task, ema, *train_split, jnp.asarray(levels)))[0]
        values |= {f"truth/sigma={level:.2g}": error for level, error in zip(levels, errors, strict=True)}
        line += "; rms error to the truth " + ", ".join(
            f"{error:.3f} at σ {level:.2g}" for level, error in list(zip(levels, errors, strict=True))[::2]
        )
    log.scalars(seen, values)
    log.say(line)


def how_to_sample(workdir):
    """The exact command, and the three lines of Python, that sample from a run."""
    workdir = str(workdir)
    return (
        "\nSample from it:\n"
        f"  {pathlib.Path(sys.executable).name} -m pfgm_jax.main --mode=sample --workdir={shlex.quote(workdir)}\n"
        "or in Python:\n"
        "  import jax, pfgm_jax\n"
        f"  g = pfgm_jax.load({workdir!r})\n"
        "  images, stats = g.sample(jax.random.key(0), 16)"
    )


class _Interrupt:
    """Turns SIGTERM and Ctrl-C into a wish to stop, heard between two device calls; a second one stops at once."""

    def __enter__(self):
        self.asked = False
        self._before = {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        except ValueError:
            pass  # signals belong to the main thread; elsewhere (a notebook's worker) they stay as they are
        return self

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
