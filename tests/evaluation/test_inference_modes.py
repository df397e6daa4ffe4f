"""--mode=likelihood and --mode=interpolate from the command line, on the weights that come with the package."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import pfgm_jax
from pfgm_jax import stored_run
from pfgm_jax.config import default
from pfgm_jax.evaluation import likelihood


@pytest.fixture
def run(tmp_path):
    shutil.copytree(stored_run.PRETRAINED / "digits", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_likelihood(command, run):
    code, out, _ = command(
        "--mode=likelihood", f"--workdir={run}", "--config.likelihood.n=32", "--config.likelihood.rtol=1e-3",
        "--config.likelihood.atol=1e-3", "--config.likelihood.vectors=2",
    )  # fmt: skip
    assert code == 0
    for name in (
        "training",
        "held out",
        "blurred",
        "noise",
        "AUC bits − PNG",
        "smoothed to σ = 0.002",
        "trace vectors: 2",
    ):
        assert name in out
    (record,) = (json.loads(path.read_text()) for path in run.glob("results/likelihood-*.json"))
    bits = {name: figures["bits per dimension"] for name, figures in record["figures"].items()}
    # Held-out digits are like training ones; uniform noise costs 8 bits by the best code, and far more by this one.
    assert bits["training"] < bits["held out"] < 8 < bits["noise"]
    assert record["figures"]["noise"]["areas"]["bits"]["value"] > 0.99
    (values,) = (np.load(path) for path in run.glob("results/likelihood-*.npz"))
    assert values["held out bits"].shape == (32,)
    (picture,) = run.glob("results/likelihood-*.png")
    assert Image.open(picture).size[0] > 500


@pytest.mark.slow
def test_interpolate(command, run):
    code, out, _ = command(
        "--mode=interpolate", f"--workdir={run}", "--config.latents.n=3", "--config.latents.points=5",
        "--config.latents.solver=reversible", "--config.latents.steps=20",
    )  # fmt: skip
    assert code == 0 and "the same bytes" in out
    for name in ("interpolation", "temperature", "classes"):
        (path,) = run.glob(f"samples/{name}-*.png")
        assert np.asarray(Image.open(path)).std() > 20
    (film,) = run.glob("samples/interpolation-*.gif")
    assert Image.open(film).n_frames == 8  # five points, and back through three


def test_all_images_of_a_folder_are_compared_with(tmp_path):
    g = pfgm_jax.load("pretrained:digits")
    for i in range(9):
        Image.new("L", (8, 8), 20 * i).save(tmp_path / f"{i}.png")
    against = likelihood.compared(g.with_overrides({"likelihood.against": str(tmp_path)}))[str(tmp_path)]
    assert sorted(against.mean(axis=(1, 2, 3))) == [20 * i for i in range(9)]


def test_images_of_more_bits_are_compared_with_by_the_run_s_window(tmp_path):
    rng = np.random.default_rng(0)
    for name, top in (("own", 1000), ("other", 4000)):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, top, (16, 16), dtype=np.uint16)).save(tmp_path / name / f"{i}.png")
    config = default().data
    config.update(name="folder", dir=str(tmp_path / "own"), size=16, window="auto")
    dataset = pfgm_jax.load_data(config)
    other = likelihood._other(str(tmp_path / "other"), config, dataset)
    assert dataset.window[1] < 1000 and 0.7 < (other.images == 255).mean() < 0.8  # three of four values are above it


@pytest.mark.parametrize("own", [{"name": "npz", "dir": "/mine.npz"}, {"name": "folder", "dir": "/mine", "group": "p"}])
def test_a_set_by_name_is_compared_with_whatever_the_run_s_own_images_are(own):
    config = default().data
    config.update(own)
    digits = pfgm_jax.load_data(default().data)
    np.testing.assert_array_equal(likelihood._other("digits", config, digits).images, digits.test.images)


@pytest.mark.parametrize(
    ("mode", "override", "words"),
    [
        ("likelihood", "likelihood.n=1", "at least 2"),
        ("likelihood", "likelihood.sigma_min=-1", "greater than 0"),
        ("likelihood", "likelihood.against=retinamnst", "likelihood.against=retinamnst cannot be read"),
        ("likelihood", "latents.n=2", "takes overrides of"),
        ("interpolate", "latents.path=bent", "one of slerp, straight"),
        ("interpolate", "latents.solver=ancestral", "one of rk45"),
        ("interpolate", "latents.n=2000", "pairs need"),
    ],
)
def test_refusals(command, run, mode, override, words):
    code, _, err = command(f"--mode={mode}", f"--workdir={run}", f"--config.{override}")
    assert code == 2 and words in err and len(err.splitlines()) == 1
