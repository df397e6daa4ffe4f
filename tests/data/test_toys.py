"""Points in the plane: the toys, their moments, the network for them, and a run from training to pictures."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_networks import random_params
from scipy.spatial.distance import pdist

import pfgm_jax
from configs import toy
from pfgm_jax import data, generator, models, plots
from pfgm_jax.data import diameter, moments, to_unit, toys
from pfgm_jax.errors import UserError
from pfgm_jax.evaluation import evaluate
from pfgm_jax.training import dry_run, loop


def load(name, size=1):
    return data.load(types.SimpleNamespace(name=name, size=size))


def histogram_distance(x, y):
    """Σ |p − q| over 16 × 16 fields of the plane, of points [n, 2] and [m, 2]: 0 to 2."""
    p, q = (np.histogram2d(*points.T, bins=16, range=[[-1, 1]] * 2)[0] / len(points) for points in (x, y))
    return np.abs(p - q).sum()


@pytest.mark.parametrize("name", toys.TOYS)
def test_toys(name):
    toy = load(name)
    assert [len(split) for split in (toy.train, toy.val, toy.test)] == [8000, 1000, 1000]
    points = np.concatenate([split.images for split in (toy.train, toy.val, toy.test)])
    assert points.dtype == np.float32 and points.shape == (10_000, 1, 1, 2)
    assert 0.8 < np.abs(points).max() <= 1 and len(np.unique(points, axis=0)) == len(points)
    np.testing.assert_array_equal(load(name).train.images, toy.train.images)
    counts = np.bincount(toy.train.labels, minlength=toy.num_classes)
    # Classes are equally likely: 5 standard deviations of a binomial count.
    assert np.abs(counts / 8000 - 1 / toy.num_classes).max() < 5 * np.sqrt(0.25 / 8000)
    with pytest.raises(UserError, match=f"{name} holds points, not images: write data.size=1"):
        load(name, size=28)


def test_where_the_points_of_a_toy_lie():
    def parts(name):
        toy = load(name)
        x = toy.train.images.reshape(-1, 2).astype(np.float64)
        return x, np.hypot(*x.T), toy.train.labels

    within = 5.5 * 0.02  # standard deviations of the noise
    x, radius, label = parts("rings")
    assert np.abs(radius - np.array([0.25, 0.55, 0.85])[label]).max() < within
    x, _, label = parts("moons")
    for side, sign in ((0, 1), (1, -1)):
        moon = sign * x[label == side] / 0.58 - [-0.5, -0.25]
        assert np.abs(np.hypot(*moon.T) - 1).max() < within / 0.58 and moon[:, 1].min() > -within / 0.58
    x, _, label = parts("gaussians")
    centres = np.stack([x[label == i].mean(axis=0) for i in range(8)])
    angles = np.arange(8) * np.pi / 4
    np.testing.assert_allclose(centres, 0.75 * np.stack([np.cos(angles), np.sin(angles)], 1), atol=5 * 0.04 / 30)
    x, _, _ = parts("checkerboard")
    row, column = np.floor(2 * (x[:, 1] + 1)), np.floor(2 * (x[:, 0] + 1))
    assert ((row + column) % 2 == 0).all()
    x, radius, _ = parts("swissroll")
    turns = np.arctan2(x[:, 1], x[:, 0]) / (2 * np.pi) - radius / (0.9 / 2.25)  # whole on the spiral
    # The noise moves the angle of the innermost points, at radius 0.3, by 0.015 / 0.3 / 2π.
    assert np.abs(turns - np.round(turns)).max() < 5.5 * (0.015 / 0.4 + 0.015 / 0.3 / (2 * np.pi))


# ---- floats beside bytes


def test_floats_keep_their_values_and_their_moments():
    points = load("moons").train.images[:300]
    np.testing.assert_array_equal(to_unit(points), points)
    np.testing.assert_array_equal(jax.jit(to_unit)(points), points)
    flat = points.reshape(300, 2).astype(np.float64)
    norms = np.linalg.norm(flat, axis=1)
    expected = (flat.mean(), flat.std(), norms.mean(), (norms**2).mean(), norms.max())
    np.testing.assert_allclose(moments(points), expected, rtol=1e-12)
    assert diameter(points) == pytest.approx(pdist(flat).max(), rel=1e-12)


@pytest.mark.parametrize("dtype, channels", [(np.float64, 2), (np.uint8, 2), (np.int32, 3)])
def test_splits_of_anything_else_are_refused(dtype, channels):
    with pytest.raises(ValueError, match="uint8 .* or float32"):
        data.Split(np.zeros((3, 1, 1, channels), dtype), np.zeros(3, np.int32))


# ---- the network


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 5, 1)])
def test_mlp_takes_any_shape_labels_and_dropout(shape):
    model = models.MLP(shape[-1] + 1, channels=16, blocks=2, embedding_channels=16, num_labels=4, dropout=0.3)
    x, noise = jax.random.normal(jax.random.key(0), (3, *shape)), jnp.full(3, 0.01)
    params, apply = random_params(model, x), jax.jit(model.apply)
    keys = jax.random.split(jax.random.key(0), 3)
    plain = apply(params, x, noise)
    assert plain.shape == (3, *shape[:2], shape[-1] + 1) and plain.dtype == jnp.float32

    def changed(labels=None, keys=None):
        return (np.abs(apply(params, x, noise, labels, keys) - plain).max(axis=(1, 2, 3)) > 1e-4).tolist()

    assert changed(labels=jnp.array([-1, 2, 3])) == [False, True, True]
    dropped = apply(params, x, noise, None, keys)
    assert changed(keys=keys) == [True] * 3
    np.testing.assert_allclose(apply(params, x[::-1], noise, None, keys[::-1])[::-1], dropped, rtol=0, atol=1e-5)


def test_mlp_is_linear_far_away_with_a_gain_by_noise_level():
    model = models.MLP(2, channels=16, blocks=1, embedding_channels=16, dropout=0.0)
    x, noise = jax.random.normal(jax.random.key(0), (2, 1, 1, 2)), jnp.array([-1.0, 0.3])
    params = random_params(model, x)
    far, farther = (model.apply(params, scale * x, noise) / scale for scale in (1e5, 1e6))
    np.testing.assert_allclose(far, farther, rtol=0.01, atol=1e-4)  # what is bounded vanishes like ln(scale)/scale
    gain = far / x
    np.testing.assert_allclose(gain[:, 0, 0, 0] * x[:, 0, 0, 0], far[:, 0, 0, 0])
    assert np.abs(gain[0] - gain[1]).min() > 1e-3


# ---- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("toy")
    config = toy.get_config("dataset=moons,quick")
    loop.train(config, workdir)
    return config, workdir


@pytest.mark.slow
def test_a_run_learns(run):
    config, workdir = run
    last = [record for record in loop.read_metrics(workdir) if "eval/val" in record][-1]
    # The distance to the exact posterior mean at seven noise levels, beside the data's std of 0.41, after 256 steps.
    errors = [value for key, value in last.items() if key.startswith("truth/")]
    assert len(errors) == 7 and max(errors) < 0.1


@pytest.mark.slow
def test_a_run_continues(run):
    config, workdir = run
    longer = config.copy_and_resolve_references()
    longer.train.images += config.train.batch * 8
    state = loop.train(longer, workdir)
    assert int(state.step) * config.train.batch == longer.train.images


def test_samples_are_points_and_pictures_show_them(run):
    _, workdir = run
    made = pfgm_jax.load(workdir)
    assert json.loads((workdir / "config.json").read_text())["derived"]["dtype"] == "float32"
    points, _ = made.sample(jax.random.key(0), 5)
    assert points.dtype == np.float32 and points.shape == (5, 1, 1, 2)
    assert generator.to_images({}, np.zeros(2, np.float32)).dtype == np.uint8  # runs from before there were points
    lines = evaluate.sample(workdir, {"sample.n": "30", "sample.solver": "heun", "sample.frames": "3"})
    with np.load(workdir / "samples/heun-n=30.npz") as file:
        assert file["images"].shape == (30, 1, 1, 2) and file["images"].dtype == np.float32
    with (
        Image.open(workdir / "samples/heun-n=30.png") as picture,
        Image.open(next(workdir.glob("samples/heun-frames=3,n=30.[gw]*"))) as film,
    ):
        assert picture.width > 1.5 * picture.height and film.n_frames == 3  # beside the training points
    assert "heun-frames=3,n=30." in lines and list(workdir.glob("samples/step_*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["D=2", "D=128", "process=edm", "process=pfgm"])
def test_samples_follow_the_law_of_the_data(arg, tmp_path):
    config = toy.get_config(arg)
    loop.train(config, tmp_path)
    points, _ = pfgm_jax.load(tmp_path).sample(jax.random.key(0), 2000)
    toys = load("swissroll")
    real = toys.train.images.reshape(-1, 2)
    held_out = np.concatenate([toys.val.images, toys.test.images]).reshape(-1, 2)
    floor = np.mean([histogram_distance(real[i : i + 2000], held_out) for i in range(0, 8000, 2000)])
    one_gaussian = np.random.default_rng(0).normal(real.mean(0), real.std(0), (2000, 2))
    assert histogram_distance(one_gaussian, held_out) > 5 * floor
    assert histogram_distance(points.reshape(-1, 2), held_out) < 2 * floor


def ink(picture):
    """Where a picture is blue, the colour of the points: centre of mass (x, y) in parts of its size."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    y, x = np.nonzero(pixels[..., 2] - pixels[..., 0] > 60)
    return x.mean() / pixels.shape[1], y.mean() / pixels.shape[0]


def test_a_point_is_drawn_where_it_is(tmp_path):
    corner = np.full((9, 1, 1, 2), [0.8, -0.8], np.float32)
    x, y = ink(plots.picture(corner))
    assert x > 0.75 and y > 0.75  # on the right, below
    # Axes grow with the noise: a point at 0.8 √(1 + σ²/σ_d²) stays at its place.
    scale = np.sqrt(1 + np.array([9.0, 0.0]) ** 2)
    path = plots.animate(corner * scale[:, None, None, None, None], np.array([9.0, 0.0]), 1.0, tmp_path / "a")
    with Image.open(path) as film:
        above_the_bar = (0, 0, film.width, film.height - 26)
        first, last = [ink(film.crop(above_the_bar)) for i in range(2) if film.seek(i) is None]
    np.testing.assert_allclose(first, last, atol=0.02)


def test_dry_run_and_every_process():
    assert "moons 1×1×2: 8000 train" in dry_run.dry_run(toy.get_config("dataset=moons,quick"))
    for name in ("pfgm", "edm", "ve", "vp", "subvp", "ddpm"):
        _, derived, task, _ = dry_run.prepare(toy.get_config(f"process={name}"))
        assert task.process.sigma_max == pytest.approx(derived["sigma_max"])
    # PFGM's prior at N = 2 is clipped where a tenth of it lies: P(R > kz) = 1/√(1 + k²).
    flow = dry_run.prepare(toy.get_config("process=pfgm"))[2].process
    assert 1 / np.hypot(1, flow.max_norm / flow.sigma_max) == pytest.approx(0.1, abs=0.01)
    turned = toy.get_config("dataset=rings,D=2")
    turned.train.flip = True
    with pytest.raises(UserError, match="rings holds points: train.augment and train.flip are for images"):
        dry_run.prepare(turned)
