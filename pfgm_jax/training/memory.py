"""A training step that memory is too short for: a line that says what takes less, with the compiler's estimates."""

import contextlib
import dataclasses
import math

from pfgm_jax import models, parallel
from pfgm_jax.errors import UserError
from pfgm_jax.failures import out_of_memory
from pfgm_jax.training.dry_run import memory_estimate, size
from pfgm_jax.training.step import state_shapes


@contextlib.contextmanager
def explained(training, resident):
    """Where memory ends within the block, that of a device or of the host: UserError with the batch to choose.

    resident: whether the training images are on the devices.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(_line(training, resident)) from error


def _line(training, resident):
    config, plan, _ = training
    task, there = plan.task, parallel.device_memory()
    shapes = state_shapes(task, plan.dataset.shape)

    def need(part):
        of_part = dataclasses.replace(task, microbatch=part)
        return memory_estimate(of_part, shapes, plan.dataset, plan.cadence.per_call, resident)

    now, least = need(task.microbatch), parallel.device_count()
    line = f"out of memory in a step of train.batch={task.batch}"
    line += f" with train.microbatch={task.microbatch}" * bool(task.microbatch)
    line += f", which takes {size(now)} a device by the compiler's estimate; a device has {size(there)}. "
    whole = task.microbatch or task.batch
    smallest = need(least) if whole > least else now
    # Between the two, memory is a straight line: what the state takes, and so much for each image.
    each = (now - smallest) / (whole - least) if math.isfinite(now) and whole > least else 0.0
    parts = [part for part in range(least, whole, least) if task.batch % part == 0]
    fitting = [part for part in parts if smallest + each * (part - least) <= min(there, 0.9 * now)]
    remat = "remat" in models.options(config.model.name) and not config.model.remat
    if smallest >= min(there, now) or not fitting:
        lighter = "set model.remat=True, or choose" if remat else "choose"
        return f"{line}In the smallest parts it would take {size(smallest)}: {lighter} a smaller network or images"
    part = fitting[-1] if each else fitting[0]
    also = ", model.remat=True too" if remat else ""
    return (
        f"{line}train.microbatch={part} takes the same steps in parts, about {size(smallest + each * (part - least))}; "
        f"a smaller train.batch takes less{also}"
    )
