"""What a study is given and returns, and how its result is written."""

import pathlib
from typing import Any, NamedTuple

from pfgm_jax import plots
from pfgm_jax.evaluation import naming, protocol
from pfgm_jax.metrics.tables import markdown
from pfgm_jax.storage import array_cache, atomic

# Large enough to be read where a page shows a figure at half its width.
STYLE = {"font.size": 13, "axes.titlesize": 14, "xtick.labelsize": 12, "ytick.labelsize": 12, "legend.fontsize": 12,
         "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "pfgm_jax"}  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Result(NamedTuple):
    """What a study found.

    Attributes:
      title: a line.
      protocol: what was measured, and how.
      header, rows: the table, cells as text.
      figure: a matplotlib Figure.
      numbers: the same and more, as JSON.
    """

    title: str
    protocol: str
    header: list[str]
    rows: list[list[str]]
    figure: Any
    numbers: dict

    def markdown(self, picture):
        """Title, protocol, table and picture as Markdown."""
        table = markdown(self.header, self.rows)
        return f"## {self.title}\n\n{self.protocol}\n\n{table}\n\n![{self.title}]({picture})\n"


class Store:
    """Where a diagnosis keeps and writes: RUN/diagnose.

    Attributes:
      folder: its Path.
      suffix: what the names of its results end in.
      bar: a tqdm bar over the studies' parts.
    """

    def __init__(self, folder, suffix, bar):
        self.folder, self.suffix, self.bar = folder, suffix, bar

    def kept(self, name, facts, make):
        """`make()`, {name: array}: of an earlier call with the same facts (JSON) where there was one."""
        path = self.folder / "kept" / f"{name}-{naming.key_of(facts, 16)}.safetensors"
        self.bar.set_description(name)
        if path.exists():
            arrays = array_cache.load(path)
        else:
            arrays = make()
            array_cache.save(path, arrays, name)
        self.bar.update()
        return arrays

    def write(self, name, result):
        """STUDY.json, .md, .png and .svg; returns the Markdown's path."""
        stem = f"{self.folder / name}{self.suffix}"
        protocol.save_record(f"{stem}.json", {"protocol": result.protocol, "numbers": result.numbers})
        for suffix in ("png", "svg"):
            plots.save_figure(result.figure, f"{stem}.{suffix}")
        atomic.write_text(f"{stem}.md", result.markdown(pathlib.Path(f"{stem}.png").name))
        return f"{stem}.md"


def figure(columns, rows=1, width=4.4, height=3.7, **shared):
    """(a matplotlib Figure, its axes [rows, columns])."""
    from matplotlib.figure import Figure  # no pyplot: no global state and no screen

    drawing = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = drawing.subplots(rows, columns, squeeze=False, **shared)
    plots.use_palette(*panels.ravel())
    return drawing, panels


def plain(axis):
    """Ticks at 1, 2 and 5 of every decade of a logarithmic axis, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def colours(subjects):
    """{name: colour}, the same in every figure."""
    return {subject.name: plots.PALETTE[i % len(plots.PALETTE)] for i, subject in enumerate(subjects)}


def legend_below(drawing, axes):
    """One legend for all panels, below them."""
    handles, labels = axes.get_legend_handles_labels()
    fitting = int(drawing.get_figwidth() // 2.8)
    drawing.legend(handles, labels, loc="outside lower center", ncols=max(1, min(fitting, len(labels))), frameon=False)
