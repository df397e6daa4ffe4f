"""What the data decide: images from which nothing can be learned are refused with the reason."""

import math

import numpy as np
import pytest

from pfgm_jax import config as config_lib
from pfgm_jax import data
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError


def derive(images, process, **fields):
    config = config_lib.default()
    config.process.update(name=process, D=config_lib.D_of(process), **fields)
    config.data.size, config.train.batch = images.shape[1], 4
    config.model.update(channels=8, multipliers=(1,), blocks=1, attention=(), embedding_channels=16)
    split = data.Split(images, np.zeros(len(images), np.int32))
    none = data.Split(images[:0], np.zeros(0, np.int32))
    return run_lib.derive(config, data.Dataset("mine", split, none, none, ("a",), "CC0", "a test"))


@pytest.mark.parametrize("process", list(run_lib.PROCESSES))
@pytest.mark.parametrize("value", [0, 128, 255])
def test_images_of_one_colour_are_refused(process, value):
    with pytest.raises(UserError, match="all training images of mine are of one colour"):
        derive(np.full((8, 8, 8, 1), value, np.uint8), process)


def test_points_of_one_value_are_refused():
    with pytest.raises(UserError, match="of one colour"):
        derive(np.full((8, 8, 8, 1), 0.1, np.float32), "edm")


def test_equal_images_have_no_largest_distance():
    images = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), np.uint8), 8, axis=0)
    with pytest.raises(UserError, match="are equal: .* or write process.sigma_max"):
        derive(images, "ve")
    assert derive(images, "ve", sigma_max=30.0)["sigma_max"] == 30
    images[0, 0, 0, 0] ^= 128  # one value in 512
    assert math.isclose(derive(images, "ve")["sigma_max"], 128 / 127.5, rel_tol=1e-6)
    assert derive(images, "pfgmpp")["sigma_data"] > 0
