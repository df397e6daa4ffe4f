"""Charges and their field: the net arrow, superposition, the view from far away, shapes."""

import numpy as np

from pfgm_jax.flow import field
from pfgm_jax.lessons import lines, shapes
from pfgm_jax.lessons.lesson import BLACK, BLUE, GREEN, GREY, ORANGE, RED, Lesson, equal, figure, mesh


def net_arrow(quick):
    """Three charges on the data line, each with its arrow at one point above, and the sum."""
    del quick
    data = np.array([-0.8, 0.1, 1.0])
    charges, colours = np.stack([data, 0 * data], axis=1), (BLUE, ORANGE, GREEN)
    at = np.array([0.55, 0.6])
    single = np.stack([lines.coulomb(at[None], charge[None])[0] for charge in charges])
    total = single.sum(axis=0)
    along, up = field.poisson_field(at[None, :1].astype(np.float32), np.float32(at[1]), data[:, None], 1.0)
    package = np.array([float(along[0, 0]), float(up)])
    angle = np.degrees(np.arccos(package @ total / np.linalg.norm(package) / np.linalg.norm(total)))

    drawing = figure(7.6, 3.6)
    left, right = drawing.subplots(1, 2)
    corner = at
    for i, (charge, vector, colour) in enumerate(zip(charges, single, colours, strict=True), 1):
        left.plot(*zip(charge, at, strict=True), color=colour, lw=1.2, ls=":")
        _arrow(left, corner, 0.5 * vector, colour, lw=1.6, ls=(0, (2, 1.5)), alpha=0.7)  # tip to tail, to the sum
        corner = corner + 0.5 * vector
        _arrow(left, at, 0.5 * vector, colour, lw=2.8)
        tip = at + 0.5 * vector + 0.11 * vector / np.linalg.norm(vector)
        left.text(*tip, f"{i}", color=colour, ha="center", va="center", weight="bold")
    _arrow(left, at, 0.5 * total, BLACK, lw=2.8)
    left.plot(*at, "o", color=BLACK, ms=7)
    left.text(*(at + 0.5 * total + [-0.07, -0.02]), "sum", ha="right")
    _, _, grid = mesh((-1.3, 1.3), (0.3, 1.7), 9, 6)
    E_x, E_z = field.poisson_field(grid[:, :1].astype(np.float32), grid[:, 1].astype(np.float32), data[:, None], 1.0)
    arrows = np.stack([np.asarray(E_x)[:, 0], np.asarray(E_z)], axis=1)
    arrows /= np.linalg.norm(arrows, axis=1, keepdims=True)
    right.quiver(*grid.T, *arrows.T, color=GREY, pivot="mid", scale=13, width=0.009, headwidth=4)
    for axes, title in ((left, "at one point"), (right, "everywhere: directions")):
        axes.axhline(0, color=BLACK, lw=1)
        axes.scatter(*charges.T, s=260, c=colours, zorder=3)
        for i, place in enumerate(data, 1):
            axes.text(place, -0.005, f"{i}", color="white", ha="center", va="center_baseline", size=13, weight="bold")
        equal(axes, (-1.5, 1.5), (-0.2, 2.0))
        axes.set(title=title, xlabel="data x")
    left.set_ylabel("extra coordinate z")
    return Lesson(
        "net-arrow",
        "Data are charges, and the field is the sum of their arrows",
        "Every data point is a charge on the line z = 0 and pushes a test particle straight away from itself, the "
        "harder the nearer it is. The field is the plain sum of these arrows, laid tip to tail, and from afar it leads "
        "away from the data on all sides; a generative model walks it backwards."
        f" The arrow of `flow.field` and the sum written out differ by {angle:.1g}°.",
        "E(x, z) = Σᵢ (x − yᵢ, z) / (‖x − yᵢ‖² + z²)^((N + 1)/2)",
        {"net-arrow.png": drawing},
        {"angle": float(angle)},
    )


def _arrow(axes, start, vector, colour, **line):
    """An arrow on matplotlib axes that ends exactly at start + vector."""
    style = dict(arrowstyle="-|>", color=colour, mutation_scale=20, shrinkA=0, shrinkB=0, **line)
    axes.annotate("", start + vector, start, arrowprops=style)


def superposition(quick):
    """Four equal charges in the plane, their equipotentials and field lines."""
    charges = np.array([[-0.9, -0.5], [0.8, -0.8], [0.9, 0.7], [-0.5, 0.9]])
    drawing = figure()
    for axes, count in zip(drawing.subplots(1, 2), (1, 4), strict=True):
        some = charges[:count]
        x, y, grid = mesh((-2, 2), (-2, 2), 30 if quick else 101)
        value, arrow = lines.potential(grid, some), lines.coulomb(grid, some)
        value, arrow = value.reshape(len(y), -1), arrow.reshape(len(y), -1, 2)
        axes.contour(x, y, value, np.linspace(-1.2, 1.0, 12), colors=BLUE, linewidths=1.2, linestyles="solid")
        axes.streamplot(x, y, arrow[..., 0], arrow[..., 1], color=ORANGE, density=0.8, linewidth=1.2)
        axes.scatter(*some.T, s=90, c=BLACK, zorder=3)
        equal(axes, (-2, 2), (-2, 2))
        axes.set_title("one charge" if count == 1 else "four charges")
    # Gauss: 2π times the charge inside, through any closed curve; here a circle around all of it, by the trapezoid
    # rule, which is spectrally accurate there.
    turn = np.linspace(0, 2 * np.pi, 401)[:-1]
    normal = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    flux = np.mean(np.sum(lines.coulomb(1.9 * normal, charges) * normal, axis=1)) * 1.9
    return Lesson(
        "superposition",
        "Fields and potentials add up",
        "Blue lines join points of equal potential, orange ones follow the field and cross them at right "
        "angles. Between equal charges there is a point at which nothing pushes; beyond the outermost blue "
        "line nothing tells four charges from one blurred one. The flux through a circle around all four "
        f"is {flux:.6f} of 2π times their charge.",
        "Φ(x) = −(1/n) Σᵢ ln ‖x − yᵢ‖,   E = −∇Φ   (N = 2, no extra coordinate)",
        {"superposition.png": drawing},
        {"flux": float(flux)},
    )


def zooming_out(quick):
    """A heart from near and far: the largest angle between its field and that of a point charge."""
    points = shapes.heart(128 if quick else 256)
    turn = np.linspace(0, 2 * np.pi, 721)[:-1]
    normal = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    radii = np.array([2.0, 4, 8, 16, 32, 64])
    angle = []
    for radius in radii:
        E = lines.coulomb(radius * normal, points)
        across = E[:, 0] * normal[:, 1] - E[:, 1] * normal[:, 0]
        angle.append(np.degrees(np.max(np.arctan2(np.abs(across), np.sum(E * normal, axis=1)))))
    drawing = figure(7.6, 3.2)
    for axes, half in zip(drawing.subplots(1, 3), (1.5, 5.0, 20.0), strict=True):
        x, y, grid = mesh((-half, half), (-half, half), 30 if quick else 81)
        value, arrow = lines.potential(grid, points), lines.coulomb(grid, points)
        value, arrow = value.reshape(len(y), -1), arrow.reshape(len(y), -1, 2)
        levels = -np.log(half * np.array([1.25, 1.0, 0.8, 0.64, 0.5, 0.4, 0.32]))
        axes.contour(x, y, value, levels, colors=BLUE, linewidths=1.2, linestyles="solid")
        axes.streamplot(x, y, arrow[..., 0], arrow[..., 1], color=ORANGE, density=0.55, linewidth=1.2)
        axes.scatter(*points.T, s=3, c=BLACK, zorder=3)
        equal(axes, (-half, half), (-half, half))
        axes.set_title(f"{2 * half:g} wide")
    return Lesson(
        "zooming-out",
        "From far away every distribution is a point charge",
        "Zooming out, the equipotentials of the heart become circles around its mean and its field lines rays. "
        "That is why one simple prior serves every data set: far out, the field has forgotten all but the "
        f"total charge. The largest angle between field and ray is {angle[0]:.2g}° at radius 2, "
        f"{angle[2]:.2g}° at 8 and {angle[4]:.2g}° at 32: it falls as 1/radius².",
        "E(x) = x/‖x‖² · (1 + O(‖y‖²/‖x‖²))   for data with mean 0",
        {"zooming-out.png": drawing},
        {f"angle at {radius:g}": float(a) for radius, a in zip(radii, angle, strict=True)},
    )


def field_lines(quick):
    """Field lines of a heart, of letters and of two moons: in the plane, and above it."""
    n = 64 if quick else 256
    drawn = {"heart": shapes.heart(n), "letters": shapes.letters(2 * n), "moons": shapes.moons(n)}
    ends, pictures = {}, {}
    for name, points in drawn.items():
        pictures[f"field-lines-{name}.png"], ends[name] = _plane_and_space(points, quick)
    worst = max(ends.values())
    return Lesson(
        "field-lines",
        "Field lines of shapes, in the plane and above it",
        "Left, the field in the plane of the data; right, one more coordinate z, with lines that start "
        "evenly spread over a hemisphere, far away from the data, and come down to them. Above the plane "
        "nothing blocks the way: the field is smooth, and every line ends at the data (all within "
        f"{worst:.2g} of a charge).",
        "dx/dz = (x − E[y | x, z]) / z,   E[y | x, z] = Σ wᵢ yᵢ / Σ wᵢ,   wᵢ = (‖x − yᵢ‖² + z²)^(−(N + 1)/2)",
        pictures,
        {f"farthest end, {name}": value for name, value in ends.items()},
    )


def _plane_and_space(points, quick):
    """(figure, largest distance of a line's end to the nearest charge)."""
    drawing = figure(7.6, 3.9)
    flat = drawing.add_subplot(1, 2, 1)
    x, y, grid = mesh((-1.6, 1.6), (-1.6, 1.6), 30 if quick else 81)
    arrow = lines.coulomb(grid, points).reshape(len(y), -1, 2)
    flat.streamplot(x, y, arrow[..., 0], arrow[..., 1], color=ORANGE, density=1.1, linewidth=1.1)
    flat.scatter(*points.T, s=3, c=BLACK, zorder=3)
    equal(flat, (-1.6, 1.6), (-1.6, 1.6))
    flat.set_title("in the plane")

    start = shapes.hemisphere(90, 3.0)
    denoise = field.exact_denoiser(points.astype(np.float32), 1.0)
    path, z = lines.follow(denoise, start[:, :2], start[:, 2], 0.002 * start[:, 2], 40 if quick else 80)
    space = drawing.add_subplot(1, 2, 2, projection="3d", computed_zorder=False)
    for i in range(len(start)):
        space.plot(*path[:, i].T, z[:, i], color=BLUE, lw=0.8, alpha=0.75, zorder=2)
    space.scatter(*points.T, 0, s=2, c=BLACK, depthshade=False, zorder=1)
    space.scatter(*path[-1].T, z[-1], s=7, c=RED, depthshade=False, zorder=3)
    bare_box(space, 2.1, 2.4)
    space.set_title("in (x, z)")
    nearest = np.linalg.norm(path[-1][:, None] - points, axis=-1).min(axis=1)
    return drawing, float(nearest.max())


def bare_box(space, half, height, zoom=1.25):
    """A 3-D panel with no more than the plane of the data, `half` to either side, and a z axis of this height."""
    space.set(xlim=(-half, half), ylim=(-half, half), zlim=(0, height))
    space.set_axis_off()
    space.set_box_aspect((1, 1, height / (2 * half)), zoom=zoom)
    space.view_init(22, -60)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * half
    space.plot(*corners.T, 0, color=GREY, lw=1, zorder=0)
    space.plot([half, half], [half, half], [0, 0.8 * height], color=GREY, lw=1, zorder=0)
    space.text(half, half, 0.84 * height, "z", fontsize=15, ha="center")
