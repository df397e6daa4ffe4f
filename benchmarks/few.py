"""Few evaluations on digits: the pixel score of multistep solvers at 5 to 10 evaluations, with intervals over seeds.

    python -m benchmarks.few [--run=pretrained:digits] [--sets=8] [--steps=5,6,8,10] [--searched]

With --searched the solvers take grids that a search finds (`sampling/search.py`) on the exact field of the training
digits and on the network.

Every row is the mean over `sets` seeds of 360 digits, relative to 360 held-out digits, with the 95 % interval of that
mean by Student's t over the seeds; the sets of one seed start from the same noise whatever the solver. Prints Markdown.
"""

import argparse

import jax
import numpy as np
from scipy.stats import t as student

from configs import digits as config_file
from pfgm_jax import data, generator
from pfgm_jax.flow import field, process
from pfgm_jax.metrics import PixelScorer
from pfgm_jax.sampling import search

N = 360
FIGURES = ("confidence", "density", "coverage", "distance")
SOLVERS = [
    ("dpmpp_3m", {}),
    ("ipndm", {}),
    ("ipndm", dict(equal_weights=False)),
    ("ipndm", dict(grid="log")),
]


def searched(made, images, steps):
    """{"field": {n: grid}, "network": {n: grid}} from the same 256 draws of the prior, as texts."""
    flow = made.process
    x = process.prior(flow, jax.random.split(jax.random.key(12345), 256), made.shape)
    points = data.to_unit(images)
    denoisers = {"field": field.exact_denoiser(points, flow.D), "network": made.denoise}
    return {name: search.searched(flow, denoise, x, steps) for name, denoise in denoisers.items()}


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
    parser.add_argument("--searched", action="store_true")
    args = parser.parse_args()
    dataset = data.load(config_file.get_config().data)
    held_out = np.concatenate([dataset.val.images, dataset.test.images])
    scorer = PixelScorer(dataset.train.images, dataset.train.labels, held_out[:N])
    made = generator.load(args.run).with_overrides({"sample.batch": N})
    print(f"| evaluations | solver | {' | '.join(FIGURES)} |\n|--:|---|--:|--:|--:|--:|", flush=True)
    counts = tuple(map(int, args.steps.split(",")))
    grids = searched(made, dataset.train.images, counts) if args.searched else {}
    for steps in counts:
        for solver, options in SOLVERS if not grids else SOLVERS[::2]:
            for source in grids or ("",):
                grid = {"grid": grids[source][steps]} if source else {}
                values = scores(made, scorer, solver, dict(options, steps=steps, **grid), args.sets)
                print(row(steps, solver, options | ({"grid": source} if source else {}), values), flush=True)
    for source, found in grids.items():
        print(f"{source}: {found}", flush=True)


if __name__ == "__main__":
    main()
