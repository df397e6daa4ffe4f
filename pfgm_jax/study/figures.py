"""The figures of a study, drawn of its records alone."""

import math
from typing import Any, NamedTuple

from matplotlib.figure import Figure as Canvas  # no pyplot: no global state and no screen
from matplotlib.ticker import LogFormatter

from pfgm_jax import plots
from pfgm_jax.evaluation.score import TITLES

MARKERS = "osD^vP*X<>"
LINES = ("-", "--", ":", "-.")


class Figure(NamedTuple):
    """A figure: a short name for files, a title, what it shows in words (for those who cannot see it), and itself."""

    name: str
    title: str
    words: str
    canvas: Any


def every(findings):
    """All Figures that the records are enough for, in the order of the report."""
    makers = (against_evaluations, against_D, robustness, truth, training, against_time)
    return [figure for maker in makers if (figure := maker(findings)) is not None]


def _style(i):
    """Colour, marker and line of the i-th entry: distinguishable without colours too."""
    return dict(color=plots.PALETTE[i % len(plots.PALETTE)], marker=MARKERS[i % len(MARKERS)], markersize=5,
                linestyle=LINES[i // len(plots.PALETTE) % len(LINES)], linewidth=1.3)  # fmt: skip


def _numbers(*axes):
    """Plain numbers on logarithmic axes, on minor ticks too where there are few major ones."""
    for axis in axes:
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))


def _interval(ax, x, figures, **style):
    """Values with their intervals; on a logarithmic axis one ends above 0."""
    values = [figure["value"] for figure in figures]
    below = [f["value"] - max(f["low"], f["value"] / 10) for f in figures]
    errors = below, [f["high"] - f["value"] for f in figures]
    ax.errorbar(x, values, yerr=errors, capsize=2, elinewidth=0.8, **style)


def _legend(canvas, axes, columns):
    handles, labels = {}, []
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = list(handles)
    canvas.legend(handles.values(), labels, loc="outside lower center", ncols=columns, fontsize="small", frameon=False)


def against_evaluations(findings):
    """A panel a solver: distance against evaluations, a line an entry, and what real images reach."""
    distance = findings.distance
    used = {point["solver"] for entry in findings.entries for point in findings.points(entry)}
    solvers = [solver for solver in findings.study.ways if solver in used]
    if not solvers:
        return None
    columns = min(3, len(solvers))
    rows = math.ceil(len(solvers) / columns)
    canvas = Canvas(figsize=(4.1 * columns, 3.5 * rows + 0.8), layout="constrained")
    axes = canvas.subplots(rows, columns, sharey=True, squeeze=False)
    floors = {}
    for k, ax in enumerate(axes.flat):
        if k >= len(solvers):
            ax.set_visible(False)
            continue
        for i, entry in enumerate(findings.entries):
            points = sorted((p for p in findings.points(entry) if p["solver"] == solvers[k]), key=lambda p: p["nfe"])
            if points:
                figures = [point["figures"][distance] for point in points]
                _interval(ax, [point["nfe"] for point in points], figures, label=entry.name, **_style(i))
                floors |= {figures["n"]: (name, figures[distance]) for name, figures in points[0]["real"].items()}
        n = max(floors)
        ax.axhline(floors[n][1], color="grey", linestyle="--", linewidth=1, label=f"{floors[n][0]} (n = {n})")
        ax.set(yscale="log", xscale="log", title=solvers[k], xlabel="evaluations of the network")
        counts = {p["nfe"] for entry in findings.entries for p in findings.points(entry) if p["solver"] == solvers[k]}
        if len(counts) <= 5:
            ax.set_xticks(sorted(counts), [f"{count:.3g}" for count in sorted(counts)])
            ax.set_xticks([], minor=True)
        else:
            _numbers(ax.xaxis)
        _numbers(ax.yaxis)
        ax.grid(alpha=0.3, which="both", linewidth=0.5)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"{TITLES[distance]}, 95 %")
    _legend(canvas, list(axes.flat)[: len(solvers)], min(4, len(findings.entries) + 1))
    words = f"{TITLES[distance]} of {findings.study.curve:,} samples, a panel for each solver; lower is better"
    return Figure("evaluations", "Quality against evaluations", words, canvas)


def against_D(findings):
    """The headline's distance against D, with EDM at the right end."""
    found = sorted(findings.at_D(), key=lambda row: row[0])
    distance = findings.distance
    if len(found) < 3:
        return None
    canvas = Canvas(figsize=(6.2, 3.8), layout="constrained")
    ax = canvas.subplots()
    largest = max(D for D, *_ in found if math.isfinite(D))
    places = [D if math.isfinite(D) else 8 * largest for D, *_ in found]
    _interval(ax, places, [record["figures"][distance] for *_, record in found], **_style(0))
    ax.set(xscale="log", xlabel="D", ylabel=f"{TITLES[distance]}, 95 %")
    ax.set_xticks(places, [f"{D:g}\n{entry.name}" if entry.config.process.name != "pfgmpp" else f"{D:g}"
                           for D, entry, _ in found])  # fmt: skip
    ax.minorticks_off()
    ax.grid(alpha=0.3, linewidth=0.5)
    words = f"{TITLES[distance]} by the headline's sampler against D from 1 to infinity; lower is better"
    return Figure("D", "Quality against D", words, canvas)


def robustness(findings):
    """A panel for each disturbance: distance against noise injected at every step, or against bits of a weight."""
    found = [(i, entry, findings.disturbed(entry)) for i, entry in enumerate(findings.entries)]
    found = [(i, entry, kinds) for i, entry, kinds in found if kinds]
    if not found:
        return None
    kinds = list(found[0][2])
    canvas = Canvas(figsize=(3.8 * len(kinds), 4.3), layout="constrained")
    axes = canvas.subplots(1, len(kinds), sharey=True)
    for ax, kind in zip(axes, kinds, strict=True):
        settings = list(found[0][2][kind])  # evenly spaced: 32 bits are far from 9
        for i, entry, points in found:
            _interval(ax, range(len(settings)), list(points[kind].values()), label=entry.name, **_style(i))
        ax.set_xticks(range(len(settings)), [f"{x:g}" if x != 32 else "float32" for x in settings])
        xlabel = "bits of a weight" if kind == "weights" else "α: noise before every step, over σ"
        ax.set(yscale="log", title=kind, xlabel=xlabel)
        ax.axhline(findings.get(found[0][1], "robustness")["floor"], color="grey", linestyle="--", label="real images")
        ax.grid(alpha=0.3, which="both", linewidth=0.5)
        _numbers(ax.yaxis)
    axes[0].set_ylabel(f"{TITLES[findings.distance]}, 95 %")
    _legend(canvas, axes, min(4, len(found) + 1))
    words = (
        f"{TITLES[findings.distance]} with noise injected at every step of Heun's method, and with weights of few bits"
    )
    return Figure("robustness", "Noise at every step, weights of few bits", words, canvas)


def _curves(findings):
    for i, entry in enumerate(findings.entries):
        record = findings.get(entry, "train")
        if record and record["curves"]:
            yield i, entry, record["curves"]


def truth(findings):
    """The distance to the exact posterior mean at the end, against σ."""
    lines = []
    for i, entry, curves in _curves(findings):
        last = [r for r in curves if any(k.startswith("truth/") for k in r)]
        if last:
            lines.append((i, entry, sorted((float(k.split("=")[1]), v) for k, v in last[-1].items() if "truth/" in k)))
    if not lines:
        return None
    canvas = Canvas(figsize=(7.6, 4), layout="constrained")
    ax = canvas.subplots()
    for i, entry, points in lines:
        ax.plot(*zip(*points, strict=True), label=entry.name, **_style(i))
    ax.set(xscale="log", yscale="log", xlabel="σ", ylabel="rms error per value")
    _numbers(ax.xaxis, ax.yaxis)
    ax.grid(alpha=0.3, which="both", linewidth=0.5)
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    words = "rms distance of each network to the exact posterior mean of the training set against the noise level"
    return Figure("truth", "Distance to the truth", words, canvas)


def training(findings):
    """Validation losses as they fell, each over its last value: the losses of different processes do not compare."""
    lines = []
    for i, entry, curves in _curves(findings):
        points = [(r["images"] / 1000, r["eval/val"]) for r in curves if "eval/val" in r]
        mean = [(r["images"] / 1000, [v for k, v in r.items() if "truth/" in k]) for r in curves]
        mean = [(x, sum(values) / len(values)) for x, values in mean if values]
        if points:
            lines.append((i, entry, points, mean))
    if not lines:
        return None
    canvas = Canvas(figsize=(9.6, 4), layout="constrained")
    axes = canvas.subplots(1, 2)
    for i, entry, points, mean in lines:
        axes[0].plot([x for x, _ in points], [y / points[-1][1] for _, y in points], label=entry.name, **_style(i))
        if mean:
            axes[1].plot(*zip(*mean, strict=True), label=entry.name, **_style(i))
    axes[0].set(ylabel="validation loss over its last value", title="loss")
    axes[1].set(ylabel="rms error, mean over σ", title="distance to the truth")
    for ax in axes:
        ax.set(xlabel="thousand images trained", yscale="log")
        ax.grid(alpha=0.3, which="both", linewidth=0.5)
        _numbers(ax.yaxis)
    _legend(canvas, axes, 4)
    words = (
        "validation loss of each run over its last value, and its mean distance to the truth, against images trained"
    )
    return Figure("training", "Training", words, canvas)


def against_time(findings):
    """Distance against milliseconds a sample, a line an entry, over all solvers."""
    distance = findings.distance
    canvas = Canvas(figsize=(7.6, 4), layout="constrained")
    ax, drawn = canvas.subplots(), False
    for i, entry in enumerate(findings.entries):
        points = sorted((p["seconds"], p["figures"][distance]["value"]) for p in findings.points(entry) if p["seconds"])
        best, front = math.inf, []
        for seconds, value in points:
            if value < best:
                best = value
                front.append((1000 * seconds, value))
        if front:
            drawn = True
            ax.plot(*zip(*front, strict=True), label=entry.name, **_style(i))
    if not drawn:
        return None
    ax.set(xscale="log", yscale="log", xlabel="milliseconds a sample", ylabel=f"best {TITLES[distance]} so far")
    _numbers(ax.xaxis, ax.yaxis)
    ax.grid(alpha=0.3, which="both", linewidth=0.5)
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    words = f"the best {TITLES[distance]} that any solver reaches in a given time a sample, as measured on this machine"
    return Figure("time", "Quality against time", words, canvas)
