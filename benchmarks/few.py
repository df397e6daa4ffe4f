"""Quality against evaluations on digits, solver by solver, and how far solvers end from the flow on BloodMNIST's field.

    python -m benchmarks.few --run=RUN --part=solvers     # or noise: the reverse SDE and churn; --sets=8 by default
    python -m benchmarks.few --part=field                 # the exact field of 500 images of BloodMNIST at 28 pixels
    python -m benchmarks.few --part=draw                  # the tables, the comparisons and docs/solvers.png

RUN needs a schedule (--mode=schedule). Every point is `sets` seeds of 360 digits, scored relative to 360 held-out
digits; the sets of one seed start from the same noise whatever the solver, so that differences are paired. Figures go
to benchmarks/results/few.json as they come: the same command goes on where it was.
"""

import argparse
import json
import math
import pathlib
import time

import jax
import numpy as np
from scipy.stats import t as student

from configs import digits as config_file
from pfgm_jax import data, generator, plots, sampling
from pfgm_jax.flow import field, process
from pfgm_jax.metrics import PixelScorer
from pfgm_jax.sampling import search
from pfgm_jax.storage import atomic

RESULTS = pathlib.Path(__file__).parent / "results" / "few.json"
N = 360
FIGURES = ("confidence", "density", "coverage", "distance")
WEIGHTED = dict(equal_weights=False)
SEARCHED = dict(WEIGHTED, grid="searched")


def solver_points():
    """[(solver, options)] in the order in which they are wanted."""
    lines = [("dpmpp_3m", {}), ("ipndm", SEARCHED), ("ipndm", WEIGHTED), ("unipc", {})]
    points = [(solver, dict(options, steps=n)) for n in (8, 10, 6, 5) for solver, options in lines]
    points += [(solver, dict(options, steps=n)) for n in (20, 36, 15, 100) for solver, options in (lines[0], lines[2])]
    points += [("heun", dict(steps=n)) for n in (5, 10, 18)] + [("euler", dict(steps=n)) for n in (10, 36, 100)]
    points += [("ipndm", dict(steps=n)) for n in (5, 8)] + [("unipc", dict(steps=n, grid="log")) for n in (6, 8)]
    return points + [
        (solver, dict(options, steps=n)) for n in (3, 4) for solver, options in lines if options != SEARCHED
    ]


def noise_points():
    """The reverse SDE from no noise to much, and churn."""
    points = [("sde", dict(steps=n, noise=noise)) for n in (36, 100) for noise in (0.0, 1.0, 0.3, 2.0)]
    return [*points, ("heun", dict(steps=36)), ("heun", dict(steps=36, S_churn=10.0))]


PARTS = {"solvers": solver_points, "noise": noise_points}


def eagerly(denoise):
    """`(solver, process, x, **options) -> (samples, SolveStats)`, whose steps are run one by one by Python.

    One compiled call of `denoise` then serves all solvers and numbers of steps, which would take longer to compile than
    to run.
    """
    compiled = jax.jit(denoise)

    def call(x, sigma):
        with jax.disable_jit(False):
            return compiled(x, sigma)

    def solve(solver, flow, x, **options):
        with jax.disable_jit():
            return sampling.SOLVERS[solver](flow, call, x, **options)

    return solve


def measure(args):
    """Scores the points of a part that are not there yet."""
    dataset = data.load(config_file.get_config().data)
    held_out = np.concatenate([dataset.val.images, dataset.test.images])
    scorer = PixelScorer(dataset.train.images, dataset.train.labels, held_out[:N])
    loaded = generator.load(args.run)
    solve, flow = eagerly(loaded.network.denoiser(loaded.params, None)), loaded.process
    start = jax.jit(lambda keys: process.prior(flow, keys, loaded.shape))
    of_solver = jax.jit(jax.vmap(lambda key: jax.random.fold_in(key, 1)))
    name = f"digits, D = {flow.D:g}"
    for solver, options in PARTS[args.part]():
        key = f"{name}, {label(solver, options)}"
        points = read()
        scores, begun = points.get(key, {}).get("scores", []), time.perf_counter()
        settings = loaded.prepared(loaded.settings.changed(solver=solver, **options))
        for seed in range(len(scores), args.sets):
            keys = jax.random.split(jax.random.key(seed), N)
            x, stats = solve(solver, flow, start(keys), keys=of_solver(keys), **settings.solver_options)
            score = scorer.score(data.to_uint8(np.asarray(x)))
            scores.append([round(float(getattr(score, figure)), 5) for figure in FIGURES])
            points[key] = dict(run=name, solver=solver, options=options, nfe=float(stats.nfe), scores=scores)
        keep(points)
        print(f"{time.perf_counter() - begun:5.1f} s  {row(points[key])}", flush=True)


def label(solver, options):
    return " ".join([solver, *(f"{k}={v}" for k, v in options.items())])


def read():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def keep(points):
    RESULTS.parent.mkdir(exist_ok=True)
    lines = (f"{json.dumps(key)}: {json.dumps(point)}" for key, point in points.items())
    atomic.write_text(RESULTS, "{\n" + ",\n".join(lines) + "\n}\n")


def interval(values):
    """Half of the 95 % interval of a mean over seeds, by Student's t."""
    return student.ppf(0.975, len(values) - 1) * values.std(axis=0, ddof=1) / math.sqrt(len(values))


def row(point):
    """A point as a row of Markdown."""
    values = np.array(point["scores"])
    cells = [f"{mean:.3f} ± {half:.3f}" for mean, half in zip(values.mean(axis=0), interval(values), strict=True)]
    options = {k: v for k, v in point["options"].items() if k != "steps" or point["solver"] == "heun"}
    return f"| {point['nfe']:g} | {label(point['solver'], options)} | {' | '.join(cells)} |"


# ---- the exact field of BloodMNIST: no network, and so no figure of quality, but the flow's own end to compare with


def measure_field(args):
    """Median distance to where the flow ends, and the share of paths that end at the same image as it."""
    config = config_file.get_config().data
    config.update(name="bloodmnist", size=28, dir=args.data, val=0.0, test=0.0)
    images = data.to_unit(np.asarray(data.load(config).train.images[:500]))
    points = read()
    for D in (128.0, math.inf):
        norm = float(np.mean(np.sum(np.square(images), axis=(1, 2, 3))))
        flow, denoise = process.pfgmpp(D, 0.002, math.sqrt(norm / 0.12)), field.exact_denoiser(images, D)
        draw = lambda seed, flow=flow: process.prior(
            flow, jax.random.split(jax.random.key(seed), 128), images.shape[1:]
        )
        path = search.fine_path(flow, denoise, draw(0), 61)
        cost, follow, x = search.costs(path), search.by_steps(denoise), draw(1)
        solve = eagerly(denoise)
        exact = np.asarray(search.fine_path(flow, denoise, x, 241).states[-1])
        own = nearest(exact, images)
        for n in (5, 6, 8, 10, 15, 20):
            grid, _ = search.best(flow, follow, path, cost, n)
            for solver, options in [
                ("dpmpp_3m", {}), ("unipc", {}), ("ipndm", WEIGHTED), ("ipndm", dict(WEIGHTED, grid=grid)),
                ("heun", dict(steps=(n + 1) // 2)), ("euler", {}),
            ]:  # fmt: skip
                options = dict(steps=n) | options
                ours, stats = solve(solver, flow, x, **options)
                ours = np.asarray(ours)
                rms = np.sqrt(np.mean(np.square(ours - exact), axis=(1, 2, 3)))
                options |= {"grid": "searched"} if "," in options.get("grid", "") else {}
                name = f"bloodmnist field, D = {D:g}"
                points[f"{name}, {label(solver, options)}"] = dict(
                    run=name, solver=solver, options=options, nfe=float(stats.nfe), median=float(np.median(rms)),
                    same=float(np.mean(nearest(ours, images) == own)),
                )  # fmt: skip
                print(n, label(solver, options), points[f"{name}, {label(solver, options)}"], flush=True)
        keep(points)


def nearest(x, images):
    """The index of the image nearest to each of x [B, H, W, C]."""
    x, images = (a.reshape(len(a), -1) for a in (x, images))
    return np.argmin(np.sum(images**2, axis=1) - 2 * x @ images.T, axis=1)


# ---- tables and the figure


def kind(point):
    """What a line of the figure is of: the solver with its options but for the number of steps."""
    options = {k: v for k, v in point["options"].items() if k != "steps"}
    return label(point["solver"], options)


def compare(points, run, first, second):
    """The paired differences of two points' figures over the seeds that both have, as a row of Markdown."""
    a, b = (np.array(points[f"{run}, {label(*point)}"]["scores"]) for point in (first, second))
    count = min(len(a), len(b))
    difference = a[:count] - b[:count]
    cells = [f"{m:+.3f} ± {h:.3f}" for m, h in zip(difference.mean(axis=0), interval(difference), strict=True)]
    return f"| {run} | {label(*first)} | {label(*second)} | {' | '.join(cells)} |"


def draw(args):
    """Prints the tables and draws docs/solvers.png."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    points = read()
    runs = list(dict.fromkeys(point["run"] for point in points.values()))
    header = f"| {' | '.join(FIGURES)} |"
    for run in runs:
        here = sorted((p for p in points.values() if p["run"] == run), key=lambda p: p["nfe"])
        print(f"\n{run}\n")
        if "scores" in here[0]:
            print(f"| evaluations | solver {header}\n|--:|---|--:|--:|--:|--:|")
            print("\n".join(map(row, here)))
        else:
            print("| evaluations | solver | distance | same image |\n|--:|---|--:|--:|")
            print("\n".join(f"| {p['nfe']:g} | {kind(p)} | {p['median']:.4f} | {p['same']:.1%} |" for p in here))
    print(f"\n| run | first | second {header}\n|---|---|---|--:|--:|--:|--:|")
    for run in (run for run in runs if run.startswith("digits")):
        for few, many in ((8, 10), (6, 8)):
            for options in (SEARCHED, WEIGHTED):
                print(compare(points, run, ("ipndm", dict(options, steps=few)), ("dpmpp_3m", dict(steps=many))))
    shown = {"dpmpp_3m": "dpmpp_3m", "unipc": "unipc", label("ipndm", WEIGHTED): "ipndm, weights of the levels",
             label("ipndm", SEARCHED): "the same, searched grid", "heun": "heun", "euler": "euler"}  # fmt: skip
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    for line, D in zip(axes, ("128", "inf"), strict=True):
        for ax, run, value, title in (
            (line[0], f"digits, D = {D}", 0, "confidence"),
            (line[1], f"digits, D = {D}", 3, "distance to the nearest digit"),
            (line[2], f"bloodmnist field, D = {D}", None, "distance to the flow's end (rms)"),
        ):
            plots.use_palette(ax)
            for name, text in shown.items():
                here = sorted(
                    (p for p in points.values() if p["run"] == run and kind(p) == name), key=lambda p: p["nfe"]
                )
                nfe = [p["nfe"] for p in here]
                if value is None:
                    ax.plot(nfe, [p["median"] for p in here], "-o", markersize=3, linewidth=1.2, label=text)
                    continue
                scores = [np.array(p["scores"])[:, value] for p in here]
                ax.errorbar(nfe, [s.mean() for s in scores], yerr=[interval(s) for s in scores], label=text, marker="o",
                            markersize=3, capsize=2, linewidth=1.2)  # fmt: skip
            ax.set(title=f"{run.partition(',')[0]}, D = {'∞' if D == 'inf' else D}", ylabel=title)
            ax.set_xscale("log")
            ax.set_xticks([3, 5, 8, 12, 20, 36, 100])
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.grid(alpha=0.3, linewidth=0.5)
            if value is None:
                ax.set_yscale("log")
            else:
                ax.set_ylim((0.6, 1.05) if value == 0 else (1.0, 1.35))
                ax.axhline(1, color="grey", linestyle="--", linewidth=0.8)
    for ax in axes[1]:
        ax.set_xlabel("evaluations")
    axes[0, 1].legend(fontsize="small")
    plots.save_figure(figure, "docs/solvers.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="pretrained:digits")
    parser.add_argument("--part", choices=[*PARTS, "field", "draw"], default="solvers")
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--data", default="", help="the folder with bloodmnist.npz; downloaded if there is none")
    args = parser.parse_args()
    {"field": measure_field, "draw": draw}.get(args.part, measure)(args)


if __name__ == "__main__":
    main()
