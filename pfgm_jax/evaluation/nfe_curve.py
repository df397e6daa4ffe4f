"""Quality against evaluations of the network, and against time: one run, many solvers and numbers of steps."""

import dataclasses
import math
import pathlib
from typing import NamedTuple

from tqdm.auto import tqdm

from pfgm_jax import plots, run_record, sampling
from pfgm_jax.errors import UserError, counted
from pfgm_jax.evaluation import naming, protocol, sample_cache
from pfgm_jax.evaluation.score import TITLES, number
from pfgm_jax.metrics.tables import aligned
from pfgm_jax.storage import atomic

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)  # of adaptive solvers, in place of steps


class Point(NamedTuple):
    """One way to sample: a solver, its D (None: the run's own), and the options that the sweep sets."""

    solver: str
    D: float | None
    options: dict

    def settings(self, own):
        """The run's own SampleSettings with those of this point."""
        return own.changed(solver=self.solver, D=self.D, **self.options)

    @property
    def name(self):
        return self.solver + ("" if self.D is None else f", D = {self.D:g}")

    @property
    def setting(self):
        return (
            counted(self.options["steps"], "step") if "steps" in self.options else f"tolerance {self.options['rtol']:g}"
        )


def points(generator):
    """The Points that evaluate.solvers, evaluate.steps and evaluate.D ask for.

    Raises:
      UserError: an unknown solver or one that the process does not admit, or a D or number of steps that is none.
    """
    options = generator.config.evaluate
    names = [name.strip() for name in options.solvers.split(",") if name.strip()]
    if not names or not options.steps or min(options.steps) < 1:
        raise UserError("a curve needs evaluate.solvers, such as heun,rk45, and evaluate.steps, such as 9,18")
    sweep = []
    for D in _numbers(options.D):
        for name in names:
            by_steps = "steps" in sampling.find(name)[1]
            sets = [{"steps": s} for s in options.steps] if by_steps else [{"rtol": t, "atol": t} for t in TOLERANCES]
            for swept in sets:
                point = Point(name, D, swept)
                generator.prepared(point.settings(generator.settings)).check(generator.process)
                sweep.append(point)
    return sweep


def _numbers(text):
    """ "64,inf" -> [64.0, inf]; [None] for ""."""
    try:
        values = [float(word) for word in text.split(",") if word.strip()] or [None]
    except ValueError:
        values = [0.0]
    if any(value is not None and not value > 0 for value in values):
        raise UserError(f"evaluate.D={text} is not possible: give numbers > 0 or inf, such as 64,128,inf")
    return values


def curve(workdir, overrides):
    """Measures a run sampled in many ways: results/curve.json and curve.png; returns a table.

    Their names say what differs from the run's own settings. Every point has the same number of samples from the same
    noise, and an interval. Samples are kept as those of `evaluate.evaluate` are: a stopped sweep goes on where it was.
    """
    protocol.check_measured(overrides)
    generator = protocol.open_run(workdir, overrides)
    folder = atomic.writable(pathlib.Path(workdir, "results"))
    sweep = points(generator)
    _check_swept(overrides, sweep)
    protocol.check_taken(generator, overrides, tuple(dict.fromkeys(point.solver for point in sweep)))
    stem = folder / f"curve{_suffix(generator.config, workdir, sweep)}"
    measure, guide = protocol.measure_for(generator), protocol.guide_of(generator)
    n = protocol.count(generator.config, measure.dataset)
    floor, rows, protocols = measure.floor(n), [], {}
    bar = tqdm(sweep, unit="point")
    for point in bar:
        name = f"{point.name}, {point.setting}"
        bar.set_description(name)
        settings = dataclasses.replace(point.settings(generator.settings), n=n, guide=guide)
        row, samples = measured(generator, point, settings, measure, folder)
        rows.append(row)
        protocols[name] = protocol.sampled(generator, settings, samples)
    said = measure.protocol() | {
        "samples": f"{n} samples a point, all from the noise of seed {generator.settings.seed}",
        "seconds": f"for a sample, {generator.settings.batch} at once, without compilation, on this machine",
    }
    record = {"protocol": said, "points": rows, "real": floor, "point_protocols": protocols}
    protocol.save_record(f"{stem}.json", record)
    with atomic.writing_to(folder):
        draw(rows, floor, measure.extractor.distances[0], n, f"{stem}.png")
    lines = [table(rows, floor), "", *(f"{what}: {words}" for what, words in said.items())]
    return "\n".join([*lines, f"  picture    {stem}.png", f"  figures    {stem}.json"])


def _check_swept(overrides, sweep):
    """UserError for settings in whose place the Points of a curve have their own."""
    tolerances = f"its points have rtol = atol = {', '.join(f'{value:g}' for value in TOLERANCES)}; leave it out"
    instead = {"solver": "write evaluate.solvers", "steps": "write evaluate.steps", "rtol": tolerances,
               "atol": tolerances}  # fmt: skip
    if any(point.D is not None for point in sweep):
        instead["D"] = "evaluate.D has its values"
    for name, words in instead.items():
        if f"sample.{name}" in overrides:
            raise UserError(f"sample.{name}={overrides[f'sample.{name}']} has no effect on a curve: {words}")


def measured(generator, point, settings, measure, folder):
    """(row of a curve, SampleSet) of a Generator sampled with the settings of a Point; samples are kept in `folder`."""
    with atomic.writing_to(folder):
        samples = sample_cache.collect(generator, settings, folder, measure.extractor, timed=True, silent=True)
    figures = {name: figure._asdict() for name, figure in measure.estimate(samples.features).items()}
    row = {"name": point.name, "solver": point.solver, "D": point.D, "setting": point.setting, "nfe": samples.nfe}
    return row | {"seconds": _finite(samples.seconds), "figures": figures}, samples


def _suffix(config, workdir, sweep):
    """What of the settings that a curve depends on differs from the defaults, as a part of its name."""
    own, _ = run_record.load(workdir)
    relevant = set().union(*(protocol.samples_depend_on(point.solver) for point in sweep))
    relevant -= {f"sample.{name}" for point in sweep for name in point.options}
    measured = ("num_samples", "features", "split", "inception", "solvers", "steps", "D")
    relevant |= {f"evaluate.{name}" for name in measured} | {f"data.{name}" for name in config.data}
    return naming.suffix(config, own, relevant)


def _finite(value):
    return value if math.isfinite(value) else None


def table(rows, floor):
    """The points as text, best first within a solver as they were asked for; real images below."""
    names = list(rows[0]["figures"])
    lines = [["solver", "setting", "NFE", "ms a sample", *(TITLES.get(name, name) for name in names)]]
    for row in rows:
        figures = [row["figures"][name] for name in names]
        first = f"{number(figures[0]['value'])} [{number(figures[0]['low'])}, {number(figures[0]['high'])}]"
        time = "" if row["seconds"] is None else f"{1000 * row['seconds']:.3g}"
        cells = [first, *(number(figure["value"]) for figure in figures[1:])]
        lines.append([row["name"], row["setting"], f"{row['nfe']:.4g}", time, *cells])
    for name, figures in floor.items():
        lines.append([name, f"n = {figures['n']}", "", "", *(number(figures[figure]) for figure in names)])
    return aligned(lines)


def draw(rows, floor, distance, n, path):
    """Draws the distance against evaluations and against time, with intervals and what real images reach, as a PNG."""
    from matplotlib.figure import Figure  # no pyplot: no global state and no screen
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    # A Fréchet distance depends on n: lines of fewer real images would stand too high.
    alike = {name: figures for name, figures in floor.items() if figures["n"] == n} or floor
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, key, scale, label in (
        (axes[0], "nfe", 1, "evaluations of the network a sample"), (axes[1], "seconds", 1000, "milliseconds a sample")
    ):  # fmt: skip
        for name in dict.fromkeys(row["name"] for row in rows):
            here = [row for row in rows if row["name"] == name and row[key] is not None]
            values = [row["figures"][distance] for row in here]
            # On a logarithmic axis an interval ends above 0.
            below = [v["value"] - max(v["low"], v["value"] / 10) for v in values]
            errors = below, [v["high"] - v["value"] for v in values]
            x, y = [scale * row[key] for row in here], [v["value"] for v in values]
            ax.errorbar(x, y, yerr=errors, label=name, marker="o", markersize=4, capsize=2, linewidth=1.2)
        for style, (name, figures) in zip(("--", ":"), alike.items(), strict=False):
            ax.axhline(figures[distance], color="grey", linestyle=style, label=f"{name} (n = {figures['n']})")
        ax.set(yscale="log", xlabel=label)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(alpha=0.3, which="both", linewidth=0.5)
    axes[0].set(ylabel=f"{TITLES[distance]} of {n:,} samples, 95 %")
    axes[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    plots.save_figure(figure, path)
