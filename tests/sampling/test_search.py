"""Searched grids: the cheapest path against all paths, and what a search gains on an exact field."""

import itertools

import numpy as np
import oracles
import pytest
from oracles import draw, solve

from pfgm_jax import sampling
from pfgm_jax.errors import UserError
from pfgm_jax.flow.process import edm, pfgmpp
from pfgm_jax.sampling import search

POINTS = np.random.default_rng(0).normal(size=(30, 6))


@pytest.mark.parametrize("gamma", [1.0, 1.15, 0.5])
def test_the_cheapest_of_all_paths(gamma):
    cost = np.random.default_rng(1).uniform(size=(8, 8))

    def total(path):
        return sum(gamma**k * cost[i, j] for k, (i, j) in enumerate(itertools.pairwise(path)))

    for jumps in (1, 2, 4, 7):
        paths = [(0, *between, 7) for between in itertools.combinations(range(1, 7), jumps - 1)]
        assert search.cheapest(cost, jumps, gamma) == list(min(paths, key=total))


@pytest.mark.parametrize("D", [3.5, np.inf])
def test_a_searched_grid_leads_nearer_to_the_flow_s_end(D):
    """Euler on 6 levels found for the field, against EDM's and the log grid, on other draws of the prior."""
    process, denoise = pfgmpp(D, 0.05, 20.0), oracles.denoiser(POINTS, D)
    grids = search.searched(process, denoise, draw(process, 64, (6,), seed=0), (6, 9))
    assert sorted(grids) == [6, 9] and [len(sampling.levels(process, grids[n], n)) for n in (6, 9)] == [6, 9]
    x = draw(process, 256, (6,), seed=1)
    exact, _ = solve("rk45", process, denoise, x, rtol=1e-5, atol=1e-5, last_denoise=False)

    def error(grid):
        ours, _ = solve("euler", process, denoise, x, steps=6, grid=grid, last_denoise=False)
        return np.median(np.linalg.norm(np.asarray(ours) - np.asarray(exact), axis=1))

    assert error(grids[6]) < min(error("edm"), error("log"))


def test_steps_by_one_program_are_the_solver_s_own():
    process, denoise = edm(0.05, 20.0), oracles.denoiser(POINTS, np.inf)
    x, grid, calls = draw(process, 8, (6,)), "20,9,2,0.8,0.3,0.05", []
    ours = search.by_steps(denoise, lambda: calls.append(0))(x, sampling.levels(process, grid, 6))
    options = dict(steps=6, grid=grid, equal_weights=False, last_denoise=False)
    np.testing.assert_allclose(ours, solve("ipndm", process, denoise, x, **options)[0], rtol=0, atol=1e-4)
    assert len(calls) == 5


def test_the_best_discount_is_taken():
    """Of the grids of all γ the one whose end is nearest to the flow's; its error is that of the solver."""
    process, denoise = edm(0.05, 20.0), oracles.denoiser(POINTS, np.inf)
    path = search.fine_path(process, denoise, draw(process, 32, (6,)), 31)
    cost = search.costs(path)
    grid, errors = search.best(process, search.by_steps(denoise), path, cost, 6)

    def error(grid):
        options = dict(steps=6, grid=grid, equal_weights=False, last_denoise=False)
        missed = np.asarray(solve("ipndm", process, denoise, path.states[0], **options)[0] - path.states[-1])
        return np.sqrt(np.mean(missed**2, axis=1)).mean()

    tried = [search.written(path.sigmas[search.cheapest(cost, 5, gamma)]) for gamma in search.GAMMAS]
    assert error(grid) == pytest.approx(min(map(error, tried)), rel=1e-3)
    assert errors == pytest.approx({name: error(grid if name == "searched" else name) for name in errors}, rel=1e-3)


def test_a_written_grid():
    process = edm(0.002, 80.0)
    np.testing.assert_array_equal(sampling.levels(process, "80,11,0.002", 3), [80, 11, 0.002])
    np.testing.assert_array_equal(sampling.levels(process, "80.004,11,0.002", 3), [80, 11, 0.002])


@pytest.mark.parametrize("grid, message", [
    ("80,x,0.002", "a grid must be a name \\(edm, log, time\\) or numbers like 80,11,0.002, got '80,x,0.002'"),
    ("80,11,1,0.002", "has 4 levels, and steps is 3"),
    ("80,90,0.002", "must fall and stay above 0"),
    ("80,nan,0.002", "must fall and stay above 0"),
    ("70,11,0.002", "must lead from σ_max = 80 to σ_min = 0.002"),
    ("80,11,0.01", "must lead from σ_max = 80 to σ_min = 0.002"),
])  # fmt: skip
def test_a_written_grid_that_is_none(grid, message):
    with pytest.raises(UserError, match=message):
        sampling.levels(edm(0.002, 80.0), grid, 3)


def test_refusals():
    process, x = edm(), np.zeros((2, 3), np.float32)
    for options, message in [
        (dict(steps=()), "from 2 to fine = 61 levels"),
        (dict(steps=(1,)), "from 2 to fine = 61 levels, got steps = \\(1,\\)"),
        (dict(steps=(9,), fine=8), "from 2 to fine = 8 levels"),
        (dict(steps=(5,), gamma=0.0), "gamma > 0"),
    ]:
        with pytest.raises(UserError, match=message):
            search.searched(process, lambda x, sigma: x, x, **options)
    with pytest.raises(UserError, match="NaN or inf"):
        search.searched(process, lambda x, sigma: x * np.nan, x, (5,))
