"""The progress of a solve, reported by the compiled program itself.

A program that reports it calls the host once at each of some noise levels. JAX keeps no such program between runs (its
cache on disk refuses programs that call the host), so short solves are compiled without.
"""

import contextlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from pfgm_jax.array_types import Denoiser

MARKS = 64  # levels at most that are reported of a solve
_listeners = []  # of the solve under way: compiled programs outlive it


def report(denoise: Denoiser, levels: Float[np.ndarray, "n"] | None) -> Denoiser:
    """`denoise` with the same values, that reports its calls at some of a solver's noise levels [n] to the listener.

    Args:
      levels: descending; None for a solver that chooses its own, of which every call is reported.
    """
    marks = None if levels is None else np.unique(levels[np.linspace(0, len(levels) - 1, MARKS).astype(int)])

    def reporting(x, sigma):
        lowest = jnp.max(sigma)  # a batch waits for its slowest sample
        wanted = True if marks is None else jnp.any(lowest == jnp.asarray(marks, sigma.dtype))
        jax.lax.cond(wanted, lambda level: jax.debug.callback(_hear, level), lambda level: None, lowest)
        return denoise(x, sigma)

    return reporting


def _hear(sigma):
    for listener in list(_listeners):
        listener(float(np.max(sigma)))


class Bar:
    """A bar over the batches of a set of samples, each in n steps as its levels [n + 1] go by; silent if short.

    A terminal gets a live bar after two seconds, a file a line about every ten.
    """

    def __init__(self, what, batches, levels, shown=True):
        live = sys.stderr.isatty()
        self._levels, self._done, self._batches = np.log(np.asarray(levels)), 0, batches
        self._bar = tqdm(
            total=batches * (len(levels) - 1), desc=what, unit="step", delay=2 if live else 10, dynamic_ncols=True,
            mininterval=0.2 if live else 10, disable=not shown, leave=not live,
        )  # fmt: skip

    @contextlib.contextmanager
    def listening(self):
        """While the block runs, what the program reports moves the bar."""
        _listeners.append(self._reach)
        try:
            yield self
        finally:
            _listeners.remove(self._reach)
            self._bar.close()

    def _reach(self, sigma):
        parts = len(self._levels) - 1
        gone = np.interp(-np.log(max(sigma, 1e-30)), -self._levels, np.arange(parts + 1))
        self._move(self._done * parts + int(gone))

    def say(self, text):
        """A line, for what no bar moves by."""
        if not self._bar.disable:
            print(text, file=sys.stderr)

    def batch(self):
        """One more batch is complete."""
        self._done += 1
        self._move(self._done * (len(self._levels) - 1))

    def _move(self, position):
        if position > self._bar.n:
            self._bar.update(position - self._bar.n)
