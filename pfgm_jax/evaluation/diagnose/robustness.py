"""Robustness, as quality curves: noise at every step, few steps, weights of few bits (arXiv 2302.04265, section 5)."""

import functools

from pfgm_jax.errors import UserError
from pfgm_jax.evaluation.diagnose import quality, quantise
from pfgm_jax.evaluation.diagnose.study import Result

NOISE_STEPS = (9, 18)


def noise(subjects, bench):
    """A Result: quality against the noise α σ that is added before every step, at several numbers of steps."""
    settings = subjects[0].settings
    alphas, counts = alphas_of(settings.alphas), NOISE_STEPS[:1] if settings.quick else NOISE_STEPS
    at = {
        (subject.name, steps, alpha): bench.point(subject, [], alpha=alpha, steps=steps)
        for subject in subjects for steps in counts for alpha in alphas
    }  # fmt: skip
    panels = {
        f"{steps} steps": {s.name: [(a, at[s.name, steps, a]) for a in alphas] for s in subjects} for steps in counts
    }
    drawing = quality.draw(panels, subjects, bench, "α: noise added before every step, over σ", xticks=alphas)
    rows = [[s.name, f"{steps}", *(quality.cell(at[s.name, steps, a]) for a in alphas)]
            for s in subjects for steps in counts]  # fmt: skip
    return Result(
        "Noise injected at every step",
        "Heun's method on EDM's grid, with α σ N(0, I) added to the state before every step while the level stays σ. "
        + bench.protocol,
        ["run", "steps", *(f"α = {a:g}" for a in alphas)],
        rows,
        drawing,
        {"points": [{"run": run, "steps": steps, "alpha": a, **point} for (run, steps, a), point in at.items()]},
    )


def steps(subjects, bench):
    """A Result: quality against the number of Heun's steps."""
    settings = subjects[0].settings
    counts = settings.steps[:2] if settings.quick else settings.steps
    at = {(s.name, k): bench.point(s, [], steps=k) for s in subjects for k in counts}
    panels = {"Heun": {s.name: [(at[s.name, k]["nfe"], at[s.name, k]) for k in counts] for s in subjects}}
    nfe = [at[subjects[0].name, k]["nfe"] for k in counts]
    drawing = quality.draw(
        panels, subjects, bench, "evaluations of the network", xscale="log", xticks=nfe,
        xticklabels=[f"{x:g}" for x in nfe],
    )  # fmt: skip
    for axes in drawing.axes:
        axes.set_xticks([], minor=True)
    rows = [[s.name, *(quality.cell(at[s.name, k]) for k in counts)] for s in subjects]
    return Result(
        "Few steps",
        "Heun's method on EDM's grid, ρ = 7. " + bench.protocol,
        ["run", *(f"{k} steps" for k in counts)],
        rows,
        drawing,
        {"points": [{"run": run, "steps": k, **point} for (run, k), point in at.items()]},
    )


def weights(subjects, bench):
    """A Result: quality against the bits of the network's weights.

    Raises:
      UserError: exceptions that leave no weights to round.
    """
    settings = subjects[0].settings
    counts = sorted(settings.bits, reverse=True)[: 2 if settings.quick else None]
    kept = tuple(word.strip() for word in settings.exact.split(",") if word.strip())
    at, shares = {}, []
    for subject in subjects:
        at[subject.name, 32] = bench.point(subject, [])
        shares.append(quantise.share(subject.generator.params, kept))
        if not shares[-1]:
            raise UserError(f"diagnose.exact={settings.exact} keeps every weight of {subject.name} as it is")
        for bits in counts:
            params = functools.partial(quantise.quantised, subject.generator.params, bits, kept)
            at[subject.name, bits] = bench.point(subject, ["bits", bits, *kept], params=params())
    every = [32, *counts]
    places = {bits: i for i, bits in enumerate(every)}  # evenly spaced: 32 is far from 9
    panels = {"": {s.name: [(places[b], at[s.name, b]) for b in every] for s in subjects}}
    drawing = quality.draw(
        panels, subjects, bench, "bits of a weight", xticks=list(places.values()),
        xticklabels=["float32", *map(str, counts)],
    )  # fmt: skip
    rows = [[s.name, *(quality.cell(at[s.name, b]) for b in every)] for s in subjects]
    return Result(
        "Weights of few bits",
        "Every kernel is rounded to 2^bits evenly spaced values between its least and its largest, 0 among them, but "
        f"for those whose name holds {', '.join(kept) or 'nothing'}: {min(shares):.0%} of the parameters are rounded. "
        f"Heun's method with {quality.STEPS} steps. " + bench.protocol,
        ["run", "float32", *(f"{b} bits" for b in counts)],
        rows,
        drawing,
        {"points": [{"run": run, "bits": b, **point} for (run, b), point in at.items()], "share rounded": shares},
    )


def alphas_of(text):
    """ "0,0.1" -> [0.0, 0.1]; UserError for what is no list of numbers >= 0."""
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = [-1.0]
    if any(not 0 <= value <= 10 for value in values):
        raise UserError(f"diagnose.alphas={text}: give numbers from 0 to 10, such as 0,0.1,0.2")
    return values
