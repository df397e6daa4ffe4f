"""The configs that come with the package: every argument string makes a config that passes its own checks."""

import math

import jax
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from configs import celeba64, cifar10, digits, folder, lsun_bedroom256, medmnist, toy
from pfgm_jax import config as config_lib
from pfgm_jax import config_file, config_rules, data, generator, models, run_record, sampling
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.flow import parametrization
from pfgm_jax.sampling.settings import SampleSettings
from pfgm_jax.training import loop

PROCESSES = ["pfgmpp", "pfgm", "edm", "ve", "vp", "subvp", "ddpm"]
DIGITS = ["", "process=pfgm", "process=edm", "D=2048", "quick", "process=pfgm,quick"]
MEDMNIST = [f"dataset=bloodmnist,size={size}{extra}" for size in (28, 64, 128, 224) for extra in ("", ",cpu", ",quick")]


def fake_dataset(shape=(28, 28, 3), n=64):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    split = data.Split(images, np.arange(n, dtype=np.int32) % 2)
    return data.Dataset("fake", split, split, split, ("a", "b"), "none", "none")


def parameters(config, shape):
    derived = {"shape": shape, "classes": ["a", "b"], "sigma_data": 0.5}
    tree = jax.eval_shape(lambda: models.init(run_lib.make_model(config, derived), shape))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("arg", DIGITS)
def test_digits(arg):
    config = digits.get_config(arg)
    config_rules.check(config)
    assert parameters(config, (8, 8, 1)) < 200_000
    assert config.process.D == {"process=pfgm": 1, "process=edm": math.inf, "D=2048": 2048}.get(arg.split(",q")[0], 128)


@pytest.mark.parametrize("arg", [*MEDMNIST, "process=pfgm", "process=edm", "process=pfgm,quick"])
def test_medmnist(arg):
    config = medmnist.get_config(arg)
    config_rules.check(config)
    side = config.data.size
    assert parameters(config, (side, side, 3)) < (2e6 if "cpu" in arg or "quick" in arg else 20e6)
    if side == 28:
        assert 7 in config.model.attention  # 28 → 14 → 7 has no 16 px level


def test_the_28_px_network_fits_its_weights_in_32_MB_of_bfloat16():
    assert parameters(medmnist.get_config("size=28"), (28, 28, 3)) <= 16e6


def test_config_json_gives_the_config_back(tmp_path):
    config = medmnist.get_config("process=edm")
    config.process.sigma_max = 12.5
    run_record.save(tmp_path, config, {"lr": 1e-3})
    again, derived = run_record.load(tmp_path)
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
    assert run_record.differences(config, other) == []
    other.optim.lr, other.model.dropout = 0.5, 0.5
    assert run_record.differences(config, other) == ["model.dropout", "optim.lr"]


def test_sigma_max_bounds_the_priors_mismatch():
    # E‖y‖²/(2σ_max²) = 0.06 nats; uniform images at ±1 have ‖y‖² = N, so σ_max = √(N/0.12).
    config = digits.get_config()
    dataset = data.load(config.data)
    derived = run_lib.derive(config, dataset)
    square = float(((dataset.train.images / 127.5 - 1) ** 2).sum(axis=(1, 2, 3)).mean())
    assert derived["sigma_max"] == pytest.approx(math.sqrt(square / 0.12))
    assert run_lib.make_process(config, derived).sigma_max == pytest.approx(derived["sigma_max"])
    with pytest.raises(UserError, match="more than the 1437"):
        config.train.batch = 4096
        run_lib.derive(config, dataset)


# ---- every process


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("file", [digits, medmnist], ids=["digits", "medmnist"])
def test_every_process_makes_a_run(file, name):
    config = file.get_config(f"process={name}")
    config_rules.check(config)
    dataset = data.load(config.data) if file is digits else fake_dataset()
    config.train.update(batch=64)
    derived = run_lib.derive(config, dataset)
    process = run_lib.make_process(config, derived)
    assert process.name == name and process.sigma_max == pytest.approx(derived["sigma_max"])
    assert process.D == {"pfgmpp": 128, "pfgm": 1}.get(name, math.inf) == config_lib.D_of(name)
    kinds = {"pfgm": "PoissonField", "ve": "Score", "pfgmpp": "EDM", "edm": "EDM"}
    chosen = run_lib.make_parametrization(config, derived)
    assert type(chosen).__name__ == kinds.get(name, "Epsilon")
    if name in ("vp", "subvp", "ddpm"):
        assert chosen == parametrization.Epsilon(*((1, -1) if name == "ddpm" else (999, 0)))
        assert derived["sigma_max"] == pytest.approx({"ddpm": 157.407}.get(name, 152.166), abs=0.01)
    generator.check_sampling(run_lib.make_run(config, derived))  # the default solver samples it


def test_there_are_no_other_processes():
    assert list(run_lib.PROCESSES) == PROCESSES


def test_process_options_reach_the_process():
    def make(name, **fields):
        config = digits.get_config(f"process={name}")
        config.process.update(fields)
        config_rules.check(config)
        return run_lib.make_process(config, run_lib.derive(config, fake_dataset((8, 8, 1), 1437)))

    vp = make("vp", beta_min=0.5, beta_max=8.0)
    assert vp.sigma_max == pytest.approx(math.sqrt(math.exp(0.5 + 7.5 / 2) - 1), rel=1e-5)
    subvp = make("subvp", beta_min=0.5, beta_max=8.0)
    assert subvp.sigma_max == pytest.approx(2 * math.sinh((0.5 + 7.5 / 2) / 2), rel=1e-5)
    ddpm = make("ddpm", T=50, betas="cosine")
    assert (ddpm.t_max, ddpm.schedule.steps, ddpm.schedule.kind) == (50, 50, "cosine")
    ve = make("ve", sigma_min=0.1, sigma_max=9.0)
    assert (ve.sigma_max, ve.sigma_min) == (pytest.approx(9), pytest.approx(0.1 * 90**1e-5))
    with pytest.raises(UserError, match="more than 20 noise levels"):
        make("ddpm", T=7)
    config = digits.get_config("process=ddpm")
    config.process.T = 50
    config.sample.solver = "ancestral"  # its 1000 steps are more than there are levels
    run = run_lib.make_run(config, run_lib.derive(config, fake_dataset((8, 8, 1), 1437)))
    with pytest.raises(UserError, match="fewer than 1000 steps"):
        generator.check_sampling(run)


def test_the_largest_sigma_of_ve_is_the_datas_diameter():
    config = digits.get_config("process=ve")
    dataset = data.load(config.data)
    images = dataset.train.images.reshape(1437, 64) / 127.5 - 1
    derived = run_lib.derive(config, dataset)
    assert derived["sigma_max"] == pytest.approx(pdist(images).max(), rel=1e-6)  # t = 1 in float32
    assert run_lib.make_process(config, derived).sigma_max == derived["sigma_max"]
    config.process.sigma_max = 3.5
    assert run_lib.derive(config, dataset)["sigma_max"] == pytest.approx(3.5)


@pytest.mark.parametrize(
    "arg, changes, words",
    [
        ("process=vp", {"process.D": "128"}, ["process.D=128", "D = inf", "use process=pfgmpp for another D"]),
        ("process=ve", {"process.D": "1"}, ["D = inf"]),
        ("process=ddpm", {"process.D": "2048"}, ["D = inf"]),
        ("process=pfgm", {"process.D": "inf"}, ["D = 1"]),
        ("", {"process.name": "subvp"}, ["process.D=128", "D = inf"]),
        ("process=subpv", {}, ["did you mean 'subvp'", *PROCESSES]),
        ("", {"sample.solver": "ancestrel"}, ["did you mean 'ancestral'", *sampling.SOLVERS]),
        ("", {"process.betas": "cosin"}, ["linear, cosine", "did you mean 'cosine'"]),
        ("process=vp", {"process.sigma_min": "0.01"}, ["process.sigma_min=0.01", "beta_min"]),
        ("process=subvp", {"process.sigma_max": "80"}, ["process.sigma_max=80", "beta_max"]),
        ("process=ddpm", {"process.sigma_max": "80"}, ["process.sigma_max=80", "T"]),
        ("process=vp", {"process.beta_min": "0"}, ["0 < beta_min < beta_max"]),
        ("process=vp", {"process.beta_max": "0.1"}, ["0 < beta_min < beta_max"]),
        ("", {"sample.D": "0"}, ["sample.D=0"]),
        ("", {"sample.D": "nan"}, ["sample.D=nan"]),
        ("", {"sample.D": "0.1"}, ["sample.D=0.1", "must be at least 0.5"]),
        ("", {"process.D": "0.1"}, ["process.D=0.1", "must be at least 0.5"]),
    ],
)
def test_impossible_processes_and_solvers(arg, changes, words):
    with pytest.raises(UserError) as caught:
        config = digits.get_config(arg)
        for key, text in changes.items():
            config_lib.override(config, key, text)
        config_rules.check(config)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("config", [digits, medmnist, toy, folder], ids=lambda module: module.__name__)
def test_D_of_a_process_that_has_its_own(config):
    for arg, D in (("", 128), ("D=64", 64), ("process=pfgm,D=1", 1), ("process=edm,D=inf", math.inf)):
        assert config.get_config(arg).process.D == D
    for arg, own in (("process=edm,D=64", "inf"), ("process=pfgm,D=128", "1")):
        with pytest.raises(UserError, match=f"is for process=pfgmpp, and process=.* has D = {own}: leave one of them"):
            config.get_config(arg)
    with pytest.raises(UserError, match="'D' takes a number, such as D=128"):
        config.get_config("D")


def test_D_of_a_published_process_that_has_its_own():
    with pytest.raises(UserError, match="D=64 is for process=pfgmpp, and process=pfgm has D = 1"):
        celeba64.get_config("D=64")


@pytest.mark.parametrize(
    "arg, changes, words",
    [
        ("process=ddpm", {"process.beta_max": "15"}, "process.beta_max=15.0 is for process.name=vp or subvp"),
        ("process=vp", {"process.T": "50"}, "process.T=50 is for process.name=ddpm"),
        ("process=vp", {"process.gamma": "1"}, "process.gamma=1.0 is for process.name=pfgm: leave it out"),
        ("", {"process.M": "300"}, "process.M=300 is for process.name=pfgm"),
        ("", {"data.val": "0.4"}, "data.val=0.4 does nothing for data.name=digits"),
        ("", {"data.dir": "/nonexistent"}, "data.dir=/nonexistent does nothing for data.name=digits"),
        ("", {"data.name": "npz", "data.channels": "1"}, "data.channels=1 does nothing for data.name=npz"),
    ],
)
def test_what_a_new_run_has_no_use_for_is_refused_before_it_begins(tmp_path, arg, changes, words):
    config = digits.get_config(arg)
    for key, text in changes.items():
        config_lib.override(config, key, text)
    config_rules.check(config)  # runs of older versions hold such, and open
    with pytest.raises(UserError, match=words):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", PROCESSES)
def test_what_configs_set_is_of_use(name):
    for config in (digits, medmnist, toy, folder):
        config_rules.check_new(config.get_config(f"process={name}"))
    for module in (cifar10, celeba64, lsun_bedroom256):
        for network in [network for process, network in module.PUBLISHED if process == name]:
            config_rules.check_new(module.get_config(f"process={name},network={network}"))
    config = folder.get_config("")
    for key, text in {"data.val": "0.2", "data.channels": "1", "data.dir": "x", "data.split_seed": "1"}.items():
        config_lib.override(config, key, text)
    config_rules.check_new(config)


# ---- what a solver takes


def test_every_solver_option_is_a_field_that_may_be_None():
    config = config_lib.default()
    others = {"n", "seed", "batch", "solver", "frames", "D", "labels", "guidance", "guide", "files", "ema_width"}
    fields = set(config.sample) - others
    taken = [set(sampling.find(solver)[1]) - {"frames"} for solver in sampling.SOLVERS]
    assert fields == set().union(*taken)
    for name in fields:
        assert config.sample[name] is None
        config_lib.override(config, f"sample.{name}", "None")
        assert config.sample[name] is None
    config_rules.check(config)
    for solver in sampling.SOLVERS:  # None is the solver's own default: it is told nothing
        assert solver_options(config, solver) == {}


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("steps", "18", 18), ("steps", "None", None), ("steps", "none", None), ("rtol", "1e-3", 1e-3),
        ("grid", "log", "log"), ("grid", "None", None), ("per_sample", "True", True), ("last_denoise", "None", None),
        ("clip", "inf", math.inf),
        ("D", "inf", math.inf), ("D", "None", None), ("variance", "small", "small"), ("eta", "1", 1.0),
    ],
)  # fmt: skip
def test_sample_options_take_their_type_or_None(key, text, value):
    config = config_lib.default()
    config_lib.override(config, f"sample.{key}", "None")
    config_lib.override(config, f"sample.{key}", text)
    assert config.sample[key] == value and type(config.sample[key]) is type(value)


@pytest.mark.parametrize(
    "key, text, kind",
    [
        ("steps", "2.5", "a whole number"), ("steps", "many", "a whole number"), ("rtol", "small", "a number"),
        ("per_sample", "maybe", "True or False"), ("D", "big", "a number"), ("snr", "", "a number"),
        # These have no default but their own.
        ("n", "None", "a whole number"), ("batch", "none", "a whole number"), ("seed", "None", "a whole number"),
        ("frames", "None", "a whole number"),
    ],
)  # fmt: skip
def test_sample_options_of_another_type(key, text, kind):
    with pytest.raises(UserError, match=f"'sample.{key}' takes {kind}, got '{text}'$"):
        config_lib.override(config_lib.default(), f"sample.{key}", text)


def solver_options(config, solver):
    return SampleSettings.of(config.sample).changed(solver=solver).solver_options


def test_only_what_is_set_reaches_the_solver():
    config = config_lib.default()
    config.sample.update(steps=7, rtol=0.1, grid="log", snr=0.2)
    assert solver_options(config, "heun") == {"steps": 7, "grid": "log"}
    assert solver_options(config, "rk45") == {"rtol": 0.1}
    assert solver_options(config, "predictor_corrector") == {"steps": 7, "grid": "log", "snr": 0.2}


def test_sample_options_come_back_from_config_json(tmp_path):
    config = digits.get_config("process=ddpm")
    for name, text in dict(D="inf", clip="inf", grid="log", steps="20", per_sample="true").items():
        config_lib.override(config, f"sample.{name}", text)
    run_record.save(tmp_path, config, {})
    again, _ = run_record.load(tmp_path)
    assert again.to_dict() == config.to_dict() and again.sample.rtol is None
    assert run_record.differences(again, digits.get_config("process=ddpm")) == []  # sampling is no other run
    again.process.T = 50
    assert run_record.differences(again, config) == ["process.T"]


@pytest.mark.parametrize("size, attention", [(28, (14,)), (32, (16,)), (48, (12,)), (64, (16,)), (100, (25,))])
def test_a_published_network_attends_at_the_level_that_it_would_at_a_power_of_two(size, attention):
    # DDPM++ of three levels attends at its 16 px level, at 32 px the second and at 64 px the third.
    config = folder.get_config(f"dir=x,size={size},network=ddpmpp")
    expected = attention if size <= 64 else (16,)  # three levels do not come down from 128 px to 16
    assert config.model.attention == expected


def test_a_config_that_the_package_has_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file.load_config("digits:quick") == config_file.load_config(f"{config_file.SHIPPED}/digits.py:quick")
    for name in ("digit", "../configs/digits", ".."):
        with pytest.raises(UserError, match="no such file"):
            config_file.load_config(name)
    assert "'digits'" in str(pytest.raises(UserError, config_file.find, "digit").value)
