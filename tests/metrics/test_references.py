"""References are made once, told apart by what they depend on, and never wrong in silence."""

import numpy as np
import pytest

from pfgm_jax.data.dataset import Dataset, Split
from pfgm_jax.errors import UserError
from pfgm_jax.metrics import frechet, per_class, real_floor, references
from pfgm_jax.metrics import reference as make
from pfgm_jax.metrics.frechet import fid
from pfgm_jax.storage import array_cache


def dataset(seed=0, name="toy"):
    rng = np.random.default_rng(seed)
    split = lambda n: Split(rng.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8), np.zeros(n, np.int32))
    return Dataset(name, split(23), split(0), split(7), ("a",), "none", "made up")


class Extractor:
    """Features are the first row's pixels; counts the images it was given."""

    name, fingerprint = "pixels", "f"

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return images[:, 0, :, 0].astype(np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PFGM_JAX_CACHE", str(tmp_path))
    return tmp_path / "reference"


@pytest.mark.parametrize("kept", [20_000, 10])
def test_a_reference_is_made_once(monkeypatch, kept):
    monkeypatch.setattr(references, "KEPT", kept)
    monkeypatch.setattr(references, "CHUNK_BYTES", 5 * 16)
    data, extractor = dataset(), Extractor()
    first, second = make(data, "train", extractor), make(data, "train", extractor)
    assert extractor.seen == 23 and first.name == second.name == "23 train images of toy 4×4×1, pixels"
    assert first.statistics.n == second.statistics.n == 23
    for part in ("mean", "scatter"):
        np.testing.assert_array_equal(getattr(first.statistics, part), getattr(second.statistics, part), strict=True)
    features = extractor(data.train.images)
    np.testing.assert_allclose(first.statistics.covariance, np.cov(features.astype(float).T), rtol=1e-12)
    chosen = references.kept_indices(23)
    assert len(set(chosen.tolist())) == min(kept, 23)
    np.testing.assert_array_equal(first.features, features[chosen], strict=True)
    np.testing.assert_array_equal(second.features, features[chosen], strict=True)


def test_what_makes_another_reference(cache):
    extractor, other = Extractor(), Extractor()
    other.fingerprint = "g"
    changed = dataset()
    changed.train.images[3, 1, 1, 0] ^= 1
    for data, split, network in (
        (dataset(), "train", extractor), (dataset(), "test", extractor), (dataset(), "train", other),
        (dataset(seed=1), "train", extractor), (dataset(name="set"), "train", extractor), (changed, "train", extractor),
    ):  # fmt: skip
        make(data, split, network)
    assert len(list(cache.iterdir())) == 6


def test_damage_is_noticed(cache):
    make(dataset(), "train", Extractor())
    (path,) = cache.iterdir()
    data = path.read_bytes()
    for damaged in (data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], data[:100]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="delete it, and the next run makes it again"):
            make(dataset(), "train", Extractor())


def test_an_empty_split_and_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="0 images in its val split"):
        make(dataset(), "val", Extractor())
    (tmp_path / "file").touch()
    monkeypatch.setenv("PFGM_JAX_CACHE", str(tmp_path / "file"))
    assert make(dataset(), "test", Extractor()).statistics.n == 7
    assert "cannot keep" in capsys.readouterr().err


def test_images_that_are_not_in_memory_are_told_apart():
    array = dataset().train.images

    class Lazy:
        __len__ = lambda self: len(array)
        __getitem__ = lambda self, indices: array[indices]

    before = array_cache.content(Lazy())
    assert array_cache.content(Lazy()) == before
    array[5] += 1
    assert array_cache.content(Lazy()) != before


def test_classes_are_measured_alone():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(40, 3)), rng.normal(size=(30, 3))
    labels, fake_labels = np.arange(40) % 3, np.array([0] * 14 + [1] * 15 + [2])
    found = per_class(fid, real, labels, fake, fake_labels)
    assert found.keys() == {0, 1}  # of class 2 there is one fake
    assert found[1] == fid(real[labels == 1], fake[14:29])


def test_the_floor_of_real_images():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(400, 3)), rng.normal(size=(100, 3))
    floor = real_floor(frechet.against, train, n=90, test=test)
    assert (floor["train"]["n"], floor["train"]["reference"]) == (90, 310)
    assert (floor["test"]["n"], floor["test"]["reference"]) == (90, 400)
    # of one law at these n: 0.08 on average, by FID's bias, and a deviation of 0.044, of which 5 are allowed
    assert 0 < floor["train"]["fid"] < 0.3 and 0 < floor["test"]["fid"] < 0.3
    assert real_floor(frechet.against, train, n=300)["train"]["n"] == 200
    common = lambda real: lambda fake: {"common": len(set(real[:, 0]) & set(fake[:, 0]))}
    assert real_floor(common, train, n=150)["train"]["common"] == 0
