"""The configs that come with the package: every argument string makes a config that passes its own checks."""

import math

import jax
import pytest

from configs import digits, medmnist
from pfgm_jax import build, data, models
from pfgm_jax import config as config_lib
from pfgm_jax.errors import UserError

DIGITS = ["", "process=pfgm", "process=edm", "D=2048", "quick", "process=pfgm,quick"]
MEDMNIST = [f"dataset=bloodmnist,size={size}{extra}" for size in (28, 64, 128, 224) for extra in ("", ",cpu", ",quick")]


def parameters(config, shape):
    derived = {"shape": shape, "classes": ["a", "b"], "sigma_data": 0.5}
    tree = jax.eval_shape(lambda: models.init(build.make_model(config, derived), shape))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("arg", DIGITS)
def test_digits(arg):
    config = digits.get_config(arg)
    config_lib.check(config)
    assert parameters(config, (8, 8, 1)) < 200_000
    assert config.process.D == {"process=pfgm": 1, "process=edm": math.inf, "D=2048": 2048}.get(arg.split(",q")[0], 128)


@pytest.mark.parametrize("arg", [*MEDMNIST, "process=pfgm", "process=edm", "process=pfgm,quick"])
def test_medmnist(arg):
    config = medmnist.get_config(arg)
    config_lib.check(config)
    side = config.data.size
    assert parameters(config, (side, side, 3)) < (2e6 if "cpu" in arg or "quick" in arg else 20e6)
    if side == 28:
        assert 7 in config.model.attention  # 28 → 14 → 7 has no 16 px level


def test_the_28_px_network_fits_its_weights_in_32_MB_of_bfloat16():
    assert parameters(medmnist.get_config("size=28"), (28, 28, 3)) <= 16e6


def test_config_json_gives_the_config_back(tmp_path):
    config = medmnist.get_config("process=edm")
    config.process.sigma_max = 12.5
    config_lib.save_run(tmp_path, config, {"lr": 1e-3})
    again, derived = config_lib.load_run(tmp_path)
    assert again.to_dict() == config.to_dict() and math.isinf(again.process.D)
    assert derived == {"lr": 1e-3}


@pytest.mark.parametrize(
    "key, text, value",
    [("process.D", "inf", math.inf), ("model.multipliers", "(1, 2,4)", (1, 2, 4)), ("model.attention", "", ()),
     ("train.images", "1_000", 1000), ("process.sigma_max", "40", 40.0), ("process.sigma_max", "None", None),
     ("model.conditional", "true", True), ("process.M", "300", 300), ("seed", "7", 7)],
)  # fmt: skip
def test_overrides_take_the_fields_type(key, text, value):
    config = config_lib.default()
    config_lib.override(config, key, text)
    found = config_lib.flatten(config)[key]
    assert found == (list(value) if isinstance(value, tuple) else value)


def test_differences_are_those_that_make_another_run():
    config, other = config_lib.default(), config_lib.default()
    other.sample.n, other.train.images, other.data.dir = 7, 9, "elsewhere"
    assert config_lib.differences(config, other) == []
    other.optim.lr, other.model.dropout = 0.5, 0.5
    assert config_lib.differences(config, other) == ["model.dropout", "optim.lr"]


def test_sigma_max_bounds_the_priors_mismatch():
    # E‖y‖²/(2σ_max²) = 0.06 nats; uniform images at ±1 have ‖y‖² = N, so σ_max = √(N/0.12).
    config = digits.get_config()
    dataset = data.load(config.data)
    derived = build.derive(config, dataset)
    square = float(((dataset.train.images / 127.5 - 1) ** 2).sum(axis=(1, 2, 3)).mean())
    assert derived["sigma_max"] == pytest.approx(math.sqrt(square / 0.12))
    assert build.make_process(config, derived).sigma_max == pytest.approx(derived["sigma_max"])
    with pytest.raises(UserError, match="more than the 1437"):
        config.train.batch = 4096
        build.derive(config, dataset)
