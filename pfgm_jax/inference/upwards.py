"""A process walked from the data to the prior: what makes an encoder of every solver of the flow."""

import dataclasses

from pfgm_jax.flow.process import Process


@dataclasses.dataclass(frozen=True)
class Upwards:
    """A process with its ends exchanged: `sigma_max` is the level near the data, where a solver of the flow starts.

    The flow is an ordinary differential equation, which every deterministic solver follows either way. Grids run
    backwards, level for level, so that n steps up visit the same levels as n steps down.
    """

    process: Process

    sigma_max = property(lambda self: self.process.sigma_min)
    sigma_min = property(lambda self: self.process.sigma_max)
    t_max = property(lambda self: self.process.t_min)
    t_min = property(lambda self: self.process.t_max)
    D = property(lambda self: self.process.D)
    name = property(lambda self: self.process.name)
    schedule = property(lambda self: self.process.schedule)
    is_gaussian = property(lambda self: self.process.is_gaussian)

    def sigma(self, t):
        """σ(t)."""
        return self.process.sigma(t)
