"""Few evaluations on digits: the pixel score of multistep solvers at 5 to 10 evaluations, with intervals over seeds.

    python -m benchmarks.few [--run=pretrained:digits] [--sets=8] [--steps=5,6,8,10]

Every row is the mean over `sets` seeds of 360 digits, relative to 360 held-out digits, with the 95 % interval of that
mean by Student's t over the seeds; the sets of one seed start from the same noise whatever the solver. Prints Markdown.
"""

import argparse

import jax
import numpy as np
from scipy.stats import t as student

from configs import digits as config_file
from pfgm_jax import data, generator
from pfgm_jax.metrics import PixelScorer

N = 360
FIGURES = ("confidence", "density", "coverage", "distance")
SOLVERS = [
    ("dpmpp_3m", {}),
    ("ipndm", {}),
    ("ipndm", dict(equal_weights=False)),
    ("ipndm", dict(grid="log")),
]


def scores(made, scorer, solver, options, sets):
    """The FIGURES of each of `sets` seeds: [sets, 4]."""
    rows = []
    for seed in range(sets):
        images, _ = made.sample(jax.random.key(seed), N, solver=solver, progress=False, **options)
        score = scorer.score(images)
        rows.append([getattr(score, name) for name in FIGURES])
    return np.array(rows)


def row(steps, solver, options, values):
    half = student.ppf(0.975, len(values) - 1) * values.std(axis=0, ddof=1) / np.sqrt(len(values))
    cells = [f"{mean:.3f} ± {reach:.3f}" for mean, reach in zip(values.mean(axis=0), half, strict=True)]
    return f"| {steps} | {' '.join([solver, *(f'{k}={v}' for k, v in options.items())])} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="pretrained:digits")
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--steps", default="5,6,8,10")
    args = parser.parse_args()
    dataset = data.load(config_file.get_config().data)
    held_out = np.concatenate([dataset.val.images, dataset.test.images])
    scorer = PixelScorer(dataset.train.images, dataset.train.labels, held_out[:N])
    made = generator.load(args.run).with_overrides({"sample.batch": N})
    print(f"| evaluations | solver | {' | '.join(FIGURES)} |\n|--:|---|--:|--:|--:|--:|", flush=True)
    for steps in map(int, args.steps.split(",")):
        for solver, options in SOLVERS:
            values = scores(made, scorer, solver, dict(options, steps=steps), args.sets)
            print(row(steps, solver, options, values), flush=True)


if __name__ == "__main__":
    main()
