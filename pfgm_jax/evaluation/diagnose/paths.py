"""How trajectories bend.

The flow is dx/dσ = (x − d)/σ, d = E[y | x, σ] along the trajectory, so that

    σ² d²x/dσ² = −dd/d ln σ:

a trajectory is straight where the posterior mean stands still, and what a solver's steps miss is how far it walks.
"""

import numpy as np

from pfgm_jax.evaluation.diagnose import journey
from pfgm_jax.evaluation.diagnose.study import MARKERS, Result, colours, figure, legend_below


def study(subjects, store):
    """A Result: the bend of trajectories against σ, by the network and by the exact field."""
    exact = all(subject.points is not None for subject in subjects)
    drawing, (panels,) = figure(1 + exact, sharey=True, width=5.2)
    colour, rows, numbers = colours(subjects), [], {}
    for marker, subject in zip(MARKERS * 9, subjects, strict=False):
        way = journey.travelled(subject, store)
        middle = np.sqrt(way["sigmas"][1:] * way["sigmas"][:-1])
        look = {"color": colour[subject.name], "marker": marker, "markersize": 4, "label": subject.name}
        panels[0].plot(middle, way["walk"], **look)
        peak = lambda walk, middle=middle: (float(middle[np.argmax(walk)]), float(np.max(walk)))
        own = {"sigmas": middle.tolist(), "bend": way["walk"].tolist()}
        at, highest = peak(way["walk"])
        cells = [f"{at:.2g}", f"{highest:.3f}"]
        if exact:
            panels[1].plot(middle, way["exact_walk"], **look)
            at, highest = peak(way["exact_walk"])
            cells += [f"{at:.2g}", f"{highest:.3f}"]
            own["bend, exact"] = way["exact_walk"].tolist()
        for name, length, chord in (("trajectory", "length", "chord"), ("posterior mean", "mean_length", "mean_chord")):
            ratio = way[length] / way[chord]
            own[f"length / chord, {name}"] = {"median": float(np.median(ratio)), "mean": float(ratio.mean())}
            cells.append(f"{np.median(ratio):.3f}")
        rows.append([subject.name, *cells])
        numbers[subject.name] = own
    for axes, title in zip(panels, ("the network's flow", "the exact flow"), strict=False):
        axes.set(xscale="log", xlabel="σ", title=title)
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_ylabel("bend: rms of σ² d²x/dσ²")
    legend_below(drawing, panels[0])
    return Result(
        "Where trajectories bend",
        f"Bend of the trajectories of {subjects[0].settings.n} samples (Heun, {len(middle) + 1} levels): rms over "
        "samples and values of σ² d²x/dσ² = −dE[y | x, σ]/d ln σ, by differences between levels. Lengths over chords "
        "are medians over samples: of the trajectory, and of the way of the posterior mean; 1 is straight.",
        ["run", "bends most at σ", "bend there", *(["exact: at σ", "exact: bend there"] if exact else []),
         "length / chord", "of the posterior mean"],
        rows,
        drawing,
        numbers,
    )  # fmt: skip
