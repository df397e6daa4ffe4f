"""Data: bytes to the unit scale, the epoch order, the digits, and MedMNIST files, good and bad."""

import hashlib
import importlib.util
import math
import os
import subprocess
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from pfgm_jax import data
from pfgm_jax.data import LazyImages, diameter, moments, npz, to_uint8, to_unit
from pfgm_jax.data import dataset as dataset_module
from pfgm_jax.errors import UserError, nearest

ALL_BYTES = np.arange(256, dtype=np.uint8)


def config(**fields):
    return types.SimpleNamespace(**{"name": "digits", "size": 8, "dir": "", "check_md5": True} | fields)


# --- unit scale ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x64", [False, True])
def test_bytes_round_trip_exactly(x64):
    with jax.enable_x64(x64):
        on_device = jnp.asarray(ALL_BYTES)
        for unit, dtype in [
            (to_unit(ALL_BYTES), np.float32),
            (to_unit(on_device), jnp.result_type(float)),
            (jax.jit(to_unit)(on_device), jnp.result_type(float)),
        ]:
            assert unit.dtype == dtype
            np.testing.assert_allclose(np.asarray(unit), np.arange(256) / 127.5 - 1, atol=2e-7)
            for back in (to_uint8(unit), jax.jit(to_uint8)(jnp.asarray(unit))):
                assert back.dtype == np.uint8
                np.testing.assert_array_equal(np.asarray(back), ALL_BYTES)


def test_to_unit_reads_images_that_stay_in_files():
    images = np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1)
    np.testing.assert_array_equal(to_unit(LazyImages(images.shape, lambda i: images[i])), to_unit(images), strict=True)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("dtype", [np.int32, np.uint16, bool])
def test_to_unit_of_other_whole_numbers(array, dtype):
    """They would be 0 to 255 in a place of -1 to 1."""
    with pytest.raises(UserError, match=f"uint8, or floats in \\[-1, 1\\], got {np.dtype(dtype)}"):
        to_unit(array(np.zeros((2, 8, 8, 1), dtype)))


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_to_uint8_rounds_and_clips(array):
    x = array(np.float32([-9, -1.001, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0, 0.999, 1, 1.001, 9]))
    np.testing.assert_array_equal(np.asarray(to_uint8(x)), [0, 0, 0, 1, 128, 255, 255, 255, 255])


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_to_uint8_of_whole_numbers(array):
    """uint8 is what it makes; others would be taken for numbers from -1 to 1."""
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_uint8(array(images)), images, strict=True)
    with pytest.raises(UserError, match="floats in \\[-1, 1\\], or uint8, got int32"):
        to_uint8(array(images.astype(np.int32)))


def test_to_uint8_widens_half_precision():
    x = jnp.linspace(-1, 1, 1001, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(to_uint8(x), to_uint8(x.astype(jnp.float32)))


def test_moments_equal_float64_numpy_over_several_chunks():
    images = np.random.default_rng(0).integers(0, 256, (500, 28, 28, 3), dtype=np.uint8)  # 446 rows a chunk
    x = images.astype(np.float64).reshape(500, -1) / 127.5 - 1
    norms = np.linalg.norm(x, axis=1)
    expected = (x.mean(), x.std(), norms.mean(), (norms**2).mean(), norms.max())
    np.testing.assert_allclose(moments(images), expected, rtol=1e-11, atol=1e-13)


def test_moments_of_known_images():
    black_and_white = np.stack([np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 255, np.uint8)])
    assert moments(black_and_white) == (0.0, 1.0, 2.0, 4.0, 2.0)
    with pytest.raises(ValueError, match="empty"):
        moments(black_and_white[:0])


# --- diameter --------------------------------------------------------------------------------------------


def largest_of_all_pairs(images):
    return pdist(images.reshape(len(images), -1) / 127.5 - 1).max()


def test_diameter_of_the_digits_is_that_of_all_pairs():
    digits = data.load(config())
    for split in (digits.train, digits.val, digits.test):
        assert diameter(split.images) == pytest.approx(largest_of_all_pairs(split.images), rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 2, 1), (4, 4, 3), (16, 16, 1)])
def test_diameter_never_exceeds_the_largest_of_all_pairs(shape):
    # Noise is the hard case: in many dimensions all pairs are about as far apart, and the search may miss the farthest.
    rng, found = np.random.default_rng(0), []
    for n in (2, 3, 10, 100, 400):
        for _ in range(5):
            images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
            found.append(diameter(images) / largest_of_all_pairs(images))
    assert max(found) < 1 + 1e-12 and min(found) > 0.97
    assert np.mean(np.array(found) > 1 - 1e-12) > 0.7


def test_diameter_of_known_images():
    extremes = np.stack([np.full((3, 4, 1), 0), np.full((3, 4, 1), 255), np.full((3, 4, 1), 128)]).astype(np.uint8)
    assert diameter(extremes) == pytest.approx(2 * math.sqrt(12), rel=1e-15)
    assert diameter(extremes[:1]) == 0
    assert diameter(np.repeat(extremes, 50, axis=0)) == pytest.approx(2 * math.sqrt(12), rel=1e-15)


def test_diameter_over_several_chunks():
    # 2²⁴ values make a chunk; the ends of the diameter are in the first and in the last.
    images = np.full((40, 1024, 512, 1), 100, np.uint8)  # 32 rows a chunk
    images[1], images[39] = 0, 255
    assert diameter(images, starts=4) == pytest.approx(2 * math.sqrt(1024 * 512), rel=1e-12)


# --- images in their files ---------------------------------------------------------------------------------


def lazy(images, asked=None):
    """LazyImages of an array, which notes what it is asked for."""

    def read(indices):
        assert indices.dtype == np.int64 and indices.ndim == 1
        if asked is not None:
            asked.append(indices)
        return images[indices]

    return LazyImages(images.shape, read)


def test_lazy_images_read_what_is_asked_for_as_an_array_would():
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), dtype=np.uint8)
    asked = []
    made = lazy(images, asked)
    assert (made.shape, made.dtype, made.ndim, made.nbytes, len(made)) == (images.shape, np.uint8, 4, images.nbytes, 20)
    bright = images[:, 0, 0, 0] > 99
    for index in (3, -1, slice(2, 9), slice(None, None, -3), [4, 1, 4], np.array([[0, 1], [2, 3]]), bright,
                  slice(5, 5), np.array([], int)):  # fmt: skip
        got = made[index]
        assert isinstance(got, np.ndarray) and got.dtype == np.uint8
        np.testing.assert_array_equal(got, images[index])
    assert sorted(asked[0]) == [3] and max(map(len, asked)) < 20  # only those
    np.testing.assert_array_equal(np.asarray(made), images)
    with pytest.raises(IndexError):
        made[20]
    split = data.Split(made, np.zeros(20, np.int32))
    assert len(data.Dataset("x", split, split, split, ("a",), "", "").train) == 20


def test_moments_and_diameter_of_lazy_images(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1), dtype=np.uint8)
    assert moments(lazy(images)) == moments(images) and diameter(lazy(images)) == diameter(images)
    monkeypatch.setattr(dataset_module, "SAMPLED", 50)
    asked = []
    subset = moments(lazy(images, asked))
    assert subset == moments(lazy(images, asked)) == moments(images[asked[0]])
    assert len(np.unique(asked[0])) == 50
    assert diameter(lazy(images)) == diameter(images[asked[0]])


# --- names and digits ------------------------------------------------------------------------------------


def test_unknown_names_get_the_nearest_one():
    with pytest.raises(UserError, match="digits.*tissuemnist.*did you mean 'bloodmnist'"):
        data.load(config(name="blodmnist"))
    assert nearest("zzz", ["digits"]) == ""


def test_digits():
    digits = data.load(config())
    assert (digits.shape, digits.num_classes, digits.name) == ((8, 8, 1), 10, "digits")
    assert digits.classes == tuple("0123456789")
    splits = (digits.train, digits.val, digits.test)
    assert [len(split) for split in splits] == [1437, 180, 180]
    shares = np.stack([np.bincount(split.labels, minlength=10) / len(split) for split in splits])
    assert np.abs(shares - shares[0]).max() < 0.006  # one image of 180

    from sklearn.datasets import load_digits

    raw = load_digits()

    def rows(images, labels):
        pairs = zip(images, labels, strict=True)
        return sorted(bytes(image.ravel()) + bytes([label]) for image, label in pairs)

    scaled = np.floor(raw.images * 255 / 16 + 0.5).astype(np.uint8)
    together = [np.concatenate([getattr(split, field) for split in splits]) for field in ("images", "labels")]
    assert rows(*together) == rows(scaled, raw.target)
    again = data.load(config())
    np.testing.assert_array_equal(again.test.images, digits.test.images)
    with pytest.raises(UserError, match="data.size=8"):
        data.load(config(size=28))


def test_digits_need_no_import_of_the_library(monkeypatch):
    """A third of a command's start would be that import; where the file is not found the library gives it."""
    code = "import sys; from pfgm_jax import config, data; data.load(config.default().data); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pfgm_jax.data.digits" in run.stdout.split() and "sklearn" not in run.stdout.split()
    there = data.load(config())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    np.testing.assert_array_equal(data.load(config()).train.images, there.train.images)


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        data.Split(np.zeros((2, 4, 4, 1)), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="labels must be"):
        data.Split(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, np.int32))
    split = data.Split(np.zeros((2, 4, 4, 1), np.uint8), np.int32([0, 5]))
    with pytest.raises(ValueError, match=r"outside \[0, 2\)"):
        data.Dataset("x", split, split, split, ("a", "b"), "", "")


# --- MedMNIST --------------------------------------------------------------------------------------------


def arrays(size=28, channels=(3,), seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for split, n in [("train", 16), ("val", 4), ("test", 5)]:
        made[f"{split}_images"] = rng.integers(0, 256, (n, size, size, *channels), dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(n) % 8).astype(np.uint8)[:, None]
    return made


def save(path, **changes):
    """An npz in MedMNIST's format; a change of None leaves that array out."""
    made = {key: value for key, value in (arrays() | changes).items() if value is not None}
    np.savez(path, **made)
    return path


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def no_table(monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnist", None)


@pytest.fixture
def table(monkeypatch):
    """A stand-in for the package medmnist, its INFO built like the real one; returns the entry to change."""
    entry = {"task": "multi-class", "license": "CC BY 4.0", "label": {str(i): f"cell {i}" for i in range(8)}}
    for size in ("", "_64", "_128", "_224"):
        entry |= {f"url{size}": f"http://127.0.0.1:9/bloodmnist{size}.npz", f"MD5{size}": "0" * 32}
    monkeypatch.setitem(sys.modules, "medmnist", types.SimpleNamespace(INFO={"bloodmnist": entry}))
    return entry


def blood(tmp_path, **fields):
    return config(**{"name": "bloodmnist", "size": 28, "dir": str(tmp_path)} | fields)


def fails(data_config, *words):
    """The one line of the UserError that loading gives, which holds every one of `words`."""
    with pytest.raises(UserError) as caught:
        data.load(data_config)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    for word in words:
        assert str(word) in line, f"{word!r} is not in {line!r}"
    return line


@pytest.mark.parametrize("size, file", [(28, "bloodmnist.npz"), (64, "bloodmnist_64.npz")])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_reads_a_folder_without_the_table(tmp_path, no_table, capsys, size, file, channels):
    made = arrays(size, channels)
    save(tmp_path / file, **made)
    dataset = data.load(blood(tmp_path, size=size))
    assert capsys.readouterr().err.count("\n") == 1  # says that the MD5 was not checked
    assert dataset.shape == (size, size, 3 if channels else 1)
    assert dataset.classes == tuple("01234567")
    for split in ("train", "val", "test"):
        got = getattr(dataset, split)
        np.testing.assert_array_equal(got.images, made[f"{split}_images"].reshape(got.images.shape))
        np.testing.assert_array_equal(got.labels, made[f"{split}_labels"][:, 0])


def test_official_md5_names_and_licence_come_from_the_table(tmp_path, table, capsys):
    path = save(tmp_path / "bloodmnist.npz")
    line = fails(blood(tmp_path), path, "0" * 32, md5(path), "data.check_md5=False")
    assert line.count("MD5") == 1
    unchecked = data.load(blood(tmp_path, check_md5=False))
    assert "not checked" in unchecked.source
    table["MD5"] = md5(path)
    dataset = data.load(blood(tmp_path))
    assert (dataset.classes[7], dataset.licence) == ("cell 7", "CC BY 4.0")
    assert md5(path) in dataset.source
    assert capsys.readouterr().err == ""


def test_labels_beyond_the_named_classes_are_refused(tmp_path, table):
    path = save(tmp_path / "bloodmnist.npz", val_labels=np.uint8([0, 1, 8, 3]))
    fails(blood(tmp_path, check_md5=False), path, "label 8", "0 to 7")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"val_labels": None}, ["lacks val_labels", "train_images"]),
        ({"train_images": np.zeros((16, 28, 28), np.float32)}, ["train_images is float32 [16, 28, 28]"]),
        ({"val_images": arrays()["val_images"][..., :2]}, ["val_images is uint8 [4, 28, 28, 2]"]),
        ({"val_images": arrays()["val_images"][..., 0]}, ["val and train images differ"]),
        ({"test_images": np.zeros((5, 28, 20), np.uint8)}, ["[5, 28, 20]"]),
        ({"test_images": np.uint8(3)}, ["test_images is uint8 []"]),
        ({"train_labels": arrays()["train_labels"][:-1]}, ["16 train_images but 15 train_labels"]),
        ({"train_labels": np.zeros((16, 14), np.uint8)}, ["multi-label"]),
        ({"train_labels": np.zeros((16, 1), np.float32)}, ["train_labels is float32"]),
        ({"test_labels": np.int64([0, 1, 2, 3, -1])}, ["test_labels run from -1 to 3"]),
        ({"test_labels": np.int64([0, 1, 2, 3, 2**40])}, ["test_labels run from 0 to"]),
        ({"val_images": np.zeros((0, 28, 28, 3), np.uint8)}, ["val_images is uint8 [0, 28, 28, 3]"]),
        ({"val_labels": np.array([None] * 4, object)}, ["val_labels is pickled"]),
        (arrays(32), ["32 px", "28 px", "data.size"]),
    ],
)
def test_wrong_contents_are_named(tmp_path, no_table, changes, words):
    path = save(tmp_path / "bloodmnist.npz", **changes)
    fails(blood(tmp_path), path, *words)


def test_files_that_are_not_whole_npz_archives(tmp_path, no_table):
    path = tmp_path / "bloodmnist.npz"
    fails(blood(tmp_path), path, "does not exist")
    fails(blood(tmp_path / "absent"), tmp_path / "absent", "not a folder")
    whole = save(path).read_bytes()
    for keep in (0, 1, 2, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        fails(blood(tmp_path), path, "not an npz file" if keep < 2 else "cut short")
    path.write_text("<html>not found</html>")
    fails(blood(tmp_path), path, "not an npz file")
    np.save(path.open("wb"), np.zeros(3))
    fails(blood(tmp_path), path, "not an npz file")


def test_damage_anywhere_gives_a_line_or_the_same_images(tmp_path, no_table):
    """One byte changed, in headers, images or the directory: no other exception and no other images."""
    path = save(tmp_path / "bloodmnist.npz", **arrays(channels=()))
    whole, dataset = path.read_bytes(), data.load(blood(tmp_path))
    rng = np.random.default_rng(0)
    caught = 0
    headers = [i for i in range(len(whole)) if whole[i : i + 2] == b"PK" or whole[i : i + 6] == b"\x93NUMPY"]
    for trial in range(300):
        at = rng.integers(len(whole)) if trial % 3 == 0 else headers[trial % len(headers)] + rng.integers(130)
        damaged = bytearray(whole)
        damaged[min(at, len(whole) - 1)] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            got = data.load(blood(tmp_path))
        except UserError:
            caught += 1
        else:
            np.testing.assert_array_equal(got.train.images, dataset.train.images)
            np.testing.assert_array_equal(got.val.labels, dataset.val.labels)
    assert caught > 150


def test_a_set_larger_than_memory(tmp_path, no_table, monkeypatch):
    def read_array(*_, **__):
        raise MemoryError

    monkeypatch.setattr(np.lib.format, "read_array", read_array)
    fails(blood(tmp_path), save(tmp_path / "bloodmnist.npz"), "memory", "data.size")


def test_sizes_that_a_header_invents_are_refused_before_memory_is_taken(tmp_path, no_table, monkeypatch):
    path = save(tmp_path / "bloodmnist.npz")
    with monkeypatch.context() as patch:
        patch.setattr(npz, "MAX_BYTES", 1000)
        fails(blood(tmp_path), path, "would unpack to")
    monkeypatch.setattr(np.lib.format, "read_array", None)  # from here on, reading one is a TypeError
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = "train_images.npy"
    old = members[name]
    for shape in ("(9999999999, 28, 28, 3)", "(9999999999999999999999,)", "(-1, 28, 28, 3)", "({[]: 1}, 28)"):
        members[name] = old.replace(b"(16, 28, 28, 3), }" + b" " * 22, f"{shape}, }}".ljust(40).encode())
        assert members[name] != old
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        fails(blood(tmp_path), path, "train_images.npy")


@pytest.mark.parametrize("fields, words", [
    ({"name": "chestmnist"}, ["multi-label", "data.name"]),
    ({"size": 32}, ["28, 64, 128, 224"]),
])  # fmt: skip
def test_sets_that_do_not_exist(tmp_path, no_table, fields, words):
    fails(blood(tmp_path, **fields), *words)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PFGM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache" / "data"


def test_the_cache_is_checked_every_time(tmp_path, table, cache):
    cache.mkdir(parents=True)
    path = save(cache / "bloodmnist.npz")
    table["MD5"] = md5(path)
    dataset = data.load(blood(tmp_path, dir=""))
    np.testing.assert_array_equal(dataset.train.images, arrays()["train_images"])
    path.write_bytes(path.read_bytes()[:-1])
    fails(blood(tmp_path, dir="", check_md5=False), path, table["MD5"], md5(path), "delete it")


def test_offline_is_one_line_within_seconds(tmp_path, table, cache):
    fails(blood(tmp_path, dir=""), "cannot download http://127.0.0.1:9/bloodmnist.npz", "data.dir")
    assert os.listdir(cache) == []


def test_a_download_needs_the_table(tmp_path, no_table, cache):
    fails(blood(tmp_path, dir=""), "pip install --no-deps medmnist", "data.dir")


def test_an_old_table_without_large_sizes(tmp_path, table):
    del table["url_64"]
    fails(blood(tmp_path, size=64, dir=""), "bloodmnist at 64 px", "--upgrade")
