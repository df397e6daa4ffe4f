"""The explorer's JavaScript, run by node, against JAX in float64 (field.json), closed forms and NumPy."""

import json
import shutil
import subprocess

import field_table
import numpy as np
import pytest
from scipy import integrate, stats

from pfgm_jax import explorer
from pfgm_jax.lessons import dimensions, hemisphere, lines, shapes

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None, reason="the explorer's mathematics is checked under node, which is absent"
)


@pytest.fixture(scope="module")
def table():
    return json.loads(field_table.FILE.read_text())


@pytest.fixture(scope="module")
def answers():
    """What answers.js prints."""
    script = field_table.FILE.with_name("answers.js")
    command = [NODE, script, explorer.PAGE, field_table.FILE]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_the_table_is_of_jax(table, x64):
    """A case of it, made anew; libraries differ in the last bits."""
    fresh = field_table.moments(2, 3.5)
    kept = next(case for case in table["moments"] if (case["N"], case["D"]) == (2, "3.5"))
    for name in ("x", "displacement", "second", "tau"):
        np.testing.assert_allclose(fresh[name], kept[name], rtol=1e-9, atol=1e-12)


def test_field_equals_jax(table, answers):
    assert len(table["moments"]) == 16
    for case, answer in zip(table["moments"], answers["moments"], strict=True):
        rows = np.array(answer["rows"])
        np.testing.assert_allclose(rows[:, : case["N"]], case["displacement"], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(rows[:, 2], case["second"], rtol=1e-6)
        if case["tau"] is not None:
            np.testing.assert_allclose(answer["tau"], case["tau"], rtol=1e-6)


def test_solvers_equal_jax(table, answers):
    for case, answer in zip(table["paths"], answers["paths"], strict=True):
        for name, ends in case["ends"].items():
            np.testing.assert_allclose(answer[name], ends, atol=1e-6, err_msg=f"{name}, D = {case['D']}")
        # As the solvers of `sampling` count: n levels, and the last evaluation.
        assert answer["nfe"]["euler"] == case["steps"] and answer["nfe"]["heun"] == 2 * case["steps"] - 1


def test_rk45_converges_to_the_path(answers):
    for answer in answers["paths"]:
        fine = np.array(answer["fine"])  # Heun with 4000 levels
        np.testing.assert_allclose(answer["exact"], fine, atol=1e-4)
        np.testing.assert_allclose(answer["rk45"], answer["exact"], atol=3e-3)
        for nfe, states in answer["nfe"]["steps"]:
            assert nfe == 1 + 6 * (states - 2) + 1 or (nfe - 2) % 6 == 0  # refused steps cost six too


def test_steps_in_the_level_end_there_too_and_cost_more(answers):
    for answer in answers["paths"]:
        np.testing.assert_allclose(answer["level"], answer["exact"], atol=3e-3)
        in_level, in_log = answer["calls"]
        assert in_level > in_log


def test_balls_land_where_scipy_says(answers):
    charges = np.array([-0.4, 0.1, 0.9])

    def motion(t, state, D):
        away = np.stack([state[0] - charges, np.full(3, state[1])])
        return [*state[2:], *-np.mean(away / np.sum(away**2, axis=0) ** ((1 + D) / 2), axis=1)]

    landed = lambda t, state, D: state[1]
    landed.terminal = True
    for D, end in zip((1.0, 3.5), answers["balls"], strict=True):
        start = [-1.1, 1.6, 0.0, 0.0]
        solved = integrate.solve_ivp(motion, (0, 100), start, "DOP853", None, False, landed, args=(D,), rtol=1e-10)
        # The page's steps are a fixed share of the distance to the nearest charge, and the last one a straight line.
        np.testing.assert_allclose(end, [solved.y[0, -1], 0], atol=2e-3)


def test_targets_are_those_of_a_batch(table, answers):
    """Mean and variance over many of them; the posterior's by NumPy."""
    points, x = np.array(table["moments"][8]["points"])[:16], np.array([0.2, 0.1])
    w = (np.sum((x - points) ** 2, axis=1) + 8 * 0.7**2) ** -5.0  # N = 2, D = 8
    w /= w.sum()
    variance = w @ np.sum((points - w @ points) ** 2, axis=1)
    one, many = answers["targets"]
    for answer in (one, many):
        np.testing.assert_allclose(answer["mean"], w @ points, rtol=1e-9)
        assert answer["posterior"] == pytest.approx(variance, rel=1e-9)
        # Of one clean image the mean is the posterior's; of a batch it is so but for a bias of 1/64 of its spread.
        error = np.mean(answer["points"], axis=0) - w @ points
        assert np.abs(error).max() < 5 * np.sqrt(variance / 4000) + (variance / 64 if answer is many else 0)
    assert one["variance"] == pytest.approx(variance, rel=0.1)
    assert many["variance"] == pytest.approx(variance / 64, rel=0.5)  # the law of many; weights are uneven


def test_the_even_density_is_the_integral(answers):
    expected = [0.3 - dimensions.segment_mean(np.array(0.3), np.array(z)) for z in (0.05, 0.4)]
    np.testing.assert_allclose(answers["dense"], expected, atol=1e-6)
    few, same = answers["distances"]
    assert few > 0.05 and same == 0


def test_potential_is_the_power_mean(table, answers):
    """d² of equal potential: (mean of s^−q)^(−1/q) − D σ², by NumPy from its definition."""
    for case, answer in zip(table["moments"], answers["moments"], strict=True):
        N, D = case["N"], float(case["D"])
        x, points, sigma = (np.array(case[name]) for name in ("x", "points", "sigma"))
        squared = np.square(x[:, None] - points).sum(axis=-1)
        if np.isinf(D):
            nearest = squared.min(axis=1)
            mean = np.exp(-(squared - nearest[:, None]) / (2 * sigma[:, None] ** 2)).mean(axis=1)
            expected = nearest - 2 * sigma**2 * np.log(mean)
        else:
            q, s = (N + D - 2) / 2, squared + D * sigma[:, None] ** 2
            smallest = s.min(axis=1)
            ratio = smallest[:, None] / s
            mean = np.exp(-np.log(ratio).mean(axis=1)) if q == 0 else (ratio**q).mean(axis=1) ** (-1 / q)
            expected = smallest * mean - D * sigma**2
        np.testing.assert_allclose(np.array(answer["rows"])[:, 3], expected, rtol=1e-6, atol=1e-9)


def test_noise_follows_the_prior(answers):
    for D, drawn in answers["draws"].items():
        D, level = float(D), 1.95 / np.sqrt(4000)  # 0.1 %
        radius = lambda r, D=D: 1 - (1 + r**2 / D) ** (-D / 2)  # N = 2
        assert stats.kstest(drawn["radius"], radius).statistic < level
        # In 1 + D dimensions r² = 1 − x² of an even sphere follows a beta law.
        assert stats.kstest(np.square(drawn["height"]), stats.beta(D / 2, 1 / 2).cdf).statistic < level


def test_field_of_the_plane_is_coulombs(answers):
    charges = np.array([[0.3, 0.1], [-0.5, 0.4], [0.2, -0.7], [-0.6, -0.1]])
    x = np.array([[0.31, 0.4], [-2, 1.5]])
    rows = np.array(answers["planar"])
    np.testing.assert_allclose(rows[:, :2], lines.coulomb(x, charges), rtol=1e-9)
    logs = np.log(np.linalg.norm(x[:, None] - charges, axis=-1)).mean(axis=1)
    np.testing.assert_allclose(rows[:, 3], np.exp(2 * logs), rtol=1e-9)
    assert np.abs(lines.coulomb(x[1:], shapes.disk(20_000)) - hemisphere.disk_field(x[1:])).max() < 1e-3


def test_flux_is_the_charge_inside(answers):
    for by_radius in answers["flux"]:  # D = 0.5, 1, 3; charges at −0.4, 0.1, 0.9
        inside = [flux["total"] for flux in by_radius]
        np.testing.assert_allclose(inside, [2 / 3, 1, 1], atol=2e-3)
        assert by_radius[2]["uneven"] < 0.05 < by_radius[1]["uneven"]
    # D = 1: Re z/(z − y) = 1 + y cos θ/R + …, far away the dipole's, whose standard deviation is E[y]/(√2 R).
    assert answers["flux"][1][2]["uneven"] == pytest.approx(0.2 / (np.sqrt(2) * 40), rel=0.02)


def test_level_lines(answers):
    circle = np.array(answers["circle"]).reshape(-1, 2)
    np.testing.assert_allclose(np.linalg.norm(circle, axis=1), 0.6, atol=1e-3)  # squares of 0.025
    segments = circle.reshape(-1, 2, 2)
    assert np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1).sum() == pytest.approx(2 * np.pi * 0.6, rel=1e-3)
    # The saddle's mean is above 0, as are its corners (−1, −1) and (1, 1): the lines cut off the other two.
    for segment in np.array(answers["saddle"]).reshape(-1, 2, 2):
        assert np.prod(segment.mean(axis=0)) < 0


def test_a_link_holds_the_state(answers):
    state, back = answers["state"], answers["back"]
    np.testing.assert_allclose(back.pop("charges"), state.pop("charges"), atol=5e-4)
    np.testing.assert_allclose(back.pop("probe"), state.pop("probe"), atol=5e-4)
    assert back == state and state["D"] == "inf"


def test_links_that_mean_nothing_are_survived(answers):
    nothing, odd, empty, long, unknown, wild, names = answers["parsed"]
    assert nothing is odd is long is unknown is None
    assert empty["charges"] == [] and empty["D"] == 1 and names["charges"] == []
    assert (wild["D"], wild["steps"], wild["view"]) == ("inf", 2, "plane")


def test_scenes_end_at_their_charges(answers):
    for scene in answers["scenes"]:
        assert scene["finite"] and scene["lines"] >= 16
        assert scene["levels"] > 0 or (scene["view"], scene["D"]) == ("half", "Infinity")
        charges, ends = np.array(scene["charges"]), np.array(scene["ends"])
        if scene["view"] == "half":
            charges[:, 1] = 0
        assert len(ends) == 60
        nearest = np.linalg.norm(ends[:, None] - charges, axis=-1).min(axis=1)
        assert np.median(nearest) < 0.05, (scene["view"], scene["D"])
        assert scene["error"] < 0.1
        finite = scene["D"] != "Infinity"  # no sphere of infinitely many dimensions
        extras = {"plane": ["targets"] * (scene["D"] != "no z"), "half": ["density"] + ["flux"] * finite}[scene["view"]]
        balls = scene["view"] == "half" and scene["D"] in ("0.5", "1", "no z")
        assert scene["found"] == ["balls"] * balls + extras
        np.testing.assert_allclose(*scene["pushed"], rtol=1e-9, atol=1e-12)  # what charges add is the field


def test_equal_areas_of_a_half_circle(answers):
    np.testing.assert_allclose(answers["angles"], np.pi * np.array([1, 3, 5, 7]) / 8, atol=1e-3)
