"""What is done with a trained run: pictures and files of samples, and their score."""

import json
import math
import pathlib
import sys
import time

import jax
import numpy as np

from pfgm_jax import config as config_lib
from pfgm_jax import data, generator, models, plots, sampling
from pfgm_jax.errors import UserError


def open_run(workdir, overrides):
    """The run's Generator with `overrides` of sample.* and evaluate.*."""
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
    options = {key.removeprefix("sample.") for key in overrides} & set(sampling.option_kinds())
    sampling.check_options(config.solver, options)
    key = jax.random.key(config.seed)
    labels = made.labels(key, config.n)
    guide = generator.load(config.guide) if config.guide else None
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
    """Scores a run on digits in pixel space, beside controls that must fail; returns a table.

    The figures go to results/pixel_score.json.

    Raises:
      UserError: a data set of other images, on which pixels are no features.
    """
    from pfgm_jax.metrics import PixelScorer, controls, table

    made = open_run(workdir, overrides)
    config, folder = made.config, writable(workdir, "results")
    if config.data.name != "digits":
        raise UserError(f"the pixel score is for digits; {config.data.name} needs features that see more than pixels")
    digits = data.load(config.data)
    held_out = np.concatenate([digits.val.images, digits.test.images])
    held_out_labels = np.concatenate([digits.val.labels, digits.test.labels])
    n = min(config.evaluate.n, len(held_out))
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
