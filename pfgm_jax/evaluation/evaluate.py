"""What is done with a trained run: pictures and files of samples, and their score."""

import dataclasses
import json
import math
import pathlib
import sys
import time

import jax
import numpy as np

from pfgm_jax import data, models, parallel, plots, run_record, sampling
from pfgm_jax import generator as generator_lib
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import copies_and_usefulness, naming, sample_cache
from pfgm_jax.evaluation.score import TITLES, check_count, default_features, measure_against, number
from pfgm_jax.metrics.tables import aligned
from pfgm_jax.sampling.settings import check_network
from pfgm_jax.storage import atomic

MEASURED = 10_000  # samples at most, unless more are asked for
TELLING = 1000  # samples whose figures go into a model card, or all that are usual where that is fewer
SCORED = ("rk45", "heun")  # solvers that the pixel score takes, unless one is asked for


def open_run(workdir, overrides, told=False):
    """The run's Generator with `overrides` of sample.*, evaluate.* and data.*.

    Raises:
      UserError: unless `told`, a network that is told an image, before anything is computed or written.
    """
    generator = generator_lib.load(workdir).with_overrides(overrides)
    if not told:
        generator.require_untold("this mode")
    return generator


def _check_options(generator, overrides, solvers=None):
    """UserError for options that none of the solvers (None: the run's own) takes, or that one of them refuses."""
    settings = generator.settings
    solvers = solvers or (settings.solver,)
    for solver in solvers:
        check_network(generator.run, settings.changed(solver=solver))
    given = {key.removeprefix("sample.") for key in overrides} & set(sampling.option_kinds())
    taken = set().union(*(sampling.find(solver)[1] for solver in solvers))
    sampling.check_options(solvers[-1], dict.fromkeys(sorted(given - taken)))
    for solver in solvers:
        prepared = generator.prepared(settings.changed(solver=solver))
        prepared.check(generator.process, frames=generator.config.sample.frames)


# Of a solver's options, those that belong to every protocol; others where they are set.
_ALWAYS_GIVEN = ("rtol", "atol", "steps", "grid", "rho", "eta", "variance", "predictor", "corrector_steps", "snr")


def protocol(generator, settings, stats):
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
    imported, images = generator.derived.get("imported"), generator.step * generator.config.train.batch
    weights = f"weights of {imported}" if imported else f"{generator.average} after {images:,} images"
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


def _say(text):
    if parallel.is_first():
        print(text, file=sys.stderr, flush=True)


def samples_depend_on(solver):
    """Names of the settings on which the samples of a solver depend, but for the solver and their number."""
    shared = ("seed", "batch", "labels", "guidance", "guide", "D", "ema_width")
    return {f"sample.{name}" for name in (*shared, *sampling.find(solver)[1]) if name != "frames"}


def sample(workdir, overrides):
    """Samples from a run: a picture (PNG), all of them (npz) and the way from the prior to the data.

    The way is an animation (GIF, or WebP where that is smaller) and, of images, a plot of the first ones' paths.

    A class-conditional network also gives a grid with a row for each class, and the labels are in the npz;
    sample.files writes every image by itself too. Files go to samples/, named after the solver and what differs from
    the run's own settings. Returns the lines that say so. Of several processes, which all draw, the first writes.
    """
    generator = open_run(workdir, overrides)
    config = generator.config
    _check_options(generator, overrides)
    settings = dataclasses.replace(generator.settings, guide=guide_of(generator))
    key = jax.random.key(settings.seed)
    labels = generator.labels(key)
    points = generator.derived.get("dtype", "uint8") == "float32"
    if config.sample.files and points:
        raise UserError("sample.files writes images, and these samples are points: leave it out")
    folder = atomic.writable(pathlib.Path(workdir, "samples"))
    own, _ = run_record.load(workdir)
    relevant = samples_depend_on(settings.solver) | {"sample.n"}
    stem = str(folder / settings.solver) + naming.suffix(config, own, relevant)
    _say(f"sampling {settings.n} with {settings.solver}")
    begun, frames = time.perf_counter(), config.sample.frames
    # The states of the first ones, as many as an animation shows.
    images, stats = generator.sample(key, settings=settings, frames=frames, framed=1000 if points else 36)
    seconds = time.perf_counter() - begun
    if not parallel.is_first():
        return None
    lines = [f"{protocol(generator, settings, stats)}, {seconds:.1f} s with compilation"]
    _say("drawing and saving")
    with atomic.writing_to(folder):
        plots.save(plots.picture(images, data.load(config.data).train.images if points else None), f"{stem}.png")
        lines += [f"  picture    {stem}.png"]
        with atomic.replacing(f"{stem}.npz") as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(stream, images=images, **({"labels": labels} if generator.classes else {}))
        if generator.classes and not points:
            plots.save(
                plots.class_grid(images[:256], labels[:256], generator.derived["classes"]), f"{stem}_classes.png"
            )
            lines += [f"  by class   {stem}_classes.png"]
        lines += [f"  samples    {stem}.npz"]
        if config.sample.files:
            lines += [f"  files      {_save_files(images, labels, generator, f'{stem}_files')}"]
        if frames:
            film = f"{folder / settings.solver}{naming.suffix(config, own, relevant | {'sample.frames'})}"
            path = plots.animate(stats.trajectory, stats.sigmas, generator.derived["sigma_data"], film)
            lines.append(f"  animation  {path}")
            if not points:  # which are in a plane as they are
                plots.paths(stats.trajectory, stats.sigmas, f"{film}_paths.png")
                lines.append(f"  paths      {film}_paths.png")
    return "\n".join(lines)


def _save_files(images, labels, generator, folder):
    """Every image as folder/NUMBER.png, or folder/CLASS/NUMBER.png of a class-conditional network."""
    classes = naming.folder_names(generator.derived["classes"]) if generator.classes else None
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = pathlib.Path(folder, classes[label]) if classes else pathlib.Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        plots.save(plots.grid(image[None], tile=1), place / f"{i:06}.png")
    return folder


def evaluate(workdir, overrides):
    """Measures a run against real images and writes results/*.json; returns a table with its protocol.

    Digits get the pixel score (`_pixel_score`) unless evaluate.features asks for other features. Of several processes
    all draw samples, and the first measures them.

    Raises:
      UserError: no real images that fit the run, too few samples, or weights of the features that are not to be had.
    """
    generator = open_run(workdir, overrides)
    config, folder = generator.config, atomic.writable(pathlib.Path(workdir, "results"))
    if config.data.name == "digits" and config.evaluate.features in ("", "pixels"):
        return _pixel_score(generator, folder, workdir, overrides)
    _check_options(generator, overrides)
    if not parallel.is_first():
        _collected(generator)
        return None
    measure = measure_for(generator)
    with atomic.writing_to(folder):
        return _measure_run(generator, folder, measure)


def _measure_run(generator, folder, measure):
    config = generator.config
    measured, samples = _measured(generator, folder, measure)
    key = naming.key_of([samples.key, len(samples.features), measure.identity])
    stem = folder / f"{features_of(config)}-{config.sample.solver}-{key}"
    picture = plots.grid(samples.images)
    if generator.classes:
        picture = plots.class_grid(samples.images, samples.labels[: len(samples.images)], generator.derived["classes"])
    plots.save(picture, f"{stem}.png")
    whole = len(samples.features) >= min(_usual(config, measure.dataset), TELLING)
    save_record(f"{stem}.json", measured.record() | {"full": whole})
    kept = f"{folder}/samples-{samples.key} (the next run takes them from there)"
    lines = [str(measured), f"  samples    {kept}", f"  grid       {stem}.png", f"  figures    {stem}.json"]
    options, n = config.evaluate, len(samples.features)
    if options.copies or options.usefulness:
        images = sample_cache.images_of(folder, samples.key, n)
        to = copies_and_usefulness.Destination(stem, measured.protocol["samples"], whole)
    if options.copies:
        mirror = bool(config.train.flip or config.train.augment)  # such copies are copies then
        lines += copies_and_usefulness.copies(measure.dataset, images, to, mirror=mirror)
    if options.usefulness:
        labels = samples.labels if generator.classes else None
        lines += copies_and_usefulness.use(measure.dataset, images, labels, to, options.seeds)
    return "\n".join(lines)


def compare(workdir, other, overrides):
    """Measures two runs alike and says which differences their intervals resolve; returns a table.

    Samples of either that were measured before are not drawn again.
    """
    from pfgm_jax import metrics

    runs = [open_run(place, overrides) for place in (workdir, other)]
    folders = [atomic.writable(pathlib.Path(place, "results")) for place in (workdir, other)]
    if runs[0].shape != runs[1].shape:
        raise UserError(f"{workdir} makes images of {_by(runs[0].shape)}, {other} of {_by(runs[1].shape)}")
    measure = measure_for(runs[0])
    n = count(runs[0].config, measure.dataset)
    settings = [dataclasses.replace(run.settings, n=n, guide=guide_of(run)) for run in runs]
    sets = []
    for generator, own, folder in zip(runs, settings, folders, strict=True):
        with atomic.writing_to(folder):
            sets.append(sample_cache.collect(generator, own, folder, measure.extractor))
    paired = runs[0].process == runs[1].process  # then sample i of both starts from the same noise
    result = metrics.compare(measure.metric, *(s.features for s in sets), paired=paired)
    lines = [["", "first", "second", "first - second, 95 %"]]
    for name, figure in result.items():
        low, high = (number(x) for x in (figure.difference.low, figure.difference.high))
        difference = f"{number(figure.difference.value)} [{low}, {high}]"
        cells = (number(figure.a), number(figure.b), difference + ("" if figure.resolved else "  not resolved"))
        lines.append([TITLES.get(name, name), *cells])
    protocols = {
        "first": f"{workdir}: {protocol(runs[0], settings[0], sets[0])}",
        "second": f"{other}: {protocol(runs[1], settings[1], sets[1])}",
        "pairs": "sample i of both from the same noise" if paired else "samples of their own noise",
    } | measure.protocol()
    del protocols["real"]  # no row for them here
    path = folders[0] / f"compare-{naming.key_of([sets[0].key, sets[1].key, n, measure.identity])}.json"
    figures = {name: figure._asdict() | {"difference": figure.difference._asdict()} for name, figure in result.items()}
    save_record(path, {"protocol": protocols, "differences": figures})
    words = [f"{what}: {text}" for what, text in protocols.items()]
    return "\n".join([aligned(lines), "", *words, f"  figures    {path}"])


def count(config, dataset):
    """How many samples are to be measured; UserError for too few."""
    n = config.evaluate.num_samples or _usual(config, dataset)
    check_count(n)
    return n


def _usual(config, dataset):
    """How many samples are measured unless a number is asked for."""
    held_out = len(dataset.val) + len(dataset.test)
    return held_out if features_of(config) == "pixels" and held_out else min(dataset.train_images, MEASURED)


def real_images(generator):
    """The Dataset that a run's config names.

    Raises:
      UserError: no real images that fit the run.
    """
    config = generator.config
    if config.data.name == "imported":
        raise UserError("say which real images to compare with, such as data.name=cifar10")
    dataset = data.load(config.data)
    if dataset.shape != generator.shape:
        shapes = _by(generator.shape), _by(dataset.shape)
        raise UserError(f"the run makes images of {shapes[0]}, those of {dataset.name} are {shapes[1]}")
    return dataset


def measure_for(generator):
    """The Measure that a run's config asks for; UserError as `real_images`."""
    config, dataset = generator.config, real_images(generator)
    count(config, dataset)
    return measure_against(dataset, config.evaluate.split, features_of(config), config.evaluate.inception)


def guide_of(generator):
    """The Generator of sample.guide, or ""."""
    path = generator.config.sample.guide
    return path and generator_lib.load(path)


def save_record(path, record):
    """Writes JSON in one piece."""
    with atomic.writing_to(path):
        atomic.write_text(path, json.dumps(record, indent=1) + "\n")


def _measured(generator, folder, measure):
    """(Measured, SampleSet) of as many samples as the config asks for, those kept in `folder` among them."""
    samples, settings = _collected(generator, folder, measure)
    n = settings.n
    _say(f"comparing {n:,} samples with {measure.reference.name}")
    by_class = generator.classes and tuple(generator.derived["classes"]) == tuple(measure.dataset.classes)
    return measure(samples.features, samples.labels, protocol(generator, settings, samples), by_class), samples


def _collected(generator, folder=None, measure=None):
    """(SampleSet, SampleSettings) of what is to be measured; other processes than the first know no more of it."""
    n = parallel.from_first(lambda: count(generator.config, measure.dataset))
    settings = dataclasses.replace(generator.settings, n=n, guide=guide_of(generator))
    return sample_cache.collect(generator, settings, folder, measure and measure.extractor), settings


def features_of(config):
    """What figures of this run see: one of `score.FEATURES`."""
    return config.evaluate.features or default_features(config.data.name)


def _by(shape):
    return "×".join(map(str, shape))


def _pixel_score(generator, folder, workdir, overrides):
    """Scores a run on digits in pixel space, beside controls that must fail; returns a table.

    The solvers are SCORED, or the one of sample.solver if that is among the overrides. The figures go to
    results/pixel_score.json, or to a file named after the solver and what differs from the run's own settings.
    """
    from pfgm_jax.metrics import PixelScorer, controls, table

    config = generator.config
    solvers = (config.sample.solver,) if "sample.solver" in overrides or generator.run.tuned else SCORED
    _check_options(generator, overrides, solvers)
    digits = data.load(config.data)
    held_out = np.concatenate([digits.val.images, digits.test.images])
    held_out_labels = np.concatenate([digits.val.labels, digits.test.labels])
    n = min(config.evaluate.num_samples or len(held_out), len(held_out))
    own, _ = run_record.load(workdir)
    relevant = set().union(*(samples_depend_on(solver) for solver in solvers))
    relevant |= {"evaluate.num_samples", *(f"data.{name}" for name in config.data)}
    alone = f"-{solvers[0]}" if len(solvers) == 1 else ""
    path = folder / f"pixel_score{alone}{naming.suffix(config, own, relevant)}.json"
    scorer = PixelScorer(digits.train.images, digits.train.labels, held_out)
    settings = dataclasses.replace(generator.settings, n=n, guide=guide_of(generator))

    rows, protocols = {}, {}
    for solver in solvers:
        _say(f"sampling {n} digits with {solver}")
        settings = settings.changed(solver=solver)
        images, stats = generator.sample(settings=settings)
        rows[f"samples, {solver}"] = scorer.score(images)
        protocols[solver] = protocol(generator, settings, stats)
    _say("sampling from an untrained network, and scoring all")
    params = jax.device_get(jax.jit(lambda: models.init(generator.model, generator.shape))())
    untrained, _ = generator.with_params(params).sample(settings=settings)
    rows["untrained network"] = scorer.score(untrained)
    for name, images in controls(digits.train.images, digits.train.labels, held_out, held_out_labels).items():
        rows[name] = scorer.score(images)

    record = {"protocol": {"score": scorer.protocol, **protocols}, "scores": {k: _plain(v) for k, v in rows.items()}}
    if parallel.is_first():
        save_record(path, record | {"full": n == len(held_out)})
    return "\n".join([table(rows), scorer.protocol, *protocols.values(), f"  table      {path}"])


def _plain(score):
    """A Score as JSON: its figures, and the criteria that it fails."""
    figures = {name: float(value) for name, value in vars(score).items()}
    return {k: v if math.isfinite(v) else str(v) for k, v in figures.items()} | {"failed": list(score.failed)}
