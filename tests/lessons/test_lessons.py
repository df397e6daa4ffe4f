"""Lessons: what they measure against closed forms, and their files."""

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import integrate

from pfgm_jax import lessons, main
from pfgm_jax.errors import UserError
from pfgm_jax.lessons import charges, dimensions, hemisphere, lines, shapes


def drawn(lesson, folder):
    """The numbers of a lesson, whose pictures must be there and small."""
    result = lessons.draw(lesson, folder, quick=True)
    for name in result.pictures:
        with Image.open(folder / name) as picture:
            assert min(picture.size) >= 300
            assert getattr(picture, "n_frames", 1) == (6 if name.endswith(".gif") else 1)
        assert (folder / name).stat().st_size < 150_000
    assert result.text.count(". ") >= 1 and "nan" not in result.text and result.formula
    return result.numbers


def test_the_package_field_is_the_sum_of_arrows(tmp_path):
    assert drawn(charges.net_arrow, tmp_path)["angle"] < 1e-3  # float32, in degrees


def test_flux_through_a_circle_is_the_charge(tmp_path):
    assert drawn(charges.superposition, tmp_path)["flux"] == pytest.approx(1, abs=1e-9)


def test_far_away_the_field_is_radial(tmp_path):
    angle = drawn(charges.zooming_out, tmp_path)
    # The dipole is 0, so the angle falls with the square of the radius, but for the next order, 1/radius.
    assert angle["angle at 32"] / angle["angle at 64"] == pytest.approx(4, rel=0.1)


def test_without_z_the_disk_collapses_and_with_z_it_does_not(tmp_path):
    numbers = drawn(hemisphere.mode_collapse, tmp_path)
    # From radius 4 the rim is reached at t = 7.5; at 12.5 the radius is e^−5.
    assert numbers["mean radius, without z"] == pytest.approx(np.exp(-5), rel=0.01)
    # Of 300 charges; the 100 lines are spread evenly, so better than 100 random points (1.63/√n is the 1 % level).
    assert numbers["mean radius, with z"] == pytest.approx(2 / 3, abs=0.05)
    assert numbers["KS distance"] < 1.63 / np.sqrt(100)


def test_the_field_of_a_disk_is_that_of_many_charges():
    x = np.array([[0.3, 0.1], [1.5, -0.4], [0.0, 3.0]])
    np.testing.assert_allclose(lines.coulomb(x, shapes.disk(20_000)), hemisphere.disk_field(x), atol=0.02)


def test_projection_has_the_law_of_the_prior(tmp_path):
    for distance in drawn(hemisphere.projection, tmp_path).values():
        assert distance < 1.95 / np.sqrt(2000)  # 0.1 % level


def test_flux_becomes_uniform_as_the_quadrupole_says(tmp_path):
    numbers = drawn(hemisphere.flux, tmp_path)
    assert numbers["last"] == pytest.approx(numbers["theory, last"], rel=0.03)  # 300 places on the hemisphere
    assert numbers["last"] < numbers["first"] / 1000
    assert numbers["total"] == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_tails_follow_students_law(tmp_path):
    numbers = drawn(dimensions.from_one_to_infinity, tmp_path)
    for D in ("D = 1", "D = 8", "D = 128", "D = ∞"):
        p = numbers[f"theory, {D}"]
        assert abs(numbers[f"beyond 3, {D}"] - p) < 5 * np.sqrt(p * (1 - p) / 4000)


@pytest.mark.slow
def test_variance_falls_with_the_batch(tmp_path):
    numbers = drawn(dimensions.large_batch, tmp_path)
    # 400 pairs; the variance of a squared length is at most the square of the data's diameter, 2.5, times its mean.
    mean = numbers["posterior variance"]
    assert abs(numbers["n = 1"] - mean) < 5 * np.sqrt(2.5**2 * mean / 400)
    assert -1.2 < numbers["slope"] < -0.8


def test_segment_mean_is_the_integral():
    x, z = 0.4, 0.1
    weight = lambda y: 1 / ((x - y) ** 2 + z**2)
    integral = lambda f: integrate.quad(f, -1, 1, points=[x])[0]
    expected = integral(lambda y: y * weight(y)) / integral(weight)
    assert dimensions.segment_mean(np.array(x), np.array(z)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.slow
def test_field_of_data_comes_to_that_of_the_density(tmp_path):
    numbers = drawn(dimensions.finite_data, tmp_path)
    assert -0.75 < numbers["slope"] < -0.25 and numbers["n = 4096"] < numbers["n = 4"] / 8


@pytest.mark.slow
def test_steps_in_log_z_are_cheaper(tmp_path):
    numbers = drawn(dimensions.steps_in_log_z, tmp_path)
    assert numbers["ratio"] > 1 and max(numbers["error, z"], numbers["error, ln z"]) < 0.1
    assert not jax.config.jax_enable_x64


def test_lines_end_at_their_charges(tmp_path):
    for end in drawn(charges.field_lines, tmp_path).values():
        assert end < 0.3  # of 64 charges 0.1 apart; a line that arrives inside the heart slides along the plane


def test_animation_ends_at_the_heart(tmp_path):
    numbers = drawn(hemisphere.back_to_the_data, tmp_path)
    assert numbers["farthest end"] < 0.3 < numbers["missed by"]


def test_one_charge_is_approached_in_a_straight_line():
    denoise = lambda x, sigma: 0 * x + np.array([1.0, -1.0], np.float32)
    x, sigma = lines.follow(denoise, np.array([[5.0, 3.0]]), np.array([2.0]), np.array([0.02]), 10)
    np.testing.assert_allclose(x[:, 0] - [1, -1], np.array([4.0, 4.0]) * sigma / 2, atol=1e-5)


def test_the_command_needs_no_config(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lessons, "LESSONS", (charges.superposition,))
    main.run(["--mode=lessons", f"--workdir={tmp_path}/new"])
    assert "1 lessons" in capsys.readouterr().out
    page = (tmp_path / "new" / "index.md").read_text(encoding="utf-8")
    assert "## 1. Fields and potentials add up" in page and "(superposition.png)" in page
    assert (tmp_path / "new" / "superposition.png").exists()


@pytest.mark.parametrize("more", ["--config=c.py", "--config.sample.n=3"])
def test_settings_are_refused(more):
    with pytest.raises(UserError, match="no settings"):
        main.parse(["--mode=lessons", "--workdir=x", more])
