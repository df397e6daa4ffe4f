"""Training: `train(config, workdir)`, from an empty folder or from the last checkpoint there."""

import contextlib
import errno
import functools
import json
import math
import os
import pathlib
import sys
from typing import NamedTuple

import jax
import numpy as np

from pfgm_jax import config as config_lib
from pfgm_jax import job, parallel, plots, run_folder, run_record
from pfgm_jax.data import pipeline
from pfgm_jax.errors import UserError
from pfgm_jax.interrupt import Interrupt, Interrupted
from pfgm_jax.storage import atomic, checkpoint
from pfgm_jax.storage.metrics_file import evaluated, read_metrics
from pfgm_jax.training import monitor
from pfgm_jax.training.dry_run import Plan, describe, is_resident, prepare
from pfgm_jax.training.log import Log, Quiet
from pfgm_jax.training.meter import Meter
from pfgm_jax.training.step import TrainState, init_state, items, learning_rate, make_cadence, train_steps
from pfgm_jax.training.warm_start import start_from


class Training(NamedTuple):
    """What is fixed while a run is trained."""

    config: object
    plan: Plan
    workdir: pathlib.Path


def train(config, workdir):
    """Trains the run in `workdir` to config.train.images from its last checkpoint on; returns the final TrainState.

    Writes config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/step_*.png and curves.png. SIGTERM and
    Ctrl-C save a checkpoint before they end the run, within train.grace seconds; before the first step there is none.

    Raises:
      UserError: a config, data file or run directory that a person has to mend, or a loss or weights that are not
        finite; the last checkpoint is kept.
      KeyboardInterrupt: after an interrupt, with the state saved.
    """
    workdir = atomic.expanded(workdir)
    stands = functools.partial(run_folder.last_checkpoint, workdir)
    with Interrupt("stopping before the first step: there is nothing to save", config.train.grace, stands) as interrupt:
        plan = prepare(config)
        training = Training(config, plan, workdir)
        _require_agreement(config, plan.derived)
        with _opened(training) as recorded:
            try:
                state = _start(training, recorded)
                interrupt.defer()
                state = _logged(training, state, interrupt)
            except OSError as error:
                if not (parallel.is_first() and atomic.concerns(workdir, error)):
                    _say_where_it_stands(workdir)
                    raise
                raise UserError(f"{atomic.unwritable(workdir, error)}; {stands()}") from None
            except UserError:
                raise
            except Exception as error:
                if parallel.is_loss(error):
                    stands = run_folder.last_checkpoint(workdir)
                    raise job.Lost(f"another process was lost; {stands}: the same command continues") from error
                _say_where_it_stands(workdir)
                raise
    best = run_folder.best_step(workdir, run_folder.validation_losses(workdir, plan.task.batch))
    if parallel.is_first() and best not in (None, int(state.step)):
        print(how_to_get_best(workdir, best), flush=True)
    return state


def _require_agreement(config, derived):
    """Raises UserError where another process was started with other settings, or has other data, than the first."""
    mine = json.loads(json.dumps({"data": derived} | config_lib.flatten(config)))
    first = parallel.from_first(lambda: mine)
    if different := [key for key in mine if mine[key] != first.get(key) and key != "data.dir"]:
        raise UserError(f"this process has another {', '.join(different)} than the first one")


def _opened(training):
    """The run directory, which the first process alone writes to: see `run_folder.opened`."""
    if not parallel.is_first():
        return contextlib.nullcontext()
    return run_folder.opened(training.workdir, training.config, training.plan.derived)


def _say_where_it_stands(workdir):
    print(f"an unexpected error stopped training; {run_folder.last_checkpoint(workdir)}", file=sys.stderr)


def _start(training, recorded):
    """The TrainState to go on from: that of the last checkpoint, that of train.init's weights, or a random one."""
    config, (dataset, derived, task, cadence), workdir = training
    state = init_state(task, dataset.shape)
    if not parallel.is_first():
        return parallel.of_first(state)
    restored = checkpoint.restore(workdir, items(state), run=run_record.fixed(run_record.record(config, derived)))
    if restored is not None:
        state = TrainState(np.asarray(restored[0], np.int32), **restored[1])
    else:
        first_save = make_cadence(recorded or config).save * task.batch
        run_folder.accept_empty(workdir, first_save)
        if config.train.init:
            state = start_from(config, derived, task, state)
    print(describe(config, training.plan, state), file=sys.stderr)
    if restored is not None:
        print(f"resumed    at step {int(state.step)} of {cadence.total}", file=sys.stderr)
    return parallel.of_first(state)


def _logged(training, state, interrupt):
    """`_run` with its log, and with the curves drawn however it ends."""
    workdir, cadence, batch = training.workdir, training.plan.cadence, training.plan.task.batch
    try:
        make_log = Log if parallel.is_first() else Quiet
        with contextlib.closing(make_log(workdir, cadence.total * batch, int(state.step) * batch)) as log:
            state = _run(training, state, log, interrupt)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what counts
            _draw_curves(workdir)
        raise
    _draw_curves(workdir)
    return state


def _draw_curves(workdir):
    if parallel.is_first() and (records := read_metrics(workdir)):
        plots.curves(records, pathlib.Path(workdir, "curves.png"))


def _calls(step, cadence):
    """(first step, steps) of every device call from `step` to the end."""
    while step < cadence.total:
        # Back onto whole calls, where a run continues with another number of steps per call.
        steps = min(cadence.per_call - step % cadence.per_call, cadence.total - step)
        yield step, steps
        step += steps


def _run(training, state, log, interrupt):
    """The loop of `train`: from `state` to the end, or to an interrupt."""
    config, (dataset, _, task, cadence), _ = training
    step, train = int(state.step), dataset.train
    state = parallel.replicate(state)
    resident = parallel.from_first(lambda: is_resident(config, dataset))
    source = parallel.replicate((np.asarray(train.images), train.labels)) if resident else None
    indices = pipeline.planner(task.seed, task.order, train.labels, task.batch, task.large_batch)
    milestones = _Milestones(training, source, log, interrupt, step)
    milestones(step, state, resumed=True)
    report = _Report(training, log, milestones.best)
    running = None

    send = lambda call: (call[1], pipeline.send(indices(*call), None if resident else train))
    with pipeline.ahead(send, _calls(step, cadence)) as batches:
        while step < cadence.total and not _asked(interrupt):
            with report.meter.waiting():
                length, batch = next(batches)
            state, metrics = train_steps(task, state, source, batch)
            # One call runs while the next is under way: more would only hold their examples' memory.
            jax.block_until_ready(running)
            running = metrics
            step += length
            report(step, metrics)
            if milestones.due(step):
                jax.block_until_ready(state)
                with report.meter.paused():  # speed is of training alone
                    milestones(step, state)

    state = parallel.unreplicate(state)
    if asked := _asked(interrupt):
        if step == 0:
            log.say("stopped before the first step: there is nothing to save")
        else:
            milestones.save(step, state)
            log.say(f"stopped: step {step} is saved; the same command continues from there")
        raise Interrupted(asked)
    return state


def _asked(interrupt):
    """The signal that asks for an end, as soon as one of the processes has heard it; they all meet here."""
    number = parallel.largest(interrupt.asked or 0, bounded=True)
    if number:
        interrupt.asked = number
    return number


class _Report:
    """Averages over the device calls between two log lines: loss, gradient norm, learning rate, speed."""

    def __init__(self, training, log, best):
        """best: `() -> text`, how to get the best checkpoint."""
        self._cadence, self._batch = training.plan.cadence, training.plan.task.batch
        self._log, self._workdir, self._best = log, training.workdir, best
        self._rate = learning_rate(training.config, training.plan.derived)
        self._watch = monitor.LossWatch(record["loss"] for record in read_metrics(self._workdir) if "loss" in record)
        self._metrics, self.meter = None, Meter(self._batch)

    def __call__(self, step, metrics):
        """Takes in the metrics of the device call that ends with `step`; UserError for a loss that is not finite."""
        metrics = jax.tree.map(lambda a: a[0], metrics)
        self._metrics = metrics if self._metrics is None else self._metrics.merge(metrics)
        if not self.meter.running:
            jax.block_until_ready(metrics)
            self.meter.start(step)
        images = step * self._batch
        if not self._cadence.due(self._cadence.log, step):
            self._log.progress(images)
            return
        values = {name: float(value) for name, value in self._metrics.compute().items()}
        loss = values["loss"]
        if not math.isfinite(loss):
            stands = run_folder.last_checkpoint(self._workdir)
            raise UserError(f"the loss is {loss} at step {step}; {stands}. Try a lower optim.lr")
        self._log.scalars(images, values | {"lr": self._rate(step)} | self.meter.rates(step))
        self._log.progress(images, loss)
        if line := self._watch(loss):
            self._log.say(f"{images:>10,} images: {line}{self._best()}")
        self._metrics = None
        self.meter.start(step)


class _Milestones:
    """What is due at some steps, in this order: an evaluation, a checkpoint, a picture of samples.

    After an interrupt only the checkpoint is made. What a step lacks is made when the run is resumed there, so that a
    run that was stopped, or died, in between has in the end what an uninterrupted one has.
    """

    def __init__(self, training, source, log, interrupt, step):
        """step: the run's last checkpoint, 0 without any."""
        config, (dataset, derived, task, self._cadence), workdir = training
        self._config, self._workdir, self._batch = config, workdir, task.batch
        self._fixed = run_record.fixed(run_record.record(config, derived))
        self._log, self._interrupt, self._saved = log, interrupt, step
        self._evaluate = monitor.evaluation(config, task, dataset, source, log)
        self._show = monitor.picture(config, derived, workdir, dataset.train.images, log)
        self._losses = run_folder.validation_losses(workdir, task.batch)

    def due(self, step):
        cadence = self._cadence
        return any(cadence.due(every, step) for every in (cadence.evaluate, cadence.save, cadence.sample))

    def __call__(self, step, state, resumed=False):
        """Makes what is due at `step` of `state` (on the devices); after a resume, what is missing of it."""
        cadence, workdir, log = self._cadence, self._workdir, self._log
        if step == 0:
            return
        seen = step * self._batch
        done = resumed and parallel.from_first(lambda: seen in evaluated(workdir))
        if cadence.due(cadence.evaluate, step) and not done and not _asked(self._interrupt):
            log.doing("evaluating")
            values = self._until_asked(self._evaluate, state.ema, seen) or {}
            if math.isfinite(values.get("eval/val", math.nan)):
                self._losses[step] = values["eval/val"]
        if cadence.due(cadence.save, step) or self._is_best(step):
            self.save(step, parallel.unreplicate(state))
        done = resumed and parallel.from_first(lambda: monitor.picture_path(workdir, step).exists())
        if cadence.due(cadence.sample, step) and not done and not _asked(self._interrupt):
            log.doing("drawing samples")
            self._until_asked(self._show, parallel.unreplicate(state.ema), step)
        log.doing()

    def _until_asked(self, act, *args):
        """`act(*args)`, abandoned at a signal; of several processes none can leave the others in the middle of it."""
        return act(*args) if job.joined() else self._interrupt.abandoning(act, *args)

    def _is_best(self, step):
        best = run_folder.best_step(self._workdir, self._losses)
        loss = self._losses.get(step, math.inf)
        return self._config.train.keep_best and loss < self._losses.get(best, math.inf)

    def save(self, step, state):
        """A checkpoint, unless there is one."""
        if step == self._saved or not parallel.is_first():  # which alone writes
            return
        self._log.doing("saving")
        workdir, losses = self._workdir, self._losses
        best = run_folder.best_step(workdir, losses)
        if losses.get(step, math.inf) < losses.get(best, math.inf):
            best = step
        _save(self._config, workdir, step, state, best if self._config.train.keep_best else None, self._fixed)
        self._saved = step

    def best(self):
        """How to get the best checkpoint, as the end of a line; "" where there is none."""
        best = run_folder.best_step(self._workdir, self._losses)
        return "" if best is None else f"; {how_to_get_best(self._workdir, best)}"


def _save(config, workdir, step, state, best=None, run=None):
    """A checkpoint, unless the state is not finite: it would push out the last healthy one."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        stands = run_folder.last_checkpoint(workdir)
        raise UserError(f"the weights at step {step} are not finite; {stands}. Try a lower optim.lr")
    if not os.path.isdir(workdir):  # orbax would make it anew
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(workdir))
    checkpoint.save(workdir, step, items(state), config.train.keep, best, run)


def how_to_get_best(workdir, step):
    """Where the checkpoint with the lowest validation loss is, in a line."""
    return f'the lowest validation loss is at step {step}: pfgm_jax.load({str(workdir)!r}, step="best")'
