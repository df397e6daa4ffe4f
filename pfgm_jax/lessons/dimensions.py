"""D, batches, finite data and the steps of a solver, each measured on data whose field is known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate, stats

from pfgm_jax import sampling
from pfgm_jax.flow import field, losses
from pfgm_jax.flow.process import perturb, pfgmpp, prior
from pfgm_jax.lessons import lines, shapes
from pfgm_jax.lessons.lesson import BLACK, BLUE, GREEN, GREY, ORANGE, RED, Lesson, figure

DS = {1.0: BLUE, 8.0: GREEN, 128.0: RED, math.inf: BLACK}


def _named(D):
    return "D = ∞" if math.isinf(D) else f"D = {D:g}"


def from_one_to_infinity(quick):
    """The same six points at D = 1, 8, 128, ∞: trajectories, where they bend, tails of the prior."""
    data = np.array([-1.2, -1.0, -0.8, 0.7, 1.0, 1.3], np.float32).reshape(-1, 1)
    sigma_max, shown, frames = 20.0, 15, 81
    share = (np.arange(shown) + 0.5) / shown
    paths, bends, tails = figure(7.6, 5.6), figure(7.6, 4.0), {}
    panels = paths.subplots(2, 2, sharex=True, sharey=True)
    bend, tail = bends.subplots(1, 2)
    where, n = {}, 4000 if quick else 100_000
    for axes, (D, colour) in zip(panels.ravel(), DS.items(), strict=True):
        process = pfgmpp(D, sigma_min=0.01, sigma_max=sigma_max)
        law = stats.norm() if math.isinf(D) else stats.t(D)
        x = (sigma_max * law.ppf(share)).astype(np.float32)[:, None]
        _, solved = sampling.rk45(process, field.exact_denoiser(data, D), x, frames=frames, rtol=1e-5, atol=1e-5)
        sigmas, path = np.asarray(solved.sigmas), np.asarray(solved.trajectory)[..., 0]
        scaled = path / np.sqrt(1 + sigmas**2)[:, None]
        axes.plot(sigmas, scaled, color=colour, lw=1.2)
        axes.set(xscale="log", title=_named(D), ylim=(-4.5, 4.5))
        # How much the velocity x − E[y | x, σ] of the path changes in ln σ, relative to the data's size.
        u = np.log(sigmas)
        mean_of = jax.jit(lambda x, sigma, D=D: field.posterior_mean(x, sigma, data, D))
        mean = np.stack([np.asarray(mean_of(p[:, None], s))[:, 0]
                         for p, s in zip(path.astype(np.float32), sigmas, strict=True)])  # fmt: skip
        turning = np.sqrt(np.mean(np.gradient(mean, u, axis=0) ** 2, axis=1))
        bend.semilogx(sigmas, turning, color=colour, label=_named(D), ls="--" if math.isinf(D) else "-")
        where[D] = float(sigmas[np.argmax(turning)])
        drawn = np.abs(np.asarray(prior(process, jax.random.split(jax.random.key(0), n), (1,)))) / sigma_max
        t = np.geomspace(0.5, 50, 60)
        measured = np.array([np.mean(drawn > r) for r in t])
        measured[measured * n < 10] = np.nan
        tail.loglog(t, 2 * law.sf(t), color=colour, lw=1.2)
        tail.loglog(t[::3], measured[::3], "o", ms=5, color=colour, label=_named(D))
        tails[D] = (float(np.mean(drawn > 3)), float(2 * law.sf(3)))
    for axes in panels[1]:
        axes.set_xlabel("σ")
    for axes in panels[:, 0]:
        axes.set_ylabel("x / √(1 + σ²)")
    bend.set(xlabel="σ", ylabel="rms of d E[y | x, σ]/d ln σ", title="where paths bend")
    tail.set(xlabel="t", ylabel="P(|x| > t σ)", title="tails of the prior", ylim=(1e-5, 1.5))
    tail.legend(frameon=False, loc="lower left", fontsize=12, handletextpad=0.1)
    return Lesson(
        "dimensions",
        "D from 1 to ∞: the same data, the same σ",
        "With few extra dimensions the prior's tails are heavy and paths come in from far away; with many, "
        "kernel and flow become those of diffusion models, and D = 128 can hardly be told from ∞ here. Paths "
        "bend hardest at σ = "
        + ", ".join(f"{where[D]:.2f} ({_named(D)})" for D in DS)
        + "; beyond 3 σ are "
        + ", ".join(f"{100 * tails[D][0]:.2g} %" for D in DS)
        + " of the prior's draws (points in the picture; lines: Student's law).",
        "p(x | y, σ) ∝ (1 + ‖x − y‖²/(D σ²))^(−(N + D)/2)  →  exp(−‖x − y‖²/(2σ²)),   r = σ √D",
        {"dimensions.png": paths, "dimensions-bend-tails.png": bends},
        {f"beyond 3, {_named(D)}": tails[D][0] for D in DS} | {f"theory, {_named(D)}": tails[D][1] for D in DS},
    )


def large_batch(quick):
    """The variance of the large-batch target around the posterior mean, against the batch."""
    points = shapes.moons(2048).astype(np.float32)
    process, sigma, repeats = pfgmpp(128.0), 0.5, 400 if quick else 1500
    key_y, key_x, key_batch = jax.random.split(jax.random.key(0), 3)
    y = jnp.asarray(points)[jax.random.randint(key_y, (repeats,), 0, len(points))]
    x = perturb(process, jax.random.split(key_x, repeats), y, jnp.full(repeats, sigma, jnp.float32))
    exact = field.posterior_mean(x, sigma, points, process.D)

    @functools.partial(jax.jit, static_argnames="size")
    def targets(key, size):
        def one(x, y, key):
            others = jnp.asarray(points)[jax.random.randint(key, (size - 1,), 0, len(points))]
            references = jnp.concatenate([y[None], others])
            return losses.posterior_target(process, x[None], jnp.full(1, sigma), y[None], references)[0]

        return jax.lax.map(lambda a: one(*a), (x, y, jax.random.split(key, repeats)), batch_size=100)

    sizes = np.array([1, 4, 16, 64, 256, 1024])
    variance = np.array(
        [np.mean(np.sum((np.asarray(targets(key_batch, int(size))) - exact) ** 2, axis=1)) for size in sizes]
    )
    theory = float(np.mean(_posterior_variance(np.asarray(x, np.float64), sigma, points, process.D)))
    slope = float(np.polyfit(np.log(sizes[2:]), np.log(variance[2:]), 1)[0])
    drawing = figure(7.6, 3.9)
    axes = drawing.subplots()
    axes.loglog(sizes, variance, "o-", color=BLUE, label="measured")
    axes.loglog(sizes, theory / sizes, color=ORANGE, ls="--", label="posterior variance / n", zorder=1)
    axes.axhline(theory, color=GREY, ls=":", label="posterior variance")
    axes.set(xlabel="references n in the batch", ylabel="variance of the target", title="moons, D = 128, σ = 0.5")
    axes.legend(frameon=False)
    return Lesson(
        "large-batch",
        "A large batch quiets the target",
        "Trained on its clean image alone, the network must average a target with the whole variance of the "
        "posterior; the posterior mean over a batch of references is a target with less, and the same limit. "
        f"Measured: {variance[0]:.3f} with one (the posterior's own variance is {theory:.3f}), "
        f"{variance[3]:.2g} with 64 and {variance[5]:.2g} with 1024, a power of {slope:.2f} of the batch.",
        "target = Σ wᵢ yᵢ / Σ wᵢ over the batch,   variance ∝ 1/n for n ≫ 1",
        {"large-batch.png": drawing},
        {"n = 1": float(variance[0]), "posterior variance": theory, "slope": slope, "n = 1024": float(variance[5])},
    )


def _posterior_variance(x, sigma, points, D):
    """tr Cov(y | x, σ) [B] over the points, in NumPy."""
    squared = np.sum((x[:, None] - points) ** 2, axis=-1)
    log_w = -(x.shape[1] + D) / 2 * np.log(squared + D * sigma**2)
    w = np.exp(log_w - log_w.max(axis=1, keepdims=True))
    w /= w.sum(axis=1, keepdims=True)
    return w @ np.sum(points.astype(np.float64) ** 2, axis=1) - np.sum((w @ points) ** 2, axis=1)


def segment_mean(x, z, of=np):
    """E[y | x, z] at D = 1 for y uniform on [−1, 1] (N = 1), closed form; `of` is numpy or jax.numpy."""
    a, b = 1 - x, 1 + x
    return x + z * 0.5 * of.log((a**2 + z**2) / (b**2 + z**2)) / (of.arctan(a / z) + of.arctan(b / z))


def finite_data(quick):
    """Fields of 4 to 4096 points drawn from a segment, beside the field of the segment itself."""
    random = np.random.RandomState(0)
    sizes, trials = (4, 16, 64, 256, 1024, 4096), 3 if quick else 10
    at = np.stack([np.linspace(-0.9, 0.9, 40), np.full(40, 0.1)])
    query, most = jnp.asarray(at[0, :, None], jnp.float32), sizes[-1]

    @jax.jit
    def means(sets, n):  # one program for every n: sets are filled up to the largest
        allowed = jnp.broadcast_to(jnp.arange(most) < n, (len(query), most))
        return jax.vmap(lambda points: field.posterior_mean(query, 0.1, points, 1.0, allowed=allowed))(sets)

    error, shown = [], {}
    for n in sizes:
        sets = random.uniform(-1, 1, size=(trials, n, 1)).astype(np.float32)
        found = np.asarray(means(np.pad(sets, ((0, 0), (0, most - n), (0, 0))), n))[..., 0]
        error.append(float(np.sqrt(np.mean((found - segment_mean(*at)) ** 2))))
        if n in (4, 16, 64, 4096):
            # The set whose points lie farthest apart, so that each is seen.
            shown[n] = sets[np.argmax(np.diff(np.sort(sets[..., 0], axis=1), axis=1).min(axis=1))]
    slope = float(np.polyfit(np.log(sizes[2:]), np.log(error[2:]), 1)[0])
    drawing = figure(7.6, 3.6)
    axes = drawing.subplots()
    axes.loglog(sizes, error, "o-", color=BLUE, label="measured, z = 0.1")
    axes.loglog(sizes, error[-1] * np.sqrt(sizes[-1] / np.array(sizes)), "--", color=ORANGE, label="∝ 1/√n")
    axes.set(xlabel="points n", ylabel="rms error of E[y | x, z]", title="distance to the field of the density")
    axes.legend(frameon=False)
    return Lesson(
        "finite-data",
        "The field of a data set, and that of what it was drawn from",
        "Field lines of four points end in four points; those of 4096 are the lines of the density, "
        "until z is as small as the gaps. So the exact field of a training set reproduces that set, and what "
        f"lies between is the network's to fill. At z = 0.1 the rms error is {error[0]:.2g} with 4 points, "
        f"{error[3]:.2g} with 256 and {error[5]:.2g} with 4096, a power of {slope:.2f} of their number.",
        "p uniform on [−1, 1]: "
        "E[y | x, z] = x + (z/2) ln(((1−x)² + z²)/((1+x)² + z²)) / (atan((1−x)/z) + atan((1+x)/z))",
        {"finite-data.png": _beside_the_density(shown, 30 if quick else 120), "finite-data-error.png": drawing},
        {f"n = {n}": e for n, e in zip(sizes, error, strict=True)} | {"slope": slope},
    )


def _beside_the_density(shown, steps):
    """A picture of field lines of {n: points [n, 1]} over those of the density on [−1, 1]."""
    drawing = figure(7.6, 5.4)
    panels = drawing.subplots(2, 2, sharex=True, sharey=True).ravel()
    density = _lines_down(lambda x, z: segment_mean(x, z[:, None], jnp), steps)
    for axes, (n, points) in zip(panels, shown.items(), strict=True):
        axes.plot(*density, "--", color=ORANGE, lw=1.5)
        axes.plot(*_lines_down(field.exact_denoiser(points, 1.0), steps), color=BLUE, lw=1.5)
        axes.vlines(points[:, 0], -0.12, -0.02, color=BLACK, lw=2 if n < 100 else 0.6)
        axes.set(title=f"{n} points", xlim=(-1.6, 1.6), ylim=(-0.13, 1.0), yticks=[0, 0.5, 1])
    for axes in panels[2:]:
        axes.set_xlabel("data x")
    for axes in panels[::2]:
        axes.set_ylabel("z")
    panels[0].plot([], [], color=BLUE, label="lines of the points")
    panels[0].plot([], [], "--", color=ORANGE, label="lines of the density")
    drawing.legend(loc="outside upper center", ncols=2, frameon=False)
    return drawing


def _lines_down(denoise, steps):
    """Field lines (x, z), each [steps + 1, 24], from even places of a half circle of radius 30 down to z = 0.002."""
    angle = np.pi * (np.arange(24) + 0.5) / 24
    start = 30 * np.stack([np.cos(angle), np.sin(angle)])
    path, z = lines.follow(denoise, start[0, :, None], start[1], np.full(24, 0.002), steps)
    return path[..., 0], z


def steps_in_log_z(quick):
    """RK45 in z and in ln z at equal tolerances: calls of the field and errors of the samples."""
    points = shapes.moons(64 if quick else 256)
    denoise = jax.jit(field.exact_denoiser(points, 1.0))
    n, z_max, z_min = 32, 40.0, 1e-3
    process = pfgmpp(1.0, sigma_min=z_min, sigma_max=z_max)
    x = np.asarray(prior(process, jax.random.split(jax.random.key(1), n), (2,)))

    def velocity(z, flat):
        x = flat.reshape(n, 2)
        return (flat - np.asarray(denoise(x, np.full(n, z))).ravel()) / z

    in_z = lambda z, flat: velocity(z, flat)
    in_log = lambda u, flat: np.exp(u) * velocity(np.exp(u), flat)
    solve = lambda f, span, tolerance: integrate.solve_ivp(
        f, span, x.ravel().astype(np.float64), method="RK45", rtol=tolerance, atol=tolerance
    )
    spans = {"z": (in_z, (z_max, z_min)), "ln z": (in_log, (math.log(z_max), math.log(z_min)))}
    tolerances = (1e-2, 1e-3, 1e-4, 1e-5)
    calls = {name: [] for name in spans}
    errors = {name: [] for name in spans}
    with jax.enable_x64(True):  # float32's rounding would be taken for error of the step
        reference = solve(*spans["ln z"], 1e-8).y[:, -1]
        for name, (f, span) in spans.items():
            for tolerance in tolerances:
                solved = solve(f, span, tolerance)
                calls[name].append(solved.nfev)
                errors[name].append(float(np.sqrt(np.mean((solved.y[:, -1] - reference) ** 2))))
    package = int(
        sampling.rk45(process, field.exact_denoiser(points.astype(np.float32), 1.0), x, last_denoise=False)[1].nfe
    )
    drawing = figure(7.6, 4.0)
    left, right = drawing.subplots(1, 2)
    for (name, colour), mark in zip({"z": ORANGE, "ln z": BLUE}.items(), ("s--", "o-"), strict=True):
        left.loglog(tolerances, calls[name], mark, color=colour, label=f"steps in {name}")
        right.loglog(calls[name], errors[name], mark, color=colour)
    left.set(xlabel="tolerance", ylabel="evaluations", title="cost")
    right.set(xlabel="evaluations", ylabel="rms error", title="error for the cost")
    for axis in (left.yaxis, right.xaxis):
        axis.set_ticks([50, 100, 200, 300], ["50", "100", "200", "300"])
        axis.set_ticks([], minor=True)
    left.legend(frameon=False)
    ratio = calls["z"][2] / calls["ln z"][2]
    return Lesson(
        "steps-in-ln-z",
        "Steps in ln z are cheaper than steps in z",
        "Near the prior the flow is almost dx/d ln z = x, near the data almost nothing moves per factor of "
        "z: in ln z an adaptive solver sees one scale, in z it must pass from 40 to 0.001. At tolerance 1e-4 "
        f"steps in z take {calls['z'][2]} evaluations and steps in ln z {calls['ln z'][2]} ({ratio:.2f} "
        f"times; the PFGM paper reports about twice on images), with rms errors {errors['z'][2]:.1g} and "
        f"{errors['ln z'][2]:.1g}; `sampling.rk45`, which steps in ln z, takes {package} there.",
        "dx/dz = (x − E[y | x, z]) / z;   with u = ln z:  dx/du = x − E[y | x, eᵘ]",
        {"steps-in-ln-z.png": drawing},
        {"ratio": ratio, "error, z": errors["z"][2], "error, ln z": errors["ln z"][2], "package": float(package)},
    )
