"""Pictures: where each image and name is."""

import numpy as np
import pytest
from PIL import Image

from pfgm_jax import plots


@pytest.mark.parametrize("channels", [1, 3])
def test_class_grid_has_a_row_of_each_class_that_there_is(channels):
    labels = np.array([2, 0, 2, 2, 0, 2])
    # The grey of an image says its class and its place among that class's.
    images = np.full((6, 8, 8, channels), 0, np.uint8)
    images += np.array([20, 120, 21, 22, 121, 23], np.uint8)[:, None, None, None]
    picture = np.asarray(plots.class_grid(images, labels, ["zero", "one", "2"], columns=3))
    assert picture.shape[0] == 2 * 48 + 2
    row = lambda top: picture[top + 24, -(3 * 50 - 2) :: 50, 0]  # the first column of each of three images
    np.testing.assert_array_equal(row(0), [120, 121, 255])  # class 0, and a place left white
    np.testing.assert_array_equal(row(50), [20, 21, 22])  # class 2, but for its fourth image
    names = picture[:, : -(3 * 50 - 2)]
    assert names[:48].min() < 100 and names[50:].min() < 100 and names[:, 0].min() == 255  # black text, none cut off


def test_class_grid_breaks_long_names():
    long = "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)"
    draw = lambda name: plots.class_grid(np.zeros((1, 8, 8, 1), np.uint8), np.array([0]), [name])
    short = draw("immature granulocytes").width
    assert short <= draw(long).width < 1.3 * short and draw(long).height == 48


def test_figures_share_one_palette():
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plots.use_palette(axes)
    drawn = [to_hex(axes.plot([0, 1])[0].get_color()).upper() for _ in plots.PALETTE]
    assert tuple(drawn) == plots.PALETTE and len(set(drawn)) == len(drawn)


def test_the_smaller_film_is_written_and_the_other_removed(tmp_path):
    rng = np.random.default_rng(0)
    grey, colour = (
        [Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for _ in range(4)] for shape in ((40, 40), (40, 40, 3))
    )
    for frames, kept in ((grey, "webp"), (colour, "gif"), (grey, "webp")):  # a GIF has 256 colours
        path = plots.smallest_film(frames, tmp_path / "film", seconds=2, last=1)
        assert [str(p) for p in tmp_path.iterdir()] == [path] == [str(tmp_path / f"film.{kept}")]
    with Image.open(path) as film:
        assert film.n_frames == 4
        film.seek(2)  # without loss
        np.testing.assert_array_equal(np.asarray(film.convert("L")), np.asarray(grey[2]))
        assert film.info["duration"] == 500


def test_the_bar_of_an_animation_says_where_sigma_is(tmp_path):
    sigmas = np.array([10.0, 0.1, 0.001])
    with Image.open(plots.animate(np.zeros((3, 4, 8, 8, 1)), sigmas, 0.5, tmp_path / "film")) as film:
        filled = []
        for frame in range(3):
            film.seek(frame)
            bar = np.asarray(film.convert("RGB"))[-13, :, 2].astype(int) - np.asarray(film.convert("RGB"))[-13, :, 0]
            filled.append(int((bar[84:] > 100).sum()))  # blue pixels right of the text
        empty, half, full = filled
    assert empty <= 1 and abs(half - full / 2) <= 1.5 and full > 50  # ln σ falls evenly


def test_principal_plane_of_a_way_in_a_plane(tmp_path):
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(64, 2)))[0].T  # orthonormal
    t = np.linspace(1, 0, 9)
    inside = np.stack([30 * t, 4 * t**2], axis=1)
    states = rng.normal(size=64) + inside @ axes
    plane, off_plane = plots.principal_plane(states)
    assert off_plane < 1e-12 and plane[0, 0] > 0 > plane[:, 1].mean()
    np.testing.assert_allclose(plane[-1], 0, atol=1e-12)
    lengths = lambda a: np.linalg.norm(a[:, None] - a[None], axis=-1)
    np.testing.assert_allclose(lengths(plane), lengths(inside), atol=1e-9)  # distances are kept
    off = states + 3 * rng.normal(size=states.shape)
    values = np.sort(np.linalg.eigvalsh(np.cov(off.T, bias=True)))[:-2]
    assert plots.principal_plane(off)[1] == pytest.approx(np.sqrt(values.sum()), rel=1e-9)


@pytest.mark.parametrize(("n", "channels"), [(1, 1), (4, 3)])
def test_paths_are_drawn(tmp_path, n, channels):
    states = np.random.default_rng(0).normal(size=(5, n, 8, 8, channels))
    plots.paths(states, np.geomspace(20, 0.01, 5), tmp_path / "paths.png")
    with Image.open(tmp_path / "paths.png") as picture:
        assert min(picture.size) > 200
