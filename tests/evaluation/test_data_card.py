"""The data card: copies, classes and distances are found where they were put, and nothing is said where all is well."""

import pathlib

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

from pfgm_jax import config as config_lib
from pfgm_jax import data, main, plots
from pfgm_jax.data import duplicates
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import data_card

ROOT = pathlib.Path(__file__).parents[2]


def make(splits, classes=("a", "b"), name="made"):
    """A Dataset of (images, labels) for train, val and test."""
    splits = [data.Split(images.astype(np.uint8), np.asarray(labels, np.int32)) for images, labels in splits]
    return data.Dataset(name, *splits, classes=classes, licence="CC0", source="a test")


def noise(n, shape=(4, 4, 1), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture
def clean():
    """Enough images of both classes in every split, all different."""
    return [(noise(n, seed=seed), np.arange(n) % 2) for seed, n in enumerate((40, 10, 12))]


def test_clean_data_give_no_warning(clean):
    assert data_card.warnings(data_card.make(make(clean))) == []


def test_copies_are_counted_once_each_and_by_label(clean):
    (train, labels), (val, val_labels), _ = clean
    train[1] = train[0]  # labels 1 and 0
    train[2] = train[0]  # label 0: a group of three, so three pairs, two of them of different labels
    val[3] = train[5]  # label 1 in both
    val[4] = train[7]  # labels 0 and 1
    val[5] = train[7]  # labels 1 and 1
    made = data_card.make(make(clean))
    assert made.copies.among(0, [labels, val_labels, None]) == (3, 3, 2)
    assert made.copies.among(1, [labels, val_labels, None]) == (2, 1, 1)
    pairs = made.copies.between(1, 0)
    assert {(i, j) for (_, i), (_, j) in pairs} == {(3, 5), (4, 7), (5, 7)}
    said = "\n".join(data_card.warnings(made))
    assert "3 val images also in train, 1 of them there with another label" in said
    assert "2 of 3 pairs of equal training images" in said
    assert "test" not in said


def test_absent_small_and_empty(clean):
    (train, _), (val, _), (test, _) = clean
    made = make([(train, np.arange(40) >= 35), (val, np.zeros(10)), (test[:0], [])], classes=("a", "b", "c"))
    said = data_card.warnings(data_card.make(made))
    assert "no train image of c" in said and "no val image of b, c" in said and "the test split is empty" in said
    assert any(line.startswith("fewer than 10 training images of b (5)") for line in said)
    assert "c" in data_card.text(data_card.make(made))


def test_constant_and_grey_images():
    grey = np.repeat(noise(40), 3, axis=-1)
    grey[3] = 7
    splits = [(grey, np.arange(40) % 2), (grey[10:20] ^ 1, np.arange(10) % 2), (grey[20:30] ^ 2, np.arange(10) % 2)]
    said = data_card.warnings(data_card.make(make(splits)))
    assert "images of one colour throughout: 1 train" in said
    assert any("all images are grey" in line for line in said)
    splits[1][0][0, 0, 0, 0] ^= 4  # one coloured pixel
    assert not any("grey" in line for line in data_card.warnings(data_card.make(make(splits))))


def test_patients_in_two_splits_are_a_leak(clean):
    plain = make(clean)
    numbers = (np.arange(40) // 4, np.arange(10) // 5 + 9, np.arange(12) // 4 + 20)  # 9 in train and val
    splits = [data.Split(split.images, split.labels, groups) for split, groups in
              zip((plain.train, plain.val, plain.test), numbers, strict=True)]  # fmt: skip
    made = data_card.make(data.Dataset("made", *splits, classes=("a", "b"), licence="CC0", source="a test"))
    assert data_card.warnings(made) == ["leak: 1 patient with images in both train and val"]
    assert "patients: 10 train, 2 val, 3 test; 1 in train and val both" in " ".join(data_card.text(made).split())
    text = data_card.text(data_card.make(plain))
    assert "patients" not in text and "window" not in text


def test_the_window_is_on_the_card(clean):
    plain = make(clean)
    made = data.Dataset("made", plain.train, plain.val, plain.test, ("a", "b"), "CC0", "a test", window=(-100, 4095.5))
    assert "the value -100 became black and 4095.5 white" in data_card.text(data_card.make(made))


def test_one_colour_may_have_different_channels():
    images = noise(5, (4, 4, 3))
    images[2] = [1, 2, 3]
    assert duplicates.take(images).constant.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("block", [2**24, 50])  # values at a time: all at once, and three images
def test_distances_are_scipys(monkeypatch, block):
    monkeypatch.setattr(data_card, "_BLOCK", block)
    train, val = noise(60), noise(25, seed=1)
    train[7], val[3] = train[11], train[20]
    flat = lambda images: images.reshape(len(images), -1) / 127.5
    itself = cdist(flat(train), flat(train)) + np.diag(np.full(60, np.inf))
    np.testing.assert_allclose(data_card.nearest(train).distances, itself.min(axis=1), rtol=1e-12)
    found = data_card.nearest(val, train)
    np.testing.assert_allclose(found.distances, cdist(flat(val), flat(train)).min(axis=1), rtol=1e-12)
    assert found.distances[3] == 0 and data_card.nearest(train).distances[7] == 0
    assert (found.images, found.searched) == (25, 60)


def test_queries_are_drawn_and_the_searched_set_is_whole(monkeypatch):
    monkeypatch.setattr(data_card, "QUERIES", 8)
    found = data_card.nearest(noise(60))
    assert (len(found.distances), found.images, found.searched) == (8, 60, 60)
    everyone = data_card.nearest(noise(60)[:8])
    assert len(everyone.distances) == 8


def test_of_more_bytes_than_the_limit_a_subset_stands(monkeypatch, clean):
    monkeypatch.setattr(duplicates, "EXAMINED_BYTES", 20 * 16)
    made = data_card.make(make(clean))
    assert [len(c.indices) for c in made.censuses] == [20, 10, 12]
    assert made.nearest["val"].searched == 20
    assert "20 of 40 train" in data_card.text(made)


class OnDisk:
    """Images that are only read in parts, as a folder's would be."""

    def __init__(self, images, most):
        self._images, self._most = images, most
        self.shape, self.dtype, self.ndim, self.nbytes = images.shape, images.dtype, images.ndim, images.nbytes

    def __len__(self):
        return len(self._images)

    def __getitem__(self, item):
        part = self._images[item]
        assert len(part) <= self._most
        return part


def test_images_on_disk_are_read_in_chunks(monkeypatch):
    monkeypatch.setattr(data_card, "_BLOCK", 16 * 5)
    monkeypatch.setattr(data_card, "QUERIES", 5)
    monkeypatch.setattr(duplicates, "_CHUNK_BYTES", 16 * 5)
    monkeypatch.setattr(duplicates.chunks, "__defaults__", (16 * 5,))
    images = noise(30)
    images[4] = images[9]
    lazy = OnDisk(images, 5)
    np.testing.assert_array_equal(duplicates.take(lazy).digests, duplicates.take(images).digests)
    np.testing.assert_array_equal(data_card.nearest(lazy).distances, data_card.nearest(images).distances)


def test_classes_beyond_the_limit_are_left_out(monkeypatch):
    monkeypatch.setattr(data_card, "MOST_CLASSES", 4)
    labels = np.repeat(np.arange(6), [12, 11, 10, 14, 13, 15])
    splits = [(noise(75), labels)] + [(noise(6, seed=s), np.arange(6)) for s in (1, 2)]
    text = data_card.text(data_card.make(make(splits, classes=tuple("uvwxyz"))))
    rows = [line.split("|")[1].strip() for line in text.splitlines() if "█" in line]
    assert rows == ["5 z", "3 x", "4 y", "2 w"]  # the three most frequent, and the least
    assert "2 classes between" in text


def test_the_mode_writes_the_card_and_its_pictures(tmp_path, capsys):
    main.run(["--mode=data", f"--config={ROOT}/configs/digits.py", f"--workdir={tmp_path / 'card'}"])
    out = capsys.readouterr().out
    written = (tmp_path / "card" / "data_card.md").read_text()
    assert out.startswith(written[:500]) and "![overview.png](overview.png)" in written
    for said in ("8×8×1", "1,437 train, 180 val, 180 test", "CC BY 4.0", "0.752: σ_data", "z_max 17.9", "None."):
        assert said in written
    assert len(list((tmp_path / "card" / "classes").glob("*.png"))) == 10
    assert Image.open(tmp_path / "card" / "overview.png").width > 500
    assert not (tmp_path / "card" / "shared.png").exists()


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch, clean):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda config: make(clean))
    assert "With a workdir" in data_card.write(config_lib.default())
    assert list(tmp_path.iterdir()) == []


def test_shared_images_are_drawn(tmp_path, clean):
    clean[1][0][2] = clean[0][0][6]
    assert "shared.png" in data_card.draw(data_card.make(make(clean)), tmp_path)
    assert (tmp_path / "shared.png").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        data_card.write(config_lib.default(), tmp_path / "file")


def test_labelled_rows_hold_text_and_images():
    white = plots.labelled_rows([("", np.zeros((0, 4, 4, 1), np.uint8)), ("", np.full((2, 4, 4, 1), 9, np.uint8))])
    pixels = np.asarray(white)
    assert (pixels == 9).all(axis=-1).sum() == 2 * 48 * 48  # two images of 4 px, enlarged 12 times, in grey
    assert (pixels[: pixels.shape[0] // 2] == 255).all()  # the empty row
    told = np.asarray(plots.labelled_rows([("a name", np.full((2, 4, 4, 1), 255, np.uint8))]))
    assert (told < 100).any()
