"""What every solver returns with its samples."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class SolveStats(NamedTuple):
    """Figures of one solve.

    Attributes:
      nfe: [] number of times `denoise` was called on the batch.
      sample_nfe: [B] evaluations that each sample needed; below `nfe` where every sample takes its own steps.
      steps: [] accepted steps, of the sample with the most.
      rejected: [] steps that the error control rejected and repeated, of the sample with the most.
      completed: [] whether the end was reached.
      finite: [] False where the solve stopped because `denoise` returned NaN or inf; an adaptive solver detects that by
        rejecting ever smaller steps, and also stops at a jump that its tolerance does not allow.
      sigma: [] the level where it stopped: the last one if `completed`, the one of the first NaN or inf if not
        `finite`, else the one where the step limit was reached.
      sigmas: [T] noise levels of the trajectory, T = 0 where none was requested.
      trajectory: [T, B, *S] states at those levels, unscaled, from the prior to the data.
    """

    nfe: Int[Array, ""]
    sample_nfe: Int[Array, "B"]
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    completed: Bool[Array, ""]
    finite: Bool[Array, ""]
    sigma: Float[Array, ""]
    sigmas: Float[Array, "T"]
    trajectory: Float[Array, "T B *S"]


class Output(NamedTuple):
    """What a solver returns beside its steps, and the axis of its batch: see `single_step.euler`."""

    last_denoise: bool = True
    frames: int = 0
    framed: int | None = None
    axis_name: str | None = None
