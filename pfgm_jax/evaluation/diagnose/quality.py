"""Quality of samples that were drawn with something against them: the Fréchet distance of their features, by run.

Studies share their points: every set of samples is drawn once, from the same noise, and kept.
"""

from typing import NamedTuple

import jax
import numpy as np

from pfgm_jax import metrics
from pfgm_jax.data.dataset import to_uint8
from pfgm_jax.evaluation import protocol
from pfgm_jax.evaluation.diagnose.study import MARKERS, colours, figure, legend_below, plain
from pfgm_jax.evaluation.score import TITLES, measure_against, number
from pfgm_jax.metrics import frechet
from pfgm_jax.sampling import grids
from pfgm_jax.sampling.fixed_grid import march
from pfgm_jax.sampling.noise import standard_normal
from pfgm_jax.sampling.single_step import heun_step
from pfgm_jax.sampling.stats import Output

STEPS = 18  # of Heun's method where a study varies something else: 35 evaluations


def heun_with_noise(process, denoise, x, *, keys, alpha, steps=STEPS):
    """Heun's method on EDM's grid with the noise α σ_i N(0, I) added before every step, the last among them.

    The level stays σ_i, as if the sampler had erred (arXiv 2302.04265, section 5): this is no churn, which raises it.
    At α = 0 it is `sampling.heun`. Arguments and results as there.
    """

    def disturbed(x, sigma, index):
        if not alpha:
            return x
        with jax.disable_jit(False):  # operation by operation, random bits are hundreds of them
            return x + alpha * sigma * standard_normal(keys, index, x)

    def step(denoise, x, memory, at):
        return heun_step(denoise, disturbed(x, at.sigma, at.index), at.sigma, at.sigma_next), memory

    def last(denoise, x, sigma):
        return denoise(disturbed(x, sigma, steps - 1), sigma)

    sigmas = grids.levels(process, "edm", steps)
    return march(denoise, x, sigmas, [(step, steps - 1)], Output(), last=last)


class Bench(NamedTuple):
    """What figures are measured with: n samples each, against a `score.Measure`, kept in a Store."""

    n: int
    measure: object
    store: object

    @property
    def figure(self):
        """The name of the figure, in words."""
        return TITLES[self.measure.extractor.distances[0]]

    @property
    def protocol(self):
        """How it is measured."""
        m = self.measure
        return (
            f"{self.figure} ({m.extractor.name}) of {self.n} samples to {m.reference.statistics.n:,} {m.split} images "
            f"of {m.dataset.name}; intervals at 95 % from 20 random halves: other samples, not another training. Real "
            f"{self.words}."
        )

    @property
    def words(self):
        """What real images reach."""
        name = self.measure.extractor.distances[0]
        rows = self.measure.floor(self.n).items()
        return ", ".join(
            f"{row.removeprefix('real, ')} images reach {number(figures[name])} (n = {figures['n']})"
            for row, figures in rows
        )

    def floor(self):
        """What real images reach at this number of them, or at the nearest that there is."""
        rows = self.measure.floor(self.n).values()
        return min(rows, key=lambda figures: abs(figures["n"] - self.n))[self.measure.extractor.distances[0]]

    def point(self, subject, how, *, alpha=0.0, steps=STEPS, params=None):
        """{"value", "low", "high", "nfe"} of samples by Heun's method with noise α, so many steps, these weights.

        how: what says so in the name of what is kept, as JSON; α and the steps are added.
        """

        def draw():
            x, stats = subject.solve(heun_with_noise, self.n, params, alpha=alpha, steps=steps)
            return {"images": np.asarray(to_uint8(x)), "nfe": np.float64(stats.nfe)}

        facts = [subject.identity, self.n, alpha, steps, how]
        samples = self.store.kept("samples", facts, draw)
        features = self.measure.features(samples["images"])
        distance = frechet.against(self.measure.reference.statistics)
        found = metrics.estimate(distance, features)["fid"]
        return {"value": found.value, "low": found.low, "high": found.high, "nfe": float(samples["nfe"])}


def bench(subjects, store, config):
    """The Bench that evaluate.features, split and inception ask for; UserError where there is no figure."""
    first, settings = subjects[0], subjects[0].settings
    dataset = first.dataset
    measure = measure_against(dataset, config.evaluate.split, protocol.features_of(config), config.evaluate.inception)
    n = settings.num_samples or min(protocol.count(config, dataset), 1000)
    return Bench(min(n, 24) if settings.quick else n, measure, store)


def draw(panels_of, subjects, bench, xlabel, **axis):
    """A figure: {panel's title: {run: [(x, point)]}} as lines with intervals, and what real images reach."""
    drawing, (panels,) = figure(len(panels_of), sharey=True, width=5.6 if len(panels_of) == 1 else 4.4)
    colour = colours(subjects)
    for axes, (title, lines) in zip(panels, panels_of.items(), strict=True):
        for i, (marker, (name, line)) in enumerate(zip(MARKERS * 9, lines.items(), strict=False)):
            x, points = zip(*line, strict=True)
            share = 0.014 * (i - (len(lines) - 1) / 2)  # beside each other, or one's interval would hide another's
            value = np.array([p["value"] for p in points])
            reach = [value - [max(p["low"], p["value"] / 3) for p in points], [p["high"] for p in points] - value]
            at = moved(np.array(x, np.float64), share, axis.get("xscale") == "log")
            axes.errorbar(at, value, yerr=reach, color=colour[name], marker=marker, markersize=6, capsize=3, label=name)
        axes.axhline(bench.floor(), color="grey", linestyle=":", label="real images")
        axes.set(yscale="log", xlabel=xlabel, title=title, **axis)
        plain(axes.yaxis)
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_ylabel(bench.figure)
    legend_below(drawing, panels[0])
    return drawing


def moved(x, share, log):
    """x [n] moved along its axis by this share of its range."""
    return x * (x[-1] / x[0]) ** share if log else x + share * (x[-1] - x[0])


def cell(point):
    """A point as a cell of a table."""
    return f"{number(point['value'])} [{number(point['low'])}, {number(point['high'])}]"
