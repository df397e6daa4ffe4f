"""Training: `train(config, workdir)`, from an empty folder or from the last checkpoint there."""

import math
import os
import pathlib
import shlex
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax import checkpoint, generator, parallel, plots, weights
from pfgm_jax import config as config_lib
from pfgm_jax.data import feed
from pfgm_jax.errors import UserError
from pfgm_jax.log import Log, read_metrics
from pfgm_jax.plan import describe, is_resident, prepare
from pfgm_jax.step import (
    TrainState,
    choose,
    distance_to_truth,
    evaluate_losses,
    init_state,
    learning_rate,
    make_batches,
    train_steps,
    truth_levels,
    truth_queries,
)  # fmt: skip

# The distance to the truth costs queries × training images × pixels multiplications; above this it is not measured.
TRUTH_LIMIT = 5e7


def open_run(workdir, config, derived):
    """Makes the run directory, or accepts the one there if it is the same run.

    Raises:
      UserError: a folder that cannot be written, a run whose config differs (naming the keys), or one that holds
        weights alone.
    """
    workdir = pathlib.Path(workdir)
    if os.path.exists(workdir / weights.EXPORTED):
        raise UserError(f"{workdir} holds exported weights and no checkpoint to continue from; use another --workdir")
    if os.path.exists(workdir / "config.json"):
        recorded, facts = config_lib.load_run(workdir)
        different = config_lib.differences(config, recorded)
        # Another data folder may hold other images: what was derived from them is part of the run too.
        different += [f"data ({key})" for key in facts if not different and facts[key] != derived.get(key)]
        if different:
            raise UserError(
                f"{workdir} holds a run with another {', '.join(different)}; use another --workdir, or its values"
            )
        if config.optim.decay == "cosine" and recorded.train.images != config.train.images:
            print(
                f"the learning rate's cosine, which ended at {recorded.train.images:,} images, now ends at "
                f"{config.train.images:,}",
                file=sys.stderr,
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        config_lib.save_run(workdir, config, derived)
    except OSError as error:
        raise UserError(f"cannot write to --workdir={workdir}: {error.strerror or error}") from None


def train(config, workdir):
    """Trains the run in `workdir` to config.train.images from its last checkpoint on; returns the final TrainState.

    Writes config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/step_*.png and curves.png. SIGTERM and
    Ctrl-C save a checkpoint before they end the run.

    Raises:
      UserError: a config, data file or run directory that a person has to mend, or a loss or weights that are not
        finite; the last checkpoint is kept.
      KeyboardInterrupt: after an interrupt, with the state saved.
    """
    dataset, derived, task, cadence = prepare(config)
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
        if records := read_metrics(workdir):
            plots.curves(records, pathlib.Path(workdir, "curves.png"))
    print(how_to_sample(workdir), flush=True)
    return state


def _items(state):
    """What a checkpoint holds; the step is its name."""
    return {"params": state.params, "ema": state.ema, "opt_state": state.opt_state}


def _calls(step, cadence):
    """(first step, steps) of every device call from `step` to the end."""
    while step < cadence.total:
        # Back onto whole calls, where a run continues with another number of steps per call.
        steps = min(cadence.per_call - step % cadence.per_call, cadence.total - step)
        yield step, steps
        step += steps


def _run(config, derived, task, cadence, dataset, state, workdir, log, interrupt):
    """The loop of `train`: from `state` to the end, or to an interrupt."""
    step, train = int(state.step), dataset.train
    state = parallel.replicate(state)
    resident = is_resident(config, dataset)
    source = parallel.replicate((np.asarray(train.images), train.labels)) if resident else None
    indices = feed.planner(task.seed, task.order, train.labels, task.batch, task.large_batch)
    evaluate = _evaluation(config, task, dataset, source, log)
    show = generator.Generator(config, derived, None)
    rate = learning_rate(config, derived)
    metrics, begun, since, waited, running = None, None, step, 0.0, None

    def due(every):
        return step % every == 0 or step >= cadence.total

    send = lambda call: (call[1], feed.send(indices(*call), None if resident else train))
    with feed.ahead(send, _calls(step, cadence)) as batches:
        while step < cadence.total and not interrupt.asked:
            asked = time.perf_counter()
            length, batch = next(batches)
            waited += time.perf_counter() - asked
            state, new = train_steps(task, state, source, batch)
            # One call runs while the next is under way: more would only hold their examples' memory.
            jax.block_until_ready(running)
            running = new
            step += length
            new = jax.tree.map(lambda a: a[0], new)
            metrics = new if metrics is None else metrics.merge(new)
            seen = step * task.batch
            if begun is None:  # the first call compiles; speed is measured from its end on
                jax.block_until_ready(new)
                begun, since, waited = time.perf_counter(), step, 0.0
            if due(cadence.log):
                values = {name: float(value) for name, value in metrics.compute().items()} | {"lr": rate(step)}
                if step > since:
                    seconds = time.perf_counter() - begun
                    values["images_per_second"] = (step - since) * task.batch / seconds
                    values["input_wait"] = waited / seconds
                if not math.isfinite(values["loss"]):
                    raise UserError(
                        f"the loss is {values['loss']} at step {step}; the last checkpoint is kept. Try a lower "
                        "optim.lr"
                    )
                log.scalars(seen, values)
                log.progress(seen, values["loss"])
                metrics, begun, since, waited = None, time.perf_counter(), step, 0.0
            else:
                log.progress(seen)
            if due(cadence.evaluate) or due(cadence.save) or due(cadence.sample):
                jax.block_until_ready(state)
                pause = time.perf_counter()
                if due(cadence.evaluate):
                    evaluate(state.ema, seen)
                if due(cadence.save):
                    _save(config, workdir, step, parallel.unreplicate(state))
                if due(cadence.sample):
                    show.params = parallel.unreplicate(state.ema)
                    _show(config, workdir, step, seen, show, log, train.images)
                begun += time.perf_counter() - pause  # speed is of training alone

    state = parallel.unreplicate(state)
    if step < cadence.total:
        _save(config, workdir, step, state)
        log.say(f"interrupted: saved step {step}; the same command continues from there")
        raise KeyboardInterrupt
    return state


def _save(config, workdir, step, state):
    """A checkpoint, unless the state is not finite: it would push out the last healthy one."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        raise UserError(f"the weights at step {step} are not finite; the last checkpoint is kept. Try a lower optim.lr")
    checkpoint.save(workdir, step, _items(state), config.train.keep)


def _show(config, workdir, step, seen, show, log, real):
    """A picture of samples, beside `real` ones where they are points.

    An early network that the solver cannot follow is no reason to stop.
    """
    log.phase("drawing samples")
    try:
        samples, _ = show.sample(jax.random.key(config.sample.seed), config.sample.n, progress=False)
    except UserError as error:
        log.say(f"{seen:>10,} images: no samples yet: {error}")
        return
    finally:
        log.phase("train")
    picture = plots.picture(samples, real)
    picture.save(pathlib.Path(workdir, "samples", f"step_{step:08d}.png"))
    log.picture(seen, "samples", picture)


def _evaluation(config, task, dataset, source, log):
    """`evaluate(ema, seen)`: logs validation loss, the gap to the training images, and the distance to the truth."""
    splits = (dataset.train, dataset.val)
    number = min(config.train.eval_images, *map(len, splits))  # as many of each, so that the gap is of images alone
    batches, held = make_batches(number, task.batch), []
    for split in splits if number else ():
        chosen = np.sort(choose(task.seed, len(split), number))  # in the order of the file, which reads faster
        held.append(parallel.replicate((split.images[chosen], split.labels[chosen])))
    images = dataset.train.images
    # The truth of a network that is not told the label, trained on balanced classes, would weigh the images.
    levels, whole = (), None
    if math.prod(images.shape) <= TRUTH_LIMIT and (task.order == "real" or task.model.num_labels):
        levels = truth_levels(task.process)
        whole = source or parallel.replicate((np.asarray(images), dataset.train.labels))
        queries = truth_queries(task.seed, len(images))

    def evaluate(ema, seen):
        values, told = {}, []
        if held:
            on_train, on_val = (float(evaluate_losses(task, ema, *split, batches)[0]) for split in held)
            values |= {"eval/train": on_train, "eval/val": on_val, "eval/gap": on_val - on_train}
            told.append(f"loss {on_train:.4f} on training images, {on_val:.4f} on validation")
        if len(levels):
            errors = np.asarray(distance_to_truth(task, ema, *whole, queries, jnp.asarray(levels)))[0]
            values |= {f"truth/sigma={level:.2g}": error for level, error in zip(levels, errors, strict=True)}
            each = (f"{error:.3f} at σ {level:.2g}" for level, error in list(zip(levels, errors, strict=True))[::2])
            told.append("rms error to the truth " + ", ".join(each))
        if told:
            log.scalars(seen, values)
            log.say(f"{seen:>10,} images: " + "; ".join(told))

    return evaluate


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
