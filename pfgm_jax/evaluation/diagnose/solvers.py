"""Error of solvers against evaluations of the network: the flow of a run, solved by many steps and by few."""

import numpy as np

from pfgm_jax import plots, sampling
from pfgm_jax.errors import UserError, nearest
from pfgm_jax.evaluation.diagnose.study import MARKERS, Result, figure, legend_below
from pfgm_jax.inference import FLOW_SOLVERS

REFERENCE = 64  # steps of Heun's method that stand for the flow; half as many say how well they do
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)  # of adaptive solvers


def settings_of(settings):
    """[(solver, {option: value})] of diagnose.solvers and diagnose.steps.

    Raises:
      UserError: no solver of the flow.
    """
    names = [name.strip() for name in settings.solvers.split(",") if name.strip()]
    found = []
    for name in names:
        if name not in FLOW_SOLVERS:
            there = ", ".join(FLOW_SOLVERS)
            raise UserError(f"diagnose.solvers={name} is not one of {there}{nearest(name, FLOW_SOLVERS)}")
        adaptive = "rtol" in sampling.find(name)[1]
        sets = [{"rtol": t, "atol": t} for t in TOLERANCES] if adaptive else [{"steps": k} for k in settings.steps]
        found += [(name, options) for options in (sets[:2] if settings.quick else sets)]
    return found


def looks(names):
    """{name: (colour, marker)}, no two alike."""
    count = len(plots.PALETTE)
    return {name: (plots.PALETTE[i % count], MARKERS[(i + i // count) % count]) for i, name in enumerate(names)}


def study(subjects, store):
    """A Result: rms distance of every solver's samples to the flow's own ends, against evaluations."""
    points = settings_of(subjects[0].settings)
    drawing, (panels,) = figure(len(subjects), sharey=True)
    rows, numbers, names = [], {}, list(dict.fromkeys(name for name, _ in points))
    look = looks(names)
    for axes, subject in zip(panels, subjects, strict=True):
        n, many = subject.settings.n, 16 if subject.settings.quick else REFERENCE
        facts = [subject.identity, n]
        solved = lambda solver, options, s=subject, n=n: _ends(*s.solve(solver, n, **options))
        end = lambda steps, f=facts, go=solved: store.kept(
            "flow", [*f, "heun", steps], lambda: go("heun", {"steps": steps})
        )["x"]
        reference, half = end(many), end(many // 2)
        floor = _rms(reference - half) / 3  # Heun's error falls by 4 when steps double
        numbers[subject.name] = {"reference": f"Heun, {many} steps", "its error": floor, "points": []}
        for name in names:
            line = []
            for solver, options in points:
                if solver != name:
                    continue
                found = store.kept(
                    "solver", [*facts, solver, options, many],
                    lambda go=solved, solver=solver, options=options, to=reference: _against(go(solver, options), to),
                )  # fmt: skip
                nfe, error = float(found["nfe"]), float(found["error"])
                line.append((nfe, error))
                numbers[subject.name]["points"].append({"solver": name, **options, "nfe": nfe, "error": error})
                setting = f"{options['steps']} steps" if "steps" in options else f"tolerance {options['rtol']:g}"
                rows.append([subject.name, name, setting, f"{nfe:g}", f"{error:.2g}"])
            colour, marker = look[name]
            axes.plot(*zip(*line, strict=True), color=colour, marker=marker, label=name)
        axes.axhline(floor, color="grey", linestyle=":", label="error of the reference")
        axes.set(xscale="log", yscale="log", xlabel="evaluations", title=subject.name)
        axes.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_ylabel("rms distance to the ends")
    legend_below(drawing, panels[0])
    return Result(
        "Solvers: error against evaluations",
        f"rms distance, in [−1, 1], of {subjects[0].settings.n} samples to those of Heun's method with {many} steps "
        "from the same noise (its own error, from half as many steps: "
        + ", ".join(f"{own['its error']:.1g}" for own in numbers.values())
        + "). EDM's grid, ρ = 7; adaptive solvers take tolerances.",
        ["run", "solver", "setting", "evaluations", "error"],
        rows,
        drawing,
        numbers,
    )


def _ends(x, stats):
    return {"x": np.asarray(x), "nfe": np.float64(stats.nfe)}


def _against(ends, reference):
    return {"nfe": ends["nfe"], "error": np.float64(_rms(ends["x"] - reference))}


def _rms(values):
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
