"""What all measurements of a run share: how it is opened, its real images, and the protocol in words."""

import json
import math
import sys

import numpy as np

from pfgm_jax import data, parallel, sampling
from pfgm_jax import generator as generator_lib
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation.score import check_count, default_features, measure_against
from pfgm_jax.sampling.settings import check_network
from pfgm_jax.storage import atomic

MEASURED = 10_000  # samples at most, unless more are asked for
READ_AGAIN = 2**30  # values of a training set that are read to compare it with the run's; larger ones are counted alone


def open_run(workdir, overrides, conditioned=False):
    """The run's Generator with `overrides` of sample.*, evaluate.* and data.*.

    Raises:
      UserError: unless `conditioned`, an image-conditional network, before anything is computed or written.
    """
    generator = generator_lib.load(workdir).with_overrides(overrides)
    if not conditioned:
        generator.require_unconditioned("this mode")
    return generator


def real_images(generator):
    """The Dataset that a run's config names.

    Raises:
      UserError: no real images that fit the run, or others than it was trained on under that name.
    """
    config = generator.config
    if config.data.name == "imported":
        raise UserError("give the real images to compare with, such as data.name=cifar10")
    dataset = data.load(config.data)
    if dataset.shape != generator.shape:
        shapes = by(generator.shape), by(dataset.shape)
        raise UserError(f"the run makes images of {shapes[0]}, but those of {dataset.name} are {shapes[1]}")
    if config.data.name == generator.trained_on:
        require_own(generator, dataset)
    return dataset


def require_own(generator, dataset):
    """Raises UserError where a Dataset is not the one that the run was trained on.

    Its held-out images might then be images that the network has seen. Of imported weights nothing is known.
    """
    derived, train = generator.derived, dataset.train
    if derived.get("imported"):
        return
    facts = {
        "train_images": dataset.train_images,
        "classes": list(dataset.classes),
        "label_counts": np.bincount(train.labels, minlength=dataset.num_classes).tolist(),
        "window": dataset.window and list(dataset.window),
    }
    # Older versions recorded less.
    different = [name for name, fact in facts.items() if name in derived and derived[name] != fact]
    if not different and math.prod(train.images.shape) <= READ_AGAIN:
        found = data.moments(train.images)
        # Decoders of other versions differ in their last bits.
        close = lambda name: math.isclose(derived.get(name, getattr(found, name)), getattr(found, name), abs_tol=1e-5)
        different = [name for name in ("mean", "std") if not close(name)]
    if different:
        raise UserError(
            f"data.name={dataset.name} gives other images than the run was trained on (different "
            f"{', '.join(different)}), which may include those held out: give the original data with "
            "data.dir=FOLDER, or measure the samples against others with --mode=audit"
        )


def guide_of(generator):
    """The Generator of sample.guide, or ""."""
    path = generator.config.sample.guide
    return path and generator_lib.load(path)


def features_of(config):
    """What figures of this run see: one of `score.FEATURES`."""
    return config.evaluate.features or default_features(config.data.name)


def count(config, dataset):
    """How many samples are to be measured; UserError for too few."""
    n = config.evaluate.num_samples or usual(config, dataset)
    check_count(n)
    return n


def usual(config, dataset):
    """How many samples are measured unless a number is asked for."""
    held_out = len(dataset.val) + len(dataset.test)
    return held_out if features_of(config) == "pixels" and held_out else min(dataset.train_images, MEASURED)


def measure_for(generator):
    """The Measure that a run's config asks for; UserError as `real_images`."""
    config, dataset = generator.config, real_images(generator)
    count(config, dataset)
    return measure_against(dataset, config.evaluate.split, features_of(config), config.evaluate.inception)


# What a measurement of samples does not use, and what it has in its place.
_OF_PICTURES = {"n": "write evaluate.num_samples=NUMBER", "files": "leave it out", "frames": "leave it out"}


def check_measured(overrides):
    """UserError for settings of pictures and files of samples where samples are measured."""
    for name, instead in _OF_PICTURES.items():
        if f"sample.{name}" in overrides:
            raise UserError(f"sample.{name}={overrides[f'sample.{name}']} is for --mode=sample: {instead}")


def check_taken(generator, overrides, solvers):
    """UserError for a solver that is not for the run's network, or options that none of the solvers takes."""
    for solver in solvers:
        check_network(generator.run, generator.settings.changed(solver=solver))
    given = {key.removeprefix("sample.") for key in overrides} & set(sampling.option_kinds())
    taken = set().union(*(sampling.find(solver)[1] for solver in solvers))
    sampling.check_options(solvers[-1], dict.fromkeys(sorted(given - taken)))


def check_options(generator, overrides, solvers=None):
    """UserError for options that none of the solvers (None: the run's own) takes, or that one of them refuses."""
    settings = generator.settings
    solvers = solvers or (settings.solver,)
    check_taken(generator, overrides, solvers)
    given = {key.removeprefix("sample.") for key in overrides}
    for solver in solvers:
        sampling.check_effect(solver, settings.options, given & set(sampling.find(solver)[1]))
        prepared = generator.prepared(settings.changed(solver=solver))
        prepared.check(generator.process, frames=generator.config.sample.frames)


def samples_depend_on(solver):
    """Names of the settings on which the samples of a solver depend, but for the solver and their number."""
    shared = ("seed", "batch", "labels", "guidance", "guide", "D", "ema_width")
    return {f"sample.{name}" for name in (*shared, *sampling.find(solver)[1]) if name != "frames"}


# Of a solver's options, those that belong to every protocol; others where they are set.
_ALWAYS_GIVEN = ("rtol", "atol", "steps", "grid", "rho", "eta", "variance", "predictor", "corrector_steps", "snr")


def sampled(generator, settings, stats):
    """How settings.n samples were drawn, for every figure and file; stats: nfe and sample_nfe."""
    settings = generator.prepared(settings)
    solver, given = sampling.concrete(settings.solver, settings.solver_options)
    options = sampling.find(solver)[1] | given
    shown = [name for name in options if name in given or (name in _ALWAYS_GIVEN and options[name] is not None)]
    detail = ", ".join(f"{name} {options[name]}" for name in shown if name != "second_moment")
    chosen = "" if solver == settings.solver else f"{settings.solver}: "
    guided = settings.guidance != 1
    calls = f"{stats.nfe:g} function evaluations" + (" of 2 network calls each" if guided else "")
    if stats.sample_nfe.min() < stats.sample_nfe.max():
        calls += f" ({stats.sample_nfe.mean():.0f} a sample, at most {stats.sample_nfe.max()})"
    imported, seen = generator.derived.get("imported"), generator.run.images_seen(generator.step)
    weights = f"weights of {imported}" if imported else f"{generator.average} after {seen}"
    if generator.run.tuned:
        tune = generator.config.tune
        weights += f" of tuning (from step {tune.step:,}, weights {tune.digest})"
    how = "" if settings.D is None else f", sampled with D = {settings.D:g}"
    how += f", labels {settings.labels}" if generator.classes else ""
    if guided:
        guide = settings.guide.source if settings.guide else "the network without its label"
        how += f", guidance {settings.guidance:g} from {guide}"
    return (
        f"{settings.n} samples, {generator.process.name} D = {generator.process.D:g}{how}, "
        f"{weights}, {chosen}{solver} ({detail}), {calls}, seed {settings.seed}"
    )


def save_record(path, record):
    """Writes JSON in one piece."""
    with atomic.writing_to(path):
        atomic.write_text(path, json.dumps(record, indent=1) + "\n")


def say(text):
    """Says on stderr what is under way; of several processes the first alone."""
    if parallel.is_first():
        print(text, file=sys.stderr, flush=True)


def by(shape):
    """A shape in words, such as 28×28×3."""
    return "×".join(map(str, shape))
