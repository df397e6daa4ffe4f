"""Training: `train(config, workdir)`, from an empty folder or from the last checkpoint there."""

import contextlib
import functools
import json
import pathlib
import sys
from typing import NamedTuple

import numpy as np

from pfgm_jax import config as config_lib
from pfgm_jax import config_rules, job, parallel, plots, run_folder, run_record
from pfgm_jax.data import pipeline
from pfgm_jax.errors import UserError
from pfgm_jax.interrupt import Interrupt, Interrupted
from pfgm_jax.storage import atomic, checkpoint
from pfgm_jax.storage.metrics_file import read_metrics
from pfgm_jax.training import memory
from pfgm_jax.training.cadence import make_cadence
from pfgm_jax.training.dry_run import Plan, describe, is_resident, prepare
from pfgm_jax.training.log import Log, Quiet
from pfgm_jax.training.meter import Meter
from pfgm_jax.training.milestones import Milestones, asked
from pfgm_jax.training.report import Report
from pfgm_jax.training.step import OPTIONAL, init_state, items, train_steps
from pfgm_jax.training.warm_start import origin, start_from


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
      UserError: a config, data file or run directory that the user has to fix, or a step or weights that are not
        finite; the last checkpoint is kept.
      KeyboardInterrupt: after an interrupt, with the state saved.
    """
    workdir = atomic.expanded(workdir)
    stands = functools.partial(run_folder.last_checkpoint, workdir)
    with Interrupt("stopping before the first step: there is nothing to save", config.train.grace, stands) as interrupt:
        if parallel.is_first() and not (workdir / "config.json").exists():
            config_rules.check_new(config)
        plan = prepare(config)
        plan = plan._replace(derived=plan.derived | parallel.from_first(lambda: origin(config, workdir)))
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
        print(run_folder.how_to_get_best(workdir, best), flush=True)
    return state


def _require_agreement(config, derived):
    """Raises UserError where another process was started with other settings, or has other data, than the first."""
    mine = json.loads(json.dumps({"data": derived} | config_lib.flatten(config)))
    first = parallel.from_first(lambda: mine)
    if different := [key for key in mine if mine[key] != first.get(key) and key != "data.dir"]:
        raise UserError(f"this process has a different {', '.join(different)} than the first one")


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
    run = run_record.fixed(run_record.record(config, derived))
    restored = checkpoint.restore(workdir, items(state), run=run, optional=OPTIONAL)
    if restored is not None:
        state = state.replace(step=np.asarray(restored[0], np.int32), **restored[1])
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
    meter = Meter(task.batch)
    milestones = Milestones(training, source, log, meter, interrupt, step)
    report = Report(training, log, meter, lambda step: indices(step, 1).examples[0], milestones)

    send = lambda call: (call[1], pipeline.send(indices(*call), None if resident else train))
    with milestones, pipeline.ahead(send, _calls(step, cadence)) as batches:
        milestones(step, state, resumed=True)
        while step < cadence.total and not asked(interrupt):
            milestones.check()
            with meter.waiting():
                length, batch = next(batches)
            with memory.explained(training, resident):
                state, metrics = train_steps(task, state, source, batch)
                step += length
                report(step, metrics)
                if milestones.due(step):
                    report.settle()
            if milestones.due(step):
                with meter.paused():  # speed is of training alone
                    milestones(step, state)
        with memory.explained(training, resident):
            report.settle()
        if number := asked(interrupt):
            _stop(step, state, milestones, log)
            raise Interrupted(number)
    return parallel.unreplicate(state)


def _stop(step, state, milestones, log):
    """Saves what there is, for the same command to go on from."""
    if step == 0:
        log.say("stopped before the first step: there is nothing to save")
        return
    milestones.save(step, state)
    milestones.written()
    log.say(f"stopped: step {step} is saved; the same command continues from there")
