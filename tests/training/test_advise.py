"""Advice: each rule on findings made up for it, the trial with made-up figures, and one plan in earnest."""

import dataclasses
import math
import pathlib
import types

import jax
import numpy as np
import pytest

from configs import digits, medmnist
from pfgm_jax import config as config_lib
from pfgm_jax import config_file, config_rules, data, main
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.training import advise as advise_lib
from pfgm_jax.training import dry_run, step
from pfgm_jax.training.advise import rules, trial

ROOT = pathlib.Path(__file__).parents[2]
GB = 1e9
DERIVED = {"train_images": 12_000, "shape": [28, 28, 3], "classes": ["a"], "sigma_max": 80.0, "sigma_data": 0.5}


def findings(config=None, *, memory=80 * GB, cpu=False, disk=100 * GB, largest=1024, estimates=None, speed=None,
             parameters=11_000_000, **changes):  # fmt: skip
    """Findings of a good plan on a good machine, but for what is said otherwise."""
    config = config or medmnist.get_config("dataset=bloodmnist")
    machine = trial.Machine("made up", 1, cpu, memory, disk)
    batch = config.train.batch
    tried = trial.Trial(
        {4: GB, batch: 2 * GB} if estimates is None else estimates,
        largest,
        {batch: (2_000.0, 10.0, 32)} if speed is None else speed,
        1.0,
    )
    best = rules.Network("cpu_28", {"channels": 32}, 1_276_931)
    defaults = dict(derived=DERIVED, checkpoint=GB, mean_square_norm=768.0, recommended=best, speedup=16.0)
    return rules.Findings(config, machine=machine, trial=tried, parameters=parameters, **defaults | changes)


def marks(found):
    """{mark: texts} and the changes of a judgement."""
    lines, _ = rules.judge(found)
    changes = {key: value for line in lines for key, value in line.change.items()}
    said = {mark: "\n".join(line.why for line in lines if line.mark == mark) for mark in ("note", "CHANGE", "STOP")}
    return types.SimpleNamespace(**said, changes=changes)


def overridden(arg="dataset=bloodmnist", **values):
    config = medmnist.get_config(arg)
    for key, value in values.items():
        config_lib.override(config, key.replace("__", "."), value)
    return config


def test_a_good_plan_is_left_alone():
    said = marks(findings())
    assert (said.note, said.CHANGE, said.STOP, said.changes) == ("", "", "", {})
    lines, hours = rules.judge(findings())
    assert hours == pytest.approx(7_500_000 / 2_000 / 3600)


def test_the_configs_of_the_package_have_no_strange_learning_rates():
    for config, parameters in (
        (digits.get_config(""), 183_073),
        (medmnist.get_config("cpu"), 1_276_931),
        (medmnist.get_config(""), 11_641_987),
        (config_file.load_config(f"{ROOT}/configs/cifar10.py:process=edm,network=ddpmpp", {}), 54_000_000),
        (config_file.load_config(f"{ROOT}/configs/cifar10.py:process=pfgm,network=ddpmpp", {}), 62_000_000),
    ):
        lines = rules.rate_lines(findings(config, parameters=parameters), config.train.batch)
        assert [line.mark for line in lines] == ["ok"]


def test_a_rate_that_is_high_for_muon():
    config = medmnist.get_config("cpu")
    config.optim.lr = 0.1
    (line,) = rules.rate_lines(findings(config, parameters=1_276_931), config.train.batch)
    assert line.mark == "CHANGE" and "10.0 times Muon's (0.01 at batch 64" in line.why
    assert line.change == {"optim.lr": 1e-2, "optim.lr_batch": 64}


def test_batch_32_at_the_rate_of_512():
    said = marks(findings(overridden(train__batch=32, optim__lr_batch=32)))
    assert "4.0 times EDM's" in said.CHANGE
    assert said.changes == {"optim.lr": 1e-3, "optim.lr_batch": 512}
    assert marks(findings(overridden(train__batch=32))).changes == {}
    (line,) = rules.rate_lines(findings(overridden(train__batch=32)), 32)
    assert line.why.startswith("learning rate 2.5e-04 at batch 32")  # 1e-3 · √(32/512)


def test_batch_1_is_raised_where_more_fits():
    said = marks(findings(overridden(train__batch=1)))
    assert said.changes == {"train.batch": 32} and "luck" in said.CHANGE
    said = marks(findings(overridden(train__batch=1), largest=2))
    assert said.changes == {} and "no more than 2 fits" in said.note


@pytest.mark.parametrize(
    "planned, changes",
    [
        (dict(train__batch=8, train__large_batch=8), {"train.batch": 32, "train.large_batch": 32}),
        (dict(train__batch=12, train__microbatch=6), {"train.batch": 32, "train.microbatch": 4}),
        (dict(train__batch=8, train__large_batch=64, train__microbatch=4), {"train.batch": 32}),
    ],
)
def test_another_batch_is_one_that_training_takes(planned, changes):
    config = overridden(**{"optim__lr": 1e-4} | planned)
    assert marks(findings(config)).changes == changes
    for key, value in changes.items():
        config_lib.override(config, key, value)
    config_rules.check(config)


def test_batch_that_does_not_fit_is_lowered():
    said = marks(findings(estimates={4: GB, 512: 79 * GB, 128: 20 * GB}, largest=128, speed={128: (2_000.0, 1.0, 1)}))
    assert said.changes == {"train.batch": 128}
    assert "512 does not fit" in said.CHANGE


def test_nothing_fits():
    found = findings(memory=4 * GB, estimates={1: 5 * GB, 512: math.inf}, largest=0, speed={})
    said = marks(found)
    assert "no batch fits: 1 takes 4.7 GiB a device, and 3.4 GiB" in said.STOP
    assert said.changes == {"model.channels": 32}
    nothing_smaller = found._replace(recommended=None)
    assert marks(nothing_smaller).changes == {"model.remat": True}
    remat = findings(overridden(model__remat=True), memory=4 * GB, estimates={1: 5 * GB}, largest=0, speed={},
                     recommended=None)  # fmt: skip
    assert marks(remat).changes == {}
    text = report(remat)
    assert "HOPELESS" in text and "python" not in text.split("HOPELESS")[1]


def report(found, argument="configs/x.py:cpu", overrides=None, workdir="runs/x"):
    lines, hours = rules.judge(found)
    return advise_lib.report("the plan", found, lines, hours, argument, overrides or {}, workdir)


def test_run_that_takes_years():
    slow = {512: (1.0, 10.0, 1)}  # 7.5 million seconds: 87 days
    said = marks(findings(speed=slow))
    # Three days are 259 200 images.
    assert "87 days" in said.STOP and "259,200 images" in said.STOP
    assert said.changes == {"train.images": 260_000, "optim.warmup": 13_000, "train.batch": 128}
    text = report(findings(speed=slow))
    assert "HOPELESS on this machine as planned: 87 days" in text
    assert "train.images=2" in text and "--mode=advise" not in text


def test_run_that_a_smaller_network_saves():
    crawling = findings(speed={512: (0.1, 10.0, 1)})  # 25 920 images in three days, 16 times as many with cpu_28
    said = marks(crawling)
    assert said.changes["model.channels"] == 32 and said.changes["train.images"] == 410_000
    text = report(crawling)
    assert "--mode=advise" in text and "Not tried" in text


def test_run_that_nothing_saves():
    said = marks(findings(speed={512: (0.001, 10.0, 1)}))
    assert said.changes == {} and "another machine" in said.STOP
    assert "No single setting fixes that" in report(findings(speed={512: (0.001, 10.0, 1)}))


def test_long_but_not_hopeless():
    said = marks(findings(speed={512: (10.0, 10.0, 1)}))
    assert said.STOP == "" and "is long" in said.note and said.changes == {}


def test_sigma_max_against_the_data():
    # E‖y‖² = 768: the data's own is √(768/0.12) = 80, EDM's.
    for sigma_max, mark in ((20.0, "CHANGE"), (60.0, ""), (80.0, ""), (1000.0, "note")):
        found = findings(overridden(process__sigma_max=sigma_max))
        found = found._replace(derived=DERIVED | {"sigma_max": sigma_max})
        said = marks(found)
        assert bool(said.CHANGE) == (mark == "CHANGE") and bool(said.note) == (mark == "note")
        if mark == "CHANGE":  # 768 / (2 · 400)
            assert "0.96 nats" in said.CHANGE and said.changes == {"process.sigma_max": None}
    assert marks(found._replace(mean_square_norm=None)).note == ""  # stand-ins say nothing of the data


@pytest.mark.parametrize("D, mark", [(1, "CHANGE"), (2, "CHANGE"), (4, "note"), (128, ""), (2048, "")])
def test_small_D(D, mark):
    said = marks(findings(overridden(process__D=D)))
    assert bool(said.CHANGE) == (mark == "CHANGE") and bool(said.note) == (mark == "note")
    assert said.changes == ({"process.D": 128.0} if mark == "CHANGE" else {})


def test_many_epochs_and_parameters():
    small = DERIVED | {"train_images": 1_000}
    said = marks(findings(derived=small))
    assert "7,500 epochs are many" in said.note and "train.images=1000000" in said.note
    assert "11,000 a training image" in said.CHANGE and said.changes == {"model.channels": 32}
    augmented = overridden(train__images=3_000_000, train__augment=0.12, optim__warmup=1_000)
    assert marks(findings(augmented, derived=small)).note == ""


def test_warm_up_longer_than_the_run():
    said = marks(findings(overridden(train__images=200_000)))
    assert said.changes == {"optim.warmup": 10_000}


def test_hours_say_what_they_are_measured_on():
    found = findings(speed={4: (100.0, 5.0, 9)})
    assert "speed of batch 4" in marks(found).note
    busy = findings()._replace(machine=trial.Machine("made up", 1, True, 80 * GB, 100 * GB, load=3.0))
    assert "3 programs per core" in marks(busy).note and marks(findings()).note == ""


def test_disk_too_small_for_the_checkpoints():
    assert "3 checkpoints take 2.8 GiB" in marks(findings(disk=2 * GB)).note


def test_recommended_networks():
    networks = rules.networks_for(medmnist.get_config(), DERIVED)
    assert [network.name for network in networks] == ["cpu_28", "medical_28", "ddpmpp"]
    small, medium, large = (network.parameters for network in networks)
    assert small < medium < large
    for images, cpu, name in (
        (12_000, False, "medical_28"), (12_000, True, "cpu_28"), (50_000, False, "ddpmpp"), (1_080, False, "cpu_28"),
        (10, False, "cpu_28"),
    ):  # fmt: skip
        assert rules.recommend(networks, images, cpu).name == name
    assert networks[2].fields["attention"] == (14,)  # 16 of 32 px


def test_attention_stays_at_its_level(monkeypatch):
    monkeypatch.setattr(trial, "parameters", lambda *_: 1)
    networks = rules.networks_for(medmnist.get_config(), DERIVED | {"shape": [99, 99, 3]})
    assert networks[0].fields["attention"] == (25,)  # 128 → 32 is 99 → 25
    config = medmnist.get_config()
    config.model.update(networks[0].fields)
    assert (25, 25) in run_lib.make_model(config, DERIVED).check_size((99, 99))


def test_no_preset_for_tiny_images():
    assert rules.networks_for(digits.get_config(), DERIVED | {"shape": [8, 8, 1]}) == []
    assert rules.recommend([], 100, True) is None


def test_changes_are_read_back_from_the_command():
    changes = {"process.sigma_max": None, "model.attention": (14, 7), "train.batch": 64, "optim.lr": 1e-3}
    found = findings()
    line = rules.Line("CHANGE", "all", changes)
    text = advise_lib.report("", found, [line], 1.0, "a b.py", {"train.batch": "9", "data.dir": "/x y"}, "runs/x")
    command = text.splitlines()[-1]
    assert "'--config=a b.py'" in command and "'--config.data.dir=/x y'" in command and "batch=9" not in command
    config = overridden(process__sigma_max=3.0)
    for word in command.split():
        if word.startswith("--config."):
            key, _, value = word.removeprefix("--config.").partition("=")
            config_lib.override(config, key, value)
    assert config.process.sigma_max is None and config.model.attention == (14, 7) and config.train.batch == 64


# The trial.


def fake_trial(monkeypatch, planned, limit, *, base=1.0, each=1.0, seconds=0.01, devices=1, images=10_000):
    """A trial where a batch takes base + each × batch bytes, and an image `seconds`: (Trial, what was run)."""
    ran = []

    def memory(task, state, dataset, steps, resident):
        return base + each * task.batch

    def time_steps(task, state, dataset, steps, left, resident):
        ran.append(task.batch)
        return 1 / seconds, max(steps * task.batch * seconds, 1.0), steps

    monkeypatch.setattr(dry_run, "memory_estimate", memory)
    monkeypatch.setattr(trial, "time_steps", time_steps)
    config = digits.get_config()
    config.train.update(batch=planned, large_batch=0)
    task = step.make_task(config, DERIVED | {"lr": 1e-3, "shape": [8, 8, 1]})
    machine = trial.Machine("made up", devices, True, limit / trial.HEADROOM, 0)
    dataset = types.SimpleNamespace(train_images=images)
    return trial.run(task, None, dataset, 8, machine, True, lambda text: None), ran


def test_largest_batch_is_the_largest_power_of_two_that_fits(monkeypatch):
    found, ran = fake_trial(monkeypatch, 64, 1.0 + 300)
    assert found.largest == 256 and ran == [4, 64] and set(found.memory) == {4, 64, 256}
    found, ran = fake_trial(monkeypatch, 64, 1.0 + 40)
    assert found.largest == 32 and ran == [4, 32]
    found, _ = fake_trial(monkeypatch, 64, 1e9, images=100)
    assert found.largest == 64  # no more than there are images
    found, _ = fake_trial(monkeypatch, 48, 1.0 + 300, devices=3)
    assert found.largest == 3 * 64


def test_nothing_runs_that_does_not_fit(monkeypatch):
    found, ran = fake_trial(monkeypatch, 64, 2.0)
    assert found.largest == 0 and ran == [] and found.speed == {}


def test_a_step_that_would_take_minutes_is_not_run(monkeypatch):
    found, ran = fake_trial(monkeypatch, 512, 1e9, seconds=1.0)
    assert ran == [4] and set(found.speed) == {4}


def test_an_estimate_that_is_not_a_line_is_looked_at(monkeypatch):
    run = trial.run

    def crooked(task, state, dataset, steps, resident):
        return task.batch if task.batch <= 64 else 3 * task.batch

    def patched(*args):
        monkeypatch.setattr(dry_run, "memory_estimate", crooked)
        return run(*args)

    monkeypatch.setattr(trial, "run", patched)
    found, _ = fake_trial(monkeypatch, 64, 300.0)
    assert found.largest == 64 and {128, 256} <= set(found.memory)


def test_only_a_lack_of_memory_is_no_bug(monkeypatch):
    def fails(message):
        def lower(*_):
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(dry_run, "train_steps", types.SimpleNamespace(lower=lower))

    split = data.Split(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int32))
    dataset = types.SimpleNamespace(train_images=2, train=split)
    task = dataclasses.make_dataclass("Task", ["large_batch", "order", "batch", "microbatch"])(0, "real", 8, 0)
    fails("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
    assert trial.estimate(task, (), dataset, 1, 8, True) == math.inf
    fails("INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError):
        trial.estimate(task, (), dataset, 1, 8, True)


def test_operations_go_with_the_pixels():
    config = medmnist.get_config("cpu")
    config.model.update(channels=8, multipliers=(1,), attention=())
    few = trial.operations(run_lib.make_model(config, DERIVED), (8, 8, 3))
    many = trial.operations(run_lib.make_model(config, DERIVED), (16, 16, 3))
    assert 3.5 < many / few < 4.2  # all but the embedding's


def test_a_batch_that_is_not_possible():
    config = digits.get_config()
    assert advise_lib.possible_batch(config, 1437, 8) == [] and config.train.batch == 64
    config.train.batch = 100
    assert advise_lib.possible_batch(config, 1437, 8)[0].change == {"train.batch": 96}
    config.train.batch = 4096
    assert advise_lib.possible_batch(config, 1437, 8)[0].change == {"train.batch": 1024} and config.train.batch == 1024
    config.train.batch = 3
    assert advise_lib.possible_batch(config, 1437, 8)[0].change == {"train.batch": 8}


def test_the_mode_in_earnest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "SECONDS", 0.2)
    monkeypatch.setattr(trial, "MOST_IMAGES", 16)
    monkeypatch.setattr(dry_run, "memory_estimate", lambda task, *_: task.batch * 1e6)
    tiny = ["--config.model.channels=4", "--config.model.multipliers=1", "--config.model.embedding_channels=8",
            "--config.train.large_batch=0", "--config.train.steps_per_call=1", "--config.train.batch=15"]  # fmt: skip
    main.run(["--mode=advise", f"--config={ROOT}/configs/digits.py:quick", *tiny])
    out, err = capsys.readouterr()
    assert f"{jax.device_count()} × cpu" in out and "images/s at batch 8" in out
    assert "batch 15 is not possible with 8 devices" in out
    assert (
        out.splitlines()[-1].lstrip().split()[3].startswith("--config=")
        and "--config.train.batch=16" in out.splitlines()[-1]
    )
    assert "--workdir=runs/digits" in out and "compiling batch" in err
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_the_flags():
    for mode in ("data", "advise"):
        with pytest.raises(UserError, match="--config=FILE is missing"):
            main.run([f"--mode={mode}"])
        with pytest.raises(UserError, match="'train.batch'"):
            main.run([f"--mode={mode}", f"--config={ROOT}/configs/digits.py", "--config.train.bacth=3"])
        with pytest.raises(UserError, match="--dry_run is for"):
            main.run([f"--mode={mode}", f"--config={ROOT}/configs/digits.py", "--dry_run"])
