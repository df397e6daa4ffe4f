"""Averages whose length is chosen after training, against direct sums over every step in NumPy float64."""

import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_steps import tiny

from pfgm_jax import averages, data, generator
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.training import average_length, loop, monitor
from pfgm_jax.training.step import init_state, make_task

MLP = {"model.name": "mlp", "model.channels": 8, "model.blocks": 1, "train.batch": 32, "train.images": 1024,
       "train.steps_per_call": 1, "train.save_every": 128, "train.power_ema": True, "train.keep": 1}  # fmt: skip


def direct(weights, width):
    """The power-function average of weights [T, d] after every step, by its definition as a recursion."""
    gamma, total = averages.exponent(width), np.zeros(weights.shape[1])
    for t, now in enumerate(weights, start=1):
        decay = (1 - 1 / t) ** (gamma + 1)
        total = decay * total + (1 - decay) * now
        yield total


def test_exponents_are_those_of_the_paper():
    np.testing.assert_allclose([averages.exponent(w) for w in averages.WIDTHS], [16.97, 6.94], atol=5e-3)
    # The relative width is the standard deviation of the weight function (γ + 1) t^γ on [0, 1].
    gamma, t = averages.exponent(0.13), (np.arange(1e6) + 0.5) / 1e6
    density = (gamma + 1) * t**gamma
    mean = (density * t).mean()
    np.testing.assert_allclose(np.sqrt((density * (t - mean) ** 2).mean()), 0.13, rtol=1e-6)


def test_tracked_averages_are_the_direct_ones(x64):
    weights = np.random.default_rng(0).normal(size=(50, 3)).cumsum(axis=0)
    tracked = averages.start({"w": jnp.zeros(3)})
    for t, now in enumerate(weights, start=1):
        tracked = averages.advanced(tracked, {"w": jnp.asarray(now)}, jnp.asarray(t))
    for width in averages.WIDTHS:
        np.testing.assert_allclose(tracked[str(width)]["w"], list(direct(weights, width))[-1], rtol=1e-12)


@pytest.mark.parametrize("width", [0.04, 0.07, 0.15])
def test_other_lengths_are_near_the_directly_tracked_one(width, tmp_path):
    T, every = 4000, 125
    weights = np.random.default_rng(1).normal(size=(T, 200)).cumsum(axis=0)
    tracked = {w: list(direct(weights, w)) for w in averages.WIDTHS}
    for step in range(every, T + 1, every):
        averages.keep(tmp_path, step, {str(w): {"w": tracked[w][step - 1]} for w in averages.WIDTHS})
    wanted = list(direct(weights, width))[-1]
    made = averages.of_width(tmp_path, width, T, {"w": np.zeros(200)})["w"]
    nearest = min(np.linalg.norm(tracked[w][-1] - wanted) for w in averages.WIDTHS)
    # A walk's averages of other lengths differ by the walk between; what is solved for, by the weight functions' error.
    assert np.linalg.norm(made - wanted) < 0.1 * nearest
    assert averages.coefficients(range(every, T + 1, every), width)[1] < 0.005


@pytest.mark.parametrize(
    "checkpoints, least, most, near", [(32, 0.02, 0.25, 0.05), (8, 0.03, 0.2, 0.102)], ids=["32", "8"]
)
def test_how_many_checkpoints_make_which_lengths(checkpoints, least, most, near):
    """As docs/training.md says."""
    error = lambda width: averages.coefficients(range(1, checkpoints + 1), width)[1]
    assert max(map(error, np.geomspace(least, most, 20))) < near
    assert error(least / 2) > near


def test_constant_weights_have_that_average():
    parts, _ = averages.coefficients([100, 200, 300, 400], 0.2)
    np.testing.assert_allclose(parts.sum(), 1, rtol=1e-12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, final TrainState) of a run that tracks them, with 8 checkpoints."""
    workdir = tmp_path_factory.mktemp("averages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "evaluation", lambda *_: lambda ema, seen: {})
        patch.setattr(monitor, "picture", lambda *_: lambda ema, step: None)
        return workdir, loop.train(tiny(**MLP), workdir)


def leaves(params):
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(params)])


def test_a_run_keeps_them_and_is_used_at_any_length(run, command):
    workdir, state = run
    assert averages.kept(workdir, 32) == [4, 8, 12, 16, 20, 24, 28, 32]
    g = generator.load(workdir)
    own = g.with_overrides({"sample.ema_width": 0.05})
    for width in averages.WIDTHS:  # those that are tracked are themselves
        made = leaves(g.with_overrides({"sample.ema_width": width}).params)
        np.testing.assert_allclose(made, leaves(state.averages[str(width)]), atol=1e-6)
    back = own.with_overrides({"sample.ema_width": 0.0})
    np.testing.assert_array_equal(leaves(back.params), leaves(g.params))
    assert "EMA weights of relative width 0.05 after 1,024 images" in repr(own) and "width" not in repr(g)
    code, out, _ = command("--mode=average", f"--workdir={workdir}")
    assert code == 0 and "--config.sample.ema_width=" in out and (workdir / "results/average.png").exists()


def test_what_cannot_be_made_is_said_in_one_line(run, tmp_path):
    workdir, _ = run
    g = generator.load(workdir)
    with pytest.raises(
        UserError, match=r"ema_width=0.01 cannot be reconstructed from 8 checkpoints: choose 0.0\d to 0.\d+,"
    ):
        g.with_overrides({"sample.ema_width": 0.01})
    with pytest.raises(UserError, match="or from 0.01 to 0.27"):
        g.with_overrides({"sample.ema_width": 0.5})
    with pytest.raises(UserError, match="no averages of step 16"):
        averages.of_width(tmp_path, 0.05, 16, g.params)
    with pytest.raises(UserError, match="train.power_ema=True"):
        generator.load("pretrained:digits").with_overrides({"sample.ema_width": 0.05})


def test_what_a_stop_left_undone_or_a_disk_spoilt_is_named_and_written_again(run, tmp_path, command, monkeypatch):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    last, earlier = (workdir / "averages" / f"{step}.safetensors" for step in (32, 28))
    shapes = generator.load(workdir).params
    before = leaves(averages.load(workdir, 32, shapes))
    last.unlink()  # a kill between the checkpoint and its averages
    code, _, err = command("--mode=verify", f"--workdir={workdir}")
    assert code == 2 and "averages of step 32" in err and "the training command writes them again" in err
    monkeypatch.setattr(monitor, "evaluation", lambda *_: lambda ema, seen: {})
    monkeypatch.setattr(monitor, "picture", lambda *_: lambda ema, step: None)
    loop.train(tiny(**MLP), workdir)
    np.testing.assert_array_equal(leaves(averages.load(workdir, 32, shapes)), before)
    code, out, _ = command("--mode=verify", f"--workdir={workdir}")
    assert code == 0 and "8 of 8 steps sound" in out
    spoilt = bytearray(earlier.read_bytes())
    spoilt[-100] ^= 1
    earlier.write_bytes(spoilt)
    code, out, err = command("--mode=verify", f"--workdir={workdir}")
    assert code == 2 and "7 of 8 steps sound" in out and "28.safetensors is damaged" in err


@pytest.mark.parametrize("missing", ["all", "last"])
def test_lengths_of_a_run_without_averages_are_refused_in_a_line(run, tmp_path, command, missing):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    for path in (workdir / "averages").glob("*" if missing == "all" else "32.*"):
        path.unlink()
    code, _, err = command("--mode=average", f"--workdir={workdir}")
    assert code == 2 and err.count("\n") == 1 and "has no averages of step 32" in err


def test_every_image_is_measured_on_devices_that_do_not_divide_the_batch():
    losses = []
    for batch in (12, 16):  # eight devices
        config = tiny(**MLP | {"train.batch": batch})
        dataset = data.load(config.data)
        run = types.SimpleNamespace(config=config, derived=run_lib.derive(config, dataset))
        params = init_state(make_task(run.config, run.derived), dataset.shape).ema
        losses.append(average_length._loss(run, dataset.val)(params))
    np.testing.assert_allclose(*losses, rtol=1e-6)
