"""What all fixed-step solvers share: walking down the levels, counting, keeping frames, and stopping at NaN."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pfgm_jax.array_types import Arrays, Denoiser
from pfgm_jax.sampling.stats import Output, SolveStats


class Step(NamedTuple):
    """One interval of the grid: from σ_i = `sigma` to σ_(i+1) = `sigma_next`; `extra` is the solver's own."""

    index: Any
    sigma: Any
    sigma_next: Any
    extra: Any


class _Watched:
    """`denoise` at one level for the whole batch, which remembers where its values were not finite.

    It lives while one step is traced, so the number of its calls is the number of evaluations that the step makes.
    """

    def __init__(self, denoise):
        self.denoise, self.calls = denoise, []

    def __call__(self, x, sigma):
        mean = self.denoise(x, jnp.full(x.shape[:1], sigma, x.dtype))
        self.calls.append((jnp.asarray(sigma, x.dtype), jnp.all(jnp.isfinite(mean))))
        return mean

    def first_failure(self):
        """The level of the first call that was not finite, 0 for none."""
        failed = jnp.zeros_like(self.calls[0][0])
        for sigma, finite in reversed(self.calls):
            failed = jnp.where(finite, failed, sigma)
        return failed


class _Walk(NamedTuple):
    x: jax.Array
    memory: Any
    nfe: jax.Array
    steps: jax.Array
    failed: jax.Array  # the level at which denoise was not finite; 0 for none
    frames: jax.Array


def to_the_mean(denoise, x, sigma):
    """The last step, from σ to 0: the posterior mean, which is where Euler's method and every ancestral step lead."""
    return denoise(x, sigma)


def march(
    denoise: Denoiser,
    x: Float[Arrays, "B *S"],
    sigmas: Float[Arrays, "n"],
    segments: list[tuple[Callable, int]],
    output: Output,
    *,
    extra: Any = None,
    memory: Any = (),
    last: Callable = to_the_mean,
) -> tuple[Float[Array, "B *S"], SolveStats]:
    """Takes `x` from σ_0 down the grid `sigmas` [n], and then to σ = 0 if there is a last step.

    Args:
      segments: [(step, number of intervals), …], n − 1 intervals in all. A step is `(denoise, x, memory, Step) ->
        (x, memory)`; its `denoise(x, sigma)` takes one level for the whole batch.
      extra: arrays [n − 1, …] whose rows reach the steps as `Step.extra`.
      memory: what steps pass on to each other, such as earlier values of `denoise`.
      last: `(denoise, x, σ_(n−1)) -> x`, from the last level to 0, where the output has a last step.
      output: its frames are spread evenly over the grid; the devices of its axis stop together.

    Returns:
      (x, SolveStats). Once `denoise` has returned NaN or inf no more calls are made.
    """
    last_denoise, frames, framed, axis_name = output
    x = jnp.asarray(x)
    n, sigmas = len(sigmas), jnp.asarray(sigmas, x.dtype)
    kept = np.unique(np.round(np.linspace(0, n - 1, frames)).astype(int)) if frames else np.zeros(0, int)
    slots = np.full(n, len(kept))
    slots[kept] = np.arange(len(kept))

    def keep(slot, walk):
        """Stores the state in its slot of the frames; a slot past the end is dropped."""
        return walk._replace(frames=walk.frames.at[slot].set(walk.x[:framed], mode="drop")) if len(kept) else walk

    def advance(take, walk):
        """`take(denoise, x, memory) -> (x, memory)`, unless the walk has failed already."""

        def go(walk):
            watched = _Watched(denoise)
            x, memory = take(watched, walk.x, walk.memory)
            return walk._replace(
                x=x,
                memory=memory,
                nfe=walk.nfe + len(watched.calls),
                steps=walk.steps + 1,
                failed=watched.first_failure(),
            )

        walk = lax.cond(walk.failed == 0, go, lambda walk: walk, walk)
        if axis_name is not None:
            walk = walk._replace(failed=lax.pmax(walk.failed, axis_name))
        return walk

    zero, empty = jnp.asarray(0), jnp.zeros((len(kept),) + x[:framed].shape, x.dtype)
    walk = _Walk(jnp.asarray(x), memory, zero, zero, jnp.zeros((), x.dtype), empty)
    walk = jax.tree.map(jnp.asarray, walk)
    intervals = Step(jnp.arange(n - 1), sigmas[:-1], sigmas[1:], extra)
    begin = 0
    for step, count in segments:
        if not count:  # which `lax.scan` refuses where it is not compiled
            continue

        def body(walk, row, step=step):
            slot, interval = row
            return advance(lambda denoise, x, memory: step(denoise, x, memory, interval), keep(slot, walk)), None

        rows = jax.tree.map(lambda a: a[begin : begin + count], (jnp.asarray(slots[:-1]), intervals))  # noqa: B023
        walk, _ = lax.scan(body, walk, rows)
        begin += count
    walk = keep(slots[-1], walk)
    if last_denoise:
        walk = advance(lambda denoise, x, memory: (last(denoise, x, sigmas[-1]), memory), walk)

    finite = walk.failed == 0
    reached = jnp.zeros_like(sigmas[-1]) if last_denoise else sigmas[-1]
    stats = SolveStats(
        nfe=walk.nfe,
        sample_nfe=jnp.full(x.shape[:1], walk.nfe),
        steps=walk.steps,
        rejected=jnp.asarray(0),
        completed=finite,
        finite=finite,
        sigma=jnp.where(finite, reached, walk.failed),
        sigmas=sigmas[kept],
        trajectory=walk.frames,
    )
    return walk.x, stats
