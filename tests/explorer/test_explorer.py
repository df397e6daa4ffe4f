"""The explorer's file, what it can begin with, and what it refuses."""

import json
import os
import re

import numpy as np
import pytest
import setuptools
from setuptools.command.build_py import build_py

from pfgm_jax import explorer, main, run_record
from pfgm_jax.config import default
from pfgm_jax.errors import UserError
from pfgm_jax.explorer import presets, source


def data_of(page):
    return json.loads(re.search(r"^const DATA = (.*);$", page, re.MULTILINE).group(1))


def test_the_command_writes_one_small_file_without_a_network(tmp_path, capsys):
    main.run(["--mode=explore", f"--workdir={tmp_path}/new"])
    assert "explorer.html: open it in a browser" in capsys.readouterr().out
    assert os.listdir(tmp_path / "new") == [explorer.FILE]
    page = (tmp_path / "new" / explorer.FILE).read_text(encoding="utf-8")
    assert len(page.encode()) < explorer.LARGEST
    assert not re.search(r"https?:|src=|@import|url\(|fetch\(|XMLHttp|import\(", page)
    assert "default-src 'none'" in page and "{{" not in page
    assert "own" not in data_of(page)["sets"]


def test_presets_name_their_charges():
    data = presets.data()
    for preset in data["presets"]:
        assert preset["state"]["charges"] in data["sets"]
        assert len(preset["hint"]) < 160 and preset["hint"].endswith(".")
        assert f'id="{preset["name"]}"' not in explorer.page()  # its link would scroll to the element
    for name, points in data["sets"].items():
        assert np.abs(points).max() < 1.3 and 2 < len(points) <= 200, name


def test_points_of_ones_own(tmp_path):
    points = np.random.RandomState(0).normal([100, -50], 7, (2000, 2))
    np.save(tmp_path / "<script>&.npy", points)
    own = source.read(tmp_path / "<script>&.npy")
    assert own.points.shape == (500, 2) and "500 of the 2,000 points" in own.text
    unit = np.abs(points - points.mean(axis=0)).max()
    np.testing.assert_allclose(own.points * unit + points.mean(axis=0), points[::4])
    page = explorer.page(own)
    np.testing.assert_allclose(data_of(page)["sets"]["own"], own.points, atol=5e-4)
    assert data_of(page)["presets"][0]["name"] == "own"
    assert page.count("</script>") == 1 and "&lt;script&gt;&amp;.npy" in page and "<script>&" not in page


def test_one_point_and_whole_numbers(tmp_path):
    np.save(tmp_path / "one.npy", np.array([[3, 4]]))
    own = source.read(tmp_path / "one.npy")
    assert own.points.tolist() == [[0, 0]] and own.text.startswith("1 charge of one.npy")


def test_a_run_in_the_plane_gives_its_training_points(tmp_path):
    config = default()
    config.data.name, config.data.size = "moons", 1
    run_record.save(tmp_path, config, {"shape": [1, 1, 2]})
    own = source.read(tmp_path)
    assert own.points.shape == (500, 2) and "8,000" in own.text and "1 in the page" not in own.text
    assert np.abs(own.points).max() < 1.1


@pytest.mark.parametrize(
    "points, message",
    [
        (np.zeros((3, 3)), r"shape \[n, 2\].*it has \[3, 3\]"),
        (np.zeros(4), r"it has \[4\]"),
        (np.zeros((2, 2), complex), "numbers of shape"),
        (np.array([["a", "b"]]), "numbers of shape"),
        (np.zeros((0, 2)), "1 to 10,000,000 points, it has 0"),
        (np.array([[0, 1], [np.nan, 2], [3, np.inf]]), "2 points that are not finite, the first in row 1"),
        (np.array([[1e200, 0.0]]), "beyond 1e100"),
        (np.array([[{}, {}]], dtype=object), "not a .npy file of numbers"),
    ],
)
def test_points_that_are_none(tmp_path, points, message):
    np.save(tmp_path / "points.npy", points, allow_pickle=True)
    with pytest.raises(UserError, match=message) as caught:
        source.read(tmp_path / "points.npy")
    assert "\n" not in str(caught.value)


def test_sources_that_are_none(tmp_path, command):
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "several.npz", a=np.zeros(2))
    run_record.save(tmp_path, default(), {"shape": [8, 8, 1]})
    for name, message in {
        "text.npy": "not a .npy file",
        "empty.npy": "not a .npy file",
        "several.npz": "several arrays",
        "absent.npy": "does not exist",
        ".": "a run on images of 8×8×1: the explorer needs points in the plane",
    }.items():
        code, out, err = command("--mode=explore", f"--workdir={tmp_path}/out", f"--source={tmp_path / name}")
        assert code == 2 and message in err and err.count("\n") == 1, name
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        source.read(tmp_path)


@pytest.mark.parametrize("more", ["--config=c.py", "--config.sample.n=3"])
def test_settings_are_refused(more):
    with pytest.raises(UserError, match="no settings"):
        main.parse(["--mode=explore", "--workdir=x", more])


def test_a_wheel_has_the_page():
    root = explorer.PAGE.parents[2]
    here = os.getcwd()
    os.chdir(root)
    try:
        distribution = setuptools.Distribution()
        distribution.parse_config_files(["setup.cfg"])
        builder = build_py(distribution)
        builder.finalize_options()
        shipped = {name for _, _, _, names in builder.data_files for name in names}
    finally:
        os.chdir(here)
    for name in ("explorer.html", explorer.STYLE, *explorer.SCRIPTS):
        assert f"explorer/page/{name}" in shipped or f"page/{name}" in shipped
    assert {path.name for path in explorer.PAGE.iterdir()} == {"explorer.html", explorer.STYLE, *explorer.SCRIPTS}
