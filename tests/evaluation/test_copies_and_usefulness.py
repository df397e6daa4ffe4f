"""Copies and usefulness, as a person is told of them."""

import json

import numpy as np
import pytest

from pfgm_jax import data
from pfgm_jax.config import default
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import copies_and_usefulness, score
from pfgm_jax.evaluation.copies_and_usefulness import Destination


@pytest.fixture(scope="module")
def digits():
    return data.load(default().data)


def test_planted_copies_are_told(digits, tmp_path):
    stem = tmp_path / "run"
    planted = digits.val.images.copy()
    planted[:18] = digits.train.images[:18]
    # Of the held-out images only the test split is fresh then.
    real = data.Dataset(**{**vars(digits), "val": data.dataset.empty_split(digits.shape)})
    lines = copies_and_usefulness.copies(real, planted, Destination(stem, "planted"))
    record = json.loads((tmp_path / "run-copies.json").read_text())
    scores = record["scores"]["samples"]
    # Below the nearest of 180 held-out images, 18 or more of 180 fresh ones lie with a chance of about 2^-18 = 4e-6.
    assert scores["identical"] == 18 and scores["share"] >= 0.1 and scores["chance"] < 1e-5
    assert record["protocol"]["samples"] == "planted" and "18 equal a training image" in "\n".join(lines)
    assert (tmp_path / "run-copies.png").stat().st_size > 10_000
    fresh = copies_and_usefulness.copies(real, digits.val.images)
    assert "; 0 equal a training image" in "\n".join(fresh) and len(list(tmp_path.iterdir())) == 2


def test_few_held_out_images_say_nothing_of_copies(digits):
    none = data.dataset.empty_split(digits.shape)
    alone = data.Dataset(**{**vars(digits), "val": none, "test": none})
    assert copies_and_usefulness.copies(alone, digits.val.images) == [
        "copies     not looked for: 0 held-out images of digits are fewer than 50"
    ]


def test_held_out_images_that_are_training_images_say_nothing_of_copies(digits, tmp_path):
    copied = data.Split(digits.train.images[:60], digits.train.labels[:60])
    alike = data.Dataset(**{**vars(digits), "val": copied, "test": copied})
    assert copies_and_usefulness.copies(alike, digits.val.images, Destination(tmp_path / "run")) == [
        "copies     not looked for: of digits, 0 held-out images that equal no training image are fewer than 50"
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_usefulness_is_told_and_kept(digits, tmp_path):
    some = lambda split, n: data.Split(split.images[:n], split.labels[:n])
    small = data.Dataset(**{**vars(digits), "train": some(digits.train, 300)})
    images, labels = digits.train.images[300:500], digits.train.labels[300:500]
    to = Destination(tmp_path / "run", "the other digits")
    lines = copies_and_usefulness.use(small, images, labels, to, seeds=2, steps=25)
    record = json.loads((tmp_path / "run-usefulness-2.json").read_text())
    assert {"real", "synthetic", "filled", "repeated"} <= record["scores"].keys()
    assert 0 <= record["scores"]["real"]["accuracy"]["mean"] <= 1 and "recall of 9" in record["scores"]["filled"]
    assert record["protocol"]["samples"] == "the other digits" and "trained on" in "\n".join(lines)


@pytest.mark.parametrize("labels, seeds, words", [(None, 3, "model.conditional=True"), ([0] * 12, 1, "2 or more")])
def test_usefulness_that_cannot_be(digits, labels, seeds, words):
    with pytest.raises(UserError, match=words):
        copies_and_usefulness.use(digits, digits.val.images[:12], labels, seeds=seeds)


@pytest.mark.slow
def test_features_of_the_domain_are_measured_as_others(digits, monkeypatch):
    from pfgm_jax.metrics import classifier

    quick = classifier.classifier
    monkeypatch.setattr(classifier, "classifier", lambda dataset: quick(dataset, steps=25))
    found = score.measure_against(digits, "train", "domain")
    measured = found(found.features(digits.val.images))
    assert {"fd", "kd", "precision"} <= measured.scores["samples"].keys()
    assert np.isfinite(measured.scores["samples"]["fd"])
    assert "test accuracy" in measured.protocol["features"] and "128 features" in measured.protocol["features"]
