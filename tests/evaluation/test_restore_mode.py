"""--mode=restore from the command line, on the weights that come with the package."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from test_generator import make

from pfgm_jax import data, stored_run
from pfgm_jax import run as run_lib
from pfgm_jax.config import default
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import restoration
from pfgm_jax.generator import Generator


@pytest.fixture
def run(tmp_path):
    shutil.copytree(stored_run.PRETRAINED / "digits", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def digits():
    return data.load(default().data).test.images[:3]


@pytest.fixture
def folder(tmp_path, digits):
    (tmp_path / "clean").mkdir()
    for i, image in enumerate(digits):
        Image.fromarray(image[..., 0]).save(tmp_path / "clean" / f"digit {i}.png")
    return tmp_path / "clean"


FEW = ("--config.restore.n=3", "--config.restore.steps=3", "--config.restore.resample=1")


def test_restore_and_go_on(command, run, folder, digits):
    arguments = ("--mode=restore", f"--workdir={run}", f"--source={folder}", "--config.restore.simulate=True", *FEW)
    code, out, err = command(*arguments)
    assert code == 0, err
    assert "3 images restored: inpaint by repaint" in out and "calibrated draws hold 50.0%" in out and "PSNR" in out
    (place,) = run.glob("restored/inpaint-*")
    assert sorted(path.name for path in place.glob("digit*"))[:3] == ["digit 0-std.png", "digit 0.npz", "digit 0.png"]
    stored = np.load(place / "digit 1.npz")
    assert stored["draws"].shape == (3, 8, 8, 1)
    seen = np.ones((8, 8), bool)
    seen[2:6, 2:6] = False
    image, std = (np.asarray(Image.open(place / f"digit 1{end}.png")) for end in ("", "-std"))
    np.testing.assert_array_equal(image[seen], digits[1, ..., 0][seen])
    assert (std[seen] == 0).all() and (std[~seen] > 0).any()
    assert Image.open(place / "sheet.png").size[0] > 100
    figures = json.loads((place / "figures.json").read_text())["figures"]
    assert figures["psnr"] > 5 and 0 < figures["ssim"] <= 1 and figures["expected"] == 0.5

    # Stopped and begun again: only the missing image is made, and is the same.
    before = (place / "digit 0.npz").stat().st_mtime_ns
    (place / "digit 2.npz").unlink()
    code, again, _ = command(*arguments)
    assert code == 0 and again == out and (place / "digit 2.npz").exists()
    assert json.loads((place / "figures.json").read_text())["figures"] == figures
    assert (place / "digit 0.npz").stat().st_mtime_ns >= before


@pytest.mark.slow
def test_measured_floats(command, run, tmp_path, digits):
    noisy = digits / 127.5 - 1 + np.random.default_rng(0).normal(0, 0.5, digits.shape)
    np.savez(tmp_path / "noisy.npz", images=noisy)
    code, out, err = command(
        "--mode=restore", f"--workdir={run}", f"--source={tmp_path / 'noisy.npz'}", "--config.restore.task=denoise",
        "--config.restore.n=2", "--config.restore.steps=2",
    )  # fmt: skip
    assert code == 0 and "(estimated)" in out and "PSNR" not in out, err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("restore.task=inpant",), "did you mean 'inpaint'"),
        (("restore.task=superres",), "8×8 px, but this task takes 4×4"),
        (("restore.mask=nowhere.png",), "restore.mask=nowhere.png is neither one of centre"),
        (("restore.task=denoise", "restore.simulate=True"), "--config.restore.level=0.3"),
        (("restore.label=3",), "leave restore.label out"),
        (("restore.method=pigdm",), "needs the score, which only D = inf has"),
        (("sample.n=3",), "takes overrides of restore.*"),
        (("restore.n=0",), "at least 1"),
        (("restore.task=denoise", "restore.mask=right"), "restore.mask=right is for --config.restore.task=inpaint"),
        (("restore.factor=2",), "--config.restore.factor=2 is for --config.restore.task=superres, not for inpaint"),
    ],
)
def test_refusals(command, run, folder, overrides, words):
    given = [f"--config.{override}" for override in overrides]
    code, _, err = command("--mode=restore", f"--workdir={run}", f"--source={folder}", *given)
    assert code == 2 and words in err and len(err.splitlines()) == 1, err
    assert not (run / "restored").exists()


def test_no_images(command, run, tmp_path):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK and no more")
    for name, words in (("empty", "holds no images"), ("other.npz", "name the array"), ("broken.npz", "cannot be read"),
                        ("gone", "does not exist")):  # fmt: skip
        code, _, err = command("--mode=restore", f"--workdir={run}", f"--source={tmp_path / name}")
        assert code == 2 and words in err and len(err.splitlines()) == 1, err


def test_another_mask_of_the_same_name_is_another_restoration(run, folder, tmp_path):
    mask = np.full((8, 8), 255, np.uint8)
    mask[:4] = 0
    settings = {"restore.simulate": True, "restore.n": 2, "restore.steps": 2, "restore.resample": 1,
                "restore.mask": str(tmp_path / "mask.png")}  # fmt: skip
    for picture in (mask, 255 - mask):
        Image.fromarray(picture).save(tmp_path / "mask.png")
        restoration.restore(run, str(folder), settings)
    assert len(list(run.glob("restored/inpaint-*"))) == 2


def test_images_of_more_bits_are_read_by_the_run_s_window(tmp_path, digits):
    Image.fromarray(digits[0, ..., 0].astype(np.uint16) * 16).save(tmp_path / "deep.png")
    read = restoration.read(str(tmp_path), (8, 8, 1), (0, 4080)).images[0]
    np.testing.assert_allclose(read, digits[0], atol=1)


def test_the_sheet_shows_a_truth_of_floats_as_of_bytes(digits):
    unit = data.to_unit(digits)
    results = {"draws": np.stack([unit] * 3, axis=1), "mean": unit, "std": 0 * unit}
    a, b = (restoration.sheet(unit, results, truth, None, (8, 8, 1)) for truth in (digits, unit))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("names", [["a-std", "a", "sheet"], ["a-1", "a", "a"], ["a", "a-std"]])
def test_no_two_images_share_a_file(names):
    apart = restoration._apart(names)
    files = ["sheet.png", *(f"{name}{end}" for name in apart for end in (".png", ".npz", "-std.png"))]
    assert len(set(files)) == len(files) and len(apart) == len(names)
    assert restoration._apart(["a", "b"]) == ["a", "b"]


def test_many_images_need_few_open_files(tmp_path):
    np.savez(tmp_path / "a.npz", draws=0, mean=0, std=0, level=0)
    before = len(os.listdir("/proc/self/fd"))
    kept = [restoration._stored(tmp_path / "a.npz") for _ in range(20)]
    assert len(kept) == 20 and len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_network_that_always_saw_a_class_needs_one():
    with pytest.raises(UserError, match="needs a label: set restore.label=NAME"):
        restoration._label(make(conditional=True), "")
    assert restoration._label(make(conditional=True, label_dropout=0.1), "") is None
    assert restoration._label(make(conditional=True), "3") == 3
    for text in ("balanced", "real", "3,5"):
        with pytest.raises(UserError, match=f"restore.label={text} is not one class"):
            restoration._label(make(conditional=True), text)


def test_imported_weights_restore():
    """They know the standard deviation that they were trained with, and not the data's own."""
    own = make(False)
    derived = {name: value for name, value in own.derived.items() if name != "std"}
    imported = Generator(run_lib.make_run(own.config, derived), own.params, 0, "")
    x = np.zeros((1, 8, 8, 1), np.float32)
    assert imported.restore(x, "denoise", n=2, level=0.3, steps=2).mean.shape == x.shape
