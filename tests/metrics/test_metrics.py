"""Neighbour figures against closed forms and brute force; the pixel score on real and on bad images."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import hypergeom
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors

from pfgm_jax.data import load
from pfgm_jax.metrics import CRITERIA, PixelScorer, Score, controls, neighbours, table
from pfgm_jax.metrics.neighbours import density_coverage, nearest_distance
from pfgm_jax.metrics.pixel_score import range_text

CONTROLS = {  # control -> the criteria that it must fail, whatever the split
    "uniform noise": {"confidence", "density", "coverage", "distance", "smallest_class"},
    "one Gaussian": {"confidence", "density", "coverage", "distance"},
    "Gaussian per class": {"confidence", "coverage", "distance"},
    "blends within a class": {"density"},
    "blends across classes": {"confidence", "density", "coverage", "distance"},
    "every second class": {"coverage", "smallest_class"},
    "held-out + 0.1 noise": {"confidence"},
    "training images": {"distance", "copies"},
}


# ---- neighbours


@pytest.fixture(params=[neighbours.BLOCK_ELEMENTS, 300])
def any_block(request, monkeypatch):
    """The whole matrix in one block, and blocks of a few rows with a shorter last one."""
    monkeypatch.setattr(neighbours, "BLOCK_ELEMENTS", request.param)


def test_points_on_a_line_by_hand():
    real = np.arange(10.0)[:, None]  # with k = 1 every ball is [i - 1, i + 1]
    assert density_coverage(real, [[0.5], [100.0]], k=1) == (2 / 2, 2 / 10)
    assert density_coverage(real, [[3.0]], k=1) == (3.0, 3 / 10)  # ties: the ball is closed
    assert density_coverage(real + 1e6, [[1e6 + 3.0]], k=1) == (3.0, 3 / 10)  # far from the origin too
    np.testing.assert_allclose(neighbours.neighbour_radius(real, 2), [2, 1, 1, 1, 1, 1, 1, 1, 1, 2])


def test_against_brute_force(any_block):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(101, 7)), 0.8 * rng.normal(size=(83, 7))
    radius = NearestNeighbors(n_neighbors=6).fit(real).kneighbors(real)[0][:, 5]
    np.testing.assert_allclose(neighbours.neighbour_radius(real, 5), radius)
    inside = cdist(real, fake) <= radius[:, None]
    np.testing.assert_array_equal(neighbours.ball_counts(real, fake, 5), inside.sum(axis=1))
    assert density_coverage(real, fake) == pytest.approx((inside.mean() * 101 / 5, inside.any(axis=1).mean()))
    np.testing.assert_allclose(nearest_distance(fake, real), cdist(fake, real).min(axis=1))


def test_precision_and_recall_against_brute_force(any_block):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(30, 3)), 1.2 * rng.normal(size=(25, 3)) + 0.7
    radius = lambda points, k: np.sort(cdist(points, points), axis=1)[:, k, None]
    inside = lambda centres, points, k: (cdist(centres, points) <= radius(centres, k)).any(axis=0).mean()
    for k in (1, 3):
        want = inside(real, fake, k), inside(fake, real, k)
        assert neighbours.precision_recall(real, fake, k) == want and 0 < min(want) < max(want) < 1
    both = neighbours.against(real, k=3, density_k=4)(fake)
    assert (both["precision"], both["recall"]) == neighbours.precision_recall(real, fake, 3)
    assert (both["density"], both["coverage"]) == density_coverage(real, fake, 4)


def test_fakes_of_the_real_law_have_the_expected_density_and_coverage():
    """E density = 1 and E coverage = 1 - prod_i (N - i) / (M + N - i), i = 1..k, for every continuous law."""
    rng = np.random.default_rng(1)
    n_real, n_fake, k = 60, 40, 5
    draws = np.array(
        [density_coverage(rng.normal(size=(n_real, 3)), rng.normal(size=(n_fake, 3)), k) for _ in range(400)]
    )
    i = np.arange(1, k + 1)
    expected = [1, 1 - np.prod((n_real - i) / (n_fake + n_real - i))]
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - expected) < 5 * error).all()
    assert (error < 0.02).all()


@pytest.mark.parametrize("n", [1, 7, 29, 30])
def test_expected_coverage_is_hypergeometric(n):
    counts = np.array([0, 0, 1, 2, 5, 29, 30])
    assert neighbours.expected_coverage(counts, 30, n) == pytest.approx(hypergeom.sf(0, 30, counts, n).mean())
    assert neighbours.expected_coverage(counts, 30, 30) == 5 / 7


def test_nearest_distance_of_a_copy_is_exactly_zero():
    real = 1e4 + np.random.default_rng(2).normal(size=(50, 30))
    assert (nearest_distance(real[::-1], real) == 0).all()


@pytest.mark.parametrize("k", [0, 4])
def test_neighbour_number_out_of_range(k):
    with pytest.raises(ValueError, match="k must be from 1 to 3"):
        density_coverage(np.eye(4), np.eye(4), k)


@pytest.mark.parametrize("fake", [np.zeros((0, 4)), np.zeros(4), np.full((2, 4), np.nan), np.zeros((2, 3))])
def test_bad_features_are_refused(fake):
    with pytest.raises(ValueError, match="features"):
        density_coverage(np.eye(4), fake, 1)
    with pytest.raises(ValueError, match="features"):
        nearest_distance(fake, np.eye(4))


# ---- pixel score


@pytest.fixture(scope="module")
def digits():
    """1437 train images, 360 held-out images, train labels, held-out labels."""
    data = load(SimpleNamespace(name="digits", size=8))
    held_out = np.concatenate([data.val.images, data.test.images])
    return data.train.images, held_out, data.train.labels, np.concatenate([data.val.labels, data.test.labels])


@pytest.fixture(scope="module")
def scorer(digits):
    train, held_out, train_labels, _ = digits
    return PixelScorer(train, train_labels, held_out)


@pytest.fixture(scope="module")
def bad_images(digits):
    train, held_out, train_labels, held_out_labels = digits
    return controls(train, train_labels, held_out, held_out_labels)


def test_held_out_digits_pass(digits, scorer):
    score = scorer.score(digits[1])
    assert score.passed and score.failures() == []
    assert (score.confidence, score.density, score.coverage, score.distance) == pytest.approx((1, 1, 1, 1))
    assert score.copies < 0.01 and score.n == 360


def test_unseen_real_digits_pass(digits):
    """Digits that are neither training nor held-out images: what a perfect generator would draw."""
    train, held_out, labels, _ = digits
    train, fresh, labels, _ = train_test_split(train, labels, test_size=360, stratify=labels, random_state=1)
    score = PixelScorer(train, labels, held_out).score(fresh)
    assert score.passed, score.failures()


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_fails(name, scorer, bad_images):
    failed = set(scorer.score(bad_images[name]).failed)
    assert failed >= CONTROLS[name], table({name: scorer.score(bad_images[name])})


def test_controls_are_complete_and_keep_their_shape(digits, bad_images):
    assert list(bad_images) == list(CONTROLS)
    assert all(images.shape == digits[1].shape and images.dtype == np.uint8 for images in bad_images.values())


def test_controls_are_what_they_say(digits, bad_images):
    train, held_out, labels, held_out_labels = digits

    def pixels(images):
        return images.reshape(len(images), -1).astype(float)

    # noise: interior grey levels are not clipped, so there the spread is 0.1 of [-1, 1], 12.75 grey levels
    inner = (held_out > 60) & (held_out < 195)
    noise = bad_images["held-out + 0.1 noise"][inner].astype(float) - held_out[inner]
    assert noise.std() == pytest.approx(12.75, rel=5 / np.sqrt(2 * inner.sum()) + 0.01)
    assert (nearest_distance(pixels(bad_images["training images"]), pixels(train)) == 0).all()
    even = pixels(held_out[held_out_labels % 2 == 0])
    assert (nearest_distance(pixels(bad_images["every second class"]), even) == 0).all()
    # every blend is the rounded mean of two training images of one class (or of two classes)
    for name, same in (("blends within a class", True), ("blends across classes", False)):
        for blend in pixels(bad_images[name])[:2]:
            other = 2 * blend - pixels(train)  # the second parent, if this is the first; off by 1 at most
            gaps = np.array([np.abs(pixels(train) - guess).max(axis=1) for guess in other])
            first, second = np.unravel_index(gaps.argmin(), gaps.shape)
            assert gaps.min() <= 1 and (labels[first] == labels[second]) == same


@pytest.mark.parametrize(
    "name, figures",
    [
        ("Gaussian per class", (0.89, 0.90, 0.88, 1.12)),
        ("blends within a class", (1.10, 2.09, 1.29, 0.93)),
        ("held-out + 0.1 noise", (0.86, 0.90, 0.94, 1.04)),
    ],
)
def test_figures_measured_before_with_other_code(name, figures, scorer, bad_images):
    """Another split and other draws, hence the tolerance: about three times the spread between splits."""
    score = scorer.score(bad_images[name])
    got = score.confidence, score.density, score.coverage, score.distance
    np.testing.assert_allclose(got, figures, atol=0.12)


def test_planted_copies_are_found(digits, scorer):
    train, held_out, _, _ = digits
    before = scorer.score(held_out)
    planted = held_out.copy()
    planted[:18] = train[:18]
    score = scorer.score(planted)
    assert score.copies == pytest.approx(before.copies + 18 / 360, abs=2 / 360)
    assert score.failed == ["copies"]


@pytest.mark.parametrize("part, is_copy", [(0.45, True), (0.55, False)])
def test_a_copy_is_nearer_than_half_the_held_out_distance(part, is_copy, digits, scorer):
    train, held_out, _, _ = digits
    median = np.median(cdist(held_out.reshape(-1, 64) / 127.5, train.reshape(-1, 64) / 127.5).min(axis=1))
    moved = train[:360].copy()
    moved[:, 0, 0] = np.round(part * median * 127.5)  # the corner is 0 in every digit
    score = scorer.score(moved)
    assert score.copies > 0.99 if is_copy else score.copies < 0.05


def test_one_image_repeated_fails(digits, scorer):
    score = scorer.score(np.repeat(digits[1][:1], 360, axis=0))
    assert {"coverage", "smallest_class", "largest_class"} <= set(score.failed)
    assert score.largest_class == 1 and score.smallest_class == 0


def test_fewer_samples_are_compared_at_the_same_number(digits, scorer):
    rng = np.random.default_rng(3)
    scores = [scorer.score(digits[1][rng.permutation(360)[:120]]) for _ in range(10)]
    for name in ("confidence", "density", "coverage", "distance"):
        figures = np.array([getattr(score, name) for score in scores])
        assert abs(figures.mean() - 1) < 5 * figures.std() / np.sqrt(10)
        assert figures.std() < 0.1


def test_same_seed_same_score(digits, scorer, bad_images):
    train, held_out, train_labels, held_out_labels = digits
    blends = bad_images["blends within a class"]
    assert PixelScorer(train, train_labels, held_out).score(blends) == scorer.score(blends)
    again = controls(train, train_labels, held_out, held_out_labels)
    assert all((again[name] == bad_images[name]).all() for name in again)


def test_wrong_samples_are_refused(digits, scorer):
    held_out = digits[1]
    with pytest.raises(ValueError, match="at most 360"):
        scorer.score(np.concatenate([held_out, held_out[:1]]))
    for wrong in (held_out / 255.0, held_out[..., 0], held_out[:, :7], held_out[:0]):
        with pytest.raises(ValueError, match=r"expected uint8 images \[n, 8, 8, 1\]"):
            scorer.score(wrong)
    with pytest.raises(ValueError, match="other images"):
        PixelScorer(digits[0][:50], digits[2][:50], digits[0][:50])


def test_protocol_names_what_the_figures_depend_on(scorer):
    for part in ("64 features", "1437 training", "360 held-out", "k = 5", "300 trees", "seed 0", "same n"):
        assert part in scorer.protocol


GOOD = Score(360, 1.0, 1.0, 1.0, 1.0, 0.08, 0.12, 0.002)


@pytest.mark.parametrize("name", CRITERIA)
def test_each_criterion_alone_can_fail(name):
    low, high = CRITERIA[name]
    assert GOOD.passed
    for edge in (low, high):
        assert dataclasses.replace(GOOD, **{name: edge}).passed  # the ends are accepted
    for wrong in (low - 1e-6, high + 1e-6, np.nan):
        if wrong == np.inf:
            continue
        score = dataclasses.replace(GOOD, **{name: wrong})
        assert score.failed == [name] and not score.passed
        (line,) = score.failures()
        assert name.replace("_", " ") in line and range_text(name) in line


def test_table_is_aligned_and_names_what_failed():
    bad = dataclasses.replace(GOOD, density=2.1, smallest_class=0.0)
    text = table({"network": GOOD, "a longer name": bad})
    titles, accepted, good_line, bad_line = text.splitlines()
    assert good_line.startswith("network  ") and good_line.endswith("pass")
    assert bad_line.endswith("FAIL: density, smallest class")
    assert all(text in accepted for text in (">= 0.93", "0.8 to 1.4", ">= 0.92", "3% to 25%", "<= 2%"))
    end = titles.index("density") + len("density")
    assert accepted[:end].endswith("1.4")
    assert good_line[:end].endswith("1.00") and bad_line[:end].endswith("2.10")


def test_importing_the_metrics_does_not_import_sklearn():
    code = "import sys, pfgm_jax.metrics; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
