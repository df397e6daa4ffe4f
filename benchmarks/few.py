"""Quality against evaluations on digits: every solver, searched grids, noise, tuned networks, at any D.

    python -m benchmarks.few solvers RUN [RUN …] [--tuned=RUN,RUN,…]
    python -m benchmarks.few noise RUN [RUN …]
    python -m benchmarks.few field [--set=bloodmnist] [--dir=FOLDER] [--images=500]
    python -m benchmarks.few show [--picture=docs/solvers.png]

The first three measure, and add to `--record` (benchmarks/few.json); `show` reads it: tables in Markdown, and the
figure of docs/solvers.md. RUNs are of configs/digits.py, each with a schedule (--mode=schedule).

`solvers` and `noise`: figures of 360 digits, which start from the same noise whatever the solver. `error` is the mean
over images of the rms distance per pixel to where the flow ends from the same noise (RK45 at 1e-5). `frechet` is the
Fréchet distance in pixels to the 360 held-out digits; the others are the pixel score's, relative to these. Intervals
are at 95 %: of `error` by Student's t over images, of `frechet` by random halves (`metrics/intervals.py`), both paired
where two solvers are compared. They are of the samples alone: another training may differ by more.

`field`: the same error on the exact field of some images of a set, without a network, on grids that were searched on
other noise.
"""

import argparse
import itertools
import json
import math
import pathlib
import time

import jax
import numpy as np
from scipy.stats import t as student

import pfgm_jax
from benchmarks.sets import SIZES, training_points
from configs import digits as config_file
from pfgm_jax import data, plots
from pfgm_jax.flow import process
from pfgm_jax.metrics import PixelScorer, intervals
from pfgm_jax.metrics.frechet import fid
from pfgm_jax.sampling import SOLVERS, search

N = 360
FIGURES = ("frechet", "confidence", "density", "coverage", "distance")
FEW = (2, 3, 4, 5, 6, 8, 10)
SOME, MANY = (*FEW, 14), (*FEW, 14, 25, 50, 100)
DEIS = {"equal_weights": False}
# Name in tables: (solver, options, numbers of evaluations).
METHODS = {
    "euler": ("euler", {}, MANY),
    "heun": ("heun", {}, (3, 5, 7, 9, 13, 25, 51)),
    "dpmpp_2m": ("dpmpp_2m", {}, SOME),
    "dpmpp_3m": ("dpmpp_3m", {}, MANY[:-2]),
    "ipndm": ("ipndm", {}, SOME),
    "ipndm, weights of its levels": ("ipndm", DEIS, SOME),
    "the same, searched grid": ("ipndm", DEIS | {"grid": "searched"}, FEW[2:]),
    "unipc": ("unipc", {}, SOME),
    "sde, λ = 1": ("sde", {}, MANY),
}
SEARCHED, THIRD = "the same, searched grid", "dpmpp_3m"
TOLERANCES = (1e-1, 1e-2, 1e-3)


class Scores:
    """The FIGURES of uint8 digits."""

    def __init__(self):
        sets = data.load(config_file.get_config().data)
        held_out = np.concatenate([sets.val.images, sets.test.images])[:N]
        self._scorer = PixelScorer(sets.train.images, sets.train.labels, held_out)
        self._reference = data.to_unit(held_out).reshape(N, -1)
        self.floor = [self.frechet(part)["frechet"] for part in np.split(sets.train.images[: 3 * N], 3)]

    def frechet(self, images):
        return {"frechet": fid(self._reference, data.to_unit(images).reshape(len(images), -1))}

    def __call__(self, images):
        score = self._scorer.score(images)
        own = intervals.estimate(self.frechet, images)["frechet"]
        values = {name: [getattr(score, name)] for name in FIGURES[1:]}
        return {"frechet": [own.value, own.high - own.value]} | values


def by_operations(solver, flow, compiled, x, **options):
    """(samples, SolveStats) of a solver that is not compiled itself, by a compiled denoiser."""

    def denoise(x, sigma):
        with jax.disable_jit(False):
            return compiled(x, sigma)

    with jax.disable_jit():
        x, stats = SOLVERS[solver](flow, denoise, x, **options)
    return np.asarray(x), stats


class Digits:
    """A network of digits, and N samples of it.

    It is compiled once; solvers run operation by operation on it, as a program for each setting would take longer to
    compile than to solve. Sample i starts from the noise that `Generator.sample` with the key 0 starts it from.
    """

    def __init__(self, path):
        self.generator = pfgm_jax.load(path)
        self.flow = self.generator.process
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(N))
        self._x = process.prior(self.flow, keys, self.generator.shape)
        self._keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        self._network = jax.jit(lambda x, sigma: self.generator.network.denoiser(self.generator.params, None)(x, sigma))

    @property
    def name(self):
        return f"{self.flow.D:g}"

    def solve(self, solver, options):
        """(samples [N, *S] in the unit scale, evaluations)."""
        settings = self.generator.prepared(self.generator.settings.changed(solver=solver, **options))
        options = settings.solver_options
        if settings.draws_noise:  # random bits are slow operation by operation
            run = jax.jit(lambda x, keys: SOLVERS[solver](self.flow, self._network, x, keys=keys, **options))
            x, stats = run(self._x, self._keys)
            return np.asarray(x), float(stats.nfe)
        x, stats = by_operations(solver, self.flow, self._network, self._x, keys=self._keys, **options)
        return x, float(stats.nfe)

    def measured(self, scores, solver, options, ends=None):
        """({"evaluations", figure: [value, reach of its interval where there is one]}, samples).

        "error" is among the figures where `ends` [N, *S] are given.
        """
        samples, evaluations = self.solve(solver, options)
        figures = scores(data.to_uint8(samples))
        if ends is not None:
            figures["error"] = mean_and_reach(distances(samples, ends))
        rounded = {name: [float(f"{value:.4g}") for value in values] for name, values in figures.items()}
        return {"evaluations": evaluations, **rounded}, samples


def distances(samples, ends):
    """rms distance per pixel of each image, [n]."""
    return np.sqrt(np.mean((samples - ends) ** 2, axis=(1, 2, 3)))


def mean_and_reach(values):
    """The mean of values [k], and how far its 95 % interval reaches."""
    values = np.asarray(values)
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(half)


def fewer_evaluations(samples, ends, scores):
    """Searched grids with 8 and 6 evaluations minus dpmpp_3m with 10 and 8: {"8 against 10": {figure: [a, b, reach]}}.

    samples: {(method, evaluations): images}.
    """
    found = {}
    for few, many in ((8, 10), (6, 8)):
        a, b = samples[SEARCHED, few], samples[THIRD, many]
        parts = [distances(x, ends) for x in (a, b)]
        row = {"error": [*(float(part.mean()) for part in parts), mean_and_reach(parts[0] - parts[1])[1]]}
        if scores:
            both = intervals.compare(scores.frechet, data.to_uint8(a), data.to_uint8(b), paired=True)["frechet"]
            row["frechet"] = [both.a, both.b, both.difference.high - both.difference.value]
        found[f"{few} against {many}"] = {name: [float(f"{v:.4g}") for v in values] for name, values in row.items()}
    return found


def on_solvers(flags, record):
    scores = Scores()
    record["floor"] = scores.floor
    for path in flags.runs:
        digits, begun, samples = Digits(path), time.perf_counter(), {}
        ends, calls = digits.solve("rk45", {"rtol": 1e-5, "atol": 1e-5, "max_steps": 10_000})
        print(f"D = {digits.name}: the flow's ends by {calls:g} evaluations", flush=True)
        rows = record.setdefault("solvers", {}).setdefault(digits.name, {})
        for label, (solver, options, counts) in METHODS.items():
            rows[label] = []
            for n in counts:
                steps = (n + 1) // 2 if solver == "heun" else n
                known = None if solver == "sde" else ends
                row, samples[label, n] = digits.measured(scores, solver, options | {"steps": steps}, known)
                rows[label].append(row)
            print(f"D = {digits.name}: {label}, {time.perf_counter() - begun:.0f} s", flush=True)
        rows["rk45"] = [digits.measured(scores, "rk45", {"rtol": t, "atol": t}, ends)[0] for t in TOLERANCES]
        record.setdefault("fewer", {})[digits.name] = fewer_evaluations(samples, ends, scores)
    for path in filter(None, flags.tuned.split(",")):
        digits = Digits(path)
        rows = record.setdefault("solvers", {}).setdefault(digits.name, {})
        rows["consistency, tuned"] = [digits.measured(scores, "consistency", {"steps": n})[0] for n in (1, 2, 3, 4)]


def noisy_ways(gaussian):
    """(name, solver, options) at about 18 and 50 evaluations: the flow, the SDE, and churn."""
    for count in (18, 50):
        yield "flow, dpmpp_3m", "dpmpp_3m", {"steps": count}
        yield "flow, euler", "euler", {"steps": count}
        for noise in (0.5, 1.0, 2.0):
            yield f"sde, λ = {noise:g}", "sde", {"steps": count, "noise": noise}
        steps = (count + 1) // (2 if gaussian else 3)
        for churn in (5.0, 20.0):
            yield f"heun, S_churn = {churn:g}", "heun", {"steps": steps, "S_churn": churn}


def on_noise(flags, record):
    scores = Scores()
    for path in flags.runs:
        digits = Digits(path)
        rows = record.setdefault("noise", {})[digits.name] = []
        for label, solver, options in noisy_ways(digits.flow.is_gaussian):
            rows.append({"name": label, **digits.measured(scores, solver, options)[0]})
            print(f"D = {digits.name}: {label}, {rows[-1]['evaluations']:g}", flush=True)


def on_a_field(flags, record):
    """Errors on the exact field of a set's images, D = 128 and ∞; grids are searched on 64 draws, judged on 64."""
    points = training_points(flags.set, flags.dir, flags.images)
    sigma_max = math.sqrt(float(np.mean(np.sum(points.reshape(len(points), -1) ** 2, axis=1))) / 0.12)
    for D in (128.0, math.inf):
        flow, begun = process.pfgmpp(D, sigma_max=sigma_max), time.perf_counter()
        denoise = pfgm_jax.exact_denoiser(points, D)
        compiled = jax.jit(denoise)
        keys = jax.random.split(jax.random.key(1), 128)
        x = process.prior(flow, keys, points.shape[1:])
        path = search.fine_path(flow, denoise, x[:64])
        cost, follow = search.costs(path), search.by_steps(denoise)
        grids = {n: search.best(flow, follow, path, cost, n)[0] for n in FEW[2:]}
        seconds = time.perf_counter() - begun
        end, rows, samples = by_operations("heun", flow, compiled, x[64:], steps=80)[0], {}, {}
        for label, n in itertools.product((THIRD, "ipndm, weights of its levels", SEARCHED), FEW[2:]):
            solver, options, _ = METHODS[label]
            own = options | ({"grid": grids[n]} if label == SEARCHED else {})
            samples[label, n] = by_operations(solver, flow, compiled, x[64:], steps=n, **own)[0]
            error = [float(f"{v:.4g}") for v in mean_and_reach(distances(samples[label, n], end))]
            rows.setdefault(label, []).append({"evaluations": n, "error": error})
        record.setdefault("field", {})[f"{D:g}"] = {
            "images": len(points), "seconds": round(seconds), "grids": grids, "rows": rows,
            "fewer": fewer_evaluations(samples, end, None),
        }  # fmt: skip
        print(f"D = {D:g}: searched in {seconds:.0f} s", flush=True)


# ---- what the record says


def shown(values):
    """A figure and its interval as text."""
    return " ± ".join(f"{value:.3f}" for value in values)


def at(rows, evaluations, off=0):
    """The row of so many evaluations, up to `off` more or fewer; None for none."""
    return next((row for row in rows if abs(row["evaluations"] - evaluations) <= off), None)


def as_table(record, name, figure):
    """Markdown of one figure at one D: a row a method, a column a number of evaluations."""
    counts = MANY
    lines = [f"| D = {symbol(name)} | {' | '.join(map(str, counts))} |", "|---|" + "--:|" * len(counts)]
    for label, rows in record["solvers"][name].items():
        found = [at(rows, count, off=count > FEW[-1]) for count in counts]  # Heun's are 13, 51 and 99
        if any(row and figure in row for row in found):
            cells = [f"{row[figure][0]:.3f}" if row and figure in row else "" for row in found]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def said(fewer):
    """Lines of `fewer_evaluations`."""
    for against, row in fewer.items():
        for figure, (a, b, reach) in row.items():
            verdict = "resolved" if abs(a - b) > reach else "not resolved"
            yield f"{against}, {figure}: {a:.4g} − {b:.4g} = {a - b:+.4g} ± {reach:.2g}, {verdict}"


def symbol(name):
    return "∞" if name == "inf" else name


def picture(record, path):
    """Error and Fréchet distance against evaluations, a column a D."""
    from matplotlib.figure import Figure

    names = [name for name in ("128", "inf") if name in record["solvers"]]
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    panels = figure.subplots(2, len(names), sharex=True, sharey="row", squeeze=False)
    styles = dict(zip(
        (*METHODS, "rk45", "consistency, tuned"),
        itertools.product(("-", "--"), plots.PALETTE), strict=False,
    ))  # fmt: skip
    for column, name in zip(panels.T, names, strict=True):
        for axes, key in zip(column, ("error", "frechet"), strict=True):
            for label, rows in record["solvers"][name].items():
                rows = [row for row in rows if key in row]
                line, colour = styles[label]
                axes.plot(
                    [row["evaluations"] for row in rows], [row[key][0] for row in rows], line, marker="o",
                    markersize=4, color=colour, label=label,
                )  # fmt: skip
            axes.set(xscale="log", yscale="log")
            axes.grid(alpha=0.3, which="both", linewidth=0.5)
        column[0].set_ylim(0.004, 3)
        column[1].set_ylim(0.6, 20)
        column[1].axhspan(min(record["floor"]), max(record["floor"]), color="0.85", zorder=0)
        column[1].set_xticks((1, 2, 5, 10, 20, 50, 100), ("1", "2", "5", "10", "20", "50", "100"))
        column[0].set_title(f"D = {symbol(name)}", fontsize=15)
        column[1].set_xlabel("evaluations of the network", fontsize=13)
    panels[0][0].set_ylabel("distance to the flow's end (rms)", fontsize=13)
    panels[1][0].set_ylabel("Fréchet distance in pixels", fontsize=13)
    handles, labels = panels[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=12)
    plots.save_figure(figure, path)


def show(flags, record):
    for name in record["solvers"]:
        for figure in ("error", *FIGURES):
            print(f"\n{figure}\n\n{as_table(record, name, figure)}")
        print("\n".join(said(record.get("fewer", {}).get(name, {}))))
        for row in record["solvers"][name].get("consistency, tuned", ()):
            print(f"tuned, D = {name}, {row['evaluations']:g}: " + ", ".join(f"{f} {shown(row[f])}" for f in FIGURES))
    for name, rows in record.get("noise", {}).items():
        print(f"\n| D = {symbol(name)} | evaluations | {' | '.join(FIGURES)} |\n|---|--:|" + "--:|" * len(FIGURES))
        for row in rows:
            print(f"| {row['name']} | {row['evaluations']:g} | {' | '.join(shown(row[f]) for f in FIGURES)} |")
    for name, found in record.get("field", {}).items():
        print(f"\nexact field of {found['images']} images, D = {symbol(name)}, searched in {found['seconds']} s")
        for label, rows in found["rows"].items():
            print(f"| {label} | {' | '.join(shown(row['error']) for row in rows)} |")
        print("\n".join(said(found["fewer"])))
    picture(record, flags.picture)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("solvers", "noise", "field", "show"))
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--tuned", default="")
    parser.add_argument("--set", default="bloodmnist", choices=SIZES)
    parser.add_argument("--dir", default="")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--record", default="benchmarks/few.json")
    parser.add_argument("--picture", default="docs/solvers.png")
    flags = parser.parse_args()
    path = pathlib.Path(flags.record)
    record = json.loads(path.read_text()) if path.exists() else {}
    {"solvers": on_solvers, "noise": on_noise, "field": on_a_field, "show": show}[flags.part](flags, record)
    if flags.part != "show":
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
