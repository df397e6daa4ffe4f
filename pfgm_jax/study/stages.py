"""What is measured of one run of a study: each stage a function of a `Place` that returns a record, as JSON.

All of it is done by the functions of the modes (train, curve, evaluate, likelihood, interpolate), with their files in
the run's own folder; a stage only chooses their settings and keeps what a report needs.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from pfgm_jax import config as config_lib
from pfgm_jax import generator as generator_lib
from pfgm_jax import metrics, plots, run_record, sampling
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import copies_and_usefulness, interpolation, likelihood, nfe_curve, protocol, sample_cache
from pfgm_jax.evaluation.diagnose import quality
from pfgm_jax.evaluation.diagnose import robustness as diagnosed
from pfgm_jax.evaluation.diagnose.study import Store
from pfgm_jax.evaluation.diagnose.subject import Subject
from pfgm_jax.storage import atomic
from pfgm_jax.storage.metrics_file import read_metrics
from pfgm_jax.study.plan import Entry, Study, steps_or_tolerance
from pfgm_jax.training import loop

ROWS = 8  # of samples in a grid, and samples of each class


class Place(NamedTuple):
    """A run and where its records go.

    Attributes:
      folder: of the records and pictures of this entry.
      measure: `Generator -> score.Measure`, the same one for all runs.
    """

    study: Study
    entry: Entry
    folder: pathlib.Path
    measure: object

    def generator(self, features=""):
        """The run's Generator, to be measured as the study says, or in other features."""
        options = {"evaluate.features": features or self.study.features, "evaluate.split": self.study.split}
        return generator_lib.load(self.entry.folder).with_overrides(uses_of(self.entry) | options)


def uses_of(entry):
    """{"section.field": value} of an entry's use (`run_record.USES`) that its run, trained before, does not record."""
    recorded, now = config_lib.flatten(run_record.load(entry.folder)[0]), config_lib.flatten(entry.config)
    return {key: now[key] for key in now if key.startswith(run_record.USES) and now[key] != recorded[key]}


def train(place):
    """Trains the run to its end, or continues it; takes one that is trained elsewhere as it is."""
    entry = place.entry
    if entry.trained_here and not trained(entry):
        loop.train(entry.config, str(entry.folder))
    generator = place.generator()
    config, records = generator.config, read_metrics(entry.folder)
    speeds = [record["images_per_second"] for record in records if "images_per_second" in record]
    flat = {key: value for key, value in run_record.record(config, {})["config"].items()}
    return {
        "images": generator.step * config.train.batch,
        "init_images": generator.run.init_images,
        "asked": config.train.images,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(generator.params)),
        "process": [generator.process.name, str(generator.process.D), float(generator.process.sigma_max),
                    float(generator.process.sigma_min)],
        "parametrisation": type(generator.parametrization).__name__,
        "law": type(generator.process.training_law).__name__,
        "lr": generator.derived["lr"],
        "config": flat,
        "changed": entry.changed,
        "images a second": float(np.median(speeds)) if speeds else None,
        "curves": [{k: v for k, v in r.items() if k == "images" or k.startswith(("eval/", "truth/"))} for r in records
                   if any(k.startswith(("eval/", "truth/")) for k in r)],
    }  # fmt: skip


def trained(entry):
    """Whether a run has come to its end: its last checkpoint is of the images that are asked for."""
    from pfgm_jax.storage import checkpoint
    from pfgm_jax.training.cadence import make_cadence

    there = checkpoint.steps(entry.folder) if entry.folder.exists() else []
    return bool(there) and there[-1] >= make_cadence(entry.config).total


def way(place, solver, number, n):
    """A point of the curve: n samples by a solver with a number of steps or a tolerance, and their figures."""
    generator = place.generator()
    row, _, samples = _point(place, generator, solver, number, n)
    return row | {"key": samples.key}


def _point(place, generator, solver, number, n):
    """(row, SampleSettings, SampleSet)."""
    point = nfe_curve.Point(solver, None, steps_or_tolerance(solver, number))
    guide = protocol.guide_of(generator)
    settings = dataclasses.replace(point.settings(generator.settings), n=n, guide=guide)
    settings.check(generator.process)
    results = atomic.writable(place.entry.folder / "results")
    measure = place.measure(generator)
    row, samples = nfe_curve.measured(generator, point, settings, measure, results)
    row |= {"n": n, "protocol": protocol.sampled(generator, settings, samples), "real": measure.floor(n)}
    return row | {"measured": measure.protocol()}, settings, samples


def admits(entry, solver):
    """Whether the process of an entry admits a solver, without its run: as `sampling.check` finds."""
    from pfgm_jax.run import make_process

    derived = {"M": 291, "N": 64, "sigma_max": 20.0}  # stand-ins: what is refused depends on the kind of process
    try:
        sampling.check(solver, make_process(entry.config, derived), {})
    except UserError:
        return False
    return True


def headline(place):
    """The headline's point, with a grid of its samples, and one by class."""
    generator, study = place.generator(), place.study
    row, _, samples = _point(place, generator, *study.headline, study.n)
    pictures = {"grid": plots.grid(samples.images[: ROWS**2], ROWS)}
    if generator.classes:
        names, labels = generator.classes, samples.labels
        images = sample_cache.images_of(place.entry.folder / "results", samples.key, study.n)
        rows = [(name, images[labels == k][:ROWS]) for k, name in enumerate(names)]
        pictures["classes"] = plots.labelled_rows([row for row in rows if len(row[1])], ROWS)
    for name, picture in pictures.items():
        plots.save(picture, place.folder / f"{name}.png")
    return row | {"key": samples.key, "pictures": [f"{name}.png" for name in pictures]}


def also(place, features):
    """The headline's samples in other features."""
    row, _, _ = _point(place, place.generator(features), *place.study.headline, place.study.n)
    return row


def difference(place, other):
    """Figures of the headline's samples of the first entry, `other`, minus those of this one, with intervals."""
    pair = []
    for each in (other, place):
        generator = each.generator()
        _, _, samples = _point(each, generator, *each.study.headline, each.study.n)
        pair.append((generator.process, samples))
    measure = place.measure(place.generator())
    paired = pair[0][0] == pair[1][0]
    result = metrics.compare(measure.metric, *(samples.features for _, samples in pair), paired=paired)
    figures = {name: figure._asdict() | {"difference": figure.difference._asdict()} for name, figure in result.items()}
    return {"first": other.entry.name, "second": place.entry.name, "paired": paired, "figures": figures}


def copies(place):
    """How near the headline's samples come to training images, and the panel of the nearest."""
    generator, study = place.generator(), place.study
    dataset = protocol.real_images(generator)
    images = _headline_images(place, generator)[0]
    to = copies_and_usefulness.Destination(str(place.folder / "headline"), "", True)
    mirror = bool(generator.config.train.flip or generator.config.train.augment)
    lines = copies_and_usefulness.copies(dataset, images, to, mirror=mirror)
    written = place.folder / "headline-copies.json"
    if not written.exists():
        return {"skipped": lines[0].removeprefix("copies     ")}
    record = json.loads(written.read_text())
    return {"n": study.n, **record["scores"]["samples"], "protocol": record["protocol"]["copies"],
            "pictures": ["headline-copies.png"]}  # fmt: skip


def usefulness(place, first=False):
    """What classifiers learn from the headline's samples, tested on real images.

    first: train those that see no samples too, which are the same for all entries.
    """
    generator, study = place.generator(), place.study
    if not generator.classes:
        return {"skipped": "the network knows no classes"}
    images, labels = _headline_images(place, generator)
    to = copies_and_usefulness.Destination(str(place.folder / "headline"), "", True)
    arms = ("real", "repeated", "synthetic", "filled") if first else ("synthetic", "filled")
    copies_and_usefulness.use(protocol.real_images(generator), images, labels, to, study.usefulness, arms=arms)
    record = json.loads((place.folder / f"headline-usefulness-{study.usefulness}.json").read_text())
    return {"n": len(images), "scores": record["scores"], "protocol": record["protocol"]["usefulness"]}


def _headline_images(place, generator):
    """(images, labels) of the headline's samples, which `headline` has drawn."""
    _, _, samples = _point(place, generator, *place.study.headline, place.study.n)
    return sample_cache.images_of(place.entry.folder / "results", samples.key, place.study.n), samples.labels


def likelihoods(place):
    """Bits per dimension of real images."""
    overrides = {"likelihood.n": place.study.likelihood} | uses_of(place.entry)
    likelihood.likelihood(place.entry.folder, overrides)
    generator = protocol.open_run(place.entry.folder, overrides)
    return json.loads(pathlib.Path(f"{likelihood.stem_of(generator, place.entry.folder / 'results')}.json").read_text())


def latents(place):
    """Strips between real images."""
    overrides = {"latents.n": place.study.latents} | uses_of(place.entry)
    interpolation.interpolate(place.entry.folder, overrides)
    generator = protocol.open_run(place.entry.folder, overrides)
    path = interpolation.path_of(generator, place.entry.folder / "samples", "interpolation")
    with atomic.replacing(place.folder / "interpolation.png") as temporary:
        temporary.write_bytes(pathlib.Path(path).read_bytes())
    return {"pictures": ["interpolation.png"], "solver": generator.config.latents.solver}


def robustness(place):
    """Figures of samples with noise injected at every step, and with weights of few bits, by Heun's method."""
    generator, n = place.generator(), place.study.robustness
    results = atomic.writable(place.entry.folder / "diagnose")
    subject = Subject(place.entry.name, generator, protocol.real_images(generator), generator.config.diagnose)
    with tqdm(unit="part", desc="robustness", delay=5) as bar:
        bench = quality.Bench(n, place.measure(generator), Store(results, "", bar))
        studies = {"noise": diagnosed.noise, "weights": diagnosed.weights}
        points = {name: study([subject], bench).numbers["points"] for name, study in studies.items()}
    return {"n": n, "points": points, "floor": bench.floor(), "protocol": bench.protocol}


def cost(place):
    """Memory, compilation and speed, measured in a fresh process without kept programs (`study.cost`)."""
    solver, number = place.study.headline
    changed = json.dumps(uses_of(place.entry))
    command = [sys.executable, "-m", "pfgm_jax.study.cost", str(place.entry.folder), solver, str(number), changed]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the cost was not measured: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
