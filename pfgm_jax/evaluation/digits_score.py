"""The score of a run on digits in pixel space, beside controls that must fail."""

import dataclasses
import math

import jax
import numpy as np

from pfgm_jax import models, parallel, run_record
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import naming, protocol
from pfgm_jax.metrics import PixelScorer, controls, table

_UNUSED = ("split", "copies", "usefulness", "seeds", "inception")  # settings of `evaluate` that other features have
SCORED = ("rk45", "heun")  # solvers that are scored, unless one is asked for


def pixel_score(generator, folder, workdir, overrides):
    """Scores a run on digits in pixel space, beside controls that must fail; returns a table.

    The solvers are SCORED, or the one of sample.solver if that is among the overrides. The figures go to
    results/pixel_score.json, or to a file named after the solver and what differs from the run's own settings.
    """
    config = generator.config
    solvers = (config.sample.solver,) if "sample.solver" in overrides or generator.run.tuned else SCORED
    protocol.check_options(generator, overrides, solvers)
    unused = [f"evaluate.{name}" for name in _UNUSED if f"evaluate.{name}" in overrides]
    if unused:
        raise UserError(
            f"the score of digits does not use {', '.join(unused)}: leave it out, or measure by other features, "
            "evaluate.features=domain"
        )
    digits = protocol.real_images(generator)
    held_out = np.concatenate([digits.val.images, digits.test.images])
    held_out_labels = np.concatenate([digits.val.labels, digits.test.labels])
    n = config.evaluate.num_samples or len(held_out)
    if n > len(held_out):
        raise UserError(
            f"evaluate.num_samples={n} is more than the {len(held_out)} held-out digits that the score uses: "
            f"write evaluate.num_samples={len(held_out)}, or measure by other features, evaluate.features=domain"
        )
    own, _ = run_record.load(workdir)
    relevant = set().union(*(protocol.samples_depend_on(solver) for solver in solvers))
    relevant |= {"evaluate.num_samples", *(f"data.{name}" for name in config.data)}
    alone = f"-{solvers[0]}" if len(solvers) == 1 else ""
    path = folder / f"pixel_score{alone}{naming.suffix(config, own, relevant)}.json"
    scorer = PixelScorer(digits.train.images, digits.train.labels, held_out)
    settings = dataclasses.replace(generator.settings, n=n, guide=protocol.guide_of(generator))

    rows, protocols = {}, {}
    for solver in solvers:
        protocol.say(f"sampling {n} digits with {solver}")
        settings = settings.changed(solver=solver)
        images, stats = generator.sample(settings=settings)
        rows[f"samples, {solver}"] = scorer.score(images)
        protocols[solver] = protocol.sampled(generator, settings, stats)
    protocol.say("sampling from an untrained network, and scoring all")
    params = jax.device_get(jax.jit(lambda: models.init(generator.model, generator.shape))())
    # With the grid and the noise of the trained weights' schedule: it has none of its own.
    untrained, _ = generator.with_params(params).sample(settings=generator.prepared(settings))
    rows["untrained network"] = scorer.score(untrained)
    for name, images in controls(digits.train.images, digits.train.labels, held_out, held_out_labels).items():
        rows[name] = scorer.score(images)

    record = {"protocol": {"score": scorer.protocol, **protocols}, "scores": {k: _plain(v) for k, v in rows.items()}}
    if parallel.is_first():
        protocol.save_record(path, record | {"full": n == len(held_out), "weights": generator.weights_digest})
    return "\n".join([table(rows), scorer.protocol, *protocols.values(), f"  table      {path}"])


def _plain(score):
    """A Score as JSON: its figures, and the criteria that it fails."""
    figures = {name: float(value) for name, value in vars(score).items()}
    return {k: v if math.isfinite(v) else str(v) for k, v in figures.items()} | {"failed": list(score.failed)}
