"""`--mode=schedule`: grids for few evaluations, and the trace that noise at finite D needs, kept with the run."""

import time

import jax
import numpy as np
from tqdm.auto import tqdm

from pfgm_jax import data, plots
from pfgm_jax.data.class_labels import class_labels
from pfgm_jax.evaluation import protocol
from pfgm_jax.flow import field, process
from pfgm_jax.metrics.tables import aligned
from pfgm_jax.sampling import posterior_trace, schedules, search
from pfgm_jax.storage import atomic

FINE = 61  # levels of the path that grids are found on
LEVELS = 32  # of the curve of the trace


def schedule(workdir, overrides):
    """Finds and keeps a run's `schedules.Schedule`: schedule.json and schedule.png; returns a table with its protocol.

    Grids are found by `sampling.search` for `ipndm` with the weights of its levels, on the paths of schedule.draws
    draws of the prior by the network, given classes by their frequency, or by the exact field of the training images.

    Raises:
      UserError: a tuned network, no training images that fit the run, or numbers of evaluations that are none.
    """
    generator, begun = protocol.open_run(workdir, overrides), time.perf_counter()
    network, params, weights, _ = generator.weighted
    settings, flow = generator.config.schedule, generator.process
    search.check_steps(settings.steps, FINE)
    dataset = protocol.real_images(generator)
    folder = atomic.writable(workdir)
    keys = jax.random.split(jax.random.key(settings.seed), 3)
    x = process.prior(flow, jax.random.split(keys[0], settings.draws), generator.shape)
    denoise = _field(generator, dataset, settings, keys[1])
    steps = sorted(set(settings.steps))
    calls = 2 * FINE + LEVELS + sum((n - 1) * (len(search.GAMMAS) + len(search.OTHERS)) for n in steps)
    with tqdm(total=calls, desc="searching", unit="call", dynamic_ncols=True) as bar:
        path = search.fine_path(flow, denoise, x, FINE, tick=lambda: bar.update(2))
        cost, follow, grids, errors = search.costs(path), search.by_steps(denoise, bar.update), {}, {}
        for n in steps:
            bar.set_description(f"{n} evaluations")
            grids[n], errors[n] = search.best(flow, follow, path, cost, n)
        bar.set_description("posterior variance")
        trace = posterior_trace.estimate(
            flow, lambda labels: network.denoiser(params, labels), dataset.train.images,
            dataset.train.labels if generator.classes else np.full(len(dataset.train), -1, np.int32), keys[2],
            levels=LEVELS, draws=settings.draws, tick=bar.update,
        )  # fmt: skip
    made = schedules.Schedule(weights, generator.step, settings.field, grids, errors, trace)
    with atomic.writing_to(folder):
        draw(made, f"{folder}/schedule.png")
        path = schedules.save(folder, made)  # last: it makes the others count
    rows = [["evaluations", "error", "edm grid", "log grid", "levels"]]
    for n in steps:
        shown = ", ".join(f"{float(sigma):.3g}" for sigma in grids[n].split(","))
        rows.append([str(n), *(f"{errors[n][name]:.3g}" for name in ("searched", *search.OTHERS)), shown])
    whose = "the network" if settings.field == "network" else "the exact field of the training images"
    said = (
        f"grids for ipndm with equal_weights=False, by {settings.draws} paths from the prior along {whose}; the error "
        f"is the mean distance to where {FINE} levels of Heun's method end, as rms over the values of an image; step "
        f"{generator.step:,}, seed {settings.seed}, {time.perf_counter() - begun:.0f} s"
    )
    uses = "sample.grid=searched takes its grids; sample.solver=sde its curve at finite D"
    return "\n".join([aligned(rows), "", said, f"  schedule   {path}", f"  picture    {folder}/schedule.png", uses])


def _field(generator, dataset, settings, key):
    """The denoiser whose paths are searched."""
    if settings.field == "data":
        points = data.to_unit(np.asarray(dataset.train.images))
        return field.exact_denoiser(points, generator.process.D)
    labels = None
    if generator.classes:
        labels = class_labels("real", settings.draws, key, generator.classes, generator.derived["label_counts"])
    return generator.network.denoiser(generator.params, labels)


def draw(made, path):
    """Draws the grids, the error against evaluations, and the trace of a Schedule, as a PNG."""
    from matplotlib.figure import Figure  # no pyplot: no global state and no screen

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    plots.use_palette(*axes)
    steps = sorted(made.grids)
    for n in steps:
        levels = np.array(made.grids[n].split(","), float)
        axes[0].plot(levels, np.full(len(levels), n), "-o", color=plots.PALETTE[0], markersize=4, linewidth=0.6)
    axes[0].set(xscale="log", xlabel="noise level σ", ylabel="evaluations", yticks=steps, title="levels found")
    axes[0].invert_xaxis()
    for name, label in (("searched", "searched"), ("edm", "grid=edm"), ("log", "grid=log")):
        axes[1].plot(steps, [made.errors[n][name] for n in steps], "-o", markersize=4, label=label)
    axes[1].set(xlabel="evaluations", ylabel="distance to the flow's end (rms)", yscale="log", title="error of ipndm")
    axes[1].legend()
    axes[2].plot(np.exp(made.trace.log_scale), np.exp(made.trace.log_trace), "-o", markersize=3)
    axes[2].set(
        xscale="log", yscale="log", xlabel="scale of the kernel s", ylabel="tr Cov(y | x)", title="posterior variance"
    )
    for ax in axes:
        ax.grid(alpha=0.3, which="both", linewidth=0.5)
    plots.save_figure(figure, path)
