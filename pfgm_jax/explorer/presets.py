"""What the explorer can begin with: the lessons' charges, and what to look at."""

from typing import NamedTuple

import numpy as np

from pfgm_jax.data import toys
from pfgm_jax.lessons import shapes


def _spread(points, n):
    """n of the points [m, 2], each the farthest from those before it: what is drawn by them can be read."""
    chosen = [0]
    distance = np.full(len(points), np.inf)
    while len(chosen) < n:
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return points[chosen]


def _segment(n):
    """n random points of the line z = 0 between −1 and 1: of ten sets that whose points lie farthest apart."""
    sets = np.sort(np.random.RandomState(0).uniform(-1, 1, (10, n)), axis=1)
    x = sets[np.diff(sets, axis=1).min(axis=1).argmax()]
    return np.stack([x, 0 * x], axis=1)


# Named sets of charges in the plane; a link to a state names them rather than list them.
SHAPES = {
    "heart": lambda: shapes.heart(120),
    "letters": lambda: _spread(shapes.letters(2000), 200),
    "moons": lambda: shapes.moons(160),
    "disk": lambda: shapes.disk(200),
    "swissroll": lambda: toys.TOYS["swissroll"][0](np.random.RandomState(0), 180)[0],
    "four": lambda: [[-0.6, -0.5], [0.7, -0.4], [0.5, 0.7], [-0.7, 0.5]],
    "five": lambda: [[-1.1, 0], [-0.8, 0], [-0.1, 0], [0.55, 0], [1.1, 0]],
    "three": lambda: [[-0.9, 0], [0.1, 0], [0.7, 0]],
    "segment4": lambda: _segment(4),
    "segment16": lambda: _segment(16),
    "segment64": lambda: _segment(64),
}


class Preset(NamedTuple):
    """A lesson of the page: what differs from the page's first state (page/state.js), and what to look at."""

    name: str
    title: str
    hint: str
    state: dict


_STILL = {"cloud": False, "paths": False}
PRESETS = (
    Preset(
        "flow",
        "Flow to the data",
        "Samples start as noise and follow the field down to the charges. Press play, move the time, drag a charge, or "
        "draw new ones.",
        {"charges": "heart", "D": 1},
    ),
    Preset(
        "arrow",
        "Sum of arrows",
        "Every charge pushes the test particle straight away from itself, the harder the nearer. The thick arrow is "
        "the sum. Drag the particle.",
        {"charges": "three", "view": "half", "R": 2, "probe": [0.25, 0.8], "tool": "probe", "flux": False, **_STILL},
    ),
    Preset(
        "superposition",
        "Superposition",
        "Without extra dimensions: field lines and equipotentials of four charges. Between them is a point where "
        "nothing pushes.",
        {"charges": "four", "z": False, "blur": 0.02, "levels": True, "zoom": 1.6, **_STILL},
    ),
    Preset(
        "far",
        "Far away",
        "Zoomed out, the heart is one point charge: rays and circles. So one prior serves every data set.",
        {"charges": "heart", "z": False, "levels": True, "zoom": 8, **_STILL},
    ),
    Preset(
        "letters",
        "Letters",
        "Field lines of a word. Nothing blocks the way above the plane, so every sample finds a letter.",
        {"charges": "letters", "D": 1},
    ),
    Preset(
        "hemisphere",
        "Hemisphere",
        "Above the line of the data an even half circle flows back to the charges: each receives the same share.",
        {"charges": "five", "view": "half", "R": 3},
    ),
    Preset(
        "inertia",
        "Lines and balls",
        "The field is a velocity, not a force: a ball let go at rest in it gathers speed, cuts its corners and lands "
        "beside the end of its field line.",
        {"charges": "five", "view": "half", "R": 2.5, "balls": True, "lines": False, "flux": False, **_STILL},
    ),
    Preset(
        "collapse",
        "Collapse without z",
        "Inside a disk of charge the plane’s own field is E ∝ x: followed backwards, all samples fall into the centre.",
        {"charges": "disk", "z": False, "blur": 0.12},
    ),
    Preset(
        "cure",
        "… and its cure",
        "With one extra dimension each field line meets the plane in its own place, and the samples fill the disk.",
        {"charges": "disk", "D": 1},
    ),
    Preset(
        "projection",
        "To the prior",
        "Far out the field lines are rays. They carry an even hemisphere to the line z = R, where all samples start: "
        "the prior, with heavy tails.",
        {"charges": "five", "view": "half", "R": 10, "rays": True, "lines": False, **_STILL},
    ),
    Preset(
        "flux",
        "Flux meter",
        "The flux through the half circle, shown as a band, is uneven near the charges and even far away. Move R.",
        {"charges": "five", "view": "half", "R": 1.6, "levels": True, **_STILL},
    ),
    Preset(
        "dimensions",
        "D from ½ to ∞",
        "Small D: heavy tails, paths come from far away. Large D: the field of a diffusion model. Turn the dial at the "
        "same σ.",
        {"charges": "moons", "D": 16, "u": 0.45, "levels": True},
    ),
    Preset(
        "targets",
        "Targets of a batch",
        "Dots are what a network may be told at the probe. One clean image is told with the whole posterior’s spread; "
        "a large batch is quieter.",
        {
            "charges": "moons",
            "D": 128,
            "u": 0.39,
            "tool": "probe",
            "probe": [0.2, 0.3],
            "targets": True,
            "batch": 16,
            "lines": False,
            **_STILL,
        },
    ),
    Preset(
        "finite",
        "Finite data",
        "Lines of 16 points end in the points, dashed those of the even density they were drawn from. Choose 4 or 64 "
        "points as the shape.",
        {"charges": "segment16", "view": "half", "R": 1.3, "density": True, "flux": False, **_STILL},
    ),
    Preset(
        "solvers",
        "Steps and errors",
        "Dots are the solver’s steps, dashes the exact paths. Compare Euler, Heun and RK45 at the same number of "
        "evaluations.",
        {"charges": "swissroll", "D": 128, "solver": "heun", "steps": 8, "u": 1},
    ),
    Preset(
        "clock",
        "Steps in ln σ",
        "RK45 at one tolerance: steps in ln σ take fewer evaluations than steps in σ, which must pass from 4 to 0.002. "
        "Switch, and see NFE.",
        {"charges": "moons", "D": 1, "digits": 4, "clock": "level", "u": 1, "lines": False, "cloud": False},
    ),
    Preset(
        "noise",
        "Noise λ",
        "The reverse SDE adds noise and takes it away again: other paths, the same marginals, at any D.",
        {"charges": "moons", "D": 8, "lambda": 1, "steps": 60, "u": 0.5},
    ),
)


def data(own=None) -> dict:
    """What the page reads: sets of charges, rounded to 1e-3, and presets; those of a `source.Source` come first."""
    sets = {name: _rounded(points()) for name, points in SHAPES.items()}
    listed = [preset._asdict() for preset in PRESETS]
    if own is not None:
        sets["own"] = _rounded(own.points)
        hint = f"{own.text}. Samples start as noise and follow the exact field of these points."
        listed.insert(0, Preset("own", "Your points", hint, {"charges": "own", "D": 128})._asdict())
    return {"sets": sets, "presets": listed}


def _rounded(points):
    return [[round(float(x), 3), round(float(y), 3)] for x, y in points]
