"""What every solver reports beside its samples."""

from typing import NamedTuple

import jax


class SolveStats(NamedTuple):
    """Figures of one solve.

    Attributes:
      nfe: [] number of times `denoise` was called on the batch.
      steps: [] accepted steps.
      rejected: [] steps that the error control refused and repeated.
      completed: [] whether the end was reached within the step limit.
      sigmas: [T] noise levels of the trajectory, T = 0 where none was asked for.
      trajectory: [T, B, *S] states at those levels, unscaled, from the prior to the data.
    """

    nfe: jax.Array
    steps: jax.Array
    rejected: jax.Array
    completed: jax.Array
    sigmas: jax.Array
    trajectory: jax.Array
