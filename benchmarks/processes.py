"""Every process × every solver on digits: quality, function evaluations and time, the same network and budget for all.

    python -m benchmarks.processes --workdir=runs/processes [--processes=vp,edm] [--sets=4] [--train_images=200_000]

Trains `configs/digits.py:process=…` for every process that has no finished run in the work directory (two to four
minutes each on two CPU cores), samples `sets` times 360 digits with every solver that the process admits, and scores
them as the demo does: figures are means over the sets, relative to 360 held-out digits. Seconds are those of the
fastest of them, the first of which compiles, for 360 images at once. Writes table.md, results.json and processes.png
(quality against evaluations) into the work directory. docs/processes.md holds a run's table and what it says.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import jax
import numpy as np

from configs import digits as config_file
from pfgm_jax import data, generator
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.metrics import PixelScorer
from pfgm_jax.metrics.pixel_score import Score
from pfgm_jax.training import loop

N = 360
# By number of evaluations; those that draw noise are for D = ∞.
SOLVERS = [
    ("dpmpp_3m", dict(steps=10)),
    ("dpmpp_2m", dict(steps=18)),
    ("dpmpp_3m", dict(steps=18)),
    ("euler", dict(steps=35)),
    ("heun", dict(steps=18)),
    ("ddim", dict(steps=50)),
    ("rk45", {}),
    ("rk45", dict(per_sample=True)),
    ("tsit5", {}),
    ("heun", dict(steps=64, S_churn=20.0)),
    ("ancestral", dict(steps=250, variance="large")),
    ("euler_maruyama", dict(steps=250)),
    ("predictor_corrector", dict(steps=125)),
]


def trained(process, folder, images):
    """The Generator of the process's run in `folder`, which is trained, or continued, if it has not come to its end."""
    config = config_file.get_config(f"process={process}")
    config.train.images = config.train.sample_every = images
    loop.train(config, folder)
    return generator.load(folder)


def measure(made, scorer, solver, options, sets):
    """(mean Score, mean evaluations, largest of one sample, seconds for N images) over `sets` >= 2 seeds."""
    made = made.with_overrides({"sample.batch": N})
    scores, stats, seconds = [], [], []
    for seed in range(sets):
        begun = time.perf_counter()
        images, figures = made.sample(jax.random.key(seed), N, solver=solver, **options)
        seconds.append(time.perf_counter() - begun)
        scores.append(scorer.score(images))
        stats.append(figures)
    fields = [field.name for field in dataclasses.fields(Score)]
    score = Score(**{name: float(np.mean([getattr(s, name) for s in scores])) for name in fields})
    return score, float(np.mean([s.sample_nfe.mean() for s in stats])), max(s.nfe for s in stats), min(seconds)


def describe(options):
    return " ".join(f"{name}={value}" for name, value in options.items())


def table(rows):
    """Markdown of the rows."""
    columns = "process solver NFE seconds confidence density coverage distance classes copies verdict".split()
    lines = [f"| {' | '.join(columns)} |", "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"]
    for row in rows:
        s = row["score"]
        nfe = f"{row['nfe']:.0f}" + (f" (≤ {row['largest_nfe']:.0f})" if row["largest_nfe"] > row["nfe"] + 0.5 else "")
        verdict = "pass" if not row["failed"] else ", ".join(row["failed"])
        lines.append(
            f"| {row['process']} | {row['solver']} {row['options']} | {nfe} | {row['seconds']:.2f} | "
            f"{s['confidence']:.2f} | {s['density']:.2f} | {s['coverage']:.2f} | {s['distance']:.2f} | "
            f"{s['smallest_class']:.0%} to {s['largest_class']:.0%} | {s['copies']:.1%} | {verdict} |"
        )
    return "\n".join(lines)


def picture(rows, path):
    """Confidence, density and coverage against evaluations, a colour for each process."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    names = list(dict.fromkeys(row["process"] for row in rows))
    for ax, key in zip(axes, ("confidence", "density", "coverage"), strict=True):
        ax.axhline(1, color="0.8", zorder=0)
        for i, name in enumerate(names):
            points = [(row["nfe"], row["score"][key]) for row in rows if row["process"] == name]
            ax.scatter(*zip(*points, strict=True), label=name, color=f"C{i}", marker="osD^v<>"[i % 7], s=28, alpha=0.8)
        ax.set(xscale="log", xlabel="function evaluations a sample", title=key)
    axes[0].set_ylabel("1: as good as held-out digits")
    axes[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/processes")
    parser.add_argument("--processes", default=",".join(run_lib.PROCESSES))
    parser.add_argument("--sets", type=int, default=4)
    parser.add_argument("--train_images", type=lambda text: int(text.replace("_", "")), default=200_000)
    args = parser.parse_args()
    folder = pathlib.Path(args.workdir)
    folder.mkdir(parents=True, exist_ok=True)

    dataset = data.load(config_file.get_config().data)
    held_out = np.concatenate([dataset.val.images, dataset.test.images])
    scorer = PixelScorer(dataset.train.images, dataset.train.labels, held_out[:N])
    rows = []
    for process in args.processes.split(","):
        made = trained(process, folder / process, args.train_images)
        for solver, options in SOLVERS:
            try:
                score, nfe, largest, seconds = measure(made, scorer, solver, options, args.sets)
            except UserError as error:
                print(f"{process} × {solver}: {error}", file=sys.stderr)
                continue
            rows.append(
                dict(process=f"{process}, D = {made.process.D:g}" if process == "pfgmpp" else process, solver=solver,
                     options=describe(options), nfe=nfe, largest_nfe=largest, seconds=seconds,
                     score=dataclasses.asdict(score), failed=score.failed)
            )  # fmt: skip
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr)
        (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        (folder / "table.md").write_text(table(rows) + "\n")
        picture(rows, folder / "processes.png")
    print(table(rows))


if __name__ == "__main__":
    main()
