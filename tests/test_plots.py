"""Pictures: where each image and name is."""

import numpy as np
import pytest

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
