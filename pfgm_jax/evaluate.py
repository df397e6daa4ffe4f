"""What is done with a trained run: pictures and files of samples, and their score."""

import json
import math
import pathlib
import sys
import time

import jax
import numpy as np

from pfgm_jax import config as config_lib
from pfgm_jax import data, examine, files, generator, models, plots, sample_set, sampling
from pfgm_jax.errors import UserError
from pfgm_jax.measure import TITLES, check_count, columns, default_features, measure_against, number

MEASURED = 10_000  # samples at most, unless more are asked for


def open_run(workdir, overrides):
    """The run's Generator with `overrides` of sample.*, evaluate.* and data.*."""
    made = generator.load(workdir)
    for key, value in overrides.items():
        config_lib.override(made.config, key, value)
    config_lib.check(made.config)
    return made


def writable(workdir, name):
    """The folder `name` of a run, before anything long is done for it; UserError where it cannot be written."""
    folder = pathlib.Path(workdir, name)
    try:
        folder.mkdir(exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
    return folder


def _check_options(made, overrides):
    """UserError for options of another solver."""
    options = {key.removeprefix("sample.") for key in overrides} & set(sampling.option_kinds())
    sampling.check_options(made.config.sample.solver, options)


# Of a solver's options, those that belong to every protocol; others where they are set.
_ALWAYS_TOLD = ("rtol", "atol", "steps", "grid", "rho", "eta", "variance", "predictor", "corrector_steps", "snr")


def protocol(made, stats, n):
    """How samples were made, for every figure and file."""
    config, solver = made.config, made.config.sample.solver
    given = generator.solver_options(config, solver)
    options = sampling.find(solver)[1] | given
    told = [name for name in options if name in given or (name in _ALWAYS_TOLD and options[name] is not None)]
    detail = ", ".join(f"{name} {options[name]}" for name in told)
    guided = config.sample.guidance != 1
    calls = f"{stats.nfe:g} function evaluations" + (" of 2 network calls each" if guided else "")
    if stats.sample_nfe.min() < stats.sample_nfe.max():
        calls += f" ({stats.sample_nfe.mean():.0f} a sample, at most {stats.sample_nfe.max()})"
    imported = made.derived.get("imported")
    seen = f"weights of {imported}" if imported else f"EMA weights after {made.step * config.train.batch:,} images"
    sampled = "" if config.sample.D is None else f", sampled with D = {config.sample.D:g}"
    asked = f", labels {config.sample.labels}" if config.model.conditional else ""
    if guided:
        asked += f", guidance {config.sample.guidance:g} from {config.sample.guide or 'the network without its label'}"
    return (
        f"{n} samples, {made.process.name} D = {made.process.D:g}{sampled}{asked}, "
        f"{seen}, {solver} ({detail}), {calls}, seed {config.sample.seed}"
    )


def sample(workdir, overrides):
    """Samples from a run: a picture (PNG), all of them (npz) and the way from the prior to the data (GIF).

    A network that is told the class also gives a grid with a row for each class, and the labels are in the npz. Files
    go to samples/, named after the solver. Returns the lines that say so.
    """
    made = open_run(workdir, overrides)
    config = made.config.sample
    _check_options(made, overrides)
    key = jax.random.key(config.seed)
    labels = made.labels(key, config.n)
    guide = guide_of(made)
    folder = writable(workdir, "samples")
    begun = time.perf_counter()
    images, stats = made.sample(key, config.n, guide=guide)
    seconds = time.perf_counter() - begun
    stem = folder / config.solver
    lines = [f"{protocol(made, stats, config.n)}, {seconds:.1f} s with compilation"]
    points = images.dtype != np.uint8
    real = data.load(made.config.data).train.images if points else None
    plots.picture(images, real).save(stem.with_suffix(".png"))
    lines += [f"  picture    {stem}.png"]
    kept = {"images": images} | ({"labels": labels} if made.config.model.conditional else {})
    np.savez_compressed(stem.with_suffix(".npz"), **kept)
    if made.config.model.conditional and not points:
        plots.class_grid(images[:256], labels[:256], made.derived["classes"]).save(f"{stem}_classes.png")
        lines += [f"  by class   {stem}_classes.png"]
    lines += [f"  samples    {stem}.npz"]
    if config.frames:
        # The first of the samples again, as a batch of their own: rk45 may take other steps, within its tolerance.
        _, stats = made.sample(key, min(config.n, 1000 if points else 36), guide=guide, frames=config.frames)
        plots.animate(stats.trajectory, stats.sigmas, made.derived["sigma_data"], stem.with_suffix(".gif"))
        lines.append(f"  animation  {stem}.gif")
    return "\n".join(lines)


def evaluate(workdir, overrides):
    """Measures a run against real images and writes results/*.json; returns a table with its protocol.

    Digits get the pixel score (`_pixel_score`) unless evaluate.features asks for other features.

    Raises:
      UserError: no real images that fit the run, too few samples, or weights of the features that are not to be had.
    """
    made = open_run(workdir, overrides)
    config, folder = made.config, writable(workdir, "results")
    if config.data.name == "digits" and config.evaluate.features in ("", "pixels"):
        return _pixel_score(made, folder)
    _check_options(made, overrides)
    measure = measure_for(made)
    measured, samples = _measured(made, folder, measure, guide_of(made))
    stem = folder / f"{features_of(config)}-{config.sample.solver}-{samples.key[:8]}"
    picture = plots.grid(samples.images)
    if made.config.model.conditional:
        picture = plots.class_grid(samples.images, samples.labels[: len(samples.images)], made.derived["classes"])
    picture.save(stem.with_suffix(".png"))
    save_record(stem.with_suffix(".json"), measured.record())
    kept = f"{folder}/samples-{samples.key} (the next run takes them from there)"
    lines = [str(measured), f"  samples    {kept}", f"  grid       {stem}.png", f"  figures    {stem}.json"]
    options, n = config.evaluate, len(samples.features)
    if options.copies or options.usefulness:
        images, told = sample_set.images_of(folder, samples.key, n), measured.protocol["samples"]
    if options.copies:
        mirror = bool(config.train.flip or config.train.augment)  # such copies are copies then
        lines += examine.copies(measure.dataset, images, stem, told, mirror=mirror)
    if options.usefulness:
        labels = samples.labels if config.model.conditional else None
        lines += examine.use(measure.dataset, images, labels, stem, told, options.seeds)
    return "\n".join(lines)


def compare(workdir, other, overrides):
    """Measures two runs alike and says which differences their intervals resolve; returns a table.

    Samples of either that were measured before are not drawn again.
    """
    from pfgm_jax import metrics

    runs = [open_run(place, overrides) for place in (workdir, other)]
    folders = [writable(place, "results") for place in (workdir, other)]
    if runs[0].shape != runs[1].shape:
        raise UserError(f"{workdir} makes images of {_by(runs[0].shape)}, {other} of {_by(runs[1].shape)}")
    measure = measure_for(runs[0])
    n = count(runs[0].config, measure.dataset)
    sets = [
        sample_set.collect(made, folder, n, measure.extractor, guide_of(made))
        for made, folder in zip(runs, folders, strict=True)
    ]
    paired = runs[0].process == runs[1].process  # then sample i of both starts from the same noise
    found = metrics.compare(measure.metric, *(s.features for s in sets), paired=paired)
    lines = [["", "first", "second", "first - second, 95 %"]]
    for name, figure in found.items():
        low, high = (number(x) for x in (figure.difference.low, figure.difference.high))
        difference = f"{number(figure.difference.value)} [{low}, {high}]"
        cells = (number(figure.a), number(figure.b), difference + ("" if figure.resolved else "  not resolved"))
        lines.append([TITLES.get(name, name), *cells])
    protocols = {
        "first": f"{workdir}: {protocol(runs[0], sets[0], n)}",
        "second": f"{other}: {protocol(runs[1], sets[1], n)}",
        "pairs": "sample i of both from the same noise" if paired else "samples of their own noise",
    } | measure.protocol()
    del protocols["real"]  # no row for them here
    path = folders[0] / f"compare-{sets[0].key[:8]}-{sets[1].key[:8]}.json"
    figures = {name: figure._asdict() | {"difference": figure.difference._asdict()} for name, figure in found.items()}
    save_record(path, {"protocol": protocols, "differences": figures})
    told = [f"{what}: {words}" for what, words in protocols.items()]
    return "\n".join([columns(lines), "", *told, f"  figures    {path}"])


def count(config, dataset):
    """How many samples are to be measured; UserError for too few."""
    features, n = features_of(config), config.evaluate.num_samples
    held_out = len(dataset.val) + len(dataset.test)
    n = n or (held_out if features == "pixels" and held_out else min(dataset.train_images, MEASURED))
    check_count(n)
    return n


def measure_for(made):
    """The Measure that a run's config asks for.

    Raises:
      UserError: no real images that fit the run.
    """
    config = made.config
    if config.data.name == "imported":
        raise UserError("say which real images to compare with, such as --config.data.name=cifar10")
    dataset = data.load(config.data)
    if dataset.shape != made.shape:
        raise UserError(f"the run makes images of {_by(made.shape)}, those of {dataset.name} are {_by(dataset.shape)}")
    count(config, dataset)
    return measure_against(dataset, config.evaluate.split, features_of(config), config.evaluate.inception)


def guide_of(made):
    """The Generator of sample.guide, or None."""
    return generator.load(made.config.sample.guide) if made.config.sample.guide else None


def save_record(path, record):
    """Writes JSON in one piece."""
    files.write_text(path, json.dumps(record, indent=1) + "\n")


def _measured(made, folder, measure, guide):
    """(Measured, SampleSet) of as many samples as the config asks for, those kept in `folder` among them."""
    n = count(made.config, measure.dataset)
    samples = sample_set.collect(made, folder, n, measure.extractor, guide)
    print(f"comparing {n:,} samples with {measure.reference.name}", file=sys.stderr)
    by_class = made.config.model.conditional and tuple(made.derived["classes"]) == tuple(measure.dataset.classes)
    return measure(samples.features, samples.labels, protocol(made, samples, n), by_class), samples


def features_of(config):
    """What figures of this run see: "pixels", "inception" or "domain"."""
    return config.evaluate.features or default_features(config.data.name)


def _by(shape):
    return "×".join(map(str, shape))


def _pixel_score(made, folder):
    """Scores a run on digits in pixel space, beside controls that must fail; returns a table.

    The figures go to results/pixel_score.json.
    """
    from pfgm_jax.metrics import PixelScorer, controls, table

    config = made.config
    digits = data.load(config.data)
    held_out = np.concatenate([digits.val.images, digits.test.images])
    held_out_labels = np.concatenate([digits.val.labels, digits.test.labels])
    n = min(config.evaluate.num_samples or len(held_out), len(held_out))
    scorer = PixelScorer(digits.train.images, digits.train.labels, held_out)

    rows, protocols = {}, {}
    for solver in ("rk45", "heun"):
        print(f"sampling {n} digits with {solver}", file=sys.stderr)
        config.sample.solver = solver
        images, stats = made.sample(jax.random.key(config.sample.seed), n)
        rows[f"samples, {solver}"] = scorer.score(images)
        protocols[solver] = protocol(made, stats, n)
    print("sampling from an untrained network, and scoring all", file=sys.stderr)
    made.params = jax.device_get(jax.jit(lambda: models.init(made.model, made.shape))())
    untrained, _ = made.sample(jax.random.key(config.sample.seed), n)
    rows["untrained network"] = scorer.score(untrained)
    for name, images in controls(digits.train.images, digits.train.labels, held_out, held_out_labels).items():
        rows[name] = scorer.score(images)

    record = {"protocol": {"score": scorer.protocol, **protocols}, "scores": {k: _plain(v) for k, v in rows.items()}}
    (folder / "pixel_score.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [table(rows), scorer.protocol, *protocols.values(), f"  table      {folder}/pixel_score.json"]
    return "\n".join(lines)


def _plain(score):
    """A Score as JSON: its figures, and the criteria that it fails."""
    figures = {name: float(value) for name, value in vars(score).items()}
    return {k: v if math.isfinite(v) else str(v) for k, v in figures.items()} | {"failed": list(score.failed)}
