"""`Generator.restore`: shapes, keys, batches, noiseless pixels, the estimated level, and what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_generator import make

from pfgm_jax.data import to_uint8
from pfgm_jax.errors import UserError
from pfgm_jax.inference import restoration
from pfgm_jax.inference.restoration import Operator, operators

KEY, QUIET = jax.random.key(0), {"progress": False}
HALF = np.arange(8)[:, None] * np.ones(8) < 4  # the upper half is observed


@pytest.fixture(scope="module")
def generator():
    return make()


@pytest.fixture(scope="module")
def gaussian():
    return make(process="edm")


def images(n, shape=(8, 8, 1)):
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def test_noiseless_pixels_are_unchanged_to_the_byte(generator):
    x, how = images(3), {"steps": 4, "resample": 2, **QUIET}
    result = generator.restore(x, "inpaint", 4, KEY, mask=HALF, **how)
    draws = to_uint8(result.draws)
    assert draws.shape == (4, 3, 8, 8, 1) and result.mean.shape == result.std.shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(draws[:, :, :4], np.broadcast_to(x[:, :4], (4, 3, 4, 8, 1)))
    assert np.mean(draws[:, :, 4:] != x[:, 4:]) > 0.9 and result.std[:, 4:].min() > 0 == result.std[:, :4].max()
    # What is not observed is not read.
    hidden = np.where(HALF[..., None], x, 255 - x)
    again = generator.restore(hidden, "inpaint", 4, KEY, mask=HALF, **how)
    np.testing.assert_array_equal(result.draws, again.draws)
    np.testing.assert_allclose(result.mean, result.draws.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(result.std, result.draws.std(axis=0, ddof=1), atol=1e-6)
    masks = np.stack([HALF, ~HALF, HALF])[..., None]  # one for each image
    draws = to_uint8(generator.restore(x, "inpaint", 4, KEY, mask=masks, **how).draws)
    np.testing.assert_array_equal(draws[:, masks], np.broadcast_to(x[masks], (4, masks.sum())))


def test_a_draw_is_of_its_key_its_image_and_its_number(generator):
    x = images(5)
    few = generator.restore(x[:2], "denoise", 2, KEY, level=0.5, steps=3, **QUIET).draws
    more = (
        generator.with_overrides({"sample.batch": 8}).restore(x, "denoise", 3, KEY, level=0.5, steps=3, **QUIET).draws
    )
    np.testing.assert_allclose(few, more[:2, :2], atol=1e-4)  # float32 round-off of another batch shape
    other = generator.restore(x[:2], "denoise", 2, jax.random.key(1), level=0.5, steps=3, **QUIET).draws
    assert np.abs(few - other).mean() > 0.01 < np.abs(more[0] - more[1]).mean()


@pytest.mark.parametrize("task", ["superres", "deblur"])
def test_noiseless_measurements_are_met(generator, gaussian, task):
    """Means of blocks, split Gibbs, D = 128; a blur up to what conjugate gradients cut off, ΠGDM, D = ∞."""
    if task == "superres":
        own, operator, how = generator, operators.average(2, (8, 8, 1)), {"sweeps": 3, "steps": 2}
    else:
        own, operator, how = gaussian, operators.blur(0.5, (8, 8, 1)), {"width": 0.5, "steps": 4}
    m = np.random.default_rng(0).normal(size=(2, *operator.forward(jnp.zeros((1, 8, 8, 1))).shape[1:])) / 4
    draws = own.restore(m.astype(np.float32), task, 1, KEY, **how, **QUIET).draws[0]
    np.testing.assert_allclose(operator.forward(jnp.asarray(draws)), m, atol=2e-3)


def test_an_operator_of_ones_own(generator):
    columns = Operator("column sums", lambda x: x.sum(axis=2), lambda y: jnp.repeat(y[:, :, None], 8, axis=2))
    m = np.random.default_rng(0).normal(size=(2, 8, 1)).astype(np.float32)
    draws = generator.restore(m, columns, 2, KEY, sweeps=3, steps=2, **QUIET).draws
    np.testing.assert_allclose(draws.sum(axis=3), np.broadcast_to(m, (2, 2, 8, 1)), atol=1e-3)


@pytest.mark.slow
def test_other_noise_and_an_estimated_level(generator):
    x = images(2)
    for noise in ("poisson", "heavy"):
        result = generator.restore(x, "denoise", 1, KEY, noise=noise, level=0.3, steps=2, **QUIET)
        assert np.isfinite(result.draws).all()
    level = generator.restore(x, "denoise", 1, KEY, steps=2, **QUIET).level
    assert level.shape == (2,) and (level > 0).all()


@pytest.mark.parametrize(
    ("task", "level", "method"),
    [
        ("denoise", 0.3, "matched"),
        ("inpaint", 0.0, "repaint"),
        ("inpaint", 0.3, "split_gibbs"),
        ("deblur", 0.0, "split_gibbs"),
    ],
)
def test_the_method_goes_by_task_noise_and_D(generator, gaussian, task, level, method):
    mask = {"mask": HALF} if task == "inpaint" else {}
    assert restoration.task(task, (8, 8, 1), generator.process, level=level, **mask).method == method
    at_infinity = restoration.task(task, (8, 8, 1), gaussian.process, level=level, **mask).method
    assert at_infinity == ("pigdm" if method == "split_gibbs" else method)


WRONG = [
    (images(2, (4, 4, 1)), "denoise", {"level": 0.3}, r"must be \[n, 8, 8, 1\]"),
    (images(2).astype(np.int32), "denoise", {"level": 0.3}, "uint8, or floats"),
    (images(2), "superres", {}, r"must be \[n, 4, 4, 1\]"),
    (images(2), "superres", {"factor": 3}, "divide the 8×8"),
    (images(2), "denoize", {}, "did you mean 'denoise'"),
    (images(2), "inpaint", {}, "needs mask="),
    (images(2), "denoise", {"mask": HALF}, "mask= is for inpaint"),
    (images(2), "inpaint", {"mask": HALF, "factor": 2}, "factor= is for superres: leave it out"),
    (images(2), "denoise", {"width": 1.0}, "width= is for deblur: leave it out"),
    (images(2), "inpaint", {"mask": HALF[:4]}, r"mask must be \[8, 8\]"),
    (images(2), "inpaint", {"mask": HALF.astype(int)}, "booleans, True where"),
    (images(2), "inpaint", {"mask": np.ones((3, 8, 8, 1), bool)}, "3 masks for 2 images"),
    (images(2), "denoise", {"level": 500.0}, "outside the trained range"),
    (images(2), "denoise", {"level": 0.3, "noise": "salt"}, "unknown noise"),
    (images(2), "inpaint", {"mask": HALF, "noise": "heavy"}, "needs a level above 0"),
    (images(2), "denoise", {"level": -1.0}, "or above, got -1"),
    (images(2), "deblur", {"method": "pigdm"}, "needs the score, which only D = inf has"),
    (images(2), "deblur", {"method": "repaint"}, "is for inpaint, not for deblur"),
    (images(2), "deblur", {"sweep": 3}, "did you mean 'sweeps'"),
    (images(2), "denoise", {"level": 0.3, "steps": 0}, "steps must be at least 1"),
    (images(2), "deblur", {"width": 0.0}, "above 0 pixels"),
    (images(2), "denoise", {"level": 0.3, "labels": 3}, "trained without labels"),
    (images(2), Operator("mine", lambda x: x, lambda y: 2 * y), {}, "is not Aᵀ: ⟨Ax, y⟩"),
]


@pytest.mark.parametrize(("measurement", "task", "how", "words"), WRONG)
def test_what_is_refused(generator, measurement, task, how, words):
    with pytest.raises(UserError, match=words) as error:
        generator.restore(measurement, task, 1, **how, **QUIET)
    assert len(str(error.value).splitlines()) == 1


def test_draws_are_whole_numbers(generator):
    for n in (0, 1.5, True):
        with pytest.raises(UserError, match="n must be"):
            generator.restore(images(2), "denoise", n, level=0.3, **QUIET)
    assert math.isfinite(generator.restore(images(1), "denoise", 1, level=0.3, steps=1, **QUIET).draws.sum())
