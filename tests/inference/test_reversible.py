"""The reversible solver: the same bits back, second order, and what the pair's difference does to an encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import CHARGES, Gaussian, flow

from pfgm_jax.flow import process as processes
from pfgm_jax.flow.field import exact_denoiser
from pfgm_jax.inference import reversible
from pfgm_jax.sampling import levels

D = 128.0
PROCESS = processes.pfgmpp(D, 0.01, 80.0)
POINTS = jnp.asarray(CHARGES, jnp.float32)
DENOISE = exact_denoiser(POINTS, D)


@jax.jit
def follow(pair, rows):
    return reversible.follow(DENOISE, pair, rows)


def there_and_back(pair, sigmas):
    up, down = (reversible.half_steps(sigmas, upwards) for upwards in (True, False))
    return np.asarray(follow(follow(pair, up), down))


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_back_to_the_same_bits(steps):
    x = np.random.default_rng(0).uniform(-1, 1, (5, 4))
    pair = reversible.to_pair(x, PROCESS.sigma_min)
    sigmas = levels(PROCESS, "edm", steps + 1)
    assert not np.array_equal(np.asarray(follow(pair, reversible.half_steps(sigmas, True))), pair)
    np.testing.assert_array_equal(there_and_back(pair, sigmas), pair)
    np.testing.assert_allclose(reversible.to_states(pair, PROCESS.sigma_min), x, atol=1e-7)


def test_back_from_any_integers():
    """Sums that pass the largest integer wrap around, and come back too."""
    pair = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 2, 4), dtype=np.int64).astype(np.int32)
    np.testing.assert_array_equal(there_and_back(pair, levels(PROCESS, "edm", 9)), pair)


def test_half_steps_undo_each_other():
    sigmas = [4.0, 2.0, 1.0]
    down, up = (reversible.half_steps(sigmas, upwards) for upwards in (False, True))
    np.testing.assert_array_equal(down.member, [0, 1, 0, 1])
    np.testing.assert_allclose(down.sigma, [4, 2, 2, 1])
    np.testing.assert_allclose(down.step, [0.25, 0.25, 0.5, 0.5])
    for name, sign in (("member", 1), ("sigma", 1), ("step", 1), ("sign", -1)):
        np.testing.assert_array_equal(getattr(up, name), sign * getattr(down, name)[::-1])


def test_two_calls_a_step_either_way():
    """The recursion from the last layer to the first calls the network as often as the way there: 2 L."""
    calls = []

    def counted(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return DENOISE(x, sigma)

    pair, sigmas = reversible.to_pair(np.zeros((1, 4)) + 0.3, PROCESS.sigma_min), levels(PROCESS, "edm", 12)
    for upwards in (True, False):
        calls.clear()
        jax.block_until_ready(reversible.follow(counted, pair, reversible.half_steps(sigmas, upwards)))
        jax.effects_barrier()
        assert len(calls) == 2 * 11


def errors_down(steps, start, end):
    pair = follow(
        reversible.to_pair(start, PROCESS.sigma_max),
        reversible.half_steps(levels(PROCESS, "edm", steps + 1), upwards=False),
    )
    return np.sqrt(np.mean((reversible.to_states(pair, PROCESS.sigma_min) - end) ** 2))


def test_order_two_down():
    start = np.asarray(processes.prior(PROCESS, jax.random.split(jax.random.key(3), 6), (4,)), np.float64)
    end = flow(start, PROCESS.sigma_max, PROCESS.sigma_min, np.asarray(CHARGES, np.float64), D)
    errors = [errors_down(steps, start, end) for steps in (40, 80, 160)]
    order = np.log2(errors[0] / errors[2]) / 2
    assert order > 1.6, errors  # 2, less what is not yet small at 40 steps


def test_settled_difference_makes_an_encoder():
    """Without it the members part by much on the way up; with it the latent is near the flow's own."""
    data, process = Gaussian(N=4), processes.edm(0.01, 80.0)
    growth = np.sqrt((data.variance + process.sigma_max**2) / (data.variance + process.sigma_min**2))
    along = np.random.default_rng(2).normal(size=(6, 4)) * np.sqrt(data.variance)
    x, exact = (data.mean + a @ data.axes.T for a in (along, along * growth))
    sigmas = levels(process, "edm", 41)
    walk = jax.jit(lambda pair, rows: reversible.follow(data.denoise, pair, rows))
    half = np.asarray(jax.jit(lambda x: reversible.settled(data.denoise, x, sigmas))(jnp.asarray(x, jnp.float32)))
    found = {}
    for name, difference in (("plain", 0), ("settled", half)):
        pair = reversible.to_pair(x, process.sigma_min, difference)
        up = walk(pair, reversible.half_steps(sigmas, upwards=True))
        np.testing.assert_array_equal(walk(up, reversible.half_steps(sigmas, upwards=False)), pair)
        found[name] = np.sqrt(np.mean((reversible.to_states(up, process.sigma_max) - exact) ** 2)) / process.sigma_max
    assert found["settled"] < found["plain"] / 5, found
