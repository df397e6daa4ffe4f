"""A process walked from the data to the prior: what makes an encoder of every solver of the flow."""

import dataclasses

from pfgm_jax.flow.process import Process


class Upwards(Process):
    """A process with its ends exchanged: `sigma_max` is the level near the data, where a solver of the flow starts.

    The flow is an ordinary differential equation, which every deterministic solver follows either way. Grids run
    backwards, level for level, so that n steps up visit the same levels as n steps down.
    """

    def __post_init__(self):
        """Nothing to check: the process was, the other way round."""


def upwards(process: Process) -> Upwards:
    """The process with its ends exchanged."""
    fields = {field.name: getattr(process, field.name) for field in dataclasses.fields(process)}
    return Upwards(**fields | {"t_min": process.t_max, "t_max": process.t_min})
