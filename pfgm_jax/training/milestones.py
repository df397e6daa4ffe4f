"""What is due at some steps of training: evaluations, checkpoints, pictures of samples."""

import contextlib
import errno
import math
import os

import jax
import numpy as np

from pfgm_jax import averages, job, parallel, run_folder, run_record
from pfgm_jax.errors import UserError
from pfgm_jax.storage import checkpoint
from pfgm_jax.storage.metrics_file import evaluated
from pfgm_jax.training import monitor
from pfgm_jax.training.report import what_to_lower
from pfgm_jax.training.saver import Saver
from pfgm_jax.training.step import items


class Milestones:
    """What is due at some steps, in this order: an evaluation, a checkpoint, a picture of samples.

    Checkpoints are written while training goes on; leaving the block waits for the last one. After an interrupt only
    the checkpoint is made. What a step lacks is made when the run is resumed there, so that a run that was stopped, or
    died, in between has in the end what an uninterrupted one has.
    """

    def __init__(self, training, source, log, meter, interrupt, step):
        """step: the run's last checkpoint, 0 without any."""
        config, (dataset, derived, task, self._cadence), workdir = training
        self._config, self._workdir, self._batch = config, workdir, task.batch
        self._fixed = run_record.fixed(run_record.record(config, derived))
        self._log, self._meter, self._interrupt, self._saved = log, meter, interrupt, step
        self._saver = Saver(self._write)
        self._evaluate = monitor.evaluation(config, task, dataset, source, log)
        self._show = monitor.picture(config, derived, workdir, dataset.train, log)
        self._losses = run_folder.validation_losses(workdir, task.batch)

    def __enter__(self):
        self._saver.__enter__()
        return self

    def __exit__(self, *raised):
        self._saver.__exit__(*raised)

    def due(self, step):
        cadence = self._cadence
        return any(cadence.due(every, step) for every in (cadence.evaluate, cadence.save, cadence.sample))

    def __call__(self, step, state, resumed=False):
        """Makes what is due at `step` of `state` (on the devices); after a resume, what is missing of it."""
        cadence, workdir, log = self._cadence, self._workdir, self._log
        if step == 0:
            return
        seen = step * self._batch
        if resumed and state.averages is not None and parallel.is_first():
            # They are written after their checkpoint, and what stopped the run may have come in between.
            averages.keep(workdir, step, jax.tree.map(np.asarray, parallel.unreplicate(state.averages)))
        done = resumed and parallel.from_first(lambda: seen in evaluated(workdir))
        if cadence.due(cadence.evaluate, step) and not done and not asked(self._interrupt):
            log.doing("evaluating")
            values = self._until_asked(self._evaluate, state.ema, seen) or {}
            if math.isfinite(values.get("eval/val", math.nan)):
                self._losses[step] = values["eval/val"]
        if cadence.due(cadence.save, step) or self._is_best(step):
            self.save(step, state)
        done = resumed and parallel.from_first(lambda: monitor.picture_path(workdir, step).exists())
        if cadence.due(cadence.sample, step) and not done and not asked(self._interrupt):
            log.doing("drawing samples")
            self._until_asked(self._show, parallel.unreplicate(state.ema), step)
        log.doing()

    def _until_asked(self, act, *args):
        """`act(*args)`, abandoned at a signal; of several processes none can leave the others in the middle of it."""
        return act(*args) if job.joined() else self._interrupt.abandoning(act, *args)

    def _is_best(self, step):
        if not self._config.train.keep_best or step not in self._losses:
            return False
        self.written()
        best = run_folder.best_step(self._workdir, self._losses)
        return self._losses[step] < self._losses.get(best, math.inf)

    def save(self, step, state):
        """Begins a checkpoint of `state`, which is on the devices, unless there is one."""
        if step == self._saved or not parallel.is_first():  # which alone writes
            return
        self._log.doing("saving")
        self.written()
        best = run_folder.best_step(self._workdir, self._losses)
        if self._losses.get(step, math.inf) < self._losses.get(best, math.inf):
            best = step
        with self._meter.saving():
            # A copy: on a CPU the host's arrays are the devices', which the next step writes over.
            held = jax.tree.map(np.array, parallel.unreplicate(items(state)))
            self._saver.begin(step, held, best if self._config.train.keep_best else None)
        self._saved = step

    def check(self):
        """Raises what went wrong with a checkpoint, where its thread has come to an end."""
        self._saver.check()

    def written(self):
        """Waits until every checkpoint is written; raises what went wrong."""
        with self._meter.saving():
            self._saver.wait()

    def _write(self, step, held, best):
        """A checkpoint, unless its values are not finite."""
        workdir = self._workdir
        if not os.path.isdir(workdir):  # it would be made anew
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(workdir))
        try:
            checkpoint.save(workdir, step, held, self._config.train.keep, best, self._fixed)
        except checkpoint.NotFinite as error:
            stands = run_folder.last_checkpoint(workdir)
            raise UserError(f"{error}; {stands}. {what_to_lower(self._config)}") from None
        if "averages" in held:
            averages.keep(workdir, step, held["averages"])

    def stands(self):
        """Where the run stands once everything begun is written, as the end of a line."""
        with contextlib.suppress(Exception):  # the line is about something else that went wrong
            self.written()
        return run_folder.last_checkpoint(self._workdir)

    def best(self):
        """How to get the best checkpoint, as the end of a line; "" where there is none."""
        best = run_folder.best_step(self._workdir, self._losses)
        return "" if best is None else f"; {run_folder.how_to_get_best(self._workdir, best)}"


def asked(interrupt):
    """The signal that asks for an end, as soon as one of the processes has heard it; they all meet here."""
    number = parallel.largest(interrupt.asked or 0, bounded=True)
    if number:
        interrupt.asked = number
    return number
