"""What is done with a trained run: pictures and files of samples, and their score."""

import dataclasses
import pathlib
import time

import jax
import numpy as np

from pfgm_jax import data, parallel, plots, run_record
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import copies_and_usefulness, digits_score, naming, protocol, sample_cache
from pfgm_jax.evaluation.score import TITLES, number
from pfgm_jax.metrics.tables import aligned
from pfgm_jax.storage import atomic

TELLING = 1000  # samples whose figures go into a model card, or all that are usual where that is fewer


def sample(workdir, overrides):
    """Samples from a run: a picture (PNG), all of them (npz) and the way from the prior to the data.

    The way is an animation (GIF, or WebP where that is smaller) and, of images, a plot of the first ones' paths.

    A class-conditional network also gives a grid with a row for each class, and the labels are in the npz;
    sample.files writes every image by itself too. Files go to samples/, named after the solver and what differs from
    the run's own settings. Returns the lines that say so. Of several processes, which all draw, the first writes.
    """
    generator = protocol.open_run(workdir, overrides)
    config = generator.config
    protocol.check_options(generator, overrides)
    settings = dataclasses.replace(generator.settings, guide=protocol.guide_of(generator))
    key = jax.random.key(settings.seed)
    labels = generator.labels(key)
    points = generator.derived.get("dtype", "uint8") == "float32"
    if config.sample.files and points:
        raise UserError("sample.files writes images, but these samples are points: leave it out")
    folder = atomic.writable(pathlib.Path(workdir, "samples"))
    own, _ = run_record.load(workdir)
    relevant = protocol.samples_depend_on(settings.solver) | {"sample.n"}
    stem = str(folder / settings.solver) + naming.suffix(config, own, relevant)
    protocol.say(f"sampling {settings.n} with {settings.solver}")
    begun, frames = time.perf_counter(), config.sample.frames
    # The states of the first ones, as many as an animation shows.
    images, stats = generator.sample(key, settings=settings, frames=frames, framed=1000 if points else 36)
    seconds = time.perf_counter() - begun
    if not parallel.is_first():
        return None
    lines = [f"{protocol.sampled(generator, settings, stats)}, {seconds:.1f} s with compilation"]
    protocol.say("drawing and saving")
    with atomic.writing_to(folder):
        plots.save(plots.picture(images, data.load(config.data).train.images if points else None), f"{stem}.png")
        lines += [f"  picture    {stem}.png"]
        with atomic.replacing(f"{stem}.npz") as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(stream, images=images, **({"labels": labels} if generator.classes else {}))
        if generator.classes and not points:
            plots.save(plots.class_grid(images[:256], labels[:256], generator.classes), f"{stem}_classes.png")
            lines += [f"  by class   {stem}_classes.png"]
        lines += [f"  samples    {stem}.npz"]
        if config.sample.files:
            lines += [f"  files      {_save_files(images, labels, generator, f'{stem}_files')}"]
        if frames:
            film = f"{folder / settings.solver}{naming.suffix(config, own, relevant | {'sample.frames'})}"
            path = plots.animate(stats.trajectory, stats.sigmas, generator.derived["sigma_data"], film)
            lines.append(f"  animation  {path}")
            # Points are in a plane as they are, and one or two states in none of their own.
            if not points and len(stats.sigmas) > 2:
                plots.paths(stats.trajectory, stats.sigmas, f"{film}_paths.png")
                lines.append(f"  paths      {film}_paths.png")
    return "\n".join(lines)


def _save_files(images, labels, generator, folder):
    """Every image as folder/NUMBER.png, or folder/CLASS/NUMBER.png of a class-conditional network."""
    classes = naming.folder_names(generator.classes) if generator.classes else None
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = pathlib.Path(folder, classes[label]) if classes else pathlib.Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        plots.save(plots.grid(image[None], tile=1), place / f"{i:06}.png")
    return folder


def evaluate(workdir, overrides):
    """Measures a run against real images and writes results/*.json; returns a table with its protocol.

    Digits get the pixel score (`digits_score`) unless evaluate.features asks for other features. Of several processes
    all draw samples, and the first measures them.

    Raises:
      UserError: no real images that fit the run, too few samples, or weights of the features that are not to be had.
    """
    protocol.check_measured(overrides)
    generator = protocol.open_run(workdir, overrides)
    config, folder = generator.config, atomic.writable(pathlib.Path(workdir, "results"))
    if config.data.name == "digits" and config.evaluate.features in ("", "pixels"):
        return digits_score.pixel_score(generator, folder, workdir, overrides)
    protocol.check_options(generator, overrides)
    if not parallel.is_first():
        _collected(generator)
        return None
    measure = protocol.measure_for(generator)
    with atomic.writing_to(folder):
        return _measure_run(generator, folder, measure)


def _measure_run(generator, folder, measure):
    config = generator.config
    measured, samples = _measured(generator, folder, measure)
    key = naming.key_of([samples.key, len(samples.features), measure.identity])
    stem = folder / f"{protocol.features_of(config)}-{config.sample.solver}-{key}"
    picture = plots.grid(samples.images)
    if generator.classes:
        picture = plots.class_grid(samples.images, samples.labels[: len(samples.images)], generator.classes)
    plots.save(picture, f"{stem}.png")
    whole = len(samples.features) >= min(protocol.usual(config, measure.dataset), TELLING)
    weights = generator.weights_digest
    protocol.save_record(f"{stem}.json", measured.record() | {"full": whole, "weights": weights})
    kept = f"{folder}/samples-{samples.key} (the next run takes them from there)"
    lines = [str(measured), f"  samples    {kept}", f"  grid       {stem}.png", f"  figures    {stem}.json"]
    options, n = config.evaluate, len(samples.features)
    if options.copies or options.usefulness:
        images = sample_cache.images_of(folder, samples.key, n)
        to = copies_and_usefulness.Destination(stem, measured.protocol["samples"], whole, weights)
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

    protocol.check_measured(overrides)
    runs = [protocol.open_run(place, overrides) for place in (workdir, other)]
    folders = [atomic.writable(pathlib.Path(place, "results")) for place in (workdir, other)]
    if runs[0].shape != runs[1].shape:
        raise UserError(
            f"{workdir} makes images of {protocol.by(runs[0].shape)}, but {other} of {protocol.by(runs[1].shape)}"
        )
    for run in runs:
        protocol.check_options(run, overrides)
    measure = protocol.measure_for(runs[0])
    n = protocol.count(runs[0].config, measure.dataset)
    settings = [dataclasses.replace(run.settings, n=n, guide=protocol.guide_of(run)) for run in runs]
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
        "first": f"{workdir}: {protocol.sampled(runs[0], settings[0], sets[0])}",
        "second": f"{other}: {protocol.sampled(runs[1], settings[1], sets[1])}",
        "pairs": "sample i of both from the same noise" if paired else "samples of their own noise",
    } | measure.protocol()
    del protocols["real"]  # no row for them here
    path = folders[0] / f"compare-{naming.key_of([sets[0].key, sets[1].key, n, measure.identity])}.json"
    figures = {name: figure._asdict() | {"difference": figure.difference._asdict()} for name, figure in result.items()}
    protocol.save_record(path, {"protocol": protocols, "differences": figures})
    words = [f"{what}: {text}" for what, text in protocols.items()]
    return "\n".join([aligned(lines), "", *words, f"  figures    {path}"])


def _measured(generator, folder, measure):
    """(Measured, SampleSet) of as many samples as the config asks for, those kept in `folder` among them."""
    samples, settings = _collected(generator, folder, measure)
    n = settings.n
    protocol.say(f"comparing {n:,} samples with {measure.reference.name}")
    by_class = generator.classes and generator.classes == measure.dataset.classes
    return measure(samples.features, samples.labels, protocol.sampled(generator, settings, samples), by_class), samples


def _collected(generator, folder=None, measure=None):
    """(SampleSet, SampleSettings) of what is to be measured; other processes than the first know no more of it."""
    n = parallel.from_first(lambda: protocol.count(generator.config, measure.dataset))
    settings = dataclasses.replace(generator.settings, n=n, guide=protocol.guide_of(generator))
    return sample_cache.collect(generator, settings, folder, measure and measure.extractor), settings
