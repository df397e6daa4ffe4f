"""Consistency tuning (ECT, arXiv 2406.14548): a trained network becomes the end of its own flow, at any D.

Training is that of `loop.train`, with the loss `losses.consistency_error`; here are the config of a tuned run, the
choice of the levels that it samples by, and its error to the exact field's flow map.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax import config as config_lib
from pfgm_jax import config_rules, data, generator, run_record
from pfgm_jax.errors import UserError, printable
from pfgm_jax.flow import process
from pfgm_jax.metrics.tables import aligned
from pfgm_jax.sampling.settings import labels_for
from pfgm_jax.storage import atomic, digests
from pfgm_jax.training import flow_ends, loop
from pfgm_jax.training.step import make_task
from pfgm_jax.training.validation import choose

# What differs from the source's config, beside the objective: the published optimiser and no warm-up, and the clean
# image as the pair's y. The average's half-life is that of 0.9999 a step of 128 images, and train.ema_ramp shortens it.
SETTINGS = {
    "optim.name": "radam", "optim.lr": 1e-4, "optim.lr_batch": 128, "optim.warmup": 0, "optim.decay": "constant",
    "optim.beta2": 0.999, "train.large_batch": 0, "train.ema_halflife": 887_000, "train.keep_best": False,
    "sample.solver": "consistency", "sample.steps": None, "sample.levels": None, "sample.D": None,
    "sample.guidance": 1.0, "sample.guide": "", "evaluate.solvers": "consistency", "evaluate.steps": "1,2,4",
}  # fmt: skip
# What may be set: the rest belongs to the network.
FREE = ("tune.", "train.", "optim.", "sample.", "evaluate.", "data.", "model.dropout", "model.remat", "model.dtype")
FIXED = ("tune.step", "tune.digest", "train.init", "train.objective", "train.augment")
# The levels of the evaluations after the first, in units of σ_data, from which the best are chosen one after the other.
CANDIDATES = np.geomspace(0.25, 8.0, 11)
MOST_LEVELS, SAMPLES = 3, 1024  # the best of them is not resolved with the 180 samples that digits' validation set has


def tune(source, workdir, overrides):
    """Tunes the run in `source` to a new one in `workdir`, or continues that; returns a report.

    The report has the error to the exact field's flow map, of the tuned network and of its source, and the levels that
    were chosen on validation images, which become the run's own sample.levels unless they were set.

    Raises:
      UserError: no weights in `source`, those of a tuned run or of PFGM's field, a setting that belongs to the source,
        and whatever `loop.train` raises.
    """
    teacher = generator.load(source)
    config = tuned_config(teacher, source, overrides)
    asked = config.sample.levels
    if not asked:
        config = _with_chosen_levels(config, workdir)
    loop.train(config, workdir)
    tuned = generator.load(workdir)
    dataset = data.load(config.data)
    print("following the exact field, and choosing levels", file=sys.stderr, flush=True)
    lines = [map_table(tuned, teacher, dataset.train)]
    levels = asked or choose_levels(tuned, dataset.val)
    if not asked and levels:
        config, derived = run_record.load(workdir)
        run_record.save(workdir, run_record.with_overrides(config, {"sample.levels": levels}), derived)
        lines.append(
            f"levels     {levels} of the evaluations after the first, chosen on {len(dataset.val)} validation images"
        )
    return "\n".join(filter(None, lines))


def tuned_config(teacher, source, overrides):
    """The checked config of a run that is tuned from the Generator `teacher`, loaded from `source`."""
    if teacher.run.tuned:
        raise UserError(
            f"{printable(source)} is a tuned run already: tune the run it came from, "
            f"{printable(teacher.config.train.init)}"
        )
    for key in overrides:
        if not key.startswith(FREE) or key in FIXED:
            raise UserError(f"a tuned run has the {key} of its source: leave it out")
    config = config_lib.default()
    weights = digests.sha256(*(np.asarray(leaf) for leaf in jax.tree.leaves(teacher.params)))
    own = {"train.init": str(source), "train.objective": "consistency", "tune.step": int(teacher.step),
           "tune.digest": weights[:16]}  # fmt: skip
    for key, value in (config_lib.flatten(teacher.config) | SETTINGS | own | overrides).items():
        config_lib.override(config, key, value)
    config_rules.check(config)
    return config


def _with_chosen_levels(config, workdir):
    """The config with the levels that an earlier end of the run in `workdir` chose, which a longer run keeps until its
    own end; as it is where there are none."""
    folder = atomic.expanded(workdir)
    if not (folder / "config.json").exists():
        return config
    return run_record.with_overrides(config, {"sample.levels": run_record.load(folder)[0].sample.levels})


def map_table(tuned, teacher, split):
    """The rms error per pixel to the exact field's flow map at some levels, as text; "" for a set too large for it."""
    task = make_task(tuned.config, tuned.derived)
    if not flow_ends.known(task, split):
        return ""
    ends = flow_ends.exact_ends(task, split)
    reach = flow_ends.one_evaluation(task)
    once = [flow_ends.errors(ends, reach(g.params, ends.x, ends.sigmas, ends.labels)) for g in (tuned, teacher)]
    source = lambda params: teacher.network.denoiser(params, ends.labels)
    flow = flow_ends.followed(task.process, source, teacher.params, ends.sigmas, ends.x)
    rows = [["sigma", "tuned, 1 evaluation", "source, 1 evaluation", "source's flow"]]
    for sigma, *figures in zip(ends.sigmas, *once, flow_ends.errors(ends, flow), strict=True):
        rows.append([f"{sigma:.3g}", *(f"{figure:.4f}" for figure in figures)])
    about = (
        f"rms error per pixel to the exact field's flow from σ to 0, at {ends.x.shape[1]} training images with noise; "
        "the source's flow (Heun) is what a perfectly tuned network would reach"
    )
    return f"{aligned(rows)}\n{about}"


def choose_levels(tuned, split):
    """Levels of the second, third and fourth evaluation as text, or None without validation images.

    One after the other, each the candidate whose samples have the smallest energy distance to the validation images:
    2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖, the distance between distributions that needs no features. All candidates share
    their noise, so that the differences between them are not of chance alone.
    """
    if len(split) < 2:
        return None
    size = min(SAMPLES, tuned.config.sample.batch)
    n = -(-SAMPLES // size) * size
    flow, key = tuned.process, jax.random.key(tuned.config.seed)
    labels = jnp.asarray(labels_for(tuned.run, "real", n, key))
    once = jax.jit(lambda x, sigma, own: tuned.network.denoiser(tuned.params, own)(x, jnp.full(size, sigma, x.dtype)))

    def reach(x, sigma):
        return jnp.concatenate([once(x[i : i + size], sigma, labels[i : i + size]) for i in range(0, n, size)])

    keys = jax.random.split(jax.random.fold_in(key, 6), (MOST_LEVELS + 1, n))
    chosen = np.sort(choose(tuned.config.seed, len(split), min(n, len(split))))
    real = np.asarray(data.to_unit(split.images[chosen])).reshape(len(chosen), -1)
    reached, levels = reach(process.prior(flow, keys[0], tuned.shape), flow.sigma_max), []
    candidates = [float(f"{sigma:.3g}") for sigma in CANDIDATES * tuned.derived["sigma_data"]]
    for after, own in zip(reversed(range(MOST_LEVELS)), keys[1:], strict=True):
        below = [sigma for sigma in candidates if flow.sigma_min <= sigma < (levels or [flow.sigma_max])[-1]]
        if not below:
            break
        found = {}
        for sigma in below[after:] or below:  # the lowest are left for the levels to come
            again = reach(process.perturb(flow, own, reached, jnp.full(n, sigma, reached.dtype)), sigma)
            found[sigma] = energy_distance(np.asarray(again).reshape(n, -1), real), again
        levels.append(min(found, key=lambda sigma: found[sigma][0]))
        reached = found[levels[-1]][1]
    return ",".join(map(str, levels)) or None


def energy_distance(x, y):
    """The energy distance between samples x [n, N] and y [m, N], unbiased."""
    distances = lambda a, b: np.sqrt(np.maximum(0, np.sum(a * a, 1)[:, None] + np.sum(b * b, 1)[None] - 2 * a @ b.T))
    own = lambda a: (distances(a, a).sum() - np.trace(distances(a, a))) / (len(a) * (len(a) - 1))
    return float(2 * distances(x, y).mean() - own(x) - own(y))
