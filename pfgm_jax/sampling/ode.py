"""Adaptive solution of the flow dx/dσ = (x − E[y | x, σ]) / σ by diffrax."""

import math

import diffrax
import jax.numpy as jnp
from jax import lax

from pfgm_jax.sampling.stats import SolveStats

# A step of Dopri5 takes six evaluations, its seventh stage being the next step's first (FSAL); the very first stage
# is one more.
_CALLS_PER_STEP = 6
# The first step in ln σ. Near the prior the flow is close to dx/du = x, whose own scale is 1; the control takes over
# from there.
_FIRST_STEP = 0.1


def rk45(process, denoise, x, *, rtol=1e-4, atol=1e-4, max_steps=1000, last_denoise=True, frames=0, axis_name=None):
    """Dormand-Prince 5(4) with PID step control in time u = ln σ, where the flow is dx/du = x − E[y | x, e^u].

    One step size serves the whole batch, its error norm being the root mean square over all pixels of all samples.

    Args:
      process: gives σ_max and σ_min.
      denoise: posterior mean `(x [B, *S], sigma [B]) -> [B, *S]`.
      x: [B, *S] draws of the prior at σ_max, unscaled.
      rtol, atol: tolerances of the local error.
      max_steps: limit on steps, accepted and rejected.
      last_denoise: end with E[y | x, σ_min], one Euler step from σ_min to 0.
      frames: number of states to keep from σ_max to σ_min, evenly spaced in ln σ.
      axis_name: mapped axis over whose devices the batch is spread: all devices then take the same steps, so that
        samples do
        not depend on the number of devices.

    Returns:
      (samples [B, *S], SolveStats).
    """

    def velocity(log_sigma, x, _):
        return x - denoise(x, jnp.full(x.shape[:1], jnp.exp(log_sigma), x.dtype))

    def norm(error):
        mean_square = jnp.mean(jnp.square(error))
        if axis_name is not None:
            mean_square = lax.pmean(mean_square, axis_name)
        # A square root has no finite slope at 0, where diffrax starts; the guard keeps derivatives of the solve finite.
        return jnp.where(mean_square > 0, jnp.sqrt(jnp.where(mean_square > 0, mean_square, 1)), 0)

    start, end = math.log(process.sigma_max), math.log(process.sigma_min)
    times = jnp.linspace(start, end, frames, dtype=x.dtype)
    saved = [diffrax.SubSaveAt(t1=True)] + ([diffrax.SubSaveAt(ts=times)] if frames else [])
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Dopri5(),
        t0=start,
        t1=end,
        dt0=-_FIRST_STEP,
        y0=x,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=norm),
        saveat=diffrax.SaveAt(subs=saved),
        max_steps=max_steps,
        throw=False,
    )
    x = solution.ys[0][-1]
    trajectory = solution.ys[1] if frames else jnp.zeros((0,) + x.shape, x.dtype)
    if last_denoise:
        x = denoise(x, jnp.full(x.shape[:1], process.sigma_min, x.dtype))
    steps, rejected = solution.stats["num_accepted_steps"], solution.stats["num_rejected_steps"]
    stats = SolveStats(
        nfe=1 + _CALLS_PER_STEP * (steps + rejected) + int(last_denoise),
        steps=steps,
        rejected=rejected,
        completed=solution.result == diffrax.RESULTS.successful,
        sigmas=jnp.exp(times),
        trajectory=trajectory,
    )
    return x, stats
