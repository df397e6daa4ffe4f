"""The steps between events: a run's lengths and intervals are in images, its events on whole device calls."""

from typing import NamedTuple

import jax

# Images of a call's steps take at most this many bytes, should they be streamed.
CALL_BYTES = 2**28


class Cadence(NamedTuple):
    """Steps between events: every interval of the config, which is in images, as whole device calls."""

    per_call: int
    total: int
    log: int
    evaluate: int
    sample: int
    save: int

    def due(self, every, step):
        """Whether what happens `every` so many steps, and at the end, happens at `step`."""
        return step % every == 0 or step >= self.total


def make_cadence(config):
    """Intervals and length rounded to whole calls of `steps_per_call` steps, so that no call crosses an event."""
    c = config.train
    per_call = c.steps_per_call or (8 if jax.default_backend() == "cpu" else 32)
    if not c.steps_per_call:
        step_bytes = (c.batch + c.large_batch) * 3 * config.data.size**2
        while per_call > 1 and per_call * step_bytes > CALL_BYTES:
            per_call //= 2

    def steps(images):
        return max(1, round(images / (per_call * c.batch))) * per_call

    return Cadence(
        per_call=per_call,
        total=steps(c.images),
        log=steps(c.log_every),
        evaluate=steps(c.eval_every),
        sample=steps(c.sample_every),
        save=steps(c.save_every),
    )
