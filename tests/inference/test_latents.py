"""Latents: every solver runs backwards, ways between latents, and what does not go together."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import CHARGES, flow

from pfgm_jax import sampling
from pfgm_jax.errors import UserError
from pfgm_jax.flow import process as processes
from pfgm_jax.flow.field import exact_denoiser
from pfgm_jax.inference import (
    FLOW_SOLVERS,
    Latents,
    between,
    class_direction,
    from_hemisphere,
    load_latents,
    slerp,
    straight,
    to_hemisphere,
    upwards,
)

POINTS = np.asarray(CHARGES, np.float64)
FINE = {"rk45": dict(rtol=1e-6, atol=1e-6), "tsit5": dict(rtol=1e-6, atol=1e-6), "euler": dict(steps=4000)}


@pytest.mark.parametrize("D", [1.0, 128.0, math.inf])
@pytest.mark.parametrize("solver", FLOW_SOLVERS)
def test_solvers_run_backwards(solver, D):
    """From σ_min up to σ_max along the flow that SciPy integrates, and back to where they came from."""
    process = processes.pfgmpp(D, 0.2, 30.0)
    denoise = exact_denoiser(jnp.asarray(POINTS, jnp.float32), D)
    x = POINTS[::2] + 0.5 * np.random.default_rng(0).normal(size=(3, 4))
    options = FINE.get(solver, dict(steps=200)) | dict(last_denoise=False)
    solve = jax.jit(lambda flow, x: sampling.SOLVERS[solver](flow, denoise, x, **options), static_argnums=0)
    z, stats = solve(upwards(process), jnp.asarray(x, jnp.float32))
    assert stats.completed
    expected = flow(x, process.sigma_min, process.sigma_max, POINTS, D)
    # Relative to the noise at σ_max; Euler's first-order error is the largest.
    np.testing.assert_allclose(z / process.sigma_max, expected / process.sigma_max, atol=2e-3)
    back, _ = solve(process, z)
    np.testing.assert_allclose(back, x, atol=2e-2 if solver == "euler" else 3e-3)


def test_grids_run_backwards():
    for process in (processes.pfgmpp(128.0), processes.vp(), processes.ddpm()):
        for grid in (None, *sampling.GRIDS):
            down, up = (sampling.levels(flow, grid, 9) for flow in (process, upwards(process)))
            np.testing.assert_allclose(up, down[::-1], rtol=1e-6)


def latents(n=3, solver="rk45", **changes):
    rng = np.random.default_rng(0)
    states = 80 * rng.normal(size=(n, 4, 4, 1)).astype(np.float32)
    if solver == "reversible":
        states = rng.integers(-(2**17), 2**17, (n, 2, 4, 4, 1)).astype(np.int32)
    z = Latents(states, np.arange(n, dtype=np.int32), solver, (("rtol", 1e-5),), 80.0, "run")
    return dataclasses.replace(z, **changes)


@pytest.mark.parametrize("solver", ["rk45", "reversible"])
def test_save_and_load(solver, tmp_path):
    options = (("rtol", np.float32(1e-3)), ("steps", np.int64(40)))  # numbers of NumPy's are numbers
    z = latents(solver=solver, options=options)
    z.save(tmp_path / "z.npz")
    again = load_latents(tmp_path / "z.npz")
    np.testing.assert_array_equal(again.states, z.states)
    assert again.states.dtype == z.states.dtype
    for name in ("solver", "options", "sigma", "run"):
        assert getattr(again, name) == getattr(z, name)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_latents(tmp_path / "no.npz")
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(UserError, match="not a file of latents"):
            load_latents(tmp_path / name)


def test_slerp_keeps_the_norm():
    """On the great circle, at even angles; a straight line comes within 1/√2 of the origin."""
    a, b = np.array([3.0, 0, 0]), np.array([0, 3.0, 0])
    way = slerp(a, b, np.linspace(0, 1, 5))
    angles = np.pi / 8 * np.arange(5)
    np.testing.assert_allclose(way, 3 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1), atol=1e-12)
    assert np.linalg.norm(straight(a, b, [0.5])[0]) == pytest.approx(3 / math.sqrt(2))
    np.testing.assert_allclose(np.linalg.norm(slerp(a, 4 * b, [0, 0.5, 1]), axis=1), [3, 6, 12])
    np.testing.assert_allclose(slerp(a, a, [0.3]), a[None])


@pytest.mark.parametrize("solver", ["rk45", "reversible"])
def test_between_has_both_ends(solver):
    z = latents(solver=solver)
    way = between(z[0], z[2], 5)
    np.testing.assert_allclose(way.states[[0, -1]], z.states[[0, 2]], atol=1e-3 if solver == "rk45" else 1)
    np.testing.assert_array_equal(way.labels, [0, 0, 2, 2, 2])
    if solver == "rk45":
        norms = np.linalg.norm(way.states.reshape(5, -1), axis=1)
        np.testing.assert_allclose(norms, norms[0] * (norms[-1] / norms[0]) ** np.linspace(0, 1, 5), rtol=1e-5)


def test_scaled_and_moved():
    for solver in ("rk45", "reversible"):
        z = latents(solver=solver)
        np.testing.assert_allclose(z.scaled(0.5).z, 0.5 * z.z, atol=1e-2)
        step = np.full((4, 4, 1), 7.0)
        np.testing.assert_allclose(z.moved(step).z, z.z + step, atol=1e-2)


def test_class_direction():
    z = latents()
    z = dataclasses.replace(z, states=np.stack([np.full((4, 4, 1), v, np.float32) for v in (1, 3, 10)]))
    np.testing.assert_allclose(class_direction(z, [0, 0, 1], 0, 1), np.full((4, 4, 1), 8.0))
    with pytest.raises(UserError, match="class 2"):
        class_direction(z, [0, 0, 1], 0, 2)


def test_hemisphere_and_hyperplane_are_one_radial_map():
    z = latents().z
    directions = to_hemisphere(z, 40.0)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(from_hemisphere(directions, 40.0, (4, 4, 1)), z, rtol=1e-5)
    with pytest.raises(UserError, match="above 0"):
        from_hemisphere(-directions, 40.0, (4, 4, 1))


def test_prior_of_pfgm_is_uniform_on_the_hemisphere():
    """The last coordinate u of uniform directions in R^(N+1), N = 2: uniform in (0, 1) by Archimedes' theorem."""
    process = processes.pfgmpp(1.0, 0.01, 20.0)
    z = processes.prior(process, jax.random.split(jax.random.key(0), 4000), (2,))
    u = np.sort(to_hemisphere(z, process.sigma_max)[:, -1])
    gap = np.abs(u - (np.arange(4000) + 0.5) / 4000).max()
    assert gap < 1.95 / math.sqrt(4000)  # Kolmogorov: exceeded once in a thousand


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: latents(solver="reversible", states=np.zeros((3, 4, 4, 1), np.int32)), "pair"),
        (lambda: latents(labels=np.zeros(2, np.int32)), "one label each"),
        (lambda: latents().scaled(0.0), "above 0"),
        (lambda: latents().scaled([1.0, 2.0]), r"a number or \[3\] of them, got \[2\]"),
        (lambda: class_direction(latents(), [0, 1], 0, 1), "3 latents have 3 classes"),
        (lambda: between(latents()[0], latents()[1], 1), "n must be at least 2"),
        (lambda: between(latents()[0], latents()[1], 2.5), "n must be a whole number"),
        (lambda: between(latents(), latents()[1], 3), "between two single latents"),
        (lambda: between(latents()[0], latents()[1], 3, "bent"), "slerp, straight"),
        (lambda: between(latents()[0], latents(run="other")[1], 3), "latents of different runs cannot be combined"),
        (lambda: slerp(np.ones(3), -2 * np.ones(3), [0.5]), "point away from each other"),
        (lambda: slerp(np.zeros(3), np.ones(3), [0.5]), "no direction"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_levels_that_are_written_down_lead_up_as_they_lead_down():
    process = processes.pfgmpp(128.0, 0.002, 80.0)
    text = "80,11,0.57,0.002"
    down, up = sampling.levels(process, text, 4), sampling.levels(upwards(process), text, 4)
    np.testing.assert_allclose(up, down[::-1], rtol=1e-12)
