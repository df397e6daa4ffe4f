"""A batch in parts is the whole batch, on any number of devices."""

import jax
import numpy as np
import pytest
from training_steps import MLP, examples_of, on_one, stacked, tiny

from pfgm_jax import config_rules, parallel
from pfgm_jax.errors import UserError
from pfgm_jax.training import dry_run
from pfgm_jax.training import step as step_lib

# All that is random in a step; the rate is constant: its cosine is float32, which each program rounds in its own way.
RANDOM = {
    "model.dtype": "float64", "model.dropout": 0.2, "optim.warmup": 0, "optim.decay": "constant", "train.augment": 0.5,
    "model.conditional": True, "train.label_dropout": 0.3, "train.large_batch": 0,
}  # fmt: skip


def trained(config, devices, steps=20):
    """(losses, parameters and average as one vector) after some steps of training."""
    dataset, _, task, _ = dry_run.prepare(config)
    step = parallel.pmap(lambda *args: step_lib.train_step(task, *args), devices=devices)
    state, losses = stacked(step_lib.init_state(task, dataset.shape), devices), []
    for k in range(steps):
        examples = examples_of(config, dataset, k)
        state, metrics = step(state, examples if len(devices) > 1 else on_one(examples))
        losses.append(metrics.loss[0])
    return np.asarray(losses), np.concatenate([np.ravel(a[0]) for a in jax.tree.leaves((state.params, state.ema))])


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("network", [MLP | RANDOM, RANDOM], ids=["mlp", "unet"])
def test_parts_are_the_whole_in_float64_over_twenty_steps(x64, network, devices):
    # Only the order of sums differs, 1e-16 a step times Adam's division by small second moments.
    whole_losses, whole = trained(tiny(**network), jax.devices()[:1])
    losses, parts = trained(tiny(**network, **{"train.microbatch": 8}), jax.devices()[:devices])
    np.testing.assert_allclose(losses, whole_losses, rtol=1e-9)
    assert np.linalg.norm(parts - whole) <= 1e-9 * np.linalg.norm(whole)
    assert whole.dtype == np.float64 and len(set(whole_losses)) == 20


def test_parts_see_the_whole_large_batch(x64):
    settings = {name: value for name, value in (MLP | RANDOM).items() if name != "train.augment"}
    settings |= {"train.large_batch": 64, "train.flip": True}
    (losses, whole), (other_losses, parts) = (
        trained(tiny(**settings, **{"train.microbatch": m}), jax.devices()[:1], 3) for m in (0, 8)
    )
    np.testing.assert_allclose(losses, other_losses, rtol=1e-12)
    assert np.linalg.norm(parts - whole) <= 1e-11 * np.linalg.norm(whole)


def test_parts_that_do_not_divide_are_refused():
    with pytest.raises(
        UserError, match="train.microbatch=5 is not possible: 0 for the whole batch, or .*train.batch=16"
    ):
        config_rules.check(tiny(**{"train.microbatch": 5}))
    with pytest.raises(UserError, match="train.microbatch=4 cannot be split evenly over 8 devices"):
        dry_run.prepare(tiny(**{"train.microbatch": 4}))


@pytest.mark.slow
def test_parts_take_less_memory():
    need = []
    for microbatch in (0, 64):
        dataset, _, task, _ = dry_run.prepare(tiny(**{"train.batch": 512, "train.microbatch": microbatch}))
        need.append(dry_run.memory_estimate(task, step_lib.state_shapes(task, dataset.shape), dataset, 1, False))
    assert need[1] < need[0] / 2
