"""The dry run: a config checked against its data, described, and its memory estimated."""

import math
from typing import NamedTuple

import jax
from clu import parameter_overview

from pfgm_jax import config as config_lib
from pfgm_jax import config_rules, data, generator, models, parallel
from pfgm_jax import run as run_lib
from pfgm_jax.data import pipeline
from pfgm_jax.errors import UserError, counted, printable
from pfgm_jax.failures import out_of_memory
from pfgm_jax.training.cadence import Cadence, make_cadence
from pfgm_jax.training.step import Task, init_state, make_task, train_steps

WIDE = 2048  # channels of a level


class Plan(NamedTuple):
    """A training that is possible: its data, what they decide, what a step needs to know, the steps between events."""

    dataset: data.Dataset
    derived: dict
    task: Task
    cadence: Cadence


def prepare(config, stand_in=False, dataset=None):
    """The Plan of a config, which is checked against its data, or against `data.load`'s stand-in for them.

    A `dataset` that is loaded already is not loaded again.
    """
    config_rules.check(config)
    parallel.check_divisible(config.train.batch, "train.batch")
    if config.train.microbatch:
        parallel.check_divisible(config.train.microbatch, "train.microbatch")
    dataset = dataset or data.load(config.data, stand_in)
    derived = run_lib.derive(config, dataset)
    task = make_task(config, derived)
    _check_network(config, task, dataset.shape)
    generator.check_sampling(run_lib.make_run(config, derived))
    return Plan(dataset, derived, task, make_cadence(config))


def _check_network(config, task, shape):
    """Raises UserError for a network whose training state alone no device holds.

    The system would only kill the process. Counting takes a second, so it is for networks wider than all published.
    """
    if config.model.channels * max(config.model.multipliers, default=1) <= WIDE:
        return
    counts = sum(math.prod(a.shape) for a in jax.tree.leaves(jax.eval_shape(lambda: models.init(task.model, shape))))
    need, there = 4 * 4 * counts, parallel.device_memory()  # float32: weights, their average and Adam's two moments
    if need > there:
        raise UserError(
            f"a network of {counts:,} parameters takes {size(need)} for weights, average and moments, and a device has "
            f"{size(there)}: lower model.channels={config.model.channels} or model.multipliers"
        )


def memory_estimate(task, state, dataset, steps, resident):
    """Bytes that a device needs to train: the compiler's count of arguments, results and temporaries of one call.

    With that, the examples of the calls to come; the images too where they are `resident` on the devices. It is inf
    where the compiler finds that they cannot fit.
    """
    n, train = dataset.train_images, dataset.train
    split = tuple(jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype) for a in (train.images, train.labels))
    source, batch = pipeline.call_shapes(split, task.order, task.batch, task.large_batch, steps, resident)
    shapes = parallel.replicated_shapes(state)
    try:
        analysis = train_steps.lower(task, shapes, source, batch).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        return math.inf
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    waiting = sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in jax.tree.leaves(batch)) * (pipeline.AHEAD + 1)
    return held + analysis.temp_size_in_bytes + waiting


def is_resident(config, dataset):
    """Whether the training images stay on the devices: as asked, else where they fit and are in memory already."""
    images = dataset.train.images
    if config.data.resident is None and isinstance(images, data.LazyImages):
        return False
    return pipeline.is_resident(config.data.resident, (dataset.train_images, *images.shape[1:]), images.dtype.itemsize)


def describe(config, plan, state, memory=None):
    """The derived constants of a run in a few lines."""
    dataset, derived, task, cadence = plan
    p, counts = task.process, sum(a.size for a in jax.tree.leaves(state.params))
    images = cadence.total * config.train.batch
    lines = [
        f"data       {dataset.name} {'×'.join(map(str, dataset.shape))}: {dataset.train_images} train, "
        f"{len(dataset.val)} val, {len(dataset.test)} test, {counted(dataset.num_classes, 'class')}; "
        f"mean {derived['mean']:.3f}, std {derived['std']:.3f}, "
        f"norm {derived['mean_norm']:.1f} (largest {derived['largest_norm']:.1f}); licence {dataset.licence}",
        f"process    {p.name}: D = {p.D:g}, N = {derived['N']}, σ from {p.sigma_max:.4g} to {p.sigma_min:g}"
        + (f", M = {derived['M']}, largest prior norm {p.max_norm:.0f}" if config.process.name == "pfgm" else "")
        + (f", σ_data = {derived['sigma_data']:.3f}" if config.process.name in ("pfgmpp", "edm") else ""),
        f"network    {config.model.name}: {counts:,} parameters, {config.model.dtype}",
        f"training   {counted(cadence.total, 'step')} × {config.train.batch} = {counted(images, 'image')} "
        f"({counted(round(images / dataset.train_images), 'epoch')}), {config.optim.name} at {derived['lr']:.2e} "
        f"(= {config.optim.lr:g} × √({config.train.batch}/{config.optim.lr_batch})), "
        f"target {'clean image' if not config.train.large_batch else f'field of {config.train.large_batch} images'}"
        + "".join(f", {text}" for text in _variations(config)),
        f"devices    {parallel.device_count()} × {parallel.device_kind()}, {counted(cadence.per_call, 'step')} a call, "
        "images " + ("on the devices" if is_resident(config, dataset) else "streamed from the host"),
    ]
    if cores := parallel.unused_cores(math.gcd(config.train.batch, config.train.microbatch)):
        lines.append(f"cores      JAX_NUM_CPU_DEVICES={cores} before the command makes each a device, which is faster")
    if config.optim.warmup > (images := cadence.total * config.train.batch):
        lines.append(
            f"warm-up    the rate rises until {config.optim.warmup:,} images, past the end of the run: it reaches "
            f"{images / config.optim.warmup:.1%} of {derived['lr']:.2e}; a lower optim.warmup reaches all of it"
        )
    if dataset.stands_for:
        lines.insert(1, f"stand-ins  the file is absent: what derives from the data is of {dataset.source}")
    if memory is not None:
        lines.append(f"memory     {size(memory)} a device for training (compiler's estimate)")
    return "\n".join(lines)


def _variations(config):
    """Each departure from the defaults in initial weights, order, augmentation and labels, in a few words."""
    c = config.train
    if c.init:
        yield f"from the weights of {printable(c.init)}"
    if run_lib.is_tuned(config):
        yield f"tuned to the end of the flow (q = {config.tune.q:g}, {counted(config.tune.stages, 'stage')})"
    if c.order == "balanced":
        yield "every class as often"
    if c.flip:
        yield "half of the images mirrored"
    if c.augment:
        yield f"augmented with probability {c.augment:g}"
    if c.microbatch and c.microbatch < c.batch:
        yield f"{c.microbatch} images at once"
    if c.skip_outliers:
        yield f"without steps above {c.skip_outliers:g} times the median gradient norm"
    if c.label_dropout:
        yield f"{c.label_dropout:.0%} of the labels hidden"


def dry_run(config):
    """What `train` would do, as text; nothing is written. What matters comes first, the whole config behind it."""
    plan = prepare(config, stand_in=True)
    dataset, _, task, cadence = plan
    state = init_state(task, dataset.shape)
    memory = memory_estimate(task, state, dataset, cadence.per_call, is_resident(config, dataset))
    lines = [describe(config, plan, state, memory)]
    if memory > (there := parallel.device_memory()):
        lines.append(
            f"warning    a device has {size(there)}: lower train.batch, or set train.microbatch for the same "
            "steps in parts, or model.remat=True; the mode advise finds what fits"
        )
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    return "\n".join([*lines, "", config_lib.described(config), "", overview])


def size(n):
    """A number of bytes in MiB or GiB, as text."""
    if math.isinf(n):
        return "more than the compiler can place"
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
