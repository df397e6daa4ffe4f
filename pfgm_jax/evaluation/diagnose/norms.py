"""How long the states are: of samples on their way, and of the pairs that the network was trained on.

PFGM's robustness argument (arXiv 2209.11178, section 4): along a diffusion's way the norm is nearly a function of σ,
and a sampler that errs leaves the thin shell that the network has seen; with few extra dimensions the shell is wide.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from pfgm_jax.data.dataset import to_unit
from pfgm_jax.evaluation.diagnose import journey
from pfgm_jax.evaluation.diagnose.study import Result, colours, figure, legend_below, plain
from pfgm_jax.flow import process

SHOWN = 3  # levels with a histogram
REPEATS = 8  # training pairs for every sample


def study(subjects, store):
    """A Result: norms against σ, and their histograms at some σ."""
    colour, found = colours(subjects), {}
    for subject in subjects:
        arrays = journey.travelled(subject, store)
        n = REPEATS * subject.settings.n
        facts = [subject.identity, subject.content, n, arrays["sigmas"].tolist()]
        make = lambda subject=subject, arrays=arrays, n=n: {"norms": pair_norms(subject, arrays["sigmas"], n)}
        found[subject.name] = (arrays["sigmas"], arrays["norms"], store.kept("pairs", facts, make)["norms"])
    columns = max(len(subjects), SHOWN)
    drawing, panels = figure(columns, 2)
    for axes, (name, (sigmas, way, pairs)) in zip(panels[0], found.items(), strict=False):
        _band(axes, sigmas, pairs, "#888888", "training pairs", "--")
        _band(axes, sigmas, way, colour[name], "samples", "-")
        axes.set(title=name, xscale="log", yscale="log", xlabel="σ", ylabel="norm of the state")
        plain(axes.yaxis)
        axes.legend(frameon=False, loc="upper left")
    for axes in panels[0][len(found) :]:
        axes.set_axis_off()
    sigmas = next(iter(found.values()))[0]
    chosen = [_nearest(sigmas, level) for level in np.geomspace(sigmas[0] / 1.5, 0.3, SHOWN)]
    handles = None
    for axes, level in zip(panels[1], sigmas[chosen], strict=False):
        _histograms(axes, found, level, colour)
        axes.set(title=f"σ = {level:.2g}", xlabel="norm / its median", ylabel="density")
        handles = handles or axes
    for axes in panels[1][SHOWN:]:
        axes.set_axis_off()
    legend_below(drawing, handles)
    rows, numbers = [], {}
    for name, (sigmas, way, pairs) in found.items():
        numbers[name] = {"sigmas": sigmas.tolist(), "samples": summary(way), "training pairs": summary(pairs)}
        for i in [_nearest(sigmas, sigmas_at) for sigmas_at in next(iter(found.values()))[0][chosen]]:
            distance = float(stats.ks_2samp(way[i], pairs[i]).statistic)
            numbers[name].setdefault("KS distance", {})[f"{sigmas[i]:.3g}"] = distance
            a, b = (summary(norms[i : i + 1]) for norms in (way, pairs))
            rows.append(
                [name, f"{sigmas[i]:.2g}", *(f"{s['mean'][0]:.3g}" for s in (a, b)),
                 *(f"{s['spread'][0]:.1%}" for s in (a, b)), f"{distance:.2f}"]
            )  # fmt: skip
    n = subjects[0].settings.n
    return Result(
        "Norms on the way, and in training",
        f"Norms of {n} samples (Heun, {len(sigmas)} levels of EDM's grid, seed {subjects[0].settings.seed}) and of "
        f"{REPEATS * n} training pairs at the same σ. Bands hold 90 %, lines are medians. The spread is half the "
        "distance between the 16th and the 84th percentile, over the median: one standard deviation of a normal law. "
        "The distance is Kolmogorov and Smirnov's, between the two laws of the norm.",
        ["run", "σ", "mean, samples", "mean, pairs", "spread, samples", "spread, pairs", "KS distance"],
        rows,
        drawing,
        numbers,
    )


def summary(norms):
    """{"mean", "median", "spread", "low", "high"}, each [T], of norms [T, n]: `low` to `high` hold 90 %."""
    low, left, middle, right, high = np.percentile(norms, [5, 15.87, 50, 84.13, 95], axis=1)
    figures = {"mean": norms.mean(1), "median": middle, "spread": (right - left) / 2 / middle, "low": low, "high": high}
    return {name: values.tolist() for name, values in figures.items()}


def pair_norms(subject, sigmas, n):
    """‖x‖ [T, n] of training pairs (x, σ) at each of the levels [T].

    Where x follows the kernel around an image, it is drawn so. PFGM's pairs do not: of many of its pairs, those nearest
    in ln σ are taken.
    """
    images, flow = subject.dataset.train.images, subject.flow
    if flow.training_law.from_kernel:
        return np.stack([_lengths(subject.perturbed(sigma, n, images)[0]) for sigma in sigmas])
    key, many = jax.random.fold_in(jax.random.key(subject.settings.seed), 8), n * len(sigmas)
    lengths, levels = [], []
    for begin in range(0, many, 4096):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(begin, begin + 4096))
        y = to_unit(np.asarray(images[np.arange(begin, begin + 4096) % len(images)]))
        x, sigma = process.training_pairs(flow, keys, jnp.asarray(y, jnp.float32))
        lengths.append(_lengths(x))
        levels.append(np.log(np.asarray(sigma)))
    lengths, levels = np.concatenate(lengths), np.concatenate(levels)
    return np.stack([lengths[np.argsort(np.abs(levels - np.log(sigma)))[:n]] for sigma in sigmas])


def _lengths(x):
    return np.linalg.norm(np.asarray(x).reshape(len(x), -1), axis=1)


def _nearest(sigmas, level):
    return int(np.argmin(np.abs(np.log(sigmas) - np.log(level))))


def _band(axes, sigmas, norms, colour, label, style):
    figures = summary(norms)
    axes.fill_between(sigmas, figures["low"], figures["high"], color=colour, alpha=0.25, linewidth=0)
    axes.plot(sigmas, figures["median"], style, color=colour, label=label)


def _histograms(axes, found, level, colour):
    """Norms at a level over the median of the pairs' own: samples as lines, training pairs as dashes."""
    together = {name: (way[_nearest(s, level)], pairs[_nearest(s, level)]) for name, (s, way, pairs) in found.items()}
    scaled = {name: [a / np.median(b), b / np.median(b)] for name, (a, b) in together.items()}
    high = min(3.0, max(np.percentile(np.concatenate(both), 99.5) for both in scaled.values()))
    low = min(np.percentile(np.concatenate(both), 0.5) for both in scaled.values())
    bins = np.linspace(low, high, 4 + round(2 * len(next(iter(together.values()))[0]) ** (1 / 3)))  # Rice's rule
    for name, (a, b) in scaled.items():
        axes.hist(a, bins, density=True, histtype="step", color=colour[name], label=f"{name}, samples", linewidth=1.8)
        axes.hist(b, bins, density=True, histtype="step", color=colour[name], label="training pairs", linestyle="--")
