"""npz files of a person's own: what they may hold, which splits come of it, and what is refused. (MedMNIST's are in
test_data.)"""

import os
import types

import numpy as np
import pytest

from pfgm_jax import data, parallel
from pfgm_jax.errors import UserError


def config(path, **fields):
    return types.SimpleNamespace(**dict(name="npz", size=8, dir=str(path), val=0.1, test=0.1, split_seed=0) | fields)


def pixels(n, *channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, *channels), dtype=np.uint8)


def save(folder, **arrays):
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


def fails(path, *words, **fields):
    with pytest.raises(UserError) as caught:
        data.load(config(path, **fields))
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    assert [word for word in words if word not in line] == [], line


def counts(made):
    return [len(split) for split in (made.train, made.val, made.test)]


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("images", "y")])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_images_and_labels_are_split_by_seed(tmp_path, keys, channels, capsys):
    images, labels = pixels(60, *channels), np.arange(60, dtype=np.int64) % 3
    path = save(tmp_path, **dict(zip(keys, (images, labels), strict=True)))
    made = data.load(config(path))
    assert counts(made) == [48, 6, 6] and made.classes == ("0", "1", "2")
    assert made.shape == (8, 8, 3 if channels == (3,) else 1)
    assert np.bincount(made.val.labels).tolist() == np.bincount(made.test.labels).tolist() == [2, 2, 2]
    assert "6 val and 6 test images are taken from 60 training images" in capsys.readouterr().err
    place = {image.tobytes(): i for i, image in enumerate(images)}
    found = [(place[image.tobytes()], label) for split in (made.train, made.val, made.test)
             for image, label in zip(split.images, split.labels, strict=True)]  # fmt: skip
    assert sorted(found) == [(i, i % 3) for i in range(60)]
    np.testing.assert_array_equal(data.load(config(tmp_path)).train.images, made.train.images)  # its folder


def test_the_split_is_pinned(tmp_path):
    """A run that goes on after an upgrade must hold out the same images: these numbers may not change."""
    labels = np.array([0] * 12 + [1] * 8)
    images = np.zeros((20, 8, 8), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None]
    made = data.load(config(save(tmp_path, images=images, labels=labels), val=0.15, split_seed=7))
    assert made.val.images[:, 0, 0, 0].tolist() == PINNED[0] and made.test.images[:, 0, 0, 0].tolist() == PINNED[1]


PINNED = [[0, 1, 17], [9, 14]]


@pytest.mark.parametrize(
    "val, test, expected", [(0, 0, [40, 0, 0]), (0, 0.25, [30, 0, 10]), (0.5, 0, [20, 20, 0]), (0.3, 0.2, [20, 12, 8])]
)
def test_shares(tmp_path, val, test, expected):
    path = save(tmp_path, images=pixels(40))
    assert counts(data.load(config(path, val=val, test=test))) == expected


def test_a_class_too_small_to_spare_an_image_stays_in_training(tmp_path):
    labels = np.arange(30)  # as many classes as images
    made = data.load(config(save(tmp_path, images=pixels(30), labels=labels), val=0.3, test=0.3))
    assert counts(made) == [30, 0, 0]


def test_splits_of_the_file_are_kept(tmp_path, capsys):
    arrays = {}
    for split, n in (("train", 20), ("val", 4), ("test", 3)):
        arrays |= {f"{split}_images": pixels(n, seed=n), f"{split}_labels": np.zeros((n, 1), np.uint8)}
    made = data.load(config(save(tmp_path, **arrays)))
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(made, split).images[..., 0], arrays[f"{split}_images"])
    assert capsys.readouterr().err == ""
    without = {key: array for key, array in arrays.items() if not key.startswith("val")}
    made = data.load(config(save(tmp_path, **without), val=0.25))
    assert counts(made) == [15, 5, 3]
    assert "5 val images are taken from 20 training images" in capsys.readouterr().err
    empty = arrays | {"test_images": pixels(0), "test_labels": np.zeros(0, np.uint8)}
    assert counts(data.load(config(save(tmp_path, **empty)))) == [20, 4, 0]
    unlabelled = {key: array for key, array in arrays.items() if key.endswith("images")}
    made = data.load(config(save(tmp_path, **unlabelled)))
    assert made.classes == ("images",) and counts(made) == [20, 4, 3]


def test_names_of_classes(tmp_path, capsys):
    arrays = dict(images=pixels(20), labels=np.arange(20) % 2)
    made = data.load(config(save(tmp_path, **arrays, classes=np.array(["benign", "malignant", "other"]))))
    assert made.classes == ("benign", "malignant", "other")
    assert "npz: no train image of 1 class (other)" in capsys.readouterr().err
    fails(save(tmp_path, **arrays, classes=np.array(["benign"])), "a label 1 and names 1 class:")
    fails(save(tmp_path, **arrays, classes=np.array(["a", "b"], object)), "classes is pickled")
    fails(save(tmp_path, **arrays, classes=np.array([1, 2])), "classes is int64 [2]", "words")


@pytest.mark.parametrize(
    "arrays, words",
    [
        (dict(pictures=pixels(4)), ["has pictures: name the arrays images and labels"]),
        (dict(images=pixels(4), labels=np.zeros(3, int)), ["4 images but 3 labels", "give every image one label"]),
        (dict(x=pixels(4), y=np.zeros(5, int)), ["4 x but 5 y"]),
        (dict(images=pixels(4).astype(np.float32)), ["images is float32 [4, 8, 8]", "images are uint8"]),
        (dict(images=pixels(0)), ["images is uint8 [0, 8, 8]"]),
        (dict(images=pixels(4)[:, :, :7]), ["images is uint8 [4, 8, 7]"]),
        (dict(images=np.moveaxis(pixels(4, 3), -1, 1)), ["[4, 3, 8, 8]", "channels come last", "numpy.moveaxis"]),
        (dict(images=pixels(4, 4)), ["images is uint8 [4, 8, 8, 4]"]),
        (dict(images=pixels(4), labels=np.zeros((4, 3), int)), ["multi-label"]),
        (dict(images=pixels(4), labels=np.array(["a"] * 4)), ["labels is <U1 [4]"]),
        (dict(images=pixels(4), labels=np.array([0, 1, -1, 2])), ["labels run from -1 to 2"]),
        (dict(images=pixels(4), labels=np.array([0, 1, 2**31 - 2, 2])), ["labels run from 0 to 2147483646", "100,000"]),
        (dict(images=np.array([pixels(1), None], object)), ["images is pickled"]),
        (dict(images=pixels(4), labels=np.array([None] * 4)), ["labels is pickled"]),
        (dict(train_images=pixels(4), val_images=pixels(2), val_labels=np.zeros(2, int)), ["lacks train_labels"]),
        (dict(train_images=pixels(4), val_images=pixels(2, 3)), ["val and train images differ in shape"]),
    ],
)
def test_wrong_contents_are_named(tmp_path, arrays, words):
    path = save(tmp_path, **arrays)
    fails(path, str(path), *words)


def test_files_that_are_none(tmp_path):
    fails("", "data.dir=FILE.npz")
    fails(tmp_path / "absent.npz", "does not exist")
    fails(tmp_path, "holds no npz file")
    path = save(tmp_path, images=pixels(4))
    fails(path, "has 8 px images, not the 16 px", size=16)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails(path, "cut short, damaged or unreadable")
    path.write_bytes(whole)
    (tmp_path / "other.npz").write_bytes(whole)
    fails(tmp_path, "holds 2 npz files: give the file itself")


@pytest.mark.parametrize("given, copies", [(("train", "val", "test"), 1), (("train",), 2)])
def test_what_does_not_fit_in_memory_is_refused_before(tmp_path, given, copies, monkeypatch):
    path = save(tmp_path, **{f"{split}_images": np.zeros((1000, 8, 8), np.uint8) for split in given})  # packs to little
    np.savez_compressed(path, **dict(np.load(path)))
    needed = copies * len(given) * (64_000 + 128)  # npy headers have 128 bytes
    monkeypatch.setattr(parallel, "host_memory", lambda: needed - 1)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("read"))
    fails(path, "of memory, of which", "are free", "data.name=folder")
    monkeypatch.undo()
    monkeypatch.setattr(parallel, "host_memory", lambda: needed)
    assert sum(counts(data.load(config(path)))) == 1000 * len(given)


def test_a_pipe_is_no_npz_file(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    fails(tmp_path / "a.npz", "a.npz is not a file")
    fails(tmp_path, "holds no npz file")


def test_names_are_printable(tmp_path):
    path = save(tmp_path, images=pixels(4), labels=np.arange(4) % 2, classes=np.array(["\x1b[31mred", "two\nlines"]))
    assert data.load(config(path, val=0, test=0)).classes == (r"\x1b[31mred", r"two\nlines")
    path = save(tmp_path, **{"\x1b[31m": pixels(4)})
    fails(path, r"has \x1b[31m: name the arrays")


@pytest.mark.parametrize("field, value", [("pages", "all"), ("window", "0,4095"), ("group", "x")])
def test_what_is_for_folders_is_not_passed_over(tmp_path, field, value):
    path = save(tmp_path, images=pixels(20))
    assert sum(counts(data.load(config(path, pages="first", window="", group="")))) == 20
    fails(path, f"data.{field}={value} is for data.name=folder, not for npz", **{field: value})
