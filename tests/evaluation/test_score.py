"""Figures of images: the right ones, against the right images, with their protocol; and what is refused."""

import json
import types

import numpy as np
import pytest
from PIL import Image

import pfgm_jax
from pfgm_jax import main
from pfgm_jax.data.dataset import Dataset, Split, to_unit
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import audit
from pfgm_jax.evaluation.score import LEAST, Measure, Pixels, extractor, number
from pfgm_jax.metrics import density_coverage, fid, inception, kid, precision_recall, references

SHAPE = (4, 4, 1)


def draw(rng, n, labels):
    """Images of two classes, dark and bright, with few values so that neighbours are near."""
    noise = rng.normal(0, 25, (n, *SHAPE))
    return np.clip(70 + 100 * labels.reshape(-1, 1, 1, 1) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def real():
    rng = np.random.default_rng(0)

    def split(n):
        labels = rng.integers(0, 2, n).astype(np.int32)
        return Split(draw(rng, n, labels), labels)

    return Dataset("made", split(300), split(0), split(90), ("dark", "bright"), "none", "made up")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PFGM_JAX_CACHE", str(tmp_path / "cache"))


def flat(images):
    return to_unit(images).reshape(len(images), -1).astype(np.float64)


def test_a_notebook_shows_the_tables(real):
    labels = np.arange(80) % 2
    found = pfgm_jax.audit(
        draw(np.random.default_rng(1), 80, labels), real, labels=labels, features="pixels", name="a<b"
    )
    shown = found._repr_html_()
    assert shown.count("<table>") == shown.count("</table>") == 3  # figures, classes, protocol
    assert "<th>samples (n = 80)</th>" in shown and "<td>dark</td>" in shown and "a&lt;b" in shown


def test_figures_are_those_of_the_metrics(real):
    rng = np.random.default_rng(1)
    labels = np.arange(80) % 2
    images = draw(rng, 80, labels)
    found = pfgm_jax.audit(images, real, labels=labels, features="pixels")
    theirs, own = flat(real.train.images), flat(images)
    figures = found.scores["samples"]
    assert figures["n"] == 80
    assert figures["fd"] == pytest.approx(fid(theirs, own), rel=1e-6)  # features are kept in float32
    assert figures["kd"] == pytest.approx(kid(theirs, own), rel=1e-5)
    assert (figures["precision"], figures["recall"]) == precision_recall(theirs, own, 3)
    assert (figures["density"], figures["coverage"]) == density_coverage(theirs, own, 5)
    for name, (low, high) in found.intervals.items():
        assert low < figures[name] < high
    assert list(found.by_class) == ["dark", "bright"]
    bright = flat(real.train.images[real.train.labels == 1])
    assert found.by_class["bright"]["n"] == 40
    assert found.by_class["bright"]["fd"] == pytest.approx(fid(bright, own[1::2]), rel=1e-6)
    assert found.by_class["bright"]["kd"] == pytest.approx(kid(bright, own[1::2]), rel=1e-5)


def test_real_images_reach_the_floor_and_noise_does_not(real):
    again = pfgm_jax.audit(real.train.images, real, features="pixels").scores
    floor = again["real, part of train"]
    assert list(again) == ["samples", "real, part of train", "real, test"]
    assert floor["n"] == 150 and again["real, test"]["n"] == 90
    assert again["samples"]["fd"] < 1e-6 < floor["fd"]  # the same images, but for rounding to float32
    fresh = pfgm_jax.audit(draw(np.random.default_rng(2), 90, np.arange(90) % 2), real, features="pixels").scores
    assert fresh["samples"]["fd"] < 2 * fresh["real, test"]["fd"]  # other images of one law
    noise = np.random.default_rng(3).integers(0, 256, (90, *SHAPE), dtype=np.uint8)
    bad = pfgm_jax.audit(noise, real, features="pixels").scores
    assert bad["samples"]["fd"] > 20 * bad["real, test"]["fd"]
    assert bad["samples"]["coverage"] < 0.2 < bad["real, test"]["coverage"]


def test_the_protocol_says_everything(real):
    found = pfgm_jax.audit(real.test.images, real, features="pixels")
    text = str(found)
    for words in ("pixels in [-1, 1], 16 features", "300 train images of made (made up)", "k = 3", "k = 5",
                  "20 random halves", "SHA-256", "90 images of images", "[", "n = 90"):  # fmt: skip
        assert words in text
    assert json.loads(json.dumps(found.record()))["protocol"] == found.protocol
    assert {"scores", "protocol", "intervals", "by_class"} == found.record().keys()
    assert extractor("pixels", real).fingerprint == Pixels.fingerprint


def test_the_inception_score_stands_beside_the_others_where_there_is_a_class_layer(real):
    class Classes(Pixels):
        def own(self, features):
            weights = {"output": {"kernel": np.random.default_rng(0).normal(size=(16, 7))}}
            return {"is": inception.inception_score(inception.logits(weights, features))[0]}

    measure = Measure(real, "train", Classes())
    found = measure(measure.features(real.test.images))
    assert 1 < found.scores["samples"]["is"] < 7 and "Inception score" in str(found) and "is" in found.intervals
    assert all("is" in row for row in found.scores.values())
    assert inception.Inception.own(types.SimpleNamespace(params={}), np.zeros((2, 16))) == {}


def test_another_split_has_no_test_images_beside_it(real):
    found = pfgm_jax.audit(real.train.images[:40], real, features="pixels", split="test")
    assert list(found.scores) == ["samples", "real, part of test"]
    assert "90 test images of made" in found.protocol["reference"]


def test_a_large_reference_says_what_is_of_a_part(real, monkeypatch):
    monkeypatch.setattr(references, "KEPT", 200)
    images = real.test.images
    found = pfgm_jax.audit(images, real, features="pixels")
    assert "Fréchet distance by all of them, the other figures by 200 at random" in found.protocol["reference"]
    assert found.scores["samples"]["fd"] == pytest.approx(fid(flat(real.train.images), flat(images)), rel=1e-6)
    part = flat(real.train.images[references.kept_indices(300)])
    assert found.scores["samples"]["kd"] == pytest.approx(kid(part, flat(images)), rel=1e-5)


def test_an_array_of_real_images_is_enough(real):
    found = pfgm_jax.audit(real.test.images, real.train.images, features="pixels")
    assert list(found.scores) == ["samples", "real, part of train"]


def test_files_are_read(real, tmp_path):
    images, labels = real.test.images, real.test.labels
    expected = pfgm_jax.audit(images, real, labels=labels, features="pixels").scores["samples"]
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    found = pfgm_jax.audit(tmp_path / "images.npz", real, features="pixels")
    assert found.scores["samples"] == expected and found.by_class
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "folder" / real.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    found = pfgm_jax.audit(str(tmp_path / "folder"), real, features="pixels")
    for name, value in expected.items():  # in another order
        assert found.scores["samples"][name] == pytest.approx(value, rel=1e-9)
    assert found.by_class["dark"]["n"] == np.sum(labels == 0)


def folder_of(tmp_path, image, n=LEAST):
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(n):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda at: np.zeros((40, 4, 4, 1), np.float32), "images are float32"),
        (
            lambda at: np.zeros((40, 5, 5, 1), np.uint8),
            r"uint8 \[40, 5, 5, 1\], but the real ones are uint8 \[n, 4, 4, 1\]",
        ),
        (lambda at: np.zeros((40, 4, 4, 3), np.uint8), r"\[40, 4, 4, 3\]"),
        (lambda at: np.zeros((11, 4, 4, 1), np.uint8), "11 images are too few"),
        (lambda at: at / "nowhere", "neither a folder of images nor an npz file"),
        (lambda at: at, "holds no images"),
        (lambda at: folder_of(at, np.zeros((6, 4), np.uint8)), r"0.png is 4×6 px, but the real images are 4×4"),
        (
            lambda at: folder_of(at, np.eye(4, dtype=np.uint8)[..., None] * np.array([9, 0, 0], np.uint8)),
            "0.png is in colour",
        ),
        (lambda at: np.savez(at / "a.npz", data=np.zeros(3)) or at / "a.npz", "name the array of images"),
        (lambda at: np.savez(at / "a.npz", images=np.zeros((20, 4, 4, 3), np.uint8)) or at / "a.npz", "3 channels"),
        (lambda at: (at / "a.npz").write_bytes(b"nothing") and at / "a.npz", "not an npz file"),
    ],
)
def test_images_that_cannot_be_measured(real, tmp_path, make, words):
    source = make(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        pfgm_jax.audit(source, real, features="pixels")
    assert "\n" not in str(caught.value)


def test_other_mistakes(real):
    images = real.test.images
    for options, words in (
        ({"features": "pixel"}, "not one of pixels, inception, inception64, domain; did you mean 'pixels'"),
        ({"features": "pixels", "split": "tset"}, "not one of train, val, test; did you mean 'test'"),
        ({"features": "pixels", "split": "val"}, "0 val images of made are too few"),
        ({"features": "pixels", "labels": np.zeros(3, int)}, "labels must be 90 whole numbers"),
    ):
        with pytest.raises(UserError, match=words):
            pfgm_jax.audit(images, real, **options)
    points = Split(np.zeros((40, 1, 1, 2), np.float32), np.zeros(40, np.int32))
    with pytest.raises(UserError, match="holds points"):  # and no weights are fetched for that
        pfgm_jax.audit(images, Dataset("toy", points, points, points, ("a",), "none", "made up"))


def test_numbers_keep_their_digits():
    told = {12.3456: "12.35", 0.5: "0.5", 0.001234: "0.00123", -0.00012: "-0.00012", 0.0: "0.00000"}
    assert {x: number(x) for x in told} == told


def test_stats_and_audit_on_the_command_line(tmp_path, capsys):
    from sklearn.datasets import load_digits

    config = "--config=configs/digits.py"
    main.run(["--mode=stats", config, "--config.evaluate.split=test"])
    out = capsys.readouterr().out
    (file,) = (tmp_path / "cache" / "reference").iterdir()
    assert "180 test images of digits 8×8×1" in out and str(file) in out
    digits = np.round(load_digits().images[:100] * (255 / 16)).astype(np.uint8)
    np.savez(tmp_path / "some.npz", images=digits)
    main.run(["--mode=audit", config, f"--source={tmp_path}/some.npz", f"--workdir={tmp_path}/run"])
    out = capsys.readouterr().out
    assert "Fréchet distance" in out and "real, test (n = 100)" in out
    (path,) = (tmp_path / "run" / "results").glob("audit-some-*[0-9a-f].json")
    assert json.loads(path.read_text())["scores"]["samples"]["n"] == 100 and "-copies" not in path.stem
    # Other images of the same name are other results; the same ones are the same.
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other" / "some.npz", images=digits[::-1])
    for source in ("some.npz", "other/some.npz"):
        main.run(["--mode=audit", config, f"--source={tmp_path}/{source}", f"--workdir={tmp_path}/run"])
    kept = {p.name for p in (tmp_path / "run" / "results").glob("audit-some-????????.json")}
    assert len(kept) == 2 and path.name in kept
    with pytest.raises(UserError, match="--mode=audit needs --source=PATH"):
        main.run(["--mode=audit", config])
    assert audit.read(tmp_path / "some.npz", audit._as_dataset(digits[..., None]))[1] is None
