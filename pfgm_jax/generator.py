"""A trained run as an object to sample from: `load(workdir)`."""

import functools
import math
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from pfgm_jax import (
    build,
    checkpoint,
    files,
    guidance,
    models,
    parallel,
    parametrization,
    process,
    run_folder,
    sampling,
    weights,
)
from pfgm_jax import config as config_lib
from pfgm_jax.data.dataset import to_uint8
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.labels import class_labels

# Weights that come with the package, each a folder as `--mode=export` writes it.
PRETRAINED = pathlib.Path(__file__).parent / "pretrained"


class Network(NamedTuple):
    """What makes denoisers of weights, hashable."""

    process: process.Process
    parametrization: object
    model: object

    def denoiser(self, params, labels):
        """`denoise(x, sigma)` with these weights, told these labels [B], −1 or None for none."""
        network = lambda x, noise: self.model.apply({"params": params}, x, noise, labels)
        return parametrization.denoiser(self.parametrization, self.process, network)


class Guide(NamedTuple):
    """A guide and the weight it is used with (`guidance.guided`)."""

    network: Network
    params: dict
    told: bool  # whether it is told the labels
    weight: float


def _denoiser(network, guide, params, labels, guide_params, guide_labels, weight):
    """`denoise(x, sigma)` of a Network, guided by the Network `guide` unless that is None."""
    denoise = network.denoiser(params, labels)
    return denoise if guide is None else guidance.guided(denoise, guide.denoiser(guide_params, guide_labels), weight)


@functools.lru_cache(maxsize=32)
def _sampler(network, guide, flow, solver, options, shape):
    """The compiled program from keys to samples, mapped over devices, for a Network (and its guide) sampled by `flow`.

    `(keys, labels, guide_labels, params, guide_params, weight) -> (x [b, *S], trajectory [b, T, *S], the other
    SolveStats)`.
    """

    def per_device(keys, labels, guide_labels, params, guide_params, weight):
        x = process.prior(flow, keys, shape)
        denoise = _denoiser(network, guide, params, labels, guide_params, guide_labels, weight)
        solver_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        options_ = dict(options, keys=solver_keys, axis_name=parallel.AXIS)
        x, stats = sampling.SOLVERS[solver](flow, denoise, x, **options_)
        return x, jnp.swapaxes(stats.trajectory, 0, 1), stats._replace(trajectory=())

    return parallel.pmap(per_device, in_axes=(0, 0, 0, None, None, None))


def sampling_process(config, trained, D=None):
    """The process to sample with: the trained one, with `D`, or else sample.D, in place of its own if given."""
    D = config.sample.D if D is None else D
    return trained if D is None else process.with_D(trained, D)


def solver_options(config, solver):
    """What the sample section says to the solver: {option: value}, without those left to its default."""
    _, defaults = sampling.find(solver)
    given = {name: config.sample[name] for name in defaults if name != "frames"}
    return {name: value for name, value in given.items() if value is not None}


def check_sampling(config, trained, derived):
    """Raises UserError if the config's solver is not defined for the process, or its labels or guidance for the run."""
    solver = config.sample.solver
    sampling.check(solver, sampling_process(config, trained), solver_options(config, solver))
    told_labels(config, derived, 1, jax.random.key(0))
    check_guidance(config)


def told_labels(config, derived, n, key, labels=None):
    """`class_labels`, those of the run's sample section if None; −1 for a network that is not told any."""
    labels = config.sample.labels if labels is None else labels
    if config.model.conditional:
        return class_labels(labels, n, key, derived["classes"], derived["label_counts"])
    if isinstance(labels, str) and labels == "real":
        return np.full(n, -1)
    raise UserError("this network was trained without labels; train one with --config.model.conditional=True")


def check_guidance(config, weight=None, guide=None):
    """The weight of guidance and the guide, those of the run's sample section if None.

    Raises:
      UserError: a weight that is no number, a guide without one, or no guide for a network that is never or always told
        the label.
    """
    asked = weight is not None
    weight, guide = config.sample.guidance if weight is None else weight, guide or config.sample.guide
    if not math.isfinite(weight):
        raise UserError(f"guidance must be a number, 1 for none, got {weight:g}")
    if guide and weight == 1 and not asked:
        raise UserError("a guide does nothing at guidance 1: set sample.guidance, such as to 2, or leave the guide out")
    away = "guidance leads away from the network without its label, and this one was trained"
    weaker = "give a weaker network as sample.guide"
    if weight != 1 and not guide and not config.model.conditional:
        raise UserError(f"{away} without labels: {weaker}, or train one with model.conditional and train.label_dropout")
    if weight != 1 and not guide and not config.train.label_dropout:
        raise UserError(f"{away} with every label: train one with --config.train.label_dropout=0.1, or {weaker}")
    return weight, guide


def _over_devices(stats):
    """SolveStats with a device axis -> of the whole batch, on the host: devices may take steps of their own."""
    stats = jax.tree.map(np.asarray, stats._replace(sample_nfe=()))
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


def to_images(derived, x):
    """Samples in the unit scale as what the data of `derived` are: uint8 images, or floats as they come."""
    return x if derived.get("dtype", "uint8") == "float32" else to_uint8(x)


class Generator:
    """What a notebook holds: a process, a network and its weights.

    Attributes:
      config, derived: of the run.
      process, parametrization, model: made from them.
      params: the weights, EMA as a rule.
      step: training step of the weights.
    """

    def __init__(self, config, derived, params, step=0):
        self.config, self.derived, self.params, self.step = config, derived, params, step
        self.process = build.make_process(config, derived)
        self.parametrization = build.make_parametrization(config, derived)
        self.model = build.make_model(config, derived)

    @property
    def shape(self):
        """(H, W, C) of an image."""
        return tuple(self.derived["shape"])

    @property
    def network(self):
        """What makes denoisers of `params`."""
        return Network(self.process, self.parametrization, self.model)

    def denoise(self, x, sigma, labels=None):
        """The network's posterior mean E[y | x, σ]: x [B, H, W, C] unscaled, sigma [B], labels [B] -> [B, H, W, C]."""
        return self.denoiser(labels)(x, sigma)

    def denoiser(self, labels=None, guidance=1.0, guide=None):
        """`denoise(x, sigma)` with guidance as in `sample`; labels [B], or None to tell the network none."""
        by = self.guide(guidance, guide)
        if by is None:
            return self.network.denoiser(self.params, labels)
        told = labels if by.told else None
        return _denoiser(self.network, by.network, self.params, labels, by.params, told, by.weight)

    def labels(self, key, n, labels=None):
        """The classes [n] that `sample` would tell the network for these arguments, −1 if it is told none."""
        return told_labels(self.config, self.derived, n, key, labels)

    def guide(self, guidance=None, guide=None):
        """The Guide that `sample` would use for these arguments, or None.

        Raises:
          UserError: as `check_guidance`, or a guide for other images, noise levels or classes.
        """
        weight, guide = check_guidance(self.config, guidance, guide)
        if weight == 1:
            return None
        if not guide:
            return Guide(self.network, self.params, False, weight)
        weak = guide if isinstance(guide, Generator) else load(guide)
        told, own, theirs = weak.config.model.conditional, self.process, weak.process
        if weak.shape != self.shape:
            shapes = ["×".join(map(str, shape)) for shape in (weak.shape, self.shape)]
            raise UserError(f"the guide makes images of {shapes[0]}, this network of {shapes[1]}")
        # Ranges may come from data, in float32.
        if theirs.D != own.D or theirs.sigma_max < 0.999 * own.sigma_max or theirs.sigma_min > 1.001 * own.sigma_min:
            ranges = [f"D = {p.D:g}, σ from {p.sigma_max:.4g} to {p.sigma_min:.4g}" for p in (theirs, own)]
            raise UserError(f"the guide is for {ranges[0]}, this network for {ranges[1]}, which a guide must cover")
        if told and (not self.config.model.conditional or weak.derived["classes"] != self.derived["classes"]):
            names = ", ".join(weak.derived["classes"][:20])
            raise UserError(f"the guide is told classes that this network does not know: {names}")
        return Guide(weak.network, weak.params, told, weight)

    def sample(self, key, n, labels=None, solver=None, D=None, guidance=None, guide=None, first=0, **options):
        """Draws n images.

        Sample i depends on (key, i): asking for more keeps the first ones, up to what a batch shares: the step control
        of rk45 and tsit5, unless per_sample, and the step size of predictor_corrector's corrector.

        Args:
          key: a PRNG key, `jax.random.key(0)`.
          n: how many.
          labels: for a conditional network: "real" (the training set's frequencies), "balanced", a class's name or
            number, or [n] numbers (`class_labels`); None takes the run's sample.labels.
          solver: a name in `sampling.SOLVERS`; None takes the run's sample.solver.
          D: sample with another D than the one trained with; None takes the run's sample.D, and the trained one where
            that is None too.
          guidance: the weight w of guide + w (network − guide), 1 for none (`guidance.guided`); None takes the run's
            sample.guidance.
          guide: a Generator of a weaker network, or what `load` takes; None takes the run's sample.guide, and this
            network without its label where that is empty.
          first: number of the first sample: a large set is drawn in parts.
          options: of the solver, such as rtol, steps, grid, frames; unset ones come from the run's sample section.

        Returns:
          (uint8 [n, H, W, C], or float32 where the data are points; SolveStats as NumPy arrays: nfe, steps and rejected
          are means over batches, sample_nfe [n], the trajectory float [T, n, H, W, C]). With guidance an evaluation is
          two calls of a network.

        Raises:
          UserError: an unknown solver or option, a solver that the process does not admit, labels or a guide that do
            not fit, guidance that was not trained for, or a solve that did not reach the data.
        """
        x, stats = self.sample_unit(key, n, labels, solver, D, guidance, guide, first, **options)
        return to_images(self.derived, x), stats

    def sample_unit(self, key, n, labels=None, solver=None, D=None, guidance=None, guide=None, first=0, **options):
        """As `sample`, but float images in the unit scale [-1, 1], not clipped."""
        solver = solver or self.config.sample.solver
        sampling.check_options(solver, options)
        options = solver_options(self.config, solver) | options
        flow = sampling_process(self.config, self.process, D)
        if n < 1:
            raise UserError(f"n must be at least 1, got {n}")
        if labels is None or isinstance(labels, str):
            labels = self.labels(key, first + n, labels)[first:]
        else:
            labels = self.labels(key, n, labels)
        by = self.guide(guidance, guide)
        network, weights = (by.network, (by.params, by.weight)) if by else (None, ((), 1.0))
        program = _sampler(self.network, network, flow, solver, tuple(sorted(options.items())), self.shape)
        devices = parallel.device_count()
        batch = -(-min(self.config.sample.batch, n) // devices) * devices
        parts = []
        for start in tqdm(range(0, n, batch), desc=f"sample, {batch} at once", disable=n <= batch):
            indices = np.arange(start, start + batch)  # the last batch is filled up, so that one program serves all
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + indices)
            told = parallel.shard(labels[np.minimum(indices, n - 1)])
            guide_told = told if by and by.told else np.full_like(told, -1)
            x, trajectory, stats = program(parallel.shard(keys), told, guide_told, self.params, *weights)
            x, trajectory, nfe = (parallel.gather(a) for a in (x, trajectory, stats.sample_nfe))
            stats = _over_devices(stats)
            _require_completed(solver, stats)
            parts.append((x, trajectory, nfe, stats))
        images, trajectories, sample_nfe, every = zip(*parts, strict=True)
        images = np.concatenate(images)[:n]
        mean = lambda name: float(np.mean([getattr(stats, name) for stats in every]))
        return images, every[0]._replace(
            nfe=mean("nfe"),
            steps=mean("steps"),
            rejected=mean("rejected"),
            sample_nfe=np.concatenate(sample_nfe)[:n],
            trajectory=np.concatenate(trajectories)[:n].swapaxes(0, 1),
        )


def _pretrained(workdir):
    """The folder that `pretrained:NAME` means; any other workdir as it is."""
    prefix, _, name = str(workdir).partition(":")
    if prefix != "pretrained":
        return workdir
    names = sorted(file.parent.name for file in PRETRAINED.glob(f"*/{weights.EXPORTED}"))
    if name not in names:
        there = f"there are {', '.join(names)}" if names else "there are none in this package"
        raise UserError(f"no pretrained weights are called {name!r}; {there}{nearest(name, names)}")
    return PRETRAINED / name


def _numbered(workdir, config, step):
    """The step that `load`'s argument means, None for the newest."""
    if step != "best":
        if step is not None and (isinstance(step, bool) or not isinstance(step, int | np.integer)):
            raise UserError(f'step={step!r} is no step: give a number, "best", or None for the newest')
        return step
    best = run_folder.best_step(workdir, run_folder.validation_losses(workdir, config.train.batch))
    if best is None:
        raise UserError(f"no checkpoint in {workdir} has a validation loss in metrics.jsonl: give a number of a step")
    return best


def load(workdir, step=None):
    """The run in `workdir` with the EMA weights of its newest sound checkpoint, or an exported folder with its weights.

    `pretrained:NAME` opens the weights called NAME that come with the package.

    Args:
      step: another checkpoint than the newest: its step, or "best" for the one with the lowest validation loss.

    Raises:
      UserError: no run there, no checkpoint yet or none of that step, damaged weights or those of another network, or
        an unknown NAME.
    """
    workdir = files.expanded(_pretrained(workdir))
    config, derived = config_lib.load_run(workdir)
    model = build.make_model(config, derived)
    like = jax.eval_shape(lambda: models.init(model, derived["shape"]))
    exported = pathlib.Path(workdir, weights.EXPORTED)
    if exported.exists():
        if step is not None:
            raise UserError(f"{workdir} holds exported weights, which are of one step: leave out step={step!r}")
        params = weights.load(exported, like, config_lib.fingerprint(config_lib.read_record(workdir)))
        return Generator(config, derived, params, derived.get("step", 0))
    restored = checkpoint.restore(workdir, {"ema": like}, _numbered(workdir, config, step))
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet; its run saves one every {config.train.save_every:,} images")
    step, items = restored
    return Generator(config, derived, items["ema"], step)
