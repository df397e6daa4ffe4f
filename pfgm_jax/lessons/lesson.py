"""What a lesson is, and how its pictures look."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pfgm_jax.plots import PALETTE

BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK = PALETTE
GREY = "#888888"
# Large enough to be read where a page shows the picture at half its width.
STYLE = {
    "font.size": 15,
    "axes.titlesize": 16,
    "axes.labelsize": 15,
    "xtick.labelsize": 13,
    "ytick.labelsize": 13,
    "legend.fontsize": 13,
    "lines.linewidth": 2.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
DPI = 100


class Lesson(NamedTuple):
    """One subject: its pictures and what they show.

    Attributes:
      name: of its files.
      title: a line.
      text: two sentences; then what was measured.
      formula: the one that the pictures show.
      pictures: {file name: a matplotlib Figure (.png) or PIL images (.gif)}.
      numbers: {quantity: measured value}.
    """

    name: str
    title: str
    text: str
    formula: str
    pictures: dict[str, Any]
    numbers: dict[str, float]


def figure(width=7.6, height=3.9):
    """A matplotlib Figure of so many inches, its panels laid out without overlaps; no pyplot, no screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def pixels(figure):
    """A figure as a PIL image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def few_colours(picture, colours=96):
    """A PIL image with a palette of its own: drawings need no more colours, and their files are a third."""
    return picture.quantize(colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def mesh(x_range, y_range, columns, rows=None):
    """A grid of the plane: (x [columns], y [rows], points [rows · columns, 2])."""
    x, y = np.linspace(*x_range, columns), np.linspace(*y_range, rows or columns)
    return x, y, np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def equal(axes, x_range, y_range, ticks=False):
    """Equal scales on both axes and these ranges."""
    axes.set(xlim=x_range, ylim=y_range, aspect="equal")
    if not ticks:
        axes.set(xticks=[], yticks=[])
