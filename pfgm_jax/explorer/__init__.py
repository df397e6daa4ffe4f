"""The field explorer: one HTML file in which charges are put, dragged and drawn, and samples flow to them.

The page works offline and has no build step. Its sources lie readable in page/ and are put together here: field.js,
flow.js, lines.js and extras.js hold the mathematics, which the tests compare with `pfgm_jax.flow`, closed forms and
SciPy, the others what is seen.
"""

import html
import json
import pathlib

from pfgm_jax.explorer import presets, source
from pfgm_jax.storage import atomic

PAGE = pathlib.Path(__file__).parent / "page"
STYLE = "style.css"
# In the order in which they need each other.
SCRIPTS = (
    "field.js",
    "flow.js",
    "lines.js",
    "extras.js",
    "state.js",
    "scene.js",
    "overlays.js",
    "draw.js",
    "pointer.js",
    "app.js",
)
FILE = "explorer.html"
LARGEST = 300_000  # bytes of the page


def write(workdir, source_path=None) -> str:
    """Writes explorer.html into the folder `workdir`; returns what was written.

    Args:
      source_path: points [n, 2] of a .npy file or a run on points in the plane, to begin with (`source.read`).

    Raises:
      UserError: the folder cannot be written to, or a source that holds no points in the plane.
    """
    own = None if source_path is None else source.read(source_path)
    folder = atomic.writable(workdir)
    with atomic.writing_to(folder):
        atomic.write_text(folder / FILE, page(own))
    return f"{folder / FILE}: open it in a browser" + (f"; {own.text}" if own else "")


def page(own=None) -> str:
    """The page as text, with the charges of a `source.Source` where one is given."""
    read = lambda name: (PAGE / name).read_text(encoding="utf-8")
    text = read("explorer.html")
    for place, content in {
        "STYLE": read(STYLE),
        "DATA": _in_script(json.dumps(presets.data(own), ensure_ascii=False, separators=(",", ":"))),
        "SCRIPTS": "\n".join(map(read, SCRIPTS)),
        "OWN": html.escape(own.text) if own else "",
    }.items():
        text = text.replace("{{" + place + "}}", content)
    return text


def _in_script(text):
    """JSON that ends no <script> in which it stands, whatever names it holds."""
    return text.replace("<", "\\u003c")
