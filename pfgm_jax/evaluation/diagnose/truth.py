"""The network's posterior mean against the exact one of the training set: the error itself, at every σ."""

import numpy as np

from pfgm_jax.errors import UserError
from pfgm_jax.evaluation.diagnose import journey
from pfgm_jax.evaluation.diagnose.study import MARKERS, Result, colours, figure, legend_below, plain

LEVELS, LOW, HIGH = 13, 0.02, 20.0  # beyond them a posterior mean is the image itself, or the data's mean


def study(subjects, store):
    """A Result: rms error against σ, around training images and at the states that sampling visits.

    Raises:
      UserError: a network whose exact posterior mean is not to be had.
    """
    if reason := next((subject.no_truth for subject in subjects if subject.no_truth), ""):
        raise UserError(
            f"diagnose.studies=truth needs the exact posterior mean, but {reason}; leave truth out of diagnose.studies"
        )
    drawing, (panels,) = figure(2, sharey=True, width=5.2)
    colour, rows, numbers = colours(subjects), [], {}
    for marker, subject in zip(MARKERS * 9, subjects, strict=False):
        way = journey.travelled(subject, store)
        count = 4 if subject.settings.quick else LEVELS
        levels = np.geomspace(max(LOW, subject.flow.sigma_min), min(HIGH, subject.flow.sigma_max), count)
        facts = [subject.identity, subject.content, subject.settings.n, levels.tolist()]
        error = store.kept("truth", facts, lambda s=subject, at=levels: {"error": errors(s, at)})["error"]
        look = {"color": colour[subject.name], "marker": marker, "markersize": 5, "label": subject.name}
        panels[0].plot(levels, error, **look)
        inside = (way["sigmas"] > 0.99 * levels[0]) & (way["sigmas"] < 1.01 * levels[-1])
        panels[1].plot(way["sigmas"][inside], way["error"][inside], **look)
        numbers[subject.name] = {
            "sigmas": levels.tolist(), "around training images": error.tolist(),
            "sampling sigmas": way["sigmas"].tolist(), "while sampling": way["error"].tolist(),
        }  # fmt: skip
        for i in range(0, len(levels), 3):
            at = np.interp(-np.log(levels[i]), -np.log(way["sigmas"]), way["error"])
            rows.append([subject.name, f"{levels[i]:.2g}", f"{error[i]:.4f}", f"{at:.4f}", f"{at / error[i]:.2f}"])
    for axes, title in zip(panels, ("around training images", "where sampling goes"), strict=True):
        axes.set(xscale="log", yscale="log", xlabel="σ", title=title)
        plain(axes.yaxis)
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_ylabel("rms error of E[y | x, σ]")
    legend_below(drawing, panels[0])
    n = subjects[0].settings.n
    return Result(
        "The network against the exact posterior mean",
        f"rms over values, in [−1, 1], of the distance between the network's E[y | x, σ] and that of the "
        f"{len(subjects[0].points[0]):,} training images: at {n} training images perturbed by the kernel, and at the "
        f"states of {n} samples (Heun), whose values at these σ are interpolated.",
        ["run", "σ", "around training images", "while sampling", "ratio"],
        rows,
        drawing,
        numbers,
    )


def errors(subject, levels):
    """rms error [L] at `levels` [L], at settings.n training images perturbed by the kernel."""
    labels = subject.dataset.train.labels
    found = []
    for sigma in levels:
        x, indices = subject.perturbed(sigma, subject.settings.n, subject.dataset.train.images)
        own = labels[indices] if subject.generator.classes else np.full(len(x), -1)
        found.append(np.sqrt(np.mean(np.square(subject.denoise(x, sigma, own) - subject.exact(x, sigma, own)))))
    return np.array(found, np.float64)
