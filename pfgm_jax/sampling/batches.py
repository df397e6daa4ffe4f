"""Samples drawn batch by batch by compiled programs: what `Generator.sample` does once it knows what is wanted."""

import functools
import os
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax import models, parallel, sampling
from pfgm_jax.errors import UserError
from pfgm_jax.flow import guidance, parametrization, process
from pfgm_jax.sampling import progress

# A solve of more seconds than this, as far as can be estimated before it is compiled, shows its steps.
LONG = 20.0
# Floating-point operations a second that networks get out of a core of a CPU and out of another device, by the order.
RATES = {"cpu": 1e10, "other": 1e13}
ADAPTIVE_CALLS = 80  # of the network by an adaptive solver, for the same estimate


class Network(NamedTuple):
    """What makes denoisers of weights, hashable."""

    process: process.Process
    parametrization: Any
    model: nn.Module

    def denoiser(self, params, labels, condition=None):
        """`denoise(x, sigma)` for labels [B], −1 or None for none, and an image condition [B, H, W, K]."""
        network = lambda x, noise: self.model.apply(
            {"params": params}, models.concat_condition(x, condition), noise, labels
        )
        return parametrization.denoiser(self.parametrization, self.process, network)


class Guide(NamedTuple):
    """A guide and the weight it is used with (`guidance.guided`)."""

    network: Network
    params: dict
    uses_labels: bool  # whether it is conditioned on the labels
    weight: float


class Program(NamedTuple):
    """What a compiled program depends on beside the size of its batch: hashable.

    options: of the solver, as sorted pairs. framed: how many first samples of a device have their states kept.
    reporting: whether it reports its progress.
    """

    network: Network
    guide: Network | None
    flow: process.Process
    solver: str
    options: tuple
    shape: tuple
    framed: int | None = None
    reporting: bool = False


class Wanted(NamedTuple):
    """Which samples: n of them, sample i from (key, first + i), labels [n], −1 for none.

    framed: how many of the first have their states kept, if the solver keeps frames; None for all.
    """

    key: jax.Array
    n: int
    labels: np.ndarray
    first: int = 0
    framed: int | None = None


def guided_denoiser(network, guide, params, labels, guide_params, guide_labels, weight):
    """`denoise(x, sigma)` of a Network, guided by the Network `guide` unless that is None."""
    denoise = network.denoiser(params, labels)
    return denoise if guide is None else guidance.guided(denoise, guide.denoiser(guide_params, guide_labels), weight)


@functools.partial(jax.jit, static_argnums=(0, 1))
def denoised(network, guide, params, labels, guide_params, guide_labels, weight, x, sigma):
    """What `guided_denoiser` makes of x [B, H, W, C] and σ [B], compiled once for all calls of one shape."""
    return guided_denoiser(network, guide, params, labels, guide_params, guide_labels, weight)(x, sigma)


@functools.lru_cache(maxsize=64)
def compiled(program, size):
    """The function from keys to `size` samples, mapped over devices, of a Program.

    `(keys, labels, guide_labels, params, guide_params, weight) -> (x [b, *S], trajectory [framed, T, *S], the other
    SolveStats)`.
    """
    del size  # a key of the cache alone: one compiled function a batch size, so that those that exist can be counted
    network, guide, flow, solver, options, shape, framed, reporting = program
    levels = sampling.levels_of(solver, flow, dict(options)) if "grid" in sampling.find(solver)[1] else None

    def per_device(keys, labels, guide_labels, params, guide_params, weight):
        x = process.prior(flow, keys, shape)
        denoise = guided_denoiser(network, guide, params, labels, guide_params, guide_labels, weight)
        if reporting:
            denoise = progress.report(denoise, levels)
        solver_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        options_ = dict(options, keys=solver_keys, axis_name=parallel.AXIS, framed=framed)
        x, stats = sampling.SOLVERS[solver](flow, denoise, x, **options_)
        return x, jnp.swapaxes(stats.trajectory, 0, 1), stats._replace(trajectory=())

    return parallel.pmap(per_device, in_axes=(0, 0, 0, None, None, None))


def batch_size(n, most, solver, options, devices):
    """Samples that a program draws at once for n wanted ones, a multiple of the number of devices.

    One program serves several n: sizes are 1, 2, 4, 8 and from there powers of two and the halves between them, 12, 16,
    24, 32, …, up to `most`. The places left over draw further samples. Where the samples of a batch share a step size
    or a norm (`sampling.shares_steps`) these would count, and the size is n itself.
    """
    size = min(n, most)
    if not sampling.shares_steps(solver, dict(options)):
        power = 2 ** (size - 1).bit_length()
        size = min(most, power * 3 // 4 if power > 8 and size <= power * 3 // 4 else power)
    return -(-size // devices) * devices


def draw(program, wanted, params, guide=None, most=256, shown=True):
    """The samples of a Wanted by a Program: (x [n, *S] in the unit scale, SolveStats).

    Args:
      params: weights of the network. guide: a Guide or None.
      most: samples at once, at most.
      shown: show the progress of a long solve.

    Raises:
      UserError: a solve that did not reach the data, or a batch that is too large for the memory.
    """
    devices, options = parallel.device_count(), dict(program.options)
    size = batch_size(wanted.n, most, program.solver, options, devices)
    framed = min(wanted.framed, size // devices) if options.get("frames") and wanted.framed is not None else None
    program = program._replace(framed=framed, reporting=shown and seconds(program, size) > LONG)
    levels = sampling.levels_of(program.solver, program.flow, options)
    bar = progress.Bar(
        f"{program.solver}, {size} at once",
        -(-wanted.n // size),
        levels,
        shown and parallel.is_first() and (program.reporting or size < wanted.n),
    )
    known, parts = compiled.cache_info().misses, []
    run = compiled(program, size)
    if program.reporting and compiled.cache_info().misses > known:
        bar.say(f"compiling {program.solver} for {size} samples at once")
    with bar.listening():
        for start in range(0, wanted.n, size):
            x, trajectory, stats = _batch(run, wanted, start, size, params, guide)
            _require_completed(program.solver, stats)
            left = wanted.n if wanted.framed is None else wanted.framed
            parts.append((x, trajectory[: max(0, left - start)], stats))
            bar.batch()
    return _joined(parts, wanted.n)


def _batch(run, wanted, start, size, params, guide):
    """(x, trajectory, SolveStats) of the samples start … start + size − 1, on the host."""
    indices = np.arange(start, start + size)  # the last batch is filled up, so that one program serves all
    keys = jax.vmap(jax.random.fold_in, (None, 0))(wanted.key, wanted.first + indices)
    labels = parallel.shard(wanted.labels[np.minimum(indices, wanted.n - 1)])
    guide_labels = labels if guide and guide.uses_labels else np.full_like(labels, -1)
    weights = (guide.params, guide.weight) if guide else ((), 1.0)
    try:
        x, trajectory, stats = run(parallel.shard(keys), labels, guide_labels, params, *weights)
        x, trajectory, sample_nfe = (parallel.gather(a) for a in (x, trajectory, stats.sample_nfe))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(f"{size} samples at once are more than the memory holds: lower sample.batch") from None
        raise
    return x, trajectory, _over_devices(stats)._replace(sample_nfe=sample_nfe)


def _joined(parts, n):
    """Batches as one set of n samples: figures are means over them."""
    images, trajectories, every = zip(*parts, strict=True)
    mean = lambda name: float(np.mean([getattr(stats, name) for stats in every]))
    return np.concatenate(images)[:n], every[0]._replace(
        nfe=mean("nfe"),
        steps=mean("steps"),
        rejected=mean("rejected"),
        sample_nfe=np.concatenate([stats.sample_nfe for stats in every])[:n],
        trajectory=np.concatenate(trajectories)[:n].swapaxes(0, 1),
    )


def seconds(program, size):
    """How long a batch takes once it is compiled: an estimate by its order, from the network's operations."""
    options = sampling.find(program.solver)[1] | dict(program.options)
    calls = options.get("steps", ADAPTIVE_CALLS) * (2 if program.solver == "heun" else 1)
    calls *= (1 + options.get("corrector_steps", 0)) * (2 if program.guide else 1)
    on_cpu = parallel.device_kind() == "cpu"
    rate = RATES["cpu"] * (os.cpu_count() or 1) if on_cpu else RATES["other"] * parallel.device_count()
    return _operations(program.network, program.shape) * size * calls / rate


@functools.lru_cache(maxsize=8)
def _operations(network, shape):
    """Floating-point operations of one call of the network for one sample."""
    params = jax.eval_shape(lambda: models.init(network.model, shape))
    denoise = lambda params, x, sigma: network.denoiser(params, None)(x, sigma)
    x, sigma = jax.ShapeDtypeStruct((1, *shape), np.float32), jax.ShapeDtypeStruct((1,), np.float32)
    return (jax.jit(denoise).lower(params, x, sigma).cost_analysis() or {}).get("flops", 0.0)


def _over_devices(stats):
    """SolveStats with a device axis -> of the whole batch, on the host: devices may take steps of their own."""
    stats = jax.tree.map(parallel.gathered, stats._replace(sample_nfe=()))
    return stats._replace(
        nfe=stats.nfe.max(),
        steps=stats.steps.max(),
        rejected=stats.rejected.max(),
        completed=stats.completed.all(),
        finite=stats.finite.all(),
        # The highest level is where the first of them stopped.
        sigma=stats.sigma.max(),
        sigmas=stats.sigmas[0],
    )


def _require_completed(solver, stats):
    """Raises UserError for a solve that stopped on its way."""
    if not stats.finite:
        raise UserError(
            f"{solver} stopped at σ = {stats.sigma:.4g}, where the network returned NaN or inf (or jumps): its weights "
            "or the sample.* settings are unusable"
        )
    if not stats.completed:
        raise UserError(
            f"{solver} came only to σ = {stats.sigma:.4g} within its step limit of {stats.steps + stats.rejected}; "
            "raise max_steps, rtol or atol"
        )
