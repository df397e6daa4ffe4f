"""The classifier learns, is the same every time, and is made once."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from flax import traverse_util

from pfgm_jax import data
from pfgm_jax.data.dataset import Dataset, LazyImages, Split, empty_split
from pfgm_jax.errors import UserError
from pfgm_jax.metrics import classifier as module
from pfgm_jax.metrics import fid, reference
from pfgm_jax.storage import array_cache


@pytest.fixture(scope="module")
def digits():
    return data.load(SimpleNamespace(name="digits", size=8))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PFGM_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "BATCH", 16)
    return tmp_path / "classifier"


def test_it_learns_is_kept_and_gives_features(digits, cache, monkeypatch):
    first = module.classifier(digits, steps=60)
    # 60 are rounded up to 75, which gave 82 %; chance gives 10 %
    assert first.accuracy > 0.6
    assert "75 steps of 16, seed 0, test accuracy" in first.name and "1437 images of digits 8×8×1" in first.name
    predicted = first.predict(digits.test.images)
    assert first.accuracy == (predicted == digits.test.labels).mean()
    for c, found in enumerate(first.recall):
        assert found == (predicted == c)[digits.test.labels == c].mean()

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "fit", never)
    again = module.classifier(digits, steps=75)
    assert (again.fingerprint, again.name) == (first.fingerprint, first.name)
    np.testing.assert_array_equal(again(digits.val.images), first.features(digits.val.images), strict=True)
    assert first(digits.val.images).shape == (180, 128)
    relabelled = dataclasses.replace(digits, train=Split(digits.train.images, digits.train.labels[::-1].copy()))
    for other, settings in ((relabelled, {"steps": 75}), (digits, {"steps": 100}), (digits, {"steps": 75, "seed": 1})):
        with pytest.raises(AssertionError, match="trained again"):
            module.classifier(other, **settings)

    # As an extractor: of its own kind images are near, of noise they are not.
    real = reference(digits, "train", first)
    noise = np.random.default_rng(0).integers(0, 256, (180, 8, 8, 1), dtype=np.uint8)
    near, far = (fid(real.features, first(images)) for images in (digits.test.images, noise))
    assert 10 * near < far and first.name in real.name

    # One that comes with the package is taken before the cache is looked into.
    (path,) = cache.iterdir()
    monkeypatch.setattr(module, "PACKAGED", cache.parent)
    path.rename(cache.parent / path.name)
    assert module.classifier(digits, steps=75).fingerprint == first.fingerprint
    (cache.parent / path.name).rename(path)

    damaged = path.read_bytes()
    path.write_bytes(damaged[:-2] + bytes([damaged[-2] ^ 1]) + damaged[-1:])
    with pytest.raises(UserError, match="delete it"):
        module.classifier(digits, steps=75)


def test_the_packaged_classifier_is_whole():
    (path,) = module.PACKAGED.glob("bloodmnist-28-*.safetensors")
    arrays = array_cache.load(path)
    confusion = arrays.pop("confusion")
    network = module.Classifier(traverse_util.unflatten_dict(arrays, sep="/"), [""] * 8, confusion, "")
    assert confusion.sum() == 3421 and round(network.accuracy, 4) == 0.9298
    assert network(np.zeros((2, 28, 28, 3), np.uint8)).shape == (2, 128)
    stated = (module.PACKAGED / "README.md").read_text()
    assert "92.98 %" in stated


def test_the_seed_decides(digits):
    images, labels = digits.train.images[:100], digits.train.labels[:100]
    a, b, c = (module.fit(images, labels, 10, 25, seed)["out"]["kernel"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).all()


def test_large_images_are_halved():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 128, 3), dtype=np.uint8)
    means = images.reshape(3, 16, 4, 32, 4, 3).mean(axis=(2, 4))
    for given in (images, LazyImages(images.shape, lambda indices: images[indices])):
        small = module.shrink(given)
        assert small.dtype == np.uint8
        np.testing.assert_allclose(small, means, atol=0.51)  # rounded
        np.testing.assert_array_equal(module.shrink(given, np.array([2, 0])), small[[2, 0]])
    assert module.shrink(images[:, :33, :32]).shape == (3, 17, 16, 3)
    np.testing.assert_array_equal(module.shrink(images[:, :28, :28]), images[:, :28, :28])


def test_images_are_shifted_whole():
    import jax

    images = np.random.default_rng(0).normal(size=(40, 16, 16, 1)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    crops = np.stack([padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)])
    for flip in (False, True):
        found = np.asarray(module.shifted(jax.random.key(0), images, flip))
        plain = (crops == found).all(axis=(2, 3, 4)).sum(axis=0)
        mirrored = (crops[:, :, :, ::-1] == found).all(axis=(2, 3, 4)).sum(axis=0)
        assert (plain + mirrored == 1).all()
        assert (mirrored.sum() > 5) == flip  # 20 expected of 40, 5 deviations below is 4
    small = images[:, :8, :8]
    np.testing.assert_array_equal(module.shifted(jax.random.key(0), small, False), small)


def test_what_cannot_be_classified(digits):
    one = Split(digits.train.images[:9], np.zeros(9, np.int32))
    with pytest.raises(UserError, match="have one class, and a classifier needs two"):
        module.classifier(dataclasses.replace(digits, train=one))
    points = Split(np.zeros((4, 1, 1, 2), np.float32), np.arange(4, dtype=np.int32))
    nothing = Split(points.images[:0], points.labels[:0])
    with pytest.raises(UserError, match="holds points"):
        module.classifier(Dataset("toy", points, nothing, nothing, tuple("abcd"), "", ""))


def test_without_test_images_there_is_no_accuracy(digits):
    alone = dataclasses.replace(digits, val=empty_split((8, 8, 1)), test=empty_split((8, 8, 1)))
    found = module.classifier(alone, steps=25)
    assert "not known" in found.name and np.isnan(found.recall).all()
    assert found.predict(digits.test.images[:0]).shape == (0,)


def test_steps(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 64)
    assert module.steps_for(100) == 300 and module.steps_for(10**6) == 1500
    assert module.steps_for(5000) == 800  # 781 rounded up
    assert module.steps_for(5000, 1) == 25


@pytest.mark.slow
def test_digits_are_told_apart(digits, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 64)
    found = module.classifier(digits)
    assert found.accuracy > 0.95 and np.nanmin(found.recall) > 0.8
