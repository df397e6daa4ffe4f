"""Pictures: samples, the animation of a trajectory, the curves of a run."""

import math
import pathlib
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pfgm_jax.storage import atomic

# Okabe and Ito's colours, told apart with any colour vision (https://jfly.uni-koeln.de/color/); yellow, too light for
# lines on white, is left out.
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
    from matplotlib import get_data_path  # its font knows more alphabets than Pillow's

    columns = columns or max(len(images) for _, images in rows)
    strips = [grid(images[:columns], columns, tile).convert("RGB") if len(images) else None for _, images in rows]
    width, height = next((strip.size for strip in strips if strip), (0, tile))
    font = ImageFont.truetype(pathlib.Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), max(11, height // 12))
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


def animate(trajectory, sigmas, sigma_data, path, seconds=4.0):
    """Writes a GIF of states [T, n, H, W, C] (unscaled, float) from the prior to the data, as grids or as points.

    Each state is shown divided by √(1 + σ²/σ_data²), so that noise and data fill the same range of greys; for points
    it is the axes that grow by it.
    """
    trajectory, scale = np.asarray(trajectory), np.sqrt(1 + np.square(sigmas / sigma_data))
    if _are_points(trajectory):
        panels = ({f"σ = {sigma:.3g}": points} for sigma, points in zip(sigmas, trajectory, strict=True))
        frames = [scatter(panel, 1.1 * factor) for panel, factor in zip(panels, scale, strict=True)]
    else:
        levels = np.clip(127.5 * trajectory / scale.reshape(-1, 1, 1, 1, 1) + 128, 0, 255).astype(np.uint8)
        frames = [grid(images) for images in levels]
    film(frames, path, seconds, last=1.5)  # the samples stay


def film(frames, path, seconds=4.0, last=0.0):
    """Writes PIL images as a GIF, in one piece, that takes so many seconds and holds the last image for `last` more."""
    pause = [1000 * seconds / len(frames)] * len(frames)
    pause[-1] += 1000 * last
    with atomic.replacing(path) as temporary:
        frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=pause, loop=0)


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
    """Writes a matplotlib figure as a PNG, in one piece."""
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
