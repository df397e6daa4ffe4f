"""`--mode=diagnose`: how runs behave on the way from noise to data, and how much it takes to upset them.

One module a study. Each gives one table (Markdown and JSON) and one figure (PNG and SVG) in RUN/diagnose, of one run or
of several side by side. What was solved is kept in RUN/diagnose/kept: a stopped diagnosis goes on where it was.
"""

import math
import pathlib
import sys

import numpy as np
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from pfgm_jax import run_record
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.evaluation import naming, protocol
from pfgm_jax.evaluation.diagnose import norms, paths, quality, robustness, solvers, truth
from pfgm_jax.evaluation.diagnose.study import STYLE, Store
from pfgm_jax.evaluation.diagnose.subject import Subject, title
from pfgm_jax.storage import atomic

# Studies of (subjects, store), and those of quality, of (subjects, bench), which are of images alone.
FLOWS = {"norms": norms.study, "truth": truth.study, "paths": paths.study, "solvers": solvers.study}
QUALITY = {"noise": robustness.noise, "steps": robustness.steps, "weights": robustness.weights}
STUDIES = (*FLOWS, *QUALITY)


def diagnose(workdir, sources, overrides):
    """Studies the run in `workdir`, and beside it those in `sources`; returns the tables.

    Files are RUN/diagnose/STUDY.json, .md, .png and .svg; their names end in a hash where there are other runs or
    settings than the default ones.

    Raises:
      UserError: runs of different images, or settings that mean nothing.
    """
    opened = [protocol.open_run(place, overrides) for place in (workdir, *sources)]
    config = opened[0].config
    settings = config.diagnose
    for place, generator in zip(sources, opened[1:], strict=True):
        if generator.shape != opened[0].shape:
            shapes = ["×".join(map(str, g.shape)) for g in (opened[0], generator)]
            raise UserError(f"{workdir} makes images of {shapes[0]}, but {place} of {shapes[1]}")
    dataset = protocol.real_images(opened[0])
    chosen = _chosen(settings, dataset.train.images.dtype == np.uint8)
    if settings.quick:
        settings = ConfigDict(settings.to_dict() | {"n": min(settings.n, 16), "batch": min(settings.batch, 16)})
    solvers.settings_of(settings), robustness.alphas_of(settings.alphas)  # refused before anything long
    subjects = [Subject(name, g, dataset, settings) for name, g in zip(_names((workdir, *sources), opened), opened,
                strict=True)]  # fmt: skip
    folder = atomic.writable(pathlib.Path(workdir, "diagnose"))
    suffix = _suffix(workdir, sources, config)
    lines = []
    with atomic.writing_to(folder), tqdm(unit="part", desc="diagnose", total=_parts(chosen, subjects)) as bar:
        store, bench = Store(folder, suffix, bar), None
        for name in chosen:
            if name in QUALITY:
                bench = bench or quality.bench(subjects, store, config)
                result = _drawn(QUALITY[name], subjects, bench)
            else:
                result = _drawn(FLOWS[name], subjects, store)
            path = store.write(name, result)
            lines += [result.markdown(f"{pathlib.Path(path).stem}.png"), f"  {path}\n"]
    return "\n".join(lines)


def _drawn(study, *arguments):
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return study(*arguments)


def _chosen(settings, of_images):
    """The names in diagnose.studies; of points in the plane, those that points have."""
    names = [name.strip() for name in settings.studies.split(",") if name.strip()]
    for name in names:
        if name not in STUDIES:
            raise UserError(f"diagnose.studies={name} is not one of {', '.join(STUDIES)}{nearest(name, STUDIES)}")
    if of_images:
        return names
    there = [name for name in names if name in FLOWS]
    if not there:
        raise UserError(f"quality is not measured for points in the plane: use diagnose.studies={','.join(FLOWS)}")
    if len(there) < len(names):
        print(f"quality is not measured for points in the plane: only {', '.join(there)}", file=sys.stderr)
    return there


def _names(places, generators):
    """A name for each run: its process and D, with the folder's name where two are alike, or its whole path."""
    titles = [title(generator.process) for generator in generators]
    for folders in ([pathlib.Path(place).name for place in places], places):
        names = [
            name if titles.count(name) == 1 else f"{name} ({folder})"
            for name, folder in zip(titles, folders, strict=True)
        ]
        if len(set(names)) == len(names):
            break
    return names


def _suffix(workdir, sources, config):
    """ "" for the run alone by its own settings, else a hash of what differs."""
    own, _ = run_record.load(workdir)
    relevant = {f"{section}.{name}" for section in ("diagnose", "evaluate", "data") for name in config[section]}
    changed = naming.suffix(config, own, relevant - {"diagnose.studies", "diagnose.batch"})  # a result has none of them
    return f"-{naming.key_of([*map(str, sources), changed])}" if sources or changed else ""


def _parts(chosen, subjects):
    """About how many parts are kept, for the bar."""
    settings = subjects[0].settings
    each = {
        "norms": 2, "truth": 2, "paths": 1, "solvers": 2 + len(solvers.settings_of(settings)),
        "noise": len(robustness.NOISE_STEPS) * len(robustness.alphas_of(settings.alphas)),
        "steps": len(settings.steps), "weights": 1 + len(settings.bits),
    }  # fmt: skip
    if settings.quick:
        return None
    return math.prod((len(subjects), sum(each[name] for name in chosen)))
