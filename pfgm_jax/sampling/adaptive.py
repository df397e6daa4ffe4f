"""Adaptive solution of the flow by diffrax, in time u = ln σ: dx/du = x − E[y | x, e^u]."""

import functools
import math
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser, PRNGKeys
from pfgm_jax.errors import UserError
from pfgm_jax.flow.process import Process
from pfgm_jax.sampling.stats import Output, SolveStats

# A step of Dopri5 or Tsit5 takes six evaluations, its seventh stage being the next step's first (FSAL); the very first
# stage is one more.
_CALLS_PER_STEP = 6
# The first step in ln σ. Near the prior the flow is close to dx/du = x, whose own scale is 1; the control takes over
# from there.
_FIRST_STEP = 0.1
# With steps of each sample's own, the local error of a sample may be this many times the tolerance. A shared step size
# holds the root mean square over a batch of B to the tolerance, and so any one sample to √B of it; without some slack
# here the batch, which waits for its slowest sample, would need up to 1.5 times as many calls.
_SLACK = 3.0
# A step in ln σ smaller than this is no step in float32. The control comes here where `denoise` is not finite.
_SMALLEST_STEP = 1e-6


def rk45(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    per_sample: bool = False,
    fixed_steps: int = 0,
    max_steps: int = 1000,
    last_denoise: bool = True,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """Dormand-Prince 5(4), the solver of PFGM and of score-based probability flows, with error control.

    Args:
      process: gives σ_max and σ_min.
      denoise: posterior mean `(x [B, *S], sigma [B]) -> [B, *S]`.
      x: [B, *S] draws of the prior at σ_max, unscaled.
      keys: not needed; every solver takes them.
      rtol, atol: tolerances of the local error.
      per_sample: every sample takes its own steps, by its own error (three times the tolerance, to compensate for
        the batch's waiting for its slowest sample), so that it does not depend on the batch;
        `denoise` is still called for the whole batch at once, until every sample has finished. Otherwise all share one
        step size, with the root mean square over all pixels of all samples as the error norm.
      fixed_steps: this many equal steps in ln σ instead of error control; 0 for control.
      max_steps: limit on steps, accepted and rejected, of the error control.
      last_denoise: end with E[y | x, σ_min], one Euler step from σ_min to 0.
      frames: number of states to keep from σ_max to σ_min, evenly spaced in ln σ.
      framed: frames of the first `framed` samples alone; None: of all.
      axis_name: mapped axis over whose devices the batch is spread: with a shared step size all devices then take the
        same steps, so that samples do not depend on the number of devices.

    Returns:
      (samples [B, *S], SolveStats).

    Raises:
      UserError: a tolerance or limit that is not positive.
    """
    del keys
    control = Control(rtol, atol, per_sample, fixed_steps, max_steps)
    return _solve(diffrax.Dopri5(), control, process, denoise, x, Output(last_denoise, frames, framed, axis_name))


def tsit5(
    process: Process,
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    *,
    keys: PRNGKeys | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    per_sample: bool = False,
    fixed_steps: int = 0,
    max_steps: int = 1000,
    last_denoise: bool = True,
    frames: int = 0,
    framed: int | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """Tsitouras 5(4), as many evaluations a step and often a smaller error: arguments, returns and errors of `rk45`."""
    del keys
    control = Control(rtol, atol, per_sample, fixed_steps, max_steps)
    return _solve(diffrax.Tsit5(), control, process, denoise, x, Output(last_denoise, frames, framed, axis_name))


class Control(NamedTuple):
    """How steps are chosen: see `rk45`. UserError for impossible values."""

    rtol: float
    atol: float
    per_sample: bool
    fixed_steps: int
    max_steps: int

    def check(self):
        if not (self.rtol > 0 and self.atol > 0 and self.max_steps >= 1 and self.fixed_steps >= 0):
            raise UserError(
                f"an adaptive solver needs rtol > 0, atol > 0, max_steps >= 1 and fixed_steps >= 0, "
                f"got {self.rtol}, {self.atol}, {self.max_steps} and {self.fixed_steps}"
            )

    def stepper(self, first, axis_name):
        """(diffrax's controller, first step in ln σ, limit on steps), from the `first` of equal steps."""
        if self.fixed_steps:
            return _EqualSteps(None if self.per_sample else axis_name), first, self.fixed_steps + 1
        # A batch waits for its slowest sample. Some proportional control (PI) refuses fewer steps of that one.
        coefficients = dict(pcoeff=0.2, icoeff=0.8) if self.per_sample else {}
        control = diffrax.PIDController(
            rtol=self.rtol,
            atol=self.atol,
            norm=functools.partial(self.norm, axis_name),
            dtmin=_SMALLEST_STEP,
            force_dtmin=False,
            **coefficients,
        )
        return control, math.copysign(_FIRST_STEP, first), self.max_steps

    def norm(self, axis_name, error):
        """Root mean square of the error, over the batch on all devices where it shares its steps."""
        mean_square = jnp.mean(jnp.square(error))
        if self.per_sample:
            mean_square = mean_square / _SLACK**2
        elif axis_name is not None:
            mean_square = lax.pmean(mean_square, axis_name)
        # NaN counts as an infinite error: the step is refused and repeated smaller, down to the smallest.
        mean_square = jnp.where(jnp.isnan(mean_square), jnp.inf, mean_square)
        # A square root has no finite slope at 0, where diffrax starts; the guard keeps derivatives of the solve finite.
        return jnp.where(mean_square > 0, jnp.sqrt(jnp.where(mean_square > 0, mean_square, 1)), 0)


def _solve(solver, control, process, denoise, x, output):
    """(samples, SolveStats) of `rk45`, by one of diffrax's solvers, a Control and an Output."""
    control.check()
    last_denoise, frames, framed, axis_name = output
    per_sample = control.per_sample
    start, end = math.log(process.sigma_max), math.log(process.sigma_min)
    stepper, first, limit = control.stepper((end - start) / max(control.fixed_steps, 1), axis_name)
    x = jnp.asarray(x)
    times = jnp.linspace(start, end, frames, dtype=x.dtype)

    def velocity(log_sigma, x, _):
        return x - denoise(x, jnp.full(x.shape[:1], jnp.exp(log_sigma), x.dtype))

    kept = lambda t, x, args: x if per_sample else x[:framed]
    saved = [diffrax.SubSaveAt(t1=True)] + ([diffrax.SubSaveAt(ts=times, fn=kept)] if frames else [])

    def integrate(velocity, x):
        # Times in x's own precision: a Python number would be float64 under jax_enable_x64, and so would the states.
        span = [jnp.asarray(t, x.dtype) for t in (start, end, first)]
        # Without a first stage given, diffrax computes it again in every step until it has accepted one.
        first_stage = (jnp.asarray(False), velocity(span[0], x, None))
        return diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            solver,
            *span,
            x,
            solver_state=first_stage,
            stepsize_controller=stepper,
            saveat=diffrax.SaveAt(subs=saved),
            max_steps=limit,
            throw=False,
        )

    if per_sample:
        one = _batched(denoise, x)
        velocity_of_one = lambda log_sigma, x, _: x - one(x, jnp.exp(log_sigma).astype(x.dtype))
        solution = jax.vmap(lambda x: integrate(velocity_of_one, x))(x)
        x, reached = solution.ys[0][:, -1], solution.ts[0][:, -1]
        trajectory = jnp.swapaxes(solution.ys[1][:framed], 0, 1) if frames else None
    else:
        solution = integrate(velocity, x)
        x, reached = solution.ys[0][-1], solution.ts[0][-1]
        trajectory = solution.ys[1] if frames else None
    if last_denoise:
        x = denoise(x, jnp.full(x.shape[:1], process.sigma_min, x.dtype))

    steps, rejected = solution.stats["num_accepted_steps"], solution.stats["num_rejected_steps"]
    sample_nfe = 1 + _CALLS_PER_STEP * (steps + rejected) + int(last_denoise)
    stats = SolveStats(
        nfe=jnp.max(sample_nfe),
        sample_nfe=jnp.broadcast_to(sample_nfe, x.shape[:1]),
        steps=jnp.max(steps),
        rejected=jnp.max(rejected),
        completed=jnp.all(solution.result == diffrax.RESULTS.successful),
        finite=jnp.all(solution.result != diffrax.RESULTS.dt_min_reached),
        sigma=jnp.exp(jnp.max(reached)),
        sigmas=jnp.exp(times),
        trajectory=jnp.zeros((0,) + x[:framed].shape, x.dtype) if trajectory is None else trajectory,
    )
    return x, stats


class _EqualSteps(diffrax.ConstantStepSize):
    """Equal steps that stop, on all devices of the axis together, where `denoise` is not finite."""

    axis_name: str | None

    # Its first value is an array here, as the step may be refused.
    def adapt_step_size(  # pyrefly: ignore[bad-override]
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        _, t0_next, t1_next, jump, controller_state, result = super().adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
        )
        finite = jnp.all(jnp.isfinite(y_error))  # every stage is part of it
        if self.axis_name is not None:
            finite = lax.pmin(finite.astype(int), self.axis_name) > 0
        result = diffrax.RESULTS.where(finite, result, diffrax.RESULTS.dt_min_reached)
        return finite, jnp.where(finite, t0_next, t0), t1_next, jump, controller_state, result


def _batched(denoise, x):
    """`denoise` of one sample, (x [*S], sigma []) -> [*S], to be mapped over the batch `x`: one call for all of it.

    What `denoise` closes over, such as a network's weights, becomes an argument: a function with a rule of its own for
    vmap must not hold traced values.
    """
    traced = jax.make_jaxpr(denoise)(x, x.reshape(len(x), -1)[:, 0])

    @jax.custom_batching.custom_vmap
    def one(held, x, sigma):
        return x  # for its shape alone, as every call is under vmap

    @one.def_vmap
    def whole_batch(axis_size, in_batched, held, x, sigma):
        x, sigma = (
            a if b else jnp.broadcast_to(a, (axis_size, *a.shape))
            for a, b in zip((x, sigma), in_batched[1:], strict=True)
        )
        return core.jaxpr_as_fun(core.ClosedJaxpr(traced.jaxpr, held))(x, sigma)[0], True

    return functools.partial(one, traced.consts)
