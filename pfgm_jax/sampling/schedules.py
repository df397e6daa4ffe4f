"""What was found for the weights of a run and is kept with it: grids for few evaluations, and the trace of a network.

schedule.json in the folder of a run. It belongs to one process and its weights, which it names by their digest:
weights of another step need a schedule of their own.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from pfgm_jax import sampling
from pfgm_jax.errors import UserError, printable
from pfgm_jax.flow.process import Process
from pfgm_jax.sampling.grids import SEARCHED
from pfgm_jax.sampling.posterior_trace import TraceCurve
from pfgm_jax.sampling.settings import SampleSettings
from pfgm_jax.storage import atomic

NAME = "schedule.json"
MAKE_ONE = "mode=schedule makes one for a run"


class Schedule(NamedTuple):
    """Grids and a TraceCurve found for one network.

    Attributes:
      weights: digest of the process and the weights. step: of the training, to be said.
      field: what the grids were found for: "network", or "data" for the exact field of the training set.
      grids: {n: levels as a text}.
      errors: {n: {"searched", "edm", "log": error of `ipndm` (`search.best`)}}.
      trace: the TraceCurve of the network at the D that it was trained with.
    """

    weights: str
    step: int
    field: str
    grids: dict[int, str]
    errors: dict[int, dict[str, float]]
    trace: TraceCurve

    def grid(self, steps: int) -> str:
        """The grid of so many levels; UserError where none was searched."""
        if steps not in self.grids:
            there = ", ".join(map(str, sorted(self.grids)))
            raise UserError(
                f"no grid of {steps} levels was searched for this run, only of {there}: search again with "
                f"schedule.steps={steps}, or use another grid"
            )
        return self.grids[steps]

    def require(self, weights: str, step: int) -> None:
        """Raises UserError unless it was made for these weights."""
        if self.weights != weights:
            raise UserError(
                f"the run's {NAME} was made for other weights (step {self.step:,}, and these are of step {step:,}): "
                f"{MAKE_ONE}"
            )


def save(folder: str | os.PathLike, schedule: Schedule) -> str:
    """Writes schedule.json in one piece; returns its path."""
    path = pathlib.Path(folder, NAME)
    atomic.write_text(path, json.dumps(schedule._asdict() | {"trace": schedule.trace._asdict()}, indent=1) + "\n")
    return str(path)


def load(folder: str | os.PathLike) -> Schedule | None:
    """The Schedule of a folder, None where there is none; UserError for a file that does not hold one."""
    path = pathlib.Path(folder, NAME)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        trace = record["trace"]
        numbers = lambda name: tuple(float(value) for value in trace[name])
        return Schedule(
            str(record["weights"]),
            int(record["step"]),
            str(record["field"]),
            {int(n): str(grid) for n, grid in record["grids"].items()},
            {int(n): {str(k): float(v) for k, v in errors.items()} for n, errors in record["errors"].items()},
            TraceCurve(float(trace["D"]), numbers("log_scale"), numbers("log_trace")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a schedule ({printable(repr(error))}): remove it; {MAKE_ONE}") from None


def prepared(
    settings: SampleSettings, trained: Process, schedule: Schedule | None, own: Callable[[], tuple[str, int]]
) -> SampleSettings:
    """Settings with what a schedule gives to them: the levels of grid=searched, and a second moment for noise.

    Args:
      trained: the process of the network. schedule: that of its run, None for none.
      own: () -> (digest of the weights, their step), asked for only where it matters.

    Raises:
      UserError: settings that ask for what no schedule of these weights holds.
    """

    def required(what):
        if schedule is None:
            raise UserError(f"{what} needs the run's {NAME}, which does not exist: {MAKE_ONE}")
        schedule.require(*own())
        return schedule

    options, flow = settings.solver_options, settings.process(trained)
    steps = (sampling.find(settings.solver)[1] | options).get("steps", 0)
    if options.get("grid") == SEARCHED:
        settings = settings.changed(grid=required("grid=searched").grid(steps))
    if settings.draws_noise and not flow.is_gaussian and settings.second_moment is None:
        trace = required(f"{settings.solver} with noise at D = {flow.D:g}").trace
        settings = dataclasses.replace(settings, second_moment=trace._replace(D=flow.D))
    return settings
