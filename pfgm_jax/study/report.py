"""The report of a study: report.html, one file that needs no network; report.md; tables as CSV, figures as SVG, PNG."""

import base64
import csv
import html
import io
import re
from typing import NamedTuple

from pfgm_jax import __version__, plots
from pfgm_jax.storage import atomic
from pfgm_jax.study import figures, tables, verdict
from pfgm_jax.study.findings import NOT_MEASURED, Findings

PICTURES = {  # stage: {file: title}; shown side by side, an entry each
    "headline": {"grid.png": "Samples, not chosen", "classes.png": "Samples by class"},
    "latents": {"interpolation.png": "Between real images: one at each end, latents on a great circle between them"},
    "copies": {"headline-copies.png": "The samples closest to training images"},
}
LIMITS = (
    "Synthetic images follow their training set, with its classes, frequencies and biases. Figures here say how near "
    "they come to it, not what they are good for in a clinic: nobody has tested what a reader or a classifier would "
    "miss who learned from them. Where no copies were found, that is no proof of privacy.",
    "Intervals are over samples of one training run, unless training seeds are named: another run would move every "
    "figure. Hyper-parameters are those of the base config and were not tuned for each variant.",
)


class Section(NamedTuple):
    """A part of the page: anchor, title, HTML."""

    anchor: str
    title: str
    body: str


def write(study, entries, states, folder):
    """Writes the report of a study from the records in its `course.State`s; returns the line that says where.

    Raises:
      OSError: a folder that cannot be written.
    """
    records = {(s.task.place.entry.name, s.task.stage): s.record for s in states if s.record}
    findings = Findings(study, entries, records)
    all_tables = [verdict.table(findings), *tables.every(findings), _states(states)]
    all_figures = figures.every(findings) if findings.distance else []
    for name in ("tables", "figures"):
        (folder / name).mkdir(exist_ok=True)
    for table in all_tables:
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([table.header, *table.rows])
        atomic.write_text(folder / "tables" / f"{table.name}.csv", stream.getvalue())
    drawings = {}
    for figure in all_figures:
        for kind in ("svg", "png"):
            plots.save_figure(figure.canvas, folder / "figures" / f"{figure.name}.{kind}")
        drawings[figure.name] = (folder / "figures" / f"{figure.name}.svg").read_text(encoding="utf-8")
    pictures = _pictures(states)
    atomic.write_text(folder / "report.md", _markdown(study, all_tables, all_figures))
    atomic.write_text(folder / "report.html", _page(study, all_tables, all_figures, drawings, pictures))
    return f"report     {folder / 'report.html'} (also report.md, tables/, figures/)"


def _states(states):
    """The table of what is done."""
    names = list(dict.fromkeys(state.task.stage for state in states))
    rows = []
    for entry in dict.fromkeys(state.task.place.entry.name for state in states):
        words = {s.task.stage: s.words for s in states if s.task.place.entry.name == entry}
        rows.append([entry, *(words.get(name, "does not apply") for name in names)])
    return tables.Table("states", "What was measured", ["", *names], rows)


def _pictures(states):
    """[(title, [(entry, path of a PNG)])] of the pictures that stages have made."""
    groups = {}
    for state in states:
        for name in (state.record or {}).get("pictures", ()):
            path = state.task.place.folder / name
            if path.exists():
                title = PICTURES[state.task.stage][name]
                groups.setdefault(title, []).append((state.task.place.entry.name, path))
    return list(groups.items())


def _markdown(study, all_tables, all_figures):
    parts = [f"# {study.title}\n", *(f"{line}\n" for line in LIMITS)]
    parts += [f"## {figure.title}\n\n![{figure.words}](figures/{figure.name}.png)\n" for figure in all_figures]
    return "\n".join([*parts, *(table.markdown() for table in all_tables)])


def _table(table):
    """A Table as HTML, in a region of its own that scrolls."""
    if not table.rows:
        return f"<p class='note'>{NOT_MEASURED}</p>"
    cell = lambda text: html.escape(text) or "<span class='none'>–</span>"
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in table.header)
    row = lambda cells: (
        f"<th scope='row'>{html.escape(cells[0])}</th>" + "".join(f"<td>{cell(c)}</td>" for c in cells[1:])
    )
    rows = "".join(f"<tr>{row(cells)}</tr>" for cells in table.rows)
    wide = " class='words'" if table.name in ("verdict", "states") else ""
    note = f"<p class='note'>{html.escape(table.note)}</p>" if table.note else ""
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{html.escape(table.title, quote=True)}'>"
        f"<table{wide}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def _drawing(figure, svg):
    """A Figure as inline SVG, its ids made its own: several share the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(id="|url\(#|xlink:href="#|href="#)', rf"\g<1>{figure.name}-", svg)
    svg = svg.replace("<svg ", f"<svg role='img' aria-label='{html.escape(figure.words, quote=True)}' ", 1)
    return f"<figure class='paper'>{svg}<figcaption>{html.escape(figure.words)}</figcaption></figure>"


def _image(name, path):
    data = base64.b64encode(path.read_bytes()).decode()
    alt = html.escape(f"{name}: {path.stem}", quote=True)
    return (
        f"<figure><img loading='lazy' alt='{alt}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
    )


def _page(study, all_tables, all_figures, drawings, pictures):
    by_name = {table.name: table for table in all_tables}
    drawn = {figure.name: _drawing(figure, drawings[figure.name]) for figure in all_figures}
    sections = []

    def add(name, *more, title=None):
        table = by_name.pop(name)
        body = "".join(drawn.pop(figure, "") for figure in more) + _table(table)
        sections.append(Section(name, title or table.title, body))

    add("verdict")
    add("quality")
    if study.also:
        add("also")
    add("differences")
    for i, (title, images) in enumerate(pictures):
        wide = " wide" if "grid" not in images[0][1].name else ""
        body = f"<div class='pictures{wide}'>{''.join(_image(*image) for image in images)}</div>"
        sections.append(Section(f"pictures-{i}", title, body))
    add("evaluations", "evaluations", "time")
    add("fewest")
    add("D", "D")
    if study.robustness:
        add("robustness", "robustness")
    add("truth", "truth", "training")
    add("cost")
    add("likelihood")
    add("copies")
    add("usefulness")
    add("settings")
    add("states")
    links = "".join(f"<li><a href='#{s.anchor}'>{html.escape(s.title)}</a></li>" for s in sections)
    limits = "".join(f"<p>{html.escape(line)}</p>" for line in LIMITS)
    body = "".join(
        f"<section id='{s.anchor}' aria-labelledby='h-{s.anchor}'><h2 id='h-{s.anchor}'>{html.escape(s.title)}</h2>"
        f"{s.body}</section>" for s in sections
    )  # fmt: skip
    title = html.escape(study.title)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head>
<body><a class="skip" href="#main">Skip to the results</a>
<header><h1>{title}</h1>{limits}<p class="note">pfgm_jax {__version__}</p></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="main" tabindex="-1">{body}</main></body></html>
"""


STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --band: #f6f8fa;
  --link: #0060a0; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6e9ed; --soft: #9aa4af; --line: #343c46;
  --band: #1c222a; --link: #7cc4ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: .5rem; border-top: 1px solid var(--line); }
header p { max-width: 60rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--paper); padding: .5rem; z-index: 1; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; margin: 1rem 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { background: var(--band); vertical-align: bottom; white-space: normal; min-width: 4.5rem; }
tbody th { text-align: left; font-weight: 600; position: sticky; left: 0; background: var(--paper); max-width: 45vw;
  white-space: normal; }
thead th:first-child { text-align: left; position: sticky; left: 0; }
table.words td { white-space: normal; text-align: left; vertical-align: top; min-width: 9rem; }
table.words th { text-align: left; vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
.note, figcaption { color: var(--soft); font-size: .85rem; max-width: 70rem; }
.none { color: var(--soft); }
figure { margin: 1rem 0; }
.paper svg { background: #fff; border-radius: 6px; max-width: 100%; height: auto; display: block; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.pictures.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.pictures figure { margin: 0; }
.pictures img { width: 100%; height: auto; image-rendering: pixelated; background: #fff; border-radius: 4px; }
@media print { nav, .skip { display: none; } .scroll { overflow: visible; } }
"""
