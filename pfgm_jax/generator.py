"""A trained run as an object to sample from: `load(workdir)`."""

import base64
import functools
import math
import os
import sys
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from pfgm_jax import inference, run_record, stored_run
from pfgm_jax import run as run_lib
from pfgm_jax.array_types import Arrays, Denoiser
from pfgm_jax.config import flatten
from pfgm_jax.data.dataset import to_uint8
from pfgm_jax.errors import UserError, printable
from pfgm_jax.inference import restoration
from pfgm_jax.sampling import SolveStats, arguments, batches, schedules
from pfgm_jax.sampling.settings import SampleSettings, check_network, labels_for
from pfgm_jax.storage import digests


def check_sampling(run):
    """Raises UserError if a run's sample section does not fit it: its solver, labels or guidance."""
    settings = SampleSettings.of(run.config.sample)
    settings.check(run.process)
    labels_for(run, settings.labels, 1, jax.random.key(0))
    check_network(run, settings)


def to_images(derived, x):
    """Samples in the unit scale as what the data of `derived` are: uint8 images, or floats as they come."""
    return x if derived.get("dtype", "uint8") == "float32" else to_uint8(x)


class Generator:
    """A trained run to sample from: what a notebook holds.

    Attributes:
      run: the Run; its config, derived, process, parametrization and model are attributes of the Generator too.
      params: the weights, EMA as a rule.
      step: training step of the weights.
      source: what it was loaded from, "" if it was not.
      trained_on: the data.name that it was trained on, whichever set is named to measure it on.
    """

    _seed_said = False  # whether it was said that no key was given

    def __init__(self, run, params, step=0, source="", trained_on=""):
        self.run, self.params, self.step, self.source = run, params, step, source
        self.trained_on = trained_on or run.config.data.name

    config = property(lambda self: self.run.config)
    derived = property(lambda self: self.run.derived)
    process = property(lambda self: self.run.process)
    parametrization = property(lambda self: self.run.parametrization)
    model = property(lambda self: self.run.model)

    def with_params(self, params):
        """The same network with other weights."""
        return Generator(self.run, params, self.step, self.source, self.trained_on)

    def with_overrides(self, overrides):
        """The same weights with other settings of their use (`run_record.USES`); texts are read.

        For example {"sample.batch": 8}.

        Raises:
          UserError: an unknown setting, an impossible value, one of another section, or another split of the images
            that the run was trained on.
        """
        config = run_record.with_overrides(self.config, overrides)
        fixed = [key for key in overrides if not key.startswith(run_record.USES)]
        own = config.data.name == self.trained_on and not self.derived.get("imported")
        before, after = flatten(self.config), flatten(config)
        kept = run_record.CONDITION + run_record.SPLIT if own else run_record.CONDITION
        if fixed := fixed + [key for key in kept if after[key] != before[key]]:
            raise UserError(f"{', '.join(fixed)} cannot be changed in a trained run: leave it out")
        params, width = self.params, config.sample.ema_width
        if width != self.config.sample.ema_width:
            params = stored_run.average(stored_run.folder(self.source), self.step, width, params)
        return Generator(run_lib.make_run(config, self.derived), params, self.step, self.source, self.trained_on)

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of an image."""
        return tuple(self.derived["shape"])

    @property
    def network(self):
        """What makes denoisers of `params`."""
        return batches.Network(self.process, self.parametrization, self.model)

    @property
    def settings(self):
        """The run's own SampleSettings."""
        return SampleSettings.of(self.config.sample)

    @property
    def classes(self):
        """Names of the classes; () for an unconditional network."""
        return tuple(self.derived["classes"]) if self.config.model.conditional else ()

    @property
    def num_classes(self):
        return len(self.classes)

    @property
    def needs_label(self):
        """Whether it is class-conditional and was never trained without a label; imported weights do not say so."""
        return bool(self.classes and not self.config.train.label_dropout and not self.derived.get("imported"))

    def __repr__(self):
        conditional = f"class-conditional, {self.num_classes} classes" if self.classes else "unconditional"
        if self.run.condition:
            conditional += f", conditioned on {self.run.condition}"
        card = self._card()
        return (
            f"Generator of {card['images']}, {conditional}: {card['process']}\n"
            f"  network {card['network']}, {card['weights']}"
        )

    def _card(self):
        """{what: words} of what it is."""
        parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params))
        flow, data = self.process, printable(self.derived.get("imported") or self.config.data.name)
        return {
            "images": f"{'×'.join(map(str, self.shape))} {data}",
            "process": f"{flow.name}, D = {flow.D:g}, σ from {flow.sigma_max:.4g} to {flow.sigma_min:.4g}",
            "network": f"{self.config.model.name}, {parameters:,} parameters",
            "weights": self._seen(),
        }

    def _repr_html_(self):
        """In a notebook: its card, and the newest picture of its samples where its folder holds one."""
        from pfgm_jax.metrics.tables import as_html  # scipy.stats comes with metrics: not for every `load`

        classes = {"classes": ", ".join(map(printable, self.classes))} if self.classes else {}
        card = as_html([["Generator", self.source], *map(list, (self._card() | classes).items())])
        if not (picture := self._repr_png_()):
            return card
        return f'{card}<img alt="samples" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'

    def _repr_png_(self):
        """The newest picture of its samples, where the folder it was loaded from holds one; None shows nothing."""
        folder = stored_run.folder(self.source) if self.source else None
        pictures = [*folder.glob("samples.png"), *folder.glob("samples/*.png")] if folder else []
        return max(pictures, key=os.path.getmtime).read_bytes() if pictures else None

    def _seen(self):
        """How long the weights were trained."""
        if self.derived.get("imported"):
            return "imported"
        tuned = f" of tuning from step {self.config.tune.step:,} of its source" if self.run.tuned else ""
        return f"{self.average} after {self.run.images_seen(self.step)}{tuned}"

    @property
    def images_seen(self):
        """The images that the weights were trained on, those of train.init's included; None where that is not known."""
        before = None if self.derived.get("imported") else self.run.init_images
        return None if before is None else before + self.step * self.config.train.batch

    @property
    def average(self):
        """What the weights are an average of, in words."""
        width = self.config.sample.ema_width
        return f"EMA weights of relative width {width:g}" if width else "EMA weights"

    def denoise(self, x: Any, sigma: Any, labels: Any = None) -> Float[Arrays, "B H W C"]:
        """The network's posterior mean E[y | x, σ], [B, H, W, C].

        Args:
          x: [B, H, W, C] floats, unscaled: data in [-1, 1] plus noise of scale σ.
          sigma: a number, or [B].
          labels: for a class-conditional network: a class's number or [B] of them; −1, or None for all, is no class.

        Raises:
          UserError: another shape or type, a sigma that is not above 0, labels that the network does not know, or none
            for a network that was never trained without.
        """
        return self.denoiser(labels)(x, sigma)

    def denoiser(self, labels: Any = None, guidance: Any = 1.0, guide: Any = None) -> Denoiser:
        """`denoise(x, sigma)` with guidance as in `sample`; arguments and labels as for `denoise`."""
        self._require_mean("denoise")
        guide = self.guide(guidance, guide)

        def denoise(x, sigma):
            x = arguments.states(x, self.shape)
            sigma, own = arguments.noise_levels(sigma, x), self._state_labels(labels, len(x))
            if guide is None:
                return batches.denoised(self.network, None, self.params, own, None, None, 1.0, x, sigma)
            guide_labels = own if guide.uses_labels else None
            return batches.denoised(
                self.network, guide.network, self.params, own, guide.params, guide_labels, guide.weight, x, sigma
            )

        return denoise

    def labels(self, key: Any = None, n: Any = None, labels: Any = None) -> Int[np.ndarray, "n"]:
        """The classes [n] that `sample` would condition on for these arguments, −1 for an unconditional network."""
        settings = self.settings.changed(n, labels=labels)
        arguments.require_memory("n", settings.n, self.shape)
        return labels_for(self.run, settings.labels, settings.n, self._key(key, settings))

    def _key(self, key, settings):
        """The key, or that of the settings' seed if it is None."""
        if key is None:
            return jax.random.key(settings.seed)
        arguments.require_key(key)
        return key

    def flow_end(self, x: Any, sigma: Any, labels: Any = None) -> Float[Arrays, "B H W C"]:
        """Where the flow leads from x at σ, by one evaluation of a tuned network; arguments as for `denoise`.

        Raises:
          UserError: a network that is not tuned, and as `denoise`.
        """
        if not self.run.tuned:
            raise UserError(
                "flow_end needs a tuned network, and this one predicts the posterior mean: --mode=tune makes one"
            )
        x = arguments.states(x, self.shape)
        sigma, own = arguments.noise_levels(sigma, x), self._state_labels(labels, len(x))
        return batches.denoised(self.network, None, self.params, own, None, None, 1.0, x, sigma)

    def _require_mean(self, what, conditioned=False):
        """Raises UserError for a tuned network, which is no posterior mean.

        And for an image-conditional one, unless `conditioned`.
        """
        if not conditioned:
            self.require_unconditioned(what)
        if self.run.tuned:
            raise UserError(
                f"{what} needs the posterior mean, and this network is tuned to the end of the flow: use the run "
                f"it was tuned from, {printable(self.config.train.init)}"
            )

    def require_unconditioned(self, what: str) -> None:
        """Raises UserError, in which `what` is the subject, for an image-conditional network."""
        if self.run.condition:
            raise UserError(
                f"{what} needs an image-unconditional network, and this one is conditioned on "
                f"{self.run.condition}: use restore"
            )

    def guide(self, guidance: Any = None, guide: Any = None) -> batches.Guide | None:
        """The Guide that `sample` would use for these arguments, or None.

        Raises:
          UserError: as `check_network`, or a guide for other images, noise levels or classes.
        """
        return self._guide(self.settings.changed(guidance=guidance, guide=guide))

    def _guide(self, settings):
        check_network(self.run, settings)
        if settings.guidance == 1:
            return None
        if not settings.guide:
            return batches.Guide(self.network, self.params, False, settings.guidance)
        weak = settings.guide if isinstance(settings.guide, Generator) else load(settings.guide)
        if weak.run.tuned:
            raise UserError("a tuned network cannot be used as a guide: give the run it was tuned from")
        if weak.run.condition:
            raise UserError("an image-conditional network cannot be used as a guide")
        flow, guide_flow = self.process, weak.process
        if weak.shape != self.shape:
            shapes = ["×".join(map(str, shape)) for shape in (weak.shape, self.shape)]
            raise UserError(f"the guide makes images of {shapes[0]}, but this network of {shapes[1]}")
        # Ranges may come from data, in float32.
        covered = guide_flow.sigma_max >= 0.999 * flow.sigma_max and guide_flow.sigma_min <= 1.001 * flow.sigma_min
        if guide_flow.D != flow.D or not covered:
            ranges = [f"D = {p.D:g}, σ from {p.sigma_max:.4g} to {p.sigma_min:.4g}" for p in (guide_flow, flow)]
            raise UserError(f"the guide is for {ranges[0]}, but must cover this network's {ranges[1]}")
        if weak.classes and weak.classes != self.classes:
            names = ", ".join(weak.classes[:20])
            raise UserError(f"the guide is conditioned on classes that this network does not have: {names}")
        return batches.Guide(weak.network, weak.params, bool(weak.classes), settings.guidance)

    @functools.cached_property
    def schedule(self) -> schedules.Schedule | None:
        """What --mode=schedule found for the run that was loaded, of these weights or of others; None for nothing."""
        return schedules.load(stored_run.folder(self.source)) if self.source else None

    def prepared(self, settings: SampleSettings) -> SampleSettings:
        """The settings with what the run's schedule gives to them (`schedules.prepared`); UserError as there."""
        return schedules.prepared(settings, self.process, self.schedule, lambda: (self.weights_digest, self.step))

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
        *,
        settings: SampleSettings | None = None,
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
          settings: SampleSettings in place of the run's sample section (`Generator.settings`).
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
        options |= {"D": D, "guidance": guidance, "guide": guide, "settings": settings}
        x, stats = self.sample_unit(key, n, labels, solver, first=first, framed=framed, progress=progress, **options)
        return np.asarray(to_images(self.derived, x)), stats

    def sample_unit(
        self,
        key: Any = None,
        n: Any = None,
        labels: Any = None,
        solver: str | None = None,
        *,
        settings: SampleSettings | None = None,
        first: Any = 0,
        framed: Any = None,
        progress: bool = True,
        **others,
    ) -> tuple[Float[np.ndarray, "n H W C"], SolveStats]:
        """As `sample`, with the same arguments, but float images in the unit scale [-1, 1], not clipped."""
        self.require_unconditioned("sample")
        if key is None and settings is None and not self._seed_said:
            self._seed_said = True
            print(f"no key: sampling from seed {self.config.sample.seed}, the run's own", file=sys.stderr)
        settings = self.prepared((settings or self.settings).changed(n, labels, solver, **others))
        n, options = settings.n, settings.solver_options
        key, first = self._key(key, settings), arguments.whole("first", first, 0)
        framed = None if framed is None else arguments.whole("framed", framed, 0)
        states = options.get("frames", 0) * (n if framed is None else min(n, framed))
        arguments.require_memory("n", n, self.shape)
        arguments.require_memory("frames × samples", states, self.shape)
        if isinstance(settings.labels, str):
            labels = labels_for(self.run, settings.labels, first + n, key)[first:]
        else:
            labels = labels_for(self.run, settings.labels, n, key)
        guide, flow = self._guide(settings), settings.process(self.process)
        program = batches.Program(
            self.network,
            guide.network if guide else None,
            flow,
            settings.solver,
            tuple(sorted(options.items())),
            self.shape,
        )
        wanted = batches.Wanted(key, n, labels, first, framed)
        return batches.draw(program, wanted, self.params, guide, settings.batch, progress)

    # ---- what is asked of the network besides samples (`inference`)

    @functools.cached_property
    def weights_digest(self):
        """What tells these weights and their process from others."""
        return digests.sha256(repr(self.process), *(np.asarray(leaf) for leaf in jax.tree.leaves(self.params)))

    @functools.cached_property
    def weighted(self):
        """The network with its weights, as the functions of `inference` take it.

        Raises:
          UserError: a tuned network, or an image-conditional one.
        """
        self._require_mean("the way along the flow")
        return self._weighted

    @property
    def _weighted(self):
        return inference.Weighted(self.network, self.params, self.weights_digest, self.settings.batch)

    def _state_labels(self, labels, n):
        """`arguments.state_labels`; UserError for none where the network `needs_label`."""
        labels = arguments.state_labels(labels, n, self.num_classes)
        if self.needs_label:
            traced = isinstance(labels, jax.core.Tracer)
            if labels is None or not traced and (np.asarray(labels) < 0).any():
                raise UserError("this network needs a label: give labels, a class number or one per image")
        return labels

    def _labels_of(self, labels, n):
        """The classes [n] that the network is given for n images: `labels`, or none, −1."""
        labels = self._state_labels(labels, n)
        return np.full(n, -1, np.int32) if labels is None else np.asarray(labels, np.int32)

    def encode(
        self, images: Any, labels: Any = None, solver: str = "rk45", progress: bool = True, **options
    ) -> inference.Latents:
        """The Latents of images: the states at σ_max from which the flow leads to them.

        Args:
          images: uint8 [n, H, W, C], or floats in the unit scale [-1, 1], taken as states at σ_min.
          labels: for a conditional network: a class's number or [n] of them, −1 for none; None gives it none.
          solver: rk45, tsit5, heun, euler, dpmpp_2m, dpmpp_3m, ipndm or unipc, which come back to the images up
            to their error; or reversible, which comes back to the same bytes (`inference.reversible`).
          options: of the solver, such as rtol, steps, grid.

        Raises:
          UserError: images of another shape or type, labels that the network does not know, none for a network that was
            never trained without, a solver that draws noise, or a solve that does not reach σ_max.
        """
        x = arguments.images(images, self.shape)
        return inference.encode(self.weighted, x, self._labels_of(labels, len(x)), solver, options, progress)

    def decode(
        self, latents: Any, progress: bool = True
    ) -> UInt8[np.ndarray, "n H W C"] | Float[np.ndarray, "n H W C"]:
        """The images of Latents, by the solver that encoded them: uint8 [n, H, W, C], or points as floats.

        Raises:
          UserError: latents of other weights.
        """
        if not isinstance(latents, inference.Latents):
            raise UserError(f"decode takes the Latents that encode returns, got {type(latents).__name__}")
        return np.asarray(to_images(self.derived, inference.decode(self.weighted, latents, progress)))

    def interpolate(self, first, second, n=9, path="slerp", progress=True):
        """Images [n, H, W, C] on the way from one of Latents to another (`inference.between`)."""
        return self.decode(inference.between(first, second, n, path), progress)

    def temperature(self, latents, factor, progress=True):
        """Images of Latents whose norms are multiplied by `factor`, a number or [n] (arXiv 2209.11178, section 5.3)."""
        return self.decode(latents.scaled(factor), progress)

    def log_likelihood(
        self,
        images: Any,
        key: Any = None,
        labels: Any = None,
        sigma_min: float | None = None,
        progress: bool = True,
        **options,
    ) -> inference.Likelihood:
        """`inference.Likelihood` of images: log p(x, σ_min) in nats in the unit scale, with its error.

        Args:
          images: uint8 [n, H, W, C], which are dequantised by the key, or floats in the unit scale, taken as they are.
          key: a PRNG key of the dequantisation and the trace vectors; None takes that of the run's sample.seed.
          labels: as for `encode`.
          sigma_min: the level whose smoothed density it is; None for the process's smallest.
          options: vectors (1; 0 for exact traces), rtol, atol (1e-5), steps, max_steps
            (`inference.likelihood.log_likelihood`).

        Raises:
          UserError: as `encode`, or a level outside the process's range.
        """
        key = self._key(key, self.settings)
        x = arguments.images(images, self.shape)
        if np.asarray(images).dtype == np.uint8:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 0), np.arange(len(x)))
            x = np.asarray(inference.dequantised(np.asarray(images), keys))
        labels, key = self._labels_of(labels, len(x)), jax.random.fold_in(key, 1)
        return inference.log_likelihood(self.weighted, x, labels, key, sigma_min, progress, **options)

    def measured(self, images: Any, key: Any = None) -> tuple[Float[np.ndarray, "B *M"], dict[str, Any]]:
        """What an image-conditional network (data.condition) is given of such clean images.

        Args:
          images: uint8 [B, H, W, C], or floats in the unit scale [-1, 1].
          key: a PRNG key of the noise and of masks drawn at random, image i's by (key, i); None takes that of the run's
            sample.seed.

        Returns:
          (measurements, arguments of `restore`): `m, how = g.measured(images)`, `g.restore(m, n=8, **how)`.

        Raises:
          UserError: an image-unconditional network, or images of another shape or type.
        """
        condition = self.run.condition
        if not condition:
            raise UserError("this network has no image condition: measure images yourself")
        y = arguments.images(images, self.shape)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self._key(key, self.settings), np.arange(len(y)))
        measurement, mask = condition.measure(keys, y)
        how = {"mask": np.asarray(mask)} if condition.task == "inpaint" else {}
        return np.asarray(measurement), {"task": condition.task, **how}

    def restore(
        self, measurement: Any, task: Any, n: Any = 8, key: Any = None, labels: Any = None, progress: bool = True, **how
    ) -> restoration.Restoration:
        """Draws of the posterior of images given measurements of them: draws, mean and uncertainty in the unit scale.

        Args:
          measurement: [B, *M], uint8 or floats in the unit scale: noisy images, images whose unobserved pixels hold
            anything, [B, H/factor, W/factor, C], blurred images, or what an Operator gives.
          task: denoise, inpaint, superres, deblur, or a `restoration.Operator(name, A, Aᵀ)`.
          n: draws of each image. key, labels: as for `log_likelihood`.
          how: mask (inpaint; booleans [H, W] or [B, H, W, 1 or C], True where observed), factor (superres; 2), width
            (deblur; standard deviation in pixels, 1), noise (gaussian, poisson, heavy: `restoration.noise`), level (of
            the noise, in the unit scale; None: estimated for denoise, else 0), method (matched, repaint, pigdm,
            split_gibbs; None: by the task) and its options (`restoration.METHODS`). An image-conditional network
            (data.condition) restores its own measurement: those values are the defaults, the method is
            `conditional`.

        Raises:
          UserError: as `encode` and `restoration.task`.
        """
        self._require_mean("restore", conditioned=True)
        asked = restoration.task(task, self.shape, self.process, condition=self.run.condition, **how)
        x = restoration.measurements(measurement, asked)
        n, key, labels = arguments.whole("n", n, 1), self._key(key, self.settings), self._labels_of(labels, len(x))
        arguments.require_memory("n", n * len(x), self.shape)
        std = self.derived.get("std", self.derived["sigma_data"])  # imported weights know what they were trained with
        return restoration.restore(self._weighted, x, asked, n, key, labels, std, progress)


def load(workdir: str | os.PathLike, step: Any = None) -> Generator:
    """The run in `workdir` with the EMA weights of its newest sound checkpoint, or an exported folder with its weights.

    `pretrained:NAME` opens the weights called NAME that come with the package.

    Args:
      step: another checkpoint than the newest: its step, or "best" for the one with the lowest validation loss.

    Raises:
      UserError: no run in the folder, an invalid config.json, no checkpoint or not that step's, damaged weights or
        those of a different network, or an unknown NAME.
    """
    source, folder = str(workdir), stored_run.folder(workdir)
    run = stored_run.read(folder)
    params, step = stored_run.weights(folder, run, step)
    return Generator(run, jax.device_put(params), step, source)  # once, and not at every call
