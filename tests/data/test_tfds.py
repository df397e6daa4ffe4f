"""TensorFlow Datasets: names and folders, and sets prepared in the tests, in the real format, without TensorFlow."""

import io
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from pfgm_jax import data
from pfgm_jax.data import tfds
from pfgm_jax.errors import UserError


def config(name, folder, **fields):
    defaults = dict(size=8, channels=0, val=0.2, test=0.1, split_seed=0)
    return types.SimpleNamespace(name=name, dir=str(folder), **(defaults | fields))


@pytest.fixture
def prepared(tmp_path):
    """A data_dir with the folders of prepared sets, and nothing in their files."""
    for version in (
        "one/1.9.0",
        "one/1.10.0",
        "one/incomplete.1.11.0",
        "many/a/1.0.0",
        "many/b/1.0.0",
        "single/x/2.0.0",
    ):
        (tmp_path / version).mkdir(parents=True)
        (tmp_path / version / "dataset_info.json").touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "name, folder",
    [("one", "one/1.10.0"), ("one:1.9.0", "one/1.9.0"), ("many/b", "many/b/1.0.0"), ("single", "single/x/2.0.0"),
     ("single/x:2.0.0", "single/x/2.0.0")],
)  # fmt: skip
def test_the_folder_of_a_set(prepared, name, folder):
    assert tfds._find(config(f"tfds:{name}", prepared)) == prepared / folder


@pytest.mark.parametrize(
    "name, message",
    [
        ("onne", "tfds:onne is not prepared in .* tfds build onne --data_dir=.*array_record.*did you mean 'one'"),
        ("one:3.0.0", r"tfds:one:3.0.0: prepared in .*one is version 1.9.0, 1.10.0"),
        ("many", "tfds:many is not one prepared set: write one of tfds:many/a, tfds:many/b"),
        ("many/aa", "many has no config aa; .*tfds build many/aa.*did you mean 'a'"),
        ("empty", "tfds:empty is not one prepared set: prepare it, .*tfds build empty"),
        ("../etc", "is not tfds:NAME"),
        ("", "is not tfds:NAME"),
    ],
)
def test_sets_that_are_not_there(prepared, name, message):
    with pytest.raises(UserError, match=message) as caught:
        data.load(config(f"tfds:{name}", prepared))
    assert "\n" not in str(caught.value)


def test_a_data_dir_that_is_no_folder(tmp_path):
    with pytest.raises(UserError, match="absent is not a folder: give TensorFlow Datasets' data_dir"):
        data.load(config("tfds:mnist", tmp_path / "absent"))


def test_missing_packages_and_foreign_features(prepared, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow_datasets", None)  # as if it were not installed
        patch.setitem(sys.modules, "array_record", types.ModuleType("array_record"))
        with pytest.raises(UserError, match="pip install tensorflow-datasets importlib_resources array_record"):
            data.load(config("tfds:one", prepared))
    # tfds would import the module that a features.json names.
    opened = types.SimpleNamespace(builder_from_directory=lambda folder: pytest.fail("opened"))
    monkeypatch.setattr(tfds, "_import", lambda: opened)
    (prepared / "one/1.10.0/features.json").write_text(
        json.dumps({"featuresDict": {"features": {"image": {"pythonClassName": "antigravity.Image"}}}})
    )
    with pytest.raises(UserError, match="that tfds does not define: antigravity.Image"):
        data.load(config("tfds:one", prepared))
    (prepared / "one/1.10.0/features.json").write_text(
        json.dumps({"pythonClassName": "tensorflow_datasets.core.features.video_feature.Video"})
    )
    with pytest.raises(UserError, match="1.10.0 has videos, and images are needed"):
        data.load(config("tfds:one", prepared))


# ---- a real set; slow for its import, and because the packages (235 MB) are not among those of the tests


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """(package, function that prepares a set of pictures): PNG bytes, array_record, no TensorFlow."""
    library = pytest.importorskip("tensorflow_datasets", reason="pip install -e '.[tfds]' to test it")
    pytest.importorskip("array_record", reason="pip install -e '.[tfds]' to test it")
    root = tmp_path_factory.mktemp("tfds")

    def prepare(name, features, splits):
        """splits: {name: list of examples}."""

        class Pictures(library.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = library.core.Version("1.0.0")

            def _info(self):
                return library.core.DatasetInfo(builder=self, features=library.features.FeaturesDict(features))

            def _split_generators(self, manager):
                return {split: self._generate_examples(examples) for split, examples in splits.items()}

            def _generate_examples(self, examples):
                yield from enumerate(examples)

        Pictures.name = name
        Pictures(data_dir=root, file_format="array_record").download_and_prepare()
        return root

    return library, prepare


def pictures(n, height=12, width=16, seed=0):
    """[n, height, width, 3]; the first pixel of the central square says which picture it is."""
    images = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    images[:, 0, (width - height) // 2, 0] = np.arange(n)
    return images


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.slow
def test_a_prepared_set(real, monkeypatch):
    library, prepare = real
    images = pictures(50)
    features = {
        "image": library.features.Image(shape=(None, None, 3)),
        "label": library.features.ClassLabel(names=["red", "blue"]),
    }
    examples = [{"image": png(image), "label": i % 2} for i, image in enumerate(images)]
    folder = prepare("pictures", features, {"train": examples[:40], "test": examples[40:]})

    def check(loaded):
        assert loaded.shape == (12, 12, 3) and loaded.classes == ("red", "blue")
        assert [len(split) for split in (loaded.train, loaded.val, loaded.test)] == [32, 8, 10]
        seen = []
        for split in (loaded.train, loaded.val, loaded.test):
            which = np.asarray(split.images)[:, 0, 0, 0].astype(int)
            np.testing.assert_array_equal(split.images, images[which, :, 2:14])  # the central square, as it is
            np.testing.assert_array_equal(split.labels, which % 2)
            seen += [set(which)]
        assert seen[2] == set(range(40, 50)) and seen[0] | seen[1] == set(range(40))
        return loaded

    whole = check(data.load(config("tfds:pictures", folder, size=12)))
    assert isinstance(whole.train.images, np.ndarray) and "tensorflow" not in sys.modules
    monkeypatch.setattr("pfgm_jax.data.images.HOST_BYTES", 100)
    lazy = check(data.load(config("tfds:pictures:1.0.0", folder, size=12)))
    assert isinstance(lazy.train.images, data.LazyImages)
    np.testing.assert_array_equal(lazy.train.images[[5, 2]], whole.train.images[[5, 2]])
    small = data.load(config("tfds:pictures", folder, size=6, channels=1))
    assert small.shape == (6, 6, 1)


@pytest.mark.slow
def test_published_crops_and_sets_without_labels(real):
    library, prepare = real
    images = pictures(10, height=218, width=178)
    features = {"image": library.features.Image(shape=(218, 178, 3)), "smile": library.features.Scalar(np.bool_)}
    examples = [{"image": png(image), "smile": True} for image in images]
    folder = prepare("celeb_a", features, {"train": examples, "validation": examples[:2], "test": examples[:3]})
    faces = data.load(config("tfds:celeb_a", folder, size=140))
    assert [len(split) for split in (faces.train, faces.val, faces.test)] == [10, 2, 3] and faces.num_classes == 1
    # The central 140 px: rows 39 to 179, columns 19 to 159.
    expected = {image[39:179, 19:159].tobytes() for image in images}
    assert {image.tobytes() for image in faces.train.images} == expected


@pytest.mark.slow
def test_sets_that_are_no_images_with_a_label(real):
    library, prepare = real
    image, label = library.features.Image(shape=(None, None, 3)), library.features.ClassLabel(num_classes=2)
    example = {"image": png(pictures(1)[0]), "label": 1}
    videos = library.features.FeaturesDict({"film": library.features.Sequence(image)})
    with pytest.raises(UserError, match="no feature that is an image .* it has film: Sequence"):
        tfds._features(videos, "tfds:videos")
    folder = prepare(
        "hidden", {"image": image, "label": label}, {"train": [example] * 9, "test": [example | {"label": -1}] * 5}
    )
    hidden = data.load(config("tfds:hidden", folder))
    assert len(hidden.train) + len(hidden.val) + len(hidden.test) == 9  # the unlabelled test images are not used
    prepare("wrong", {"image": image, "label": label}, {"train": [example, example | {"label": -1}]})
    with pytest.raises(UserError, match="train labels from -1 to 1, not 0 to 1"):
        data.load(config("tfds:wrong", folder))
    prepare("only_test", {"image": image}, {"test": [{"image": example["image"]}]})
    with pytest.raises(UserError, match="no split called train, only test"):
        data.load(config("tfds:only_test", folder))
    shard = next((folder / "hidden").rglob("*train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(UserError, match="hidden.* cannot be read .* prepare it again"):
        data.load(config("tfds:hidden", folder))
