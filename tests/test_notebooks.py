"""The notebooks: percent scripts, and the copies that were executed from them."""

import json
import pathlib

import pytest

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("*.py"))
RENDERED = sorted(NOTEBOOKS.glob("rendered/*.ipynb"))


def cells(script):
    """(kind, text) of the cells of a percent script, without the marks."""
    for part in script.read_text().split("# %%")[1:]:
        head, _, text = part.partition("\n")
        yield ("markdown" if "[markdown]" in head else "code"), text.strip()


@pytest.mark.parametrize("copy", RENDERED, ids=lambda path: path.stem)
def test_a_rendered_copy_is_of_its_script_and_has_outputs(copy):
    script, rendered = NOTEBOOKS / f"{copy.stem}.py", json.loads(copy.read_text())["cells"]
    code = ["".join(cell["source"]).strip() for cell in rendered if cell["cell_type"] == "code"]
    assert code == [text for kind, text in cells(script) if kind == "code"], "run launch/notebooks.sh again"
    kinds = [output["output_type"] for cell in rendered for output in cell.get("outputs", [])]
    assert "display_data" in kinds or "execute_result" in kinds
    assert "error" not in kinds


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebooks_run(script, tmp_path):
    nbclient, jupytext = pytest.importorskip("nbclient"), pytest.importorskip("jupytext")
    resources = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(jupytext.read(script), timeout=600, resources=resources).execute()
