"""Compiled programs of inference over any number of images: padded to one batch size, spread over devices."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from pfgm_jax import parallel, sampling
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.inference import likelihood, reversible
from pfgm_jax.inference.latents import Latents
from pfgm_jax.inference.upwards import upwards

# Of the reversible solver, on each device: a network's last bits depend on the shape of its batch, so that encoding and
# decoding need the same, however many images there are.
REVERSIBLE_BATCH = 16


def over_batches(program, arrays, size, what, progress=True):
    """`program(*arrays)` for arrays with equal first axes, `size` rows at a time over all devices.

    Args:
      program: a mapped function of arrays [devices, b, …] that returns a tree of arrays [devices, b, …], or of
        [devices] for figures of a batch.
      size: rows at once; made a multiple of the number of devices. The last batch is filled up with its last row.
      what: label of the progress bar.

    Returns:
      The tree, rows joined to [n, …] and figures of batches to [batches, devices], on the host.
    """
    n, devices = len(arrays[0]), parallel.device_count()
    size = -(-size // devices) * devices
    parts = []
    with tqdm(total=n, desc=what, unit="image", delay=2, disable=not progress, leave=False) as bar:
        for start in range(0, n, size):
            rows = np.minimum(np.arange(start, start + size), n - 1)
            result = program(*(parallel.shard(array[rows]) for array in arrays))
            parts.append(jax.tree.map(lambda a: parallel.gather(a) if a.ndim > 1 else parallel.gathered(a), result))
            bar.update(min(size, n - start))
    join = lambda *leaves: np.concatenate(leaves)[:n] if leaves[0].shape[:1] == (size,) else np.stack(leaves)
    return jax.tree.map(join, *parts)


@functools.lru_cache(maxsize=32)
def solved(network, solver, options, up):
    """The mapped `(x, labels, params) -> (x, completed, nfe)` of a solver of the flow, up to σ_max or down to σ_min."""
    flow = upwards(network.process) if up else network.process

    def per_device(x, labels, params):
        x, stats = sampling.SOLVERS[solver](
            flow, network.denoiser(params, labels), x, last_denoise=False, axis_name=parallel.AXIS, **dict(options)
        )
        return x, stats.completed, stats.nfe

    return parallel.pmap(per_device, in_axes=(0, 0, None))


@functools.lru_cache(maxsize=8)
def reversed_exactly(network):
    """The mapped `(pair, labels, params, half steps) -> pair` of the reversible solver: one program, both ways."""

    def per_device(pair, labels, params, rows):
        return reversible.follow(network.denoiser(params, labels), pair, rows)

    return parallel.pmap(per_device, in_axes=(0, 0, None, None))


@functools.lru_cache(maxsize=8)
def settling(network, sigmas):
    """The mapped `(x, labels, params) -> half differences` of `reversible.settled`."""
    return parallel.pmap(
        lambda x, labels, params: reversible.settled(network.denoiser(params, labels), x, np.asarray(sigmas)),
        in_axes=(0, 0, None),
    )


@functools.lru_cache(maxsize=32)
def likelihoods(network, flow, options):
    """The mapped `(x, labels, keys, params) -> Likelihood` of images at the σ_min of `flow`."""

    def per_device(x, labels, keys, params):
        return likelihood.log_likelihood(
            flow, network.denoiser(params, labels), x, keys, axis_name=parallel.AXIS, **dict(options)
        )

    return parallel.pmap(per_device, in_axes=(0, 0, 0, None))


# Solvers that follow the flow and nothing else, and options that say so.
FLOW_SOLVERS = ("rk45", "tsit5", "euler", "heun", "dpmpp_2m", "dpmpp_3m", "ipndm", "unipc")
_DEFAULTS = {
    "reversible": {"grid": "edm", "rho": 7.0, "steps": 40, "settle": True},
    "rk45": {"rtol": 1e-5, "atol": 1e-5},
    "tsit5": {"rtol": 1e-5, "atol": 1e-5},
    "heun": {"steps": 36},
}


def check_solver(solver, options):
    """The options [(name, value), …] of a solver that encodes, sorted, defaults for inference among them.

    Raises:
      UserError: a solver that draws noise, or an option that it does not take or that draws noise.
    """
    if solver == "reversible":
        unknown = sorted(set(options) - set(_DEFAULTS[solver]))
        if unknown:
            raise UserError(f"solver reversible has no option {unknown[0]!r}; it takes {', '.join(_DEFAULTS[solver])}")
        options = _DEFAULTS[solver] | options
        sampling.check_options("heun", {name: options[name] for name in ("grid", "rho", "steps")})
        if not isinstance(options["settle"], bool):
            raise UserError(f"settle must be True or False, got {options['settle']!r}")
        if options["steps"] < 1:
            raise UserError(f"reversible needs steps >= 1, got {options['steps']}")
        return tuple(sorted(options.items()))
    if solver not in FLOW_SOLVERS:
        if solver in sampling.SOLVERS:
            raise UserError(f"{solver} cannot run backwards: give one of reversible, {', '.join(FLOW_SOLVERS)}")
        known = ("reversible", *FLOW_SOLVERS)
        raise UserError(f"unknown solver {solver!r}; choose from {', '.join(known)}{nearest(solver, known)}")
    reasons = {"S_churn": "draws noise", "last_denoise": "is not part of the flow", "frames": "keeps states"}
    for name, why in reasons.items():
        if options.get(name):
            raise UserError(f"{name} {why}: leave it out when encoding or decoding")
    sampling.check_options(solver, options)
    return tuple(sorted((_DEFAULTS.get(solver, {}) | options).items()))


class Weighted(NamedTuple):
    """A network with its weights: what inference needs of a run.

    Attributes:
      network: a `sampling.batches.Network`. params: its weights. run: identifies them.
      batch: images at once.
    """

    network: object
    params: object
    run: str
    batch: int = 64


def encode(weighted, x, labels, solver, options, progress=True):
    """The Latents of images x [n, H, W, C], floats in the unit scale, taken as states at σ_min.

    Args:
      labels: int32 [n] classes that the network is given, −1 for none.
      solver: "reversible" or one of FLOW_SOLVERS; options: a dict of its options.

    Raises:
      UserError: as `check_solver`, or a solve that does not reach σ_max.
    """
    options, flow = check_solver(solver, options), weighted.network.process
    if solver == "reversible":
        half = _settled(weighted, x, labels, dict(options), progress) if dict(options)["settle"] else 0
        x = reversible.to_pair(x, flow.sigma_min, half)
    else:
        x = np.asarray(x, np.float32)
    states = _along(_Way(weighted, solver, options, True, progress), x, labels)
    return Latents(states, np.asarray(labels, np.int32), solver, options, flow.sigma_max, weighted.run)


def decode(weighted, latents, progress=True):
    """The images [n, H, W, C] of Latents, floats in the unit scale at σ_min, by the solver that made them.

    Raises:
      UserError: latents of other weights, or a solve that does not reach σ_min.
    """
    if latents.run != weighted.run:
        raise UserError("these latents are of other weights: decode them with the Generator that encoded them")
    way = _Way(weighted, latents.solver, latents.options, False, progress)
    states = _along(way, latents.states, latents.labels)
    if latents.solver == "reversible":
        return reversible.to_states(states, weighted.network.process.sigma_min)
    return states


class _Way(NamedTuple):
    """From one end of the flow to the other: up to σ_max or down to σ_min, by a checked solver."""

    weighted: Weighted
    solver: str
    options: tuple
    up: bool
    progress: bool


def _along(way, states, labels):
    """The states [n, …] at the other end; pairs of the reversible solver, floats of others."""
    weighted, what = way.weighted, f"{'encoding' if way.up else 'decoding'}, {way.solver}"
    if way.solver == "reversible":
        rows = reversible.half_steps(_levels(weighted, dict(way.options)), way.up)
        program = reversed_exactly(weighted.network)
        run = lambda pair, labels: program(pair, labels, weighted.params, rows)
        size = REVERSIBLE_BATCH * parallel.device_count()
        return over_batches(run, (states, labels), size, what, way.progress)
    program = solved(weighted.network, way.solver, way.options, way.up)
    run = lambda x, labels: program(x, labels, weighted.params)
    states, completed, _ = over_batches(run, (states, labels), min(weighted.batch, len(states)), what, way.progress)
    if not np.all(completed):
        raise UserError(
            f"{what}: the solve did not reach its end, as the network returned NaN or inf, or the step limit was too "
            "low; raise rtol, atol or max_steps"
        )
    return states


def _levels(weighted, options):
    """The descending levels of the reversible solver, one more than its steps."""
    return sampling.levels(weighted.network.process, options["grid"], options["steps"] + 1, options["rho"])


def _settled(weighted, x, labels, options, progress):
    """`reversible.settled` of images, from `SETTLE_TO` down."""
    sigmas = _levels(weighted, options)
    low = tuple(sigmas[min(np.sum(sigmas > reversible.SETTLE_TO), len(sigmas) - 2) :].tolist())
    program = settling(weighted.network, low)
    run = lambda x, labels: program(x, labels, weighted.params)
    size = REVERSIBLE_BATCH * parallel.device_count()
    return over_batches(run, (np.asarray(x, np.float32), labels), size, "encoding, first difference", progress)


def log_likelihood(weighted, x, labels, key, sigma_min=None, progress=True, **options):
    """`likelihood.Likelihood` of states x [n, H, W, C] in the unit scale, arrays on the host.

    Args:
      labels: int32 [n] classes that the network is given, −1 for none.
      key: a PRNG key of the trace vectors; image i takes vectors of its own.
      sigma_min: level whose smoothed density it is; None takes the process's smallest.
      options: vectors, rtol, atol, steps, max_steps of `likelihood.log_likelihood`.

    Raises:
      UserError: a level outside the process's range, or a solve that does not reach σ_max.
    """
    flow = with_sigma_min(weighted.network.process, sigma_min)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(len(x)))
    program = likelihoods(weighted.network, flow, tuple(sorted(options.items())))
    run = lambda x, labels, keys: program(x, labels, keys, weighted.params)
    arrays = (np.asarray(x, np.float32), labels, jax.random.key_data(keys))
    result = over_batches(run, arrays, min(weighted.batch, len(x)), "log-likelihood", progress)
    if not np.all(result.completed):
        raise UserError("the likelihood's solve did not reach σ_max: raise rtol, atol or max_steps")
    return result._replace(nfe=float(np.mean(result.nfe)), completed=True)


def with_sigma_min(process, sigma_min):
    """The process down to another smallest level.

    Raises:
      UserError: a level outside the process's range.
    """
    if sigma_min is None:
        return process
    if not process.sigma_min * (1 - 1e-6) <= sigma_min < process.sigma_max:
        raise UserError(
            f"sigma_min must be from {process.sigma_min:.4g} to below {process.sigma_max:.4g}, the range of noise "
            f"levels of this run, got {sigma_min:g}"
        )
    return dataclasses.replace(process, t_min=float(process.time(max(sigma_min, process.sigma_min))))
