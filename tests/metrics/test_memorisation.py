"""Copies are found, fresh images are not, and copies in the data are no memory."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist
from scipy.stats import betabinom, gamma, nhypergeom

from pfgm_jax import data
from pfgm_jax.data.dataset import LazyImages
from pfgm_jax.metrics import memorisation as module


@pytest.fixture(scope="module")
def digits():
    return data.load(SimpleNamespace(name="digits", size=8))


def test_neighbours_are_the_nearest():
    rng = np.random.default_rng(0)
    points, queries = rng.normal(size=(50, 4)), rng.normal(size=(20, 4))
    queries[3] = points[17]
    distances = cdist(queries, points)
    blocks = lambda: ((start, points[start : start + 17]) for start in range(0, 50, 17))
    found, which = module.neighbours(queries, blocks)
    np.testing.assert_array_equal(which, distances.argmin(axis=1))
    np.testing.assert_allclose(found, distances.min(axis=1), rtol=1e-12)
    assert found[3] == 0
    away = which.copy()
    found, which = module.neighbours(queries, blocks, exclude=away)
    distances[np.arange(20), away] = np.inf
    np.testing.assert_array_equal(which, distances.argmin(axis=1))
    np.testing.assert_allclose(found, distances.min(axis=1), rtol=1e-12)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_copier_is_caught(digits, monkeypatch, lazy):
    monkeypatch.setattr(module, "BLOCK", 500)
    rng = np.random.default_rng(0)
    train = digits.train.images
    samples = digits.val.images.copy()
    copied = rng.choice(len(train), 9, replace=False)
    samples[20:29] = np.clip(train[copied] + rng.normal(0, 3, (9, 8, 8, 1)), 0, 255)
    if lazy:
        train = LazyImages(train.shape, lambda indices: digits.train.images[indices])
    found = module.memorisation(samples, train, digits.test.images)
    assert found.share >= 0.05 and found.low < found.share < found.high and found.chance < 0.01
    assert found.count == round(180 * found.share) and found.identical == 0
    np.testing.assert_array_equal(found.nearest[20:29], copied)
    np.testing.assert_array_equal(np.sort(found.closest.train_distance), np.sort(found.distances)[:10])
    np.testing.assert_array_equal(
        found.closest.train[:9], digits.train.images[found.nearest[np.argsort(found.distances)]][:9]
    )
    assert (found.closest.held_out_distance > 5 * found.closest.train_distance)[:9].all()
    assert f"{found.share:.2%}" in module.text(found)


def test_changed_copies_need_views(digits):
    # Digits with two black columns on the right: moved there by one pixel and back, they are the same.
    dark = np.flatnonzero((digits.train.images[:, :, -2:] == 0).all(axis=(1, 2, 3)))[:9]
    images = digits.train.images[dark]
    right = np.zeros_like(images)
    right[:, :, 1:] = images[:, :, :-1]
    for changed, views, words in (
        (images[:, :, ::-1], {"mirror": True}, "mirrored or not"),
        (right, {"shift": 1}, "moved by up to 1 px or not"),
        (right[:, :, ::-1], {"mirror": True, "shift": 1}, "mirrored or not, moved by up to 1 px or not"),
    ):
        samples = np.concatenate([changed, digits.val.images[9:]])
        plain = module.memorisation(samples, digits.train.images, digits.test.images)
        seen = module.memorisation(samples, digits.train.images, digits.test.images, **views)
        assert plain.share < 0.03 and seen.share >= 0.05
        np.testing.assert_array_equal(seen.closest.samples[:9], seen.closest.train[:9])
        assert seen.protocol.endswith(words)


def test_fresh_images_are_as_expected():
    # Features of one number: the law of the count is beta-binomial whatever the law of the numbers is.
    class First:
        name = "first pixels"

        def __call__(self, images):
            return images[:, 0, 0] @ np.array([[65536.0], [256.0], [1.0]])

    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(0, 256, (n, 1, 1, 3), dtype=np.uint8)
    results = [module.memorisation(draw(100), draw(40), draw(259), First()) for _ in range(150)]
    assert {r.expected for r in results} == {2 / 260}
    # beta-binomial(100, 2, 258): mean 0.769, variance 1.05, so that the mean of 150 has a standard error of 0.084
    assert abs(np.mean([r.count for r in results]) - 100 * 2 / 260) < 5 * 0.084
    # P(chance <= 0.05) <= 0.05: 7.5 of 150, and 5 deviations
    assert sum(r.chance <= 0.05 for r in results) < 7.5 + 5 * np.sqrt(7.5)
    # The same law by counting: of 359 images in random order, the samples before the second held-out one.
    for r in results:
        np.testing.assert_allclose(r.chance, nhypergeom.sf(r.count - 1, 359, 100, 2), rtol=1e-9)


def test_copies_in_the_data_are_accounted_for(digits):
    train, held_out = digits.train.images.copy(), digits.test.images.copy()
    train[[5, 6, 7]] = train[4]
    train[9] = train[8]
    held_out[:3] = train[[4, 20, 30]]
    samples = np.concatenate([digits.val.images, train[[4, 40]]])
    found = module.memorisation(samples, train, held_out)
    assert (found.train_copies, found.held_out_copies, found.identical) == (6, 3, 2)
    assert len(found.held_out_distances) == 177 and found.held_out_distances.min() > 0
    # the sample of image 4 is in a crowd, that of image 40 is not
    crowd = module.memorisation(train[[4, 40]], train, held_out)
    assert (crowd.count, crowd.crowded) == (2, 1)


def test_many_are_drawn_and_known_features_used(digits, monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 50)
    features = module.Pixels()(digits.train.images)
    extractor = lambda images: module.Pixels()(images)
    extractor.name = "mine"
    given = digits.val.images, digits.train.images, digits.test.images
    found, known = (module.memorisation(*given, extractor, train_features=f) for f in (None, features))
    assert "50 of 180, drawn at random, samples and 50 of 180, drawn" in found.protocol and "in mine" in found.protocol
    np.testing.assert_array_equal(found.distances, known.distances)
    assert len(found.distances) == 50
    with pytest.raises(module.TooFew, match="0 held-out images that equal no training image are fewer than 2"):
        module.memorisation(digits.val.images, digits.train.images, digits.train.images[:9])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture(digits, tmp_path, channels):
    images = [split.images.repeat(channels, -1)[:60] for split in (digits.val, digits.train, digits.test)]
    module.plot(module.memorisation(*images, k=4), tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").size[0] > 500


# ---- the sharper test of the release gate


def draw(rng, planted=0, noisy=False, n=3421, m=5000):
    """Distances of n samples and m held-out images of one heavy-tailed law, `planted` of the first replaced by copies.

    Noisy copies lie where 0.2 % of fresh images do.
    """
    distances, held_out = (rng.gamma(3.0, size=size) for size in (n, m))
    chosen = rng.choice(n, planted, replace=False)
    distances[chosen] = rng.uniform(0, gamma.ppf(0.002, 3.0), planted) if noisy else 0
    return distances, held_out


@pytest.mark.parametrize("noisy", [False, True])
def test_one_percent_of_copies_is_caught(noisy):
    rng = np.random.default_rng(0)
    found = [module.near_copies(*draw(rng, 34, noisy)) for _ in range(200)]
    assert sum(each.chance < 1e-3 for each in found) >= 190  # 19 of 20 are promised
    assert all(each.caught < 0.01 for each in found)
    # The share below one threshold alone, that of the 1st percentile, would not do.
    law = betabinom(3421, 50, 4951)
    assert law.isf(1e-3) - 3421 * 50 / 5001 > 0.7 * 34


def test_fresh_images_are_not_taken_for_copies():
    rng = np.random.default_rng(1)
    chances = np.array([module.near_copies(*draw(rng)).chance for _ in range(1000)])
    assert (chances < 1e-3).sum() <= 6  # one is expected at most: 6 or more come in 6 of 10,000 tries
    # Bonferroni: as a p-value it is too large, never too small.
    for level in (0.01, 0.05, 0.2):
        assert (chances < level).mean() < level + 5 * np.sqrt(level / 1000)


def test_what_is_promised_to_be_caught_is():
    rng = np.random.default_rng(2)
    for n, m in ((3421, 5000), (500, 360), (3421, 60)):
        caught = module.near_copies(*draw(rng, n=n, m=m)).caught
        if caught < 1:
            planted = int(np.ceil(caught * n))
            chances = [module.near_copies(*draw(rng, planted, n=n, m=m)).chance for _ in range(200)]
            assert sum(chance < 1e-3 for chance in chances) >= 184  # 190 are promised; five sigma less would be 175
    with pytest.raises(ValueError, match="too few"):
        module.near_copies(np.zeros(3), np.zeros(1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fresh", "exact", "noisy"])
def test_the_gate_on_images(kind):
    """20 draws of 3421 images of 8×8, smooth and of many shapes, against 12 000 training and 5000 held-out ones."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, 64)) * np.linspace(1.5, 0.2, 12)[:, None]

    def images(n):
        pixels = 128 + 25 * rng.standard_t(5, size=(n, 12)) @ mixing + rng.normal(0, 2, (n, 64))
        return np.clip(pixels, 0, 255).astype(np.uint8).reshape(n, 8, 8, 1)

    train, passed = images(12_000), 0
    for _ in range(20):
        samples, held_out = images(3421), images(5000)
        if kind != "fresh":
            copies = train[rng.choice(len(train), 34, replace=False)].astype(float)
            copies += rng.normal(0, 2, copies.shape) if kind == "noisy" else 0
            samples[:34] = np.clip(copies, 0, 255)
        found = module.memorisation(samples, train, held_out)
        passed += module.near_copies(found.distances, found.held_out_distances).chance >= 1e-3
    assert passed >= 19 if kind == "fresh" else passed <= 1, passed
