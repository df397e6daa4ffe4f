"""The flow from a hemisphere to the data, why it needs the extra coordinate, and where the prior comes from."""

import jax
import numpy as np
from scipy import integrate, stats

from pfgm_jax.flow import field
from pfgm_jax.flow.process import pfgmpp, prior
from pfgm_jax.lessons import lines, shapes
from pfgm_jax.lessons.charges import bare_box
from pfgm_jax.lessons.lesson import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    RED,
    SKY,
    Lesson,
    equal,
    few_colours,
    figure,
    mesh,
    pixels,
)


def back_to_the_data(quick):
    """An animation of the uniform hemisphere on its way to a heart; field lines beside paths with inertia."""
    points = shapes.heart(100 if quick else 300)
    start = shapes.hemisphere(60 if quick else 300, 3.0)
    denoise = field.exact_denoiser(points.astype(np.float32), 1.0)
    path, z = lines.follow(denoise, start[:, :2], start[:, 2], 0.002 * start[:, 2], 60 if quick else 90)
    frames = []
    for i in np.linspace(0, len(path) - 1, 6 if quick else 31).astype(int):
        drawing = figure(4.2, 3.2)
        drawing.set_layout_engine("none")
        space = drawing.add_axes((-0.1, -0.14, 1.2, 1.28), projection="3d", computed_zorder=False)
        space.scatter(*points.T, 0, s=2, c=BLACK, depthshade=False, zorder=1)
        space.scatter(*path[i].T, z[i], s=7, c=RED, depthshade=False, zorder=2)
        bare_box(space, 2.6, 3.0, zoom=1.0)
        frames.append(few_colours(pixels(drawing), 24))
    nearest = np.linalg.norm(path[-1][:, None] - points, axis=-1).min(axis=1)
    picture, missed = _inertia()
    return Lesson(
        "back-to-the-data",
        "A uniform hemisphere flows back to the data",
        "Points spread evenly over a large hemisphere follow the field lines down and arrive at z = 0 as "
        "data: equal flux goes to equal charges. The particles have no inertia (the field is a velocity, not "
        "a force): a ball let go in the same field gathers speed, cuts its corners and lands elsewhere. All "
        f"ends of the animation are within {nearest.max():.2g} of the heart; the balls miss the ends of "
        f"their field lines by {missed:.2g} on average.",
        "d(x, z)/dt = −E(x, z)   (field line);   d²(x, z)/dt² = −E(x, z)   (ball)",
        {"back-to-the-data.gif": frames, "inertia.png": picture},
        {"farthest end": float(nearest.max()), "missed by": missed},
    )


def _inertia():
    """(picture, mean distance of landing points): field lines and ballistic paths from the same points at rest."""
    data = np.array([-1.2, -1.0, -0.8, 0.9, 1.2])
    charges = np.stack([data, 0 * data], axis=1)
    angle = np.radians([25, 50, 75, 105, 130, 155])
    start = 2.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    drawing = figure(7.6, 3.2)
    axes, missed = drawing.subplots(), []
    landed = lambda t, state: state[1] - 1e-3
    landed.terminal = True
    E = lambda place: lines.coulomb(place[None], charges)[0]
    for i, place in enumerate(start):
        line = integrate.solve_ivp(lambda t, s: -E(s), (0, 50), place, events=landed, rtol=1e-6, max_step=0.05)
        ball = integrate.solve_ivp(
            lambda t, s: np.concatenate([s[2:], -E(s[:2])]), (0, 50), [*place, 0, 0], events=landed, rtol=1e-6,
            max_step=0.05,
        )  # fmt: skip
        axes.plot(*line.y[:2], color=BLUE, label=None if i else "field line")
        axes.plot(*ball.y[:2], color=ORANGE, ls="--", label=None if i else "ball, with inertia")
        missed.append(abs(line.y[0, -1] - ball.y[0, -1]))
    axes.axhline(0, color=BLACK, lw=1)
    axes.scatter(*charges.T, s=80, c=BLACK, zorder=3)
    axes.scatter(*start.T, s=30, c=GREY, zorder=3)
    equal(axes, (-2.9, 2.9), (-0.15, 2.75))
    axes.set(xlabel="data x", ylabel="z")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return drawing, float(np.mean(missed))


def disk_field(x):
    """The field [B, 2] in the plane of a unit disk of uniform charge: x inside, x/‖x‖² outside (Gauss)."""
    squared = np.sum(x**2, axis=1, keepdims=True)
    return x / np.maximum(squared, 1)


def mode_collapse(quick):
    """A uniform disk: without z all samples end in its centre, with z they fill it."""
    points = shapes.disk(300 if quick else 1000)
    start = shapes.hemisphere(100 if quick else 300, 4.0)
    ring = start[:, :2] / np.linalg.norm(start[:, :2], axis=1, keepdims=True) * 4.0
    flow = lambda t, x: -disk_field(x.reshape(-1, 2)).ravel()
    # From 4 to the rim takes (4² − 1)/2 = 7.5, from there ‖x‖ = e^(−t).
    flat = integrate.solve_ivp(flow, (0, 12.5), ring.ravel(), t_eval=np.linspace(0, 12.5, 60), rtol=1e-6, atol=1e-8)
    flat = flat.y.T.reshape(-1, len(ring), 2)
    denoise = field.exact_denoiser(points.astype(np.float32), 1.0)
    path, z = lines.follow(denoise, start[:, :2], start[:, 2], 0.005 * start[:, 2], 40 if quick else 80)
    radius = {"without z": np.linalg.norm(flat[-1], axis=1), "with z": np.linalg.norm(path[-1], axis=1)}
    distance = stats.kstest(radius["with z"], lambda r: np.clip(r, 0, 1) ** 2).statistic

    drawing = figure(7.6, 4.7)
    for axes, (title, ends), lines_of in zip(drawing.subplots(1, 2), radius.items(), (flat, path), strict=True):
        for i in range(0, len(ring), len(ring) // 24):
            axes.plot(*lines_of[:, i].T, color=BLUE, lw=0.8, alpha=0.6)
        turn = np.linspace(0, 2 * np.pi, 200)
        axes.fill(np.cos(turn), np.sin(turn), color=SKY, alpha=0.35, lw=0)
        axes.scatter(*lines_of[-1].T, s=6, c=RED, zorder=3, linewidths=0)
        equal(axes, (-1.7, 1.7), (-1.7, 1.7))
        axes.set_title(title)
        axes.set_xlabel(f"mean radius {ends.mean():.2f}")
    return Lesson(
        "mode-collapse",
        "Without z the samples collapse; with z they fill the disk",
        "Inside a disk of uniform charge the plane's field is E = x, so that backwards all paths (blue) run "
        "into its centre: the samples (red) collapse. In (x, z) each field line meets the plane in a place "
        f"of its own, and equal areas receive equal flux: the samples' mean radius is "
        f"{radius['with z'].mean():.3f} (uniform: 2/3) instead of {radius['without z'].mean():.3f}.",
        "without z: dx/dt = −x inside the disk, so x → 0;   with z: E_z(x, 0⁺) ∝ p(x), so samples are distributed as p",
        {"mode-collapse.png": drawing},
        {f"mean radius, {name}": float(r.mean()) for name, r in radius.items()} | {"KS distance": float(distance)},
    )


def projection(quick):
    """The hemisphere projected along rays to the plane z = z_max: its radii against the law and the prior's draws."""
    n, z_max = 2000 if quick else 20000, 1.0
    random = np.random.RandomState(0)
    direction = random.normal(size=(n, 3))
    direction[:, 2] = np.abs(direction[:, 2])
    projected = direction[:, :2] / direction[:, 2:] * z_max
    process = pfgmpp(1.0, sigma_min=0.01, sigma_max=z_max)
    drawn = np.asarray(prior(process, jax.random.split(jax.random.key(0), n), (2,)))
    radius = {"projected hemisphere": np.linalg.norm(projected, axis=1), "process.prior": np.linalg.norm(drawn, axis=1)}
    cdf = lambda r: 1 - z_max / np.sqrt(r**2 + z_max**2)
    distance = {name: float(stats.kstest(r, cdf).statistic) for name, r in radius.items()}

    drawing = figure(7.6, 5.6)
    rays, law = drawing.subplots(2, 1, height_ratios=(1, 1.5))
    angle = np.radians(np.linspace(15, 165, 16))
    turn = np.linspace(0, np.pi, 200)
    rays.plot(np.cos(turn), np.sin(turn), color=BLUE)
    rays.axhline(z_max, color=ORANGE)
    for a in angle:
        rays.plot([0, np.cos(a) / np.sin(a)], [0, 1], color=GREY, lw=0.8)
    rays.scatter(np.cos(angle), np.sin(angle), s=34, c=BLUE, zorder=3)
    rays.scatter(np.cos(angle) / np.sin(angle), 0 * angle + 1, s=34, c=ORANGE, marker="s", zorder=3)
    rays.text(-4, 1.13, "the plane z = z_max", color=BLACK)
    rays.text(-1.1, 0.1, "hemisphere", color=BLACK, ha="right")
    equal(rays, (-4.1, 4.1), (-0.05, 1.5))
    rays.set(title="carried along rays", xlabel="x", ylabel="z")
    bins = np.linspace(0, 6, 31)
    share = {name: np.histogram(r, bins)[0] / n / np.diff(bins) for name, r in radius.items()}
    law.stairs(share["projected hemisphere"], bins, fill=True, color=SKY, alpha=0.6, label="projected hemisphere")
    law.plot((bins[1:] + bins[:-1]) / 2, share["process.prior"], "s", color=ORANGE, ms=6, label="process.prior")
    r = np.linspace(0, 6, 200)
    law.plot(r, r * z_max / (r**2 + z_max**2) ** 1.5, color=BLACK, lw=1.5, label="law", zorder=1)
    law.set(title="radius at z_max", xlabel="‖x‖ / z_max", ylabel="density", xlim=(0, 6), ylim=(0, 0.45))
    law.legend(frameon=False)
    return Lesson(
        "projection",
        "From the hemisphere to the prior",
        "Far out the field lines are rays, so points of a uniform hemisphere may be carried along rays to "
        "the plane z = z_max, where all samples then start at the same z. What arrives there is a "
        f"heavy-tailed law of the radius, the prior that `process.prior` draws at D = 1: Kolmogorov distances "
        f"to the law {distance['projected hemisphere']:.3f} and {distance['process.prior']:.3f} at n = {n} "
        f"(5 % level: {1.36 / np.sqrt(n):.3f}).",
        "p(x) ∝ (‖x‖² + z_max²)^(−(N + 1)/2);   N = 2: P(‖x‖ > ρ) = z_max / √(ρ² + z_max²)",
        {"projection.png": drawing},
        distance,
    )


def flux(quick):
    """How uneven the flux through a hemisphere is, against its radius, with the quadrupole's law."""
    from matplotlib.patches import Circle

    points = shapes.moons(64 if quick else 256)
    charges = np.concatenate([points, np.zeros((len(points), 1))], axis=1)
    normal = shapes.hemisphere(300 if quick else 1000, 1.0)
    radii = np.geomspace(1.5, 100, 12)
    density = np.stack(
        [radius**2 * np.sum(lines.coulomb(radius * normal, charges) * normal, axis=1) for radius in radii]
    )
    uneven = density.std(axis=1) / density.mean(axis=1)
    C = charges.T @ charges / len(charges)
    theory = 4.5 * np.sqrt(2 / 15 * (np.trace(C @ C) - np.trace(C) ** 2 / 3)) / radii**2

    drawing = figure(7.6, 3.7)
    left, right = drawing.subplots(1, 2, width_ratios=(1.25, 1))
    x, y, grid = mesh((-1, 1), (-1, 1), 161)
    grid = grid / np.maximum(
        1.001 * np.linalg.norm(grid, axis=1, keepdims=True), 1
    )  # what is beyond the rim is cut off
    upper = np.concatenate([grid, np.sqrt(1 - np.sum(grid**2, axis=1, keepdims=True))], axis=1)
    shown = np.sum(lines.coulomb(1.5 * upper, charges) * upper, axis=1) * 1.5**2
    levels = np.arange(0.85, 1.51, 0.05)
    image = left.contourf(x, y, shown.reshape(161, 161), levels, cmap="cividis", extend="both")
    rim = left.add_patch(Circle((0, 0), 1, fill=False, edgecolor="none"))
    image.set_clip_path(rim)
    left.scatter(*(points / 1.5).T, s=2, c="white")
    left.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), aspect="equal", title="R = 1.5, from above")
    left.set_axis_off()
    bar = drawing.colorbar(image, ax=left, location="left", label="flux / mean", shrink=0.9)
    bar.set_ticks([0.9, 1.0, 1.1, 1.2, 1.3, 1.4])
    right.loglog(radii, uneven, "o", color=BLUE, ms=7, label="measured")
    right.loglog(radii, theory, color=ORANGE, label="theory", zorder=1)
    right.set(xlabel="radius R", ylabel="std / mean of flux", title="more even with R")
    right.legend(frameon=False)
    return Lesson(
        "flux",
        "The flux through a large hemisphere is uniform",
        "A hemisphere near two moons is crossed unevenly, a large one evenly; so its uniform distribution, "
        "which needs no knowledge of the data, becomes the prior. For data with mean 0 the unevenness is "
        f"that of the quadrupole: {100 * uneven[0]:.0f} % at R = 1.5, {100 * uneven[-1]:.2g} % at R = 100 "
        f"(theory there {100 * theory[-1]:.2g} %), while the total is {density.mean(axis=1)[-1]:.5f} of "
        "the charge's.",
        "R² E·n = 1 + 3 Q(n)/R² + …,   Q(n) = ½ E[3 (n·y)² − ‖y‖²],   "
        "std = 4.5 √(2/15 (tr C² − (tr C)²/3)) / R²,  C = E[y yᵀ]",
        {"flux.png": drawing},
        {"first": float(uneven[0]), "last": float(uneven[-1]), "theory, last": float(theory[-1]),
         "total": float(density.mean(axis=1)[-1])},
    )  # fmt: skip
