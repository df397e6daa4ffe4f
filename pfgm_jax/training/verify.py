"""A run directory checked, file by file: what is sound, what is damaged, and what can still be done with the run."""

import math
import os
import pathlib

import jax
import numpy as np

from pfgm_jax import averages, generator, models, run_folder, run_record, stored_run
from pfgm_jax.errors import UserError, counted
from pfgm_jax.sampling import schedules
from pfgm_jax.storage import checkpoint, safetensors
from pfgm_jax.storage.metrics_file import read_metrics
from pfgm_jax.training.cadence import make_cadence
from pfgm_jax.training.step import OPTIONAL, items, make_task, state_shapes


def verify(workdir):
    """Prints a line for each part of a run as it is checked, and returns what the run can still do, in lines.

    Every byte of the checkpoints, of the averages beside them and of exported weights is read; nothing is written. The
    settings of a run's use (`run_record.MUTABLE`) are not part of the digests: they are there to be changed.

    Raises:
      UserError: no run, or one that is damaged: what is, and what it can still do.
    """
    workdir = pathlib.Path(workdir)
    run = stored_run.read(workdir)
    _say(
        "config.json", f"{run.process.name}, D = {run.process.D:g}, {run.config.model.name}, of {run.config.data.name}"
    )
    if (workdir / safetensors.EXPORTED).exists():
        problems = _check_exported(workdir)
        if problems:
            raise UserError(f"{workdir} is damaged: {problems[0]}")
        return f"can be opened: pfgm_jax.load({str(workdir)!r})"
    sound, damaged = _check_checkpoints(workdir, run)
    damaged += _check_averages(workdir, run, sound) + _check_schedule(workdir) + _check_metrics(workdir)
    if (workdir / "export" / safetensors.EXPORTED).exists():
        damaged += [f"export ({problem})" for problem in _check_exported(workdir / "export")]
    can = _possible(workdir, run, sound)
    if damaged:
        raise UserError(f"{workdir} is damaged in {counted(len(damaged), 'place')}: {'; '.join(damaged)}. {can}")
    return can


def _say(part, text):
    print(f"{part:16}{text}", flush=True)


def _check_checkpoints(workdir, run):
    """(steps that can be used, what is damaged); one line a step is printed."""
    if holder := run_folder.trained_by(workdir):
        _say("training", f"{holder} trains here now: steps come and go")
    shapes = items(state_shapes(make_task(run.config, run.derived), run.derived["shape"]))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    fixed, sound, damaged = run_record.fixed(run_record.read(workdir)), [], []
    for step in checkpoint.steps(workdir):
        usable, wrong = checkpoint.examine(workdir, step, shapes, fixed, OPTIONAL)
        values = f"{counted(len(jax.tree.leaves(shapes)), 'array')}, {size:,} bytes, all finite, as they were saved"
        _say(f"step {step:,}", "; ".join(([values] if usable else ["lost"]) + wrong))
        sound += [step] if usable else []
        damaged += [f"checkpoint {step} ({wrong[0]})"] if wrong else []
    return sound, damaged


def _check_averages(workdir, run, sound):
    """What is wrong with the averages of train.power_ema, of which there must be some with every sound step."""
    if not run.config.train.power_ema:
        return []
    like = jax.eval_shape(lambda: models.init(run.model, run.derived["shape"]))
    steps, damaged = sorted({*averages.kept(workdir, math.inf), *sound}), []
    for step in steps:
        try:
            tree = averages.load(workdir, step, like)
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)):
                raise UserError("they hold values that are not finite")
        except UserError as error:
            again = "; the training command writes them again" if step == max(sound, default=None) else ""
            damaged.append(f"averages of step {step} ({error}{again})")
    _say("averages", f"{len(steps) - len(damaged)} of {counted(len(steps), 'step')} sound")
    return damaged


def _check_schedule(workdir):
    try:
        schedule = schedules.load(workdir)
    except UserError as error:
        return [str(error)]
    if schedule is not None:
        _say(schedules.NAME, f"grids of {counted(len(schedule.grids), 'length')}, found at step {schedule.step:,}")
    return []


def _check_metrics(workdir):
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines, records = len(path.read_bytes().splitlines()), read_metrics(workdir)
    last = max((record["images"] for record in records), default=0)
    _say(path.name, f"{counted(len(records), 'record')}, to {last:,} images")
    missing = lines - len(records)
    return [f"{path.name} ({counted(missing, 'line')} without a record)"] if missing else []


def _check_exported(folder):
    """What is wrong with an exported folder; a line is printed."""
    try:
        weights = generator.load(folder).params
        wrong = [] if all(np.isfinite(w).all() for w in jax.tree.leaves(weights)) else ["weights that are not finite"]
    except UserError as error:
        wrong = [str(error)]
    _say(
        os.path.basename(os.path.abspath(folder)), f"damaged: {wrong[0]}" if wrong else "sound: weights and config.json"
    )
    return wrong


def _possible(workdir, run, sound):
    """What can be done with a run that has these sound steps."""
    total = make_cadence(run.config).total
    if not sound:
        trained = any(record["images"] for record in read_metrics(workdir))
        return "no checkpoint to continue from" + (
            ": put a copy back, or start again in another folder" if trained else ""
        )
    best = run_folder.best_step(workdir, run_folder.validation_losses(workdir, run.config.train.batch))
    newest = sound[-1]
    goes_on = "is done" if newest >= total else f"continues from step {newest:,} of {total:,} by the same command"
    also = ", ".join(f"{step:,}" for step in sound[:-1])
    return (
        f"The run {goes_on}; step {newest:,} can be sampled, measured and exported"
        + (f", and step {also} by pfgm_jax.load" if also else "")
        + (f'; step="best" is {best:,}' if best in sound else "")
    )
