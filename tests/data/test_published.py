"""CIFAR-10, CelebA and LSUN from small files in their real formats, whole and damaged."""

import io
import os
import tarfile
import types

import numpy as np
import pytest
from PIL import Image

from pfgm_jax import data
from pfgm_jax.data import celeba, cifar10, download, images
from pfgm_jax.errors import UserError
from pfgm_jax.storage import digests


def config(name, folder, size, **fields):
    given = dict(name=name, size=size, dir=str(folder), check_md5=True, val=0.1, test=0.1, split_seed=0)
    return types.SimpleNamespace(**given | fields)


def fails(data_config, *words):
    with pytest.raises(UserError) as caught:
        data.load(data_config)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    assert [word for word in words if str(word) not in line] == [], line


def counts(made):
    return [len(split) for split in (made.train, made.val, made.test)]


# ---- CIFAR-10

RECORDS = 20


def batches():
    """The six files by name, and what is in them: images [6, RECORDS, 32, 32, 3] and labels [6, RECORDS]."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, RECORDS, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, (6, RECORDS), dtype=np.uint8)
    files = {}
    for name, some, told in zip(cifar10.FILES, pictures, labels, strict=True):
        # Written as the format's description has it: a label, then 1024 red, 1024 green and 1024 blue values by row.
        files[name] = b"".join(
            bytes([label]) + b"".join(picture[..., colour].tobytes() for colour in range(3))
            for picture, label in zip(some, told, strict=True)
        )
    return files, pictures, labels


def pack(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"batches.meta.txt": b"airplane\n", **files, "readme.html": b"<html>"}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive in the official format, taken for the official one."""
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    path = pack(tmp_path / cifar10.ARCHIVE, batches()[0])
    monkeypatch.setattr(cifar10, "MD5", digests.of_file(path, "md5"))
    return path


def cifar(folder, **fields):
    return config("cifar10", folder, 32, **fields)


def test_the_binary_archive(archive, tmp_path):
    files, pictures, labels = batches()
    made = data.load(cifar(tmp_path))
    assert counts(made) == [100, 2, 18] and made.classes[3] == "cat" and f"MD5 {cifar10.MD5}" in made.source
    np.testing.assert_array_equal(made.train.images, pictures[:5].reshape(-1, 32, 32, 3))
    np.testing.assert_array_equal(made.train.labels, labels[:5].reshape(-1))
    np.testing.assert_array_equal(made.val.images, pictures[5, :2])
    np.testing.assert_array_equal(made.test.images, pictures[5, 2:])
    folder = tmp_path / "extracted" / cifar10.FOLDER
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for place in (archive, folder, folder.parent):
        np.testing.assert_array_equal(data.load(cifar(place)).train.images, made.train.images)
    assert data.load(cifar(folder)).source.endswith("not checked")


def test_cifar10_as_npz(tmp_path):
    _, pictures, labels = batches()
    arrays = dict(train_images=pictures[0], train_labels=labels[0], test_images=pictures[1], test_labels=labels[1])
    np.savez(tmp_path / "cifar10.npz", **arrays)
    made = data.load(cifar(tmp_path))
    assert counts(made) == [20, 2, 18]
    np.testing.assert_array_equal(made.test.images, pictures[1, 2:])
    np.savez(tmp_path / "cifar10.npz", **arrays, val_images=pictures[2], val_labels=labels[2])
    assert counts(data.load(cifar(tmp_path))) == [20, 20, 20]


def test_cifar10_is_downloaded_and_dry_runs_are_not(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("PFGM_JAX_CACHE", str(tmp_path / "cache"))

    def no_network(*_):
        raise AssertionError("asked for a download")

    with monkeypatch.context() as patch:
        patch.setattr(download, "fetch", no_network)
        assert data.load(cifar(""), stand_in=True).stands_for == 50_000
        assert data.load(cifar(tmp_path / "cache"), stand_in=True).stands_for == 50_000
        with pytest.raises(AssertionError):
            data.load(cifar(""))
    (tmp_path / "cache" / "data").mkdir(parents=True)
    os.replace(archive, tmp_path / "cache" / "data" / cifar10.ARCHIVE)
    for stand_in in (False, True):
        made = data.load(cifar("", check_md5=False), stand_in)  # the cache always has the official MD5
        assert counts(made) == [100, 2, 18] and made.stands_for == 0


def test_damaged_archives(archive, tmp_path):
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-100])
    fails(cifar(tmp_path), archive, "not the official file", cifar10.MD5, "data.check_md5=False")
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for content in (whole[:-100], whole[: len(whole) // 2], whole[:10], b"", b"<html>", flipped):
        archive.write_bytes(content)
        fails(cifar(tmp_path, check_md5=False), archive, cifar10.URL)
    files = batches()[0]
    for changed, words in (
        ({"data_batch_3.bin": files["data_batch_3.bin"][:-1]}, ["data_batch_3.bin has 61459 bytes, not 20 × 3073"]),
        ({"test_batch.bin": b"\x0a" + files["test_batch.bin"][1:]}, ["test_batch.bin has a label 10"]),
    ):
        pack(archive, files | changed)
        fails(cifar(tmp_path, check_md5=False), archive, *words)
    pack(archive, {name: files[name] for name in cifar10.FILES[1:]})
    fails(cifar(tmp_path, check_md5=False), "lacks data_batch_1.bin")
    archive.unlink()
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(files["data_batch_1.bin"])
    fails(cifar(tmp_path), "data_batch_2.bin cannot be read")
    (folder / "data_batch_1.bin").write_bytes(files["data_batch_1.bin"][:99])
    fails(cifar(tmp_path), "data_batch_1.bin has 99 bytes")


@pytest.mark.parametrize("name", cifar10.PICKLES)
def test_pickles_are_named_and_never_loaded(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pickled'\ntR.")
    for place in (tmp_path, tmp_path / name):
        fails(cifar(place), "as Python pickles, which are never loaded: get the binary version", cifar10.URL)


def test_folders_without_cifar10(tmp_path):
    fails(cifar(tmp_path / "absent"), "absent does not exist", "to download")
    fails(cifar(tmp_path), "has no cifar10.npz")
    fails(config("cifar10", tmp_path, 28), "data.size=32")


# ---- CelebA


def photo(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def triangle(channel, size):
    """Separable triangle filter, stretched to the reduction so that it averages: float64."""
    scale = len(channel) / size
    offsets = np.abs(np.arange(len(channel)) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale) / scale
    weights = np.maximum(0, 1 - offsets)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ channel.astype(np.float64) @ weights.T


@pytest.fixture
def faces(tmp_path):
    """Six faces as CelebA comes: 178×218, three to train on, two to validate, one to test."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 27, 22, 3), dtype=np.uint8)
    pixels = pixels.repeat(9, axis=1).repeat(9, axis=2)[:, :218, :178]
    for i, each in enumerate(pixels, 1):
        photo(tmp_path / "img_align_celeba" / f"{i:06}.jpg", each)
    partition = "".join(f"{i:06}.jpg {part}\n" for i, part in enumerate((0, 1, 0, 2, 0, 1), 1))
    (tmp_path / "list_eval_partition.txt").write_text(partition)
    return tmp_path


def test_celeba_from_its_files(faces):
    made = data.load(config("celeba64", faces, 64))
    assert counts(made) == [3, 2, 1] and made.shape == (64, 64, 3) and made.classes == ("face",)
    for got, number in ((made.train.images[1], 3), (made.test.images[0], 4)):
        whole = np.asarray(Image.open(faces / "img_align_celeba" / f"{number:06}.jpg"))
        centre = whole[39:179, 19:159]  # (218 − 140) / 2 and (178 − 140) / 2
        expected = np.stack([triangle(centre[..., c], 64) for c in range(3)], axis=-1)
        np.testing.assert_allclose(got, expected, atol=1.01)  # rounded after each direction
    # As Kaggle has it.
    os.rename(faces / "img_align_celeba", faces / "inner")
    (faces / "img_align_celeba").mkdir()
    os.rename(faces / "inner", faces / "img_align_celeba" / "img_align_celeba")
    rows = (faces / "list_eval_partition.txt").read_text().replace(" ", ",")
    (faces / "list_eval_partition.txt").unlink()
    (faces / "list_eval_partition.csv").write_text("image_id,partition\n" + rows)
    np.testing.assert_array_equal(data.load(config("celeba64", faces, 64)).train.images, made.train.images)


def test_celeba_that_does_not_fit_is_lazy(faces, monkeypatch):
    whole = data.load(config("celeba64", faces, 64))
    monkeypatch.setattr(images, "HOST_BYTES", 6 * 64 * 64 * 3 - 1)
    made = data.load(config("celeba64", faces, 64))
    assert isinstance(made.train.images, data.LazyImages)
    np.testing.assert_array_equal(made.train.images[:], whole.train.images)


def test_damaged_celeba(faces):
    data_config = config("celeba64", faces, 64)
    first = faces / "img_align_celeba" / "000001.jpg"
    whole = first.read_bytes()
    for content, words in (
        (whole[:2000], "cut short or damaged"),
        (b"", "of 0 bytes"),
        (b"<html>", "without an image"),
    ):
        first.write_bytes(content)
        fails(data_config, f"{first} cannot be read as an image ({words}", "replace it")
    photo(first, np.zeros((100, 100, 3), np.uint8))
    fails(data_config, "smaller than the crop of 140 px, 100×100")
    first.unlink()
    fails(data_config, "lacks 1 image of list_eval_partition.txt, such as 000001.jpg")
    table = faces / "list_eval_partition.txt"
    for text, words in (("000001.jpg 3\n", "line 1: '000001.jpg 3'"), ("", "names no training images"),
                        ("000001.jpg\n", "line 1"), ("000004.jpg 2\n", "no training images")):  # fmt: skip
        table.write_text(text)
        fails(data_config, table, words)
    table.write_bytes(b"\xff\xfe")
    fails(data_config, "cannot be read")
    table.unlink()
    fails(data_config, "no list_eval_partition.txt: put it beside them")
    fails(config("celeba64", faces / "absent", 64), "put img_align_celeba (unzipped) and list_eval_partition.txt")
    fails(config("celeba64", faces, 32), "data.size=64")


# ---- LSUN


def cubic(channel, size):
    """Separable Keys filter, a = −1/2, stretched to the reduction so that it averages: float64."""
    scale = len(channel) / size
    t = np.abs(np.arange(len(channel)) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale) / scale
    weights = np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ channel.astype(np.float64) @ weights.T


@pytest.mark.parametrize("name, prefix", [("lsun_bedroom256", "bedroom_"), ("lsun_church256", "church_outdoor_"),
                                          ("lsun_church256", "")])  # fmt: skip
def test_lsun_from_image_files(tmp_path, name, prefix, monkeypatch):
    # Not so bright or dark that the filter's overshoot is clipped on the way.
    pixels = np.random.default_rng(0).integers(60, 196, (3, 32, 40, 3), np.uint8).repeat(10, axis=1).repeat(10, axis=2)
    for place, each in zip((f"{prefix}train/a/b", f"{prefix}train/a/c", f"{prefix}val"), pixels, strict=True):
        photo(tmp_path / place / "x.png", each)
    made = data.load(config(name, tmp_path, 256))
    assert counts(made) == [2, 1, 0] and made.shape == (256, 256, 3)
    expected = np.stack([cubic(pixels[1, :, 40:360, c], 256) for c in range(3)], axis=-1)
    # Rounded after each direction: half a level, which the second makes 1.25 times larger, and another half.
    np.testing.assert_allclose(made.train.images[1], expected, atol=1.2)
    monkeypatch.setattr(images, "HOST_BYTES", 0)
    lazy = data.load(config(name, tmp_path, 256))
    assert isinstance(lazy.train.images, data.LazyImages)
    np.testing.assert_array_equal(lazy.val.images[:], made.val.images)


def test_lsun_without_val_holds_some_out(tmp_path, monkeypatch):
    for i in range(20):
        photo(tmp_path / f"{i:02}.png", np.full((8, 8, 3), i, np.uint8))
    made = data.load(config("lsun_bedroom256", tmp_path, 256))
    assert counts(made) == [18, 2, 0]
    seen = np.concatenate([made.train.images[:, 0, 0, 0], made.val.images[:, 0, 0, 0]])
    assert sorted(seen.tolist()) == list(range(20))
    other = data.load(config("lsun_bedroom256", tmp_path, 256, split_seed=1))
    assert other.val.images[:, 0, 0, 0].tolist() != made.val.images[:, 0, 0, 0].tolist()


def test_absent_lsun(tmp_path):
    for name in ("lsun_bedroom256", "lsun_church256"):
        fails(config(name, "", 256), "not downloaded", "data.dir=FOLDER")
        fails(config(name, tmp_path, 256), f"or {name}.npz", "github.com/fyu/lsun")
        assert data.load(config(name, tmp_path, 256), stand_in=True).stands_for > 10**5
    (tmp_path / "train").mkdir()
    photo(tmp_path / "val" / "a.png", np.zeros((8, 8, 3), np.uint8))
    fails(config("lsun_church256", tmp_path, 256), "train holds no image files")


def test_facts_of_the_sets():
    assert {name: source.SETS[name].train_images for name, source in data.PUBLISHED.items()} == {
        "cifar10": 50_000, "celeba64": 162_770, "lsun_bedroom256": 3_033_042, "lsun_church256": 126_227,
    }  # fmt: skip
    assert celeba.CROP == 140
