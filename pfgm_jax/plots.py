"""Pictures: samples, the animation of a trajectory, the curves of a run."""

import io
import math
import pathlib
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pfgm_jax.storage import atomic

# Okabe and Ito's colours, distinguishable with any colour vision (https://jfly.uni-koeln.de/color/), without yellow,
# which is too light for lines on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")


def use_palette(*axes):
    """Lines and points drawn on these matplotlib axes from now on take the colours of PALETTE in turn."""
    for each in axes:
        each.set_prop_cycle(color=PALETTE)


def _are_points(samples):
    """Whether [..., C] are points in the plane: images have one channel or three."""
    return samples.shape[-1] == 2


def picture(samples, real=None):
    """A PIL image of samples: a grid of the first 256 images, or the points beside the `real` ones, if given."""
    if not _are_points(samples):
        return grid(samples[:256])
    panels = {"samples": samples} if real is None else {"training points": real[: len(samples)], "samples": samples}
    return scatter(panels, 1.1)


def scatter(panels, limit):
    """A PIL image of {title: points [n, ..., 2]} side by side, all with the coordinates from −limit to limit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: no global state and no screen

    n = len(panels)
    figure = Figure(figsize=(4.2 * n, 4.2), dpi=100)
    for i, (title, points) in enumerate(panels.items()):
        axes = figure.add_axes(((i + 0.13) / n, 0.08, 0.84 / n, 0.84))  # fixed, or an animation would jump
        use_palette(axes)
        axes.scatter(*np.asarray(points).reshape(-1, 2).T, s=3, alpha=0.6, linewidths=0)
        axes.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def save(picture, path):
    """Writes a PIL image as a PNG, in one piece."""
    with atomic.replacing(path) as temporary:
        picture.save(temporary, "PNG")


def grid(images, columns=None, tile=48):
    """A PIL image of uint8 images [n, H, W, C] in rows, small ones enlarged by whole pixels to about `tile`."""
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows, factor, gap = math.ceil(n / columns), max(1, round(tile / height)), 2
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor, width * factor
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def labelled_rows(rows, columns=None, tile=48):
    """A PIL image with one row of uint8 images [k, H, W, C] for each (text, images) of `rows`, its text before it.

    Rows are as long as the longest or `columns`; shorter ones end in white.
    """
    columns = columns or max(len(images) for _, images in rows)
    strips = [grid(images[:columns], columns, tile).convert("RGB") if len(images) else None for _, images in rows]
    width, height = next((strip.size for strip in strips if strip), (0, tile))
    font = _font(max(11, height // 12))
    wrapped = lambda line: textwrap.wrap(line, 24, max_lines=3, placeholder=" …")
    texts = ["\n".join(part for line in text.split("\n") for part in wrapped(line)) for text, _ in rows]
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    margin = math.ceil(max(measure.multiline_textbbox((0, 0), text, font)[2] for text in texts)) + 12
    canvas = Image.new("RGB", (margin + width, len(rows) * (height + 2) - 2), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (strip, text) in enumerate(zip(strips, texts, strict=True)):
        top = i * (height + 2)
        draw.multiline_text((margin - 6, top + height / 2), text, "black", font, anchor="rm", align="right")
        if strip:
            canvas.paste(strip, (margin, top))
    return canvas


def class_grid(images, labels, classes, columns=16):
    """A PIL image of uint8 images [n, H, W, C], a row for each class in `labels` [n] and its name before it.

    A row has the first `columns` images of its class at most.
    """
    counts = np.bincount(labels, minlength=len(classes))
    names = [name if name == str(k) else f"{k} {name}" for k, name in enumerate(classes)]
    rows = [(names[k], images[labels == k][:columns]) for k in np.flatnonzero(counts)]
    return labelled_rows(rows, min(columns, counts.max()))


def animate(trajectory, sigmas, sigma_data, stem, seconds=4.0):
    """Writes the way of states [T, n, H, W, C] (unscaled, float) from the prior to the data; returns the file's path.

    It is STEM.gif, or STEM.webp where that is smaller: grids, or points, above a bar that says where σ is. Each state
    is shown divided by √(1 + σ²/σ_data²), so that noise and data fill the same range of greys; for points it is the
    axes that grow by it.
    """
    trajectory, scale = np.asarray(trajectory), np.sqrt(1 + np.square(sigmas / sigma_data))
    if _are_points(trajectory):
        frames = [scatter({"": points}, 1.1 * factor) for points, factor in zip(trajectory, scale, strict=True)]
    else:
        levels = np.clip(127.5 * trajectory / scale.reshape(-1, 1, 1, 1, 1) + 128, 0, 255).astype(np.uint8)
        frames = [grid(images) for images in levels]
    frames = [_above_bar(frame, sigma, sigmas) for frame, sigma in zip(frames, sigmas, strict=True)]
    return smallest_film(frames, stem, seconds, last=1.5)  # the samples stay


def _above_bar(picture, sigma, sigmas):
    """A picture above a bar that fills as ln σ falls from the largest of `sigmas` to the smallest; a tick a decade."""
    text, font, height = f"σ = {sigma:.3g}", _font(12), 26
    label = 84  # pixels of the widest text
    width = max(picture.width, label + 60)
    canvas = Image.new("RGB", (width, picture.height + height), "white")
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    left, right, top, bottom = label, width - 8, picture.height + 9, picture.height + 17
    smallest = min(level for level in sigmas if level > 0)  # a way may end at σ = 0
    high, low = np.log10(np.max(sigmas)), np.log10(smallest)
    at = lambda value: left + (right - left) * (high - value) / max(high - low, 1e-9)
    draw.rectangle((left, top, right, bottom), "#DDDDDD")
    draw.rectangle((left, top, at(np.log10(max(sigma, smallest))), bottom), PALETTE[0])
    for decade in range(math.ceil(low), math.floor(high) + 1):
        draw.line((at(decade), bottom + 1, at(decade), bottom + 4), "black")
    draw.text((6, picture.height + height // 2), text, "black", font, anchor="lm")
    return canvas


def _font(size):
    from matplotlib import get_data_path  # its font knows more alphabets than Pillow's

    return ImageFont.truetype(pathlib.Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def film(frames, path, seconds=4.0, last=0.0):
    """Writes PIL images as a GIF, in one piece, that takes so many seconds and holds the last image for `last` more."""
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(_encoded(frames, "GIF", seconds, last))


def smallest_film(frames, stem, seconds=4.0, last=0.0):
    """As `film`, to STEM.gif or to STEM.webp (without loss), whichever is smaller; returns its path."""
    films = {suffix: _encoded(frames, suffix.upper(), seconds, last) for suffix in ("gif", "webp")}
    kept = min(films, key=lambda suffix: len(films[suffix]))
    with atomic.replacing(f"{stem}.{kept}") as temporary:
        temporary.write_bytes(films[kept])
    for suffix in films:
        if suffix != kept:  # of an earlier call, which it replaces
            pathlib.Path(f"{stem}.{suffix}").unlink(missing_ok=True)
    return f"{stem}.{kept}"


def _encoded(frames, kind, seconds, last):
    """PIL images as the bytes of an animated GIF or WebP."""
    pause = [round(1000 * seconds / len(frames))] * len(frames)
    pause[-1] += round(1000 * last)
    options = {"lossless": True, "method": 4} if kind == "WEBP" else {}
    stream = io.BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=pause, loop=0, **options)
    return stream.getvalue()


def paths(trajectory, sigmas, path, most=6):
    """Draws the ways of the first `most` samples [T, n, H, W, C], each in the plane of its first two principal axes.

    A way's principal axes are those of its own T states; a title gives the rms distance of the states to the plane.
    The scales of a panel's axes differ: a way is much longer than it is bent. Below it is where it ends.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state and no screen

    trajectory = np.asarray(trajectory, np.float64)[:, :most]
    n, images = trajectory.shape[1], np.clip(127.5 * trajectory[-1] + 128, 0, 255).astype(np.uint8)
    columns = min(3, n)
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(3.6 * columns + 0.9, 3.1 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for i, axes in enumerate(panels):
        if i >= n:
            axes.set_axis_off()
            continue
        plane, off = principal_plane(trajectory[:, i].reshape(len(sigmas), -1))
        axes.plot(*plane.T, color="#AAAAAA", linewidth=1, zorder=1)
        dots = axes.scatter(*plane.T, c=sigmas, norm="log", cmap="viridis", s=16, zorder=2)
        axes.margins(0.08, 0.1)
        axes.set_title(f"off this plane: {off:.2g} rms", fontsize=12)
        corner = axes.inset_axes((0.62, 0.04, 0.36, 0.36))
        corner.imshow(images[i].squeeze(), cmap="gray", vmin=0, vmax=255)
        corner.set(xticks=[], yticks=[])
    for axes in panels[max(0, n - columns) : n]:
        axes.set_xlabel("first principal axis")
    for axes in panels[::columns]:
        axes.set_ylabel("second")
    figure.colorbar(dots, ax=panels.tolist(), label="σ", aspect=40)
    save_figure(figure, path)


def principal_plane(states):
    """(coordinates [T, 2] of states [T, N] on their first two principal axes, the rms distance of states to the plane).

    The last state is the origin; the first coordinate of the first state is positive, and the mean of the second ones
    is negative, so that the lower right of a picture is free.
    """
    centred = states - states.mean(axis=0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    plane = (states - states[-1]) @ axes[:2].T
    plane *= np.where([plane[0, 0] < 0, plane[:, 1].mean() > 0], -1, 1)
    return plane, float(np.sqrt(np.sum(lengths[2:] ** 2) / len(states)))


def histograms(values, path, label, title):
    """Draws {name: values [n]} as histograms over common bins, as a PNG."""
    from matplotlib.figure import Figure  # no pyplot: no global state and no screen

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    use_palette(axes)
    together = np.concatenate(list(values.values()))
    bins = np.linspace(*np.percentile(together, [0.5, 99.5]), 48)
    for name, some in values.items():
        axes.hist(np.clip(some, bins[0], bins[-1]), bins, alpha=0.6, label=f"{name}, {len(some)}")
    axes.set(xlabel=label, ylabel="images", title=title)
    axes.legend()
    save_figure(figure, path)


def curves(records, path):
    """Draws a run's metrics (dicts of metrics.jsonl) as a PNG: losses, and the distance to the truth per σ."""
    from matplotlib.figure import Figure  # no pyplot: no global state and no screen

    truth = {key for record in records for key in record if key.startswith("truth/")}
    figure = Figure(figsize=(11 if truth else 6, 4), layout="constrained")
    axes = figure.subplots(1, 2 if truth else 1, squeeze=False)[0]
    use_palette(*axes)
    for key, label in (("loss", "objective"), ("eval/train", "training images, EMA"), ("eval/val", "validation, EMA")):
        points = [(record["images"] / 1000, record[key]) for record in records if key in record]
        if points:
            axes[0].plot(*zip(*points, strict=True), label=label, marker="." if key != "loss" else None)
    axes[0].set(xlabel="thousand images trained", ylabel="loss", yscale="log", title="loss")
    axes[0].legend()
    for key in sorted(truth, key=lambda key: float(key.split("=")[1])):
        points = [(record["images"] / 1000, record[key]) for record in records if key in record]
        axes[-1].plot(*zip(*points, strict=True), label=key.removeprefix("truth/"), marker=".")
    if truth:
        axes[-1].set(xlabel="thousand images trained", ylabel="rms error", yscale="log", title="distance to the truth")
        axes[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


def save_figure(figure, path):
    """Writes a matplotlib figure in one piece, as the suffix says: .png or .svg."""
    kind = pathlib.Path(path).suffix[1:]
    fixed = {"metadata": {"Date": None}} if kind == "svg" else {}  # the same picture is the same file
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format=kind, **fixed)
