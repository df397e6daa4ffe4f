"""What the steps of training report: a log line at intervals, and an end where a step is not finite."""

import contextlib
import json

import numpy as np

from pfgm_jax import parallel
from pfgm_jax.errors import UserError, counted
from pfgm_jax.storage import atomic
from pfgm_jax.storage.metrics_file import read_metrics
from pfgm_jax.training import monitor, outliers
from pfgm_jax.training.optimizer import learning_rate
from pfgm_jax.training.step import StepMetrics

NAMED = 16  # images of a batch that a message names


class Report:
    """Averages over the steps between two log lines: loss, gradient norm, learning rate, speed."""

    def __init__(self, training, log, meter, examples, milestones):
        """examples: `step -> [batch]`, the training images of a step."""
        self._config, self._cadence, self._batch = training.config, training.plan.cadence, training.plan.task.batch
        self._log, self._meter, self._workdir = log, meter, training.workdir
        self._examples, self._milestones = examples, milestones
        self._rate = learning_rate(training.config, training.plan.derived)
        self._watch = monitor.LossWatch(record["loss"] for record in read_metrics(self._workdir) if "loss" in record)
        self._pending, self._steps, self._in_a_row = None, [], 0

    def __call__(self, step, metrics):
        """Takes in the StepMetrics of the device call that ends with `step`, and looks at those of the one before.

        So one call runs while the next is under way; more would only hold their examples' memory.

        Raises:
          UserError: a step was not finite.
        """
        before, self._pending = self._pending, (step, metrics)
        if before is not None:
            self._look(*before)

    def settle(self):
        """Looks at all there is: waits for the devices."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._look(*pending)

    def _look(self, step, metrics):
        metrics = StepMetrics(*(np.asarray(a.addressable_data(0))[0] for a in metrics))
        if not self._meter.running:
            self._meter.start(step)
        self._require_finite(step, metrics)
        self._steps.append(metrics)
        images = step * self._batch
        if not self._cadence.due(self._cadence.log, step):
            self._log.progress(images)
            return
        rate = self._rate(step - int(metrics.skipped[-1]))
        values = self._averages() | {"lr": rate} | self._meter.lap(step)
        self._log.scalars(images, values)
        self._log.progress(images, values.get("loss"))
        if "loss" in values and (line := self._watch(values["loss"])):
            self._log.say(f"{images:>10,} images: {line}{self._milestones.best()}")
        self._steps = []

    def _averages(self):
        """Means over the steps that were taken since the last log line, and how many were skipped since the start."""
        loss, norm, taken, skipped = (np.concatenate(parts) for parts in zip(*self._steps, strict=True))
        values = {"skipped": skipped[-1]} if self._config.train.skip_outliers else {}
        if taken.any():
            values = {
                name: np.mean(a[taken], dtype=float) for name, a in (("loss", loss), ("grad_norm", norm))
            } | values
        return values

    def _require_finite(self, step, metrics):
        """UserError for a step that was not finite; where those are skipped, for as many in a row as a median is of."""
        for place, taken in enumerate(metrics.taken):
            self._in_a_row = 0 if taken else self._in_a_row + 1
            number = step - len(metrics.taken) + place
            one = StepMetrics(*(a[place] for a in metrics))
            if not taken and not self._config.train.skip_outliers:
                raise UserError(self._not_finite(number, one))
            if self._in_a_row == outliers.REMEMBERED:
                raise UserError(
                    f"the last {counted(outliers.REMEMBERED, 'step')}, to step {number + 1:,}, were all skipped "
                    f"({_figures(one)}); {self._milestones.stands()}. {what_to_lower(self._config)}"
                )

    def _not_finite(self, step, one):
        """The line that says what was not finite in the step after `step` others; its images go to a file."""
        rate, images = float(self._rate(step)), self._examples(step).tolist()
        facts = {"step": step + 1, "loss": str(one.loss), "grad_norm": str(one.grad_norm), "lr": rate, "images": images}
        if parallel.is_first():
            with contextlib.suppress(OSError):  # what went wrong first is what counts
                atomic.write_text(self._workdir / "not_finite.json", json.dumps(facts) + "\n")
        more = f", … (all {len(images)} in not_finite.json)" if len(images) > NAMED else ""
        return (
            f"step {step + 1:,} is not finite ({_figures(one)}, learning rate {rate:.3g}) and was not taken; "
            f"{self._milestones.stands()}. {what_to_lower(self._config)}. It saw the training images "
            f"{', '.join(map(str, images[:NAMED]))}{more}"
        )


def _figures(one):
    return f"loss {one.loss:g}, gradient norm {one.grad_norm:g}"


def what_to_lower(config):
    """What a run that diverges can be given, as the end of a line."""
    skip = (
        ""
        if config.train.skip_outliers
        else "; or go on in this one with train.skip_outliers=10, which skips such steps"
    )
    return f"Lower optim.lr={config.optim.lr:g} or set optim.clip=1, in another workdir{skip}"
