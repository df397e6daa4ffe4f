"""Encoding, decoding and likelihoods of a Generator: the same bytes back, batches, labels, and what is refused."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_generator import make

import pfgm_jax
from pfgm_jax.errors import UserError
from pfgm_jax.inference import bits_per_dim, load_latents


@pytest.fixture(scope="module")
def generator():
    return make()


@pytest.fixture(scope="module")
def conditional():
    return make(conditional=True, label_dropout=0.1)


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)


@pytest.mark.parametrize("process", ["pfgmpp", "pfgm", "subvp"])
def test_reversible_gives_the_same_bytes(process):
    """At any number of steps, untrained, on eight devices, more images than a batch holds, and a part of them."""
    generator, x = make(process=process), images(150)  # a batch is 8 × 16
    for steps in (1, 12):
        z = generator.encode(x, solver="reversible", steps=steps, progress=False)
        assert z.states.shape == (150, 2, 8, 8, 1) and z.states.dtype == np.int32
        np.testing.assert_array_equal(generator.decode(z, progress=False), x)
        np.testing.assert_array_equal(generator.decode(z[[149, 3, 77]], progress=False), x[[149, 3, 77]])


def test_a_latent_that_is_changed_gives_another_image(generator):
    """The bytes come back through the network, not around it."""
    z = generator.encode(images(4), solver="reversible", steps=6, progress=False)
    assert np.mean(generator.decode(z.scaled(1.01), progress=False) != images(4)) > 0.5


SCRIPT = """
import jax, numpy as np, pfgm_jax
generator = pfgm_jax.load("pretrained:digits")
images = pfgm_jax.load_data(generator.config.data).test.images[:20]
latents = generator.encode(images, solver="reversible", steps=1000, progress=False)
assert np.array_equal(generator.decode(latents, progress=False), images)
print(jax.device_count(), "devices, the same bytes")
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_a_thousand_steps_of_a_trained_network(devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(pathlib.Path(pfgm_jax.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert f"{devices} devices, the same bytes" in ran.stdout, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("process", ["pfgmpp", "ddpm"])
def test_a_trained_network_of_28_pixels_gives_the_same_bytes(process):
    """Whatever the images: cells or, as here, random bytes; one device's batch of 16 takes minutes at more steps."""
    weights = pathlib.Path(__file__).parents[2] / "benchmarks" / "weights" / f"bloodmnist_28_{process}"
    generator = pfgm_jax.load(weights)
    x = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    z = generator.encode(x, labels=3, solver="reversible", steps=12, progress=False)
    np.testing.assert_array_equal(generator.decode(z, progress=False), x)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "most"), [("rk45", 0.2), ("heun", 2.0), ("dpmpp_3m", 4.0), ("reversible", 0.0)])
def test_round_trip_of_trained_digits(solver, most):
    """Grey levels, rms, at the defaults; measured 0.04, 1.2, 0.4 and 0."""
    generator = pfgm_jax.load("pretrained:digits")
    x = pfgm_jax.load_data(generator.config.data).test.images[:24]
    back = generator.decode(generator.encode(x, solver=solver, progress=False), progress=False)
    assert np.sqrt(np.mean(np.square(back.astype(float) - x))) <= most


def test_latents_are_kept_in_files(generator, tmp_path):
    z = generator.encode(images(3), solver="reversible", steps=4, progress=False)
    z.save(tmp_path / "z.npz")
    np.testing.assert_array_equal(generator.decode(load_latents(tmp_path / "z.npz"), progress=False), images(3))


def test_floats_bytes_and_labels(generator, conditional):
    from pfgm_jax.data import to_unit

    x = images(2)
    of_bytes, of_floats = (generator.encode(a, solver="heun", steps=6, progress=False).z for a in (x, to_unit(x)))
    np.testing.assert_array_equal(of_bytes, of_floats)
    none, three = (conditional.encode(x, labels, "heun", steps=6, progress=False) for labels in (None, 3))
    np.testing.assert_array_equal(none.labels, [-1, -1])
    np.testing.assert_array_equal(three.labels, [3, 3])
    assert np.abs(none.z - three.z).max() > 1e-3  # the network is given the class on the way up


def test_interpolate_and_temperature(generator):
    z = generator.encode(images(2), solver="heun", steps=12, progress=False)
    way = generator.interpolate(z[0], z[1], 4, progress=False)
    assert way.shape == (4, 8, 8, 1)
    ends = generator.decode(z, progress=False)
    assert np.abs(way[[0, -1]].astype(int) - ends).max() <= 1
    same = generator.temperature(z, 1.0, progress=False)
    assert np.abs(same.astype(int) - ends).max() <= 1


def test_log_likelihood(generator):
    """Per-image values do not depend on the batch beyond the shared step size's tolerance, and noise costs 8 bits."""
    key, x = jax.random.key(1), images(9)
    whole = generator.log_likelihood(x, key, vectors=4, rtol=1e-3, atol=1e-3, progress=False)
    assert whole.log_prob.shape == whole.error.shape == (9,) and whole.latents.shape == (9, 8, 8, 1)
    assert np.all(whole.error > 0) and np.all(np.isfinite(bits_per_dim(whole.log_prob, 64)))
    parts = generator.with_overrides({"sample.batch": 8}).log_likelihood(
        x, key, vectors=4, rtol=1e-3, atol=1e-3, progress=False
    )
    # Tolerances of 1e-3 over ln(σ_max/σ_min) = 9 and 64 dimensions: about half a nat.
    np.testing.assert_allclose(parts.log_prob, whole.log_prob, atol=1.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g: g.encode(images(2)[:, :7]), r"images must be \[n, 8, 8, 1\], got \[2, 7, 8, 1\]"),
        (lambda g: g.encode(images(2)[0]), "no batch axis"),
        (lambda g: g.encode(images(2).astype(np.int32)), "uint8, or floats"),
        (lambda g: g.encode(np.full((1, 8, 8, 1), np.nan, np.float32)), "must be finite"),
        (lambda g: g.encode(images(2), labels=3), "trained without labels"),
        (lambda g: g.encode(images(2), solver="ancestral"), "cannot run backwards"),
        (lambda g: g.encode(images(2), solver="reversable"), "did you mean .*reversible"),
        (lambda g: g.encode(images(2), solver="heun", S_churn=1.0), "draws noise"),
        (lambda g: g.encode(images(2), solver="reversible", rtol=1e-3), "no option 'rtol'"),
        (lambda g: g.encode(images(2), solver="reversible", steps=0), "steps"),
        (lambda g: g.decode(np.zeros((2, 8, 8, 1), np.float32)), "takes the Latents"),
        (lambda g: g.log_likelihood(images(2), sigma_min=1e-5), "range of noise"),
        (lambda g: g.log_likelihood(images(2), sigma_min=1e5), "range of noise"),
        (lambda g: g.log_likelihood(images(2), key=3), "key must be a PRNG key"),
    ],
)
def test_refusals(generator, call, words):
    with pytest.raises(UserError, match=words) as caught:
        call(generator)
    assert "\n" not in str(caught.value)


def test_latents_of_other_weights(generator):
    z = make(seed=1).encode(images(1), solver="heun", steps=3, progress=False)
    with pytest.raises(UserError, match="other weights"):
        generator.decode(z)
