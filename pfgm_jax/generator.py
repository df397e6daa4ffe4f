"""A trained run as an object to sample from: `load(workdir)`."""

import math
import os
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from pfgm_jax import config as config_lib
from pfgm_jax import models, run_folder, run_record, sampling
from pfgm_jax import run as run_lib
from pfgm_jax.array_types import Arrays, Denoiser
from pfgm_jax.data.class_labels import class_labels
from pfgm_jax.data.dataset import to_uint8
from pfgm_jax.errors import UserError, nearest, printable
from pfgm_jax.flow import process
from pfgm_jax.sampling import SolveStats, arguments, batches
from pfgm_jax.storage import atomic, checkpoint, safetensors

# Weights that come with the package, each a folder as `--mode=export` writes it.
PRETRAINED = pathlib.Path(__file__).parent / "pretrained"


def sampling_process(config, trained, D=None):
    """The process to sample with: the trained one, with `D`, or else sample.D, in place of its own if given."""
    D = config.sample.D if D is None else arguments.number("D", D)
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
    raise UserError("this network was trained without labels; train one with model.conditional=True")


def check_guidance(config, weight=None, guide=None):
    """The weight of guidance and the guide, those of the run's sample section if None.

    Raises:
      UserError: a weight that is no number, a guide without one, or no guide for a network that is never or always told
        the label.
    """
    asked = weight is not None
    weight = config.sample.guidance if weight is None else arguments.number("guidance", weight)
    guide = guide or config.sample.guide
    if not math.isfinite(weight):
        raise UserError(f"guidance must be a number, 1 for none, got {weight:g}")
    if guide and weight == 1 and not asked:
        raise UserError("a guide does nothing at guidance 1: set sample.guidance, such as to 2, or leave the guide out")
    away = "guidance leads away from the network without its label, and this one was trained"
    weaker = "give a weaker network as sample.guide"
    if weight != 1 and not guide and not config.model.conditional:
        raise UserError(f"{away} without labels: {weaker}, or train one with model.conditional and train.label_dropout")
    if weight != 1 and not guide and not config.train.label_dropout:
        raise UserError(f"{away} with every label: train one with train.label_dropout=0.1, or {weaker}")
    return weight, guide


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

    _seed_said = False  # whether it was said that no key was given

    def __init__(self, config, derived, params, step=0):
        self.config, self.derived, self.params, self.step = config, derived, params, step
        self.process = run_lib.make_process(config, derived)
        self.parametrization = run_lib.make_parametrization(config, derived)
        self.model = run_lib.make_model(config, derived)

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of an image."""
        return tuple(self.derived["shape"])

    @property
    def network(self):
        """What makes denoisers of `params`."""
        return batches.Network(self.process, self.parametrization, self.model)

    def __repr__(self):
        told = (
            f"told one of {len(self.derived['classes'])} classes" if self.config.model.conditional else "unconditional"
        )
        parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params))
        flow, data = self.process, printable(self.derived.get("imported") or self.config.data.name)
        return (
            f"Generator of {'×'.join(map(str, self.shape))} {data}, {told}: {flow.name}, D = {flow.D:g}, "
            f"σ from {flow.sigma_max:.4g} to {flow.sigma_min:.4g}\n"
            f"  network {self.config.model.name}, {parameters:,} parameters, {self._seen()}"
        )

    def _seen(self):
        """How long the weights were trained."""
        if self.derived.get("imported"):
            return "imported"
        return f"EMA weights after {self.step * self.config.train.batch:,} images"

    def denoise(self, x: Any, sigma: Any, labels: Any = None) -> Float[Arrays, "B H W C"]:
        """The network's posterior mean E[y | x, σ], [B, H, W, C].

        Args:
          x: [B, H, W, C] floats, unscaled: data in [-1, 1] plus noise of scale σ.
          sigma: a number, or [B].
          labels: for a conditional network: a class's number or [B] of them, −1 for none; None tells it none.

        Raises:
          UserError: another shape or type, a sigma that is not above 0, or labels that the network does not know.
        """
        return self.denoiser(labels)(x, sigma)

    def denoiser(self, labels: Any = None, guidance: Any = 1.0, guide: Any = None) -> Denoiser:
        """`denoise(x, sigma)` with guidance as in `sample`; arguments and labels as for `denoise`."""
        by = self.guide(guidance, guide)
        classes = len(self.derived["classes"]) if self.config.model.conditional else 0

        def denoise(x, sigma):
            x = arguments.states(x, self.shape)
            sigma, told = arguments.noise_levels(sigma, x), arguments.state_labels(labels, len(x), classes)
            if by is None:
                return self.network.denoiser(self.params, told)(x, sigma)
            guide_told = told if by.told else None
            return batches.guided_denoiser(
                self.network, by.network, self.params, told, by.params, guide_told, by.weight
            )(x, sigma)

        return denoise

    def labels(self, key: Any = None, n: Any = None, labels: Any = None) -> Int[np.ndarray, "n"]:
        """The classes [n] that `sample` would tell the network for these arguments, −1 if it is told none."""
        key, n = self._key(key), self._count(n)
        return told_labels(self.config, self.derived, n, key, labels)

    def _count(self, n):
        """The number of samples that `n` means."""
        n = arguments.whole("n", self.config.sample.n if n is None else n, 1)
        arguments.require_memory("n", n, self.shape)
        return n

    def _key(self, key):
        """The key that `key` means."""
        if key is None:
            return jax.random.key(self.config.sample.seed)
        arguments.require_key(key)
        return key

    def guide(self, guidance: Any = None, guide: Any = None) -> batches.Guide | None:
        """The Guide that `sample` would use for these arguments, or None.

        Raises:
          UserError: as `check_guidance`, or a guide for other images, noise levels or classes.
        """
        weight, guide = check_guidance(self.config, guidance, guide)
        if weight == 1:
            return None
        if not guide:
            return batches.Guide(self.network, self.params, False, weight)
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
        return batches.Guide(weak.network, weak.params, told, weight)

    def sample(
        self,
        key: Any = None,
        n: Any = None,
        labels: Any = None,
        solver: str | None = None,
        D: Any = None,
        guidance: Any = None,
        guide: Any = None,
        first: Any = 0,
        framed: Any = None,
        progress: bool = True,
        **options,
    ) -> tuple[UInt8[np.ndarray, "n H W C"] | Float[np.ndarray, "n H W C"], SolveStats]:
        """Draws n images.

        Sample i depends on (key, i): asking for more keeps the first ones, up to what a batch shares: the step control
        of rk45 and tsit5, unless per_sample, and the step size of predictor_corrector's corrector. Such batches are of
        n samples; others are filled up to one of a few sizes, so that one compiled program serves several n
        (`batches.batch_size`).

        Args:
          key: a PRNG key, `jax.random.key(0)`; None takes that of the run's sample.seed: the same samples every time.
          n: how many; None takes the run's sample.n.
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
          framed: how many of the first samples have their states kept, with frames; None for all.
          progress: show a bar over the solver's steps, on stderr, where a solve is long.
          options: of the solver, such as rtol, steps, grid, frames; unset ones come from the run's sample section.

        Returns:
          (uint8 [n, H, W, C], or float32 where the data are points; SolveStats as NumPy arrays: nfe, steps and rejected
          are means over batches, sample_nfe [n], the trajectory float [T, framed, H, W, C]). With guidance an
          evaluation is two calls of a network.

        Raises:
          UserError: an unknown solver or option, a solver that the process does not admit, labels or a guide that do
            not fit, guidance that was not trained for, more than the memory holds, or a solve that did not reach the
            data.
        """
        x, stats = self.sample_unit(key, n, labels, solver, D, guidance, guide, first, framed, progress, **options)
        return np.asarray(to_images(self.derived, x)), stats

    def sample_unit(
        self,
        key: Any = None,
        n: Any = None,
        labels: Any = None,
        solver: str | None = None,
        D: Any = None,
        guidance: Any = None,
        guide: Any = None,
        first: Any = 0,
        framed: Any = None,
        progress: bool = True,
        **options,
    ) -> tuple[Float[np.ndarray, "n H W C"], SolveStats]:
        """As `sample`, but float images in the unit scale [-1, 1], not clipped."""
        if key is None and not self._seed_said:
            self._seed_said = True
            print(f"no key: sampling from seed {self.config.sample.seed}, the run's own", file=sys.stderr)
        key, n, first = self._key(key), self._count(n), arguments.whole("first", first, 0)
        framed = None if framed is None else arguments.whole("framed", framed, 0)
        solver = solver or self.config.sample.solver
        options = {name: value for name, value in options.items() if value is not None}
        sampling.check_options(solver, options)
        options = solver_options(self.config, solver) | options
        flow = sampling_process(self.config, self.process, D)
        states = options.get("frames", 0) * (n if framed is None else min(n, framed))
        arguments.require_memory("frames × samples", states, self.shape)
        if labels is None or isinstance(labels, str):
            labels = self.labels(key, first + n, labels)[first:]
        else:
            labels = self.labels(key, n, labels)
        by = self.guide(guidance, guide)
        program = batches.Program(
            self.network, by.network if by else None, flow, solver, tuple(sorted(options.items())), self.shape
        )
        wanted = batches.Wanted(key, n, labels, first, framed)
        return batches.draw(program, wanted, self.params, by, self.config.sample.batch, progress)


def _pretrained(workdir):
    """The folder that `pretrained:NAME` means; any other workdir as it is."""
    prefix, _, name = str(workdir).partition(":")
    if prefix != "pretrained":
        return workdir
    names = sorted(file.parent.name for file in PRETRAINED.glob(f"*/{safetensors.EXPORTED}"))
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


def load(workdir: str | os.PathLike, step: Any = None) -> Generator:
    """The run in `workdir` with the EMA weights of its newest sound checkpoint, or an exported folder with its weights.

    `pretrained:NAME` opens the weights called NAME that come with the package.

    Args:
      step: another checkpoint than the newest: its step, or "best" for the one with the lowest validation loss.

    Raises:
      UserError: no run there, a config.json that is none, no checkpoint yet or none of that step, damaged weights or
        those of another network, or an unknown NAME.
    """
    workdir = atomic.expanded(_pretrained(workdir))
    config, derived = run_record.load(workdir)
    try:
        config_lib.check(config)
        run_lib.check_derived(derived)
        model = run_lib.make_model(config, derived)
    except UserError as error:
        raise UserError(f"{pathlib.Path(workdir, 'config.json')} makes no network: {printable(str(error))}") from None
    like = jax.eval_shape(lambda: models.init(model, derived["shape"]))
    exported = pathlib.Path(workdir, safetensors.EXPORTED)
    if os.path.lexists(exported):
        if not exported.is_file():  # a pipe would be waited for
            raise UserError(f"{exported} is no file of weights: export or import writes one")
        if step is not None:
            raise UserError(f"{workdir} holds exported weights, which are of one step: leave out step={step!r}")
        params = safetensors.load(exported, like, run_record.fingerprint(run_record.read(workdir)))
        return Generator(config, derived, params, derived.get("step", 0))
    restored = checkpoint.restore(workdir, {"ema": like}, _numbered(workdir, config, step))
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet; its run saves one every {config.train.save_every:,} images")
    step, items = restored
    return Generator(config, derived, items["ema"], step)
