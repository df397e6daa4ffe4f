"""Restoration's parts against closed forms: operators, noise, draws of Gaussian posteriors, exact posteriors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.ndimage import gaussian_filter1d

from pfgm_jax.array_types import per_example
from pfgm_jax.errors import UserError
from pfgm_jax.flow import field
from pfgm_jax.flow.process import edm, pfgmpp
from pfgm_jax.inference.restoration import (
    METHODS,
    Operator,
    Problem,
    conditional_mean,
    exact,
    noise,
    operators,
    reverse,
)

KEY = jax.random.key(0)


def images(n, shape=(4, 4, 1), seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


# ---- operators


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 12, 3)])
def test_operators_have_their_adjoints(shape):
    for operator in (operators.identity, operators.average(4, shape), operators.blur(1.3, shape)):
        operators.check(operator, shape)
    mask = np.random.default_rng(0).random((2, *shape)) < 0.5
    assert operators.check(operators.masked(mask), shape) == shape


def test_what_operators_measure():
    x = images(2, (8, 8, 3))
    blocks = x.reshape(2, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(operators.average(2, (8, 8, 3)).forward(x), blocks, atol=1e-6)
    x = images(1, (40, 40, 1))
    blurred = gaussian_filter1d(gaussian_filter1d(x, 1.5, axis=1, truncate=8), 1.5, axis=2, truncate=8)
    inside = np.s_[:, 12:28, 12:28]  # away from the border, which averages what is there
    np.testing.assert_allclose(operators.blur(1.5, (40, 40, 1)).forward(x)[inside], blurred[inside], atol=1e-5)


@pytest.mark.parametrize(
    ("forward", "adjoint"),
    [
        (lambda x: x[:, ::2], lambda y: jnp.repeat(y, 2, axis=1)),
        (lambda x: 2 * x, lambda y: y),
        (lambda x: x + 1, lambda y: y),
        (lambda x: x[:, :2], lambda y: y),
    ],
)
def test_no_adjoint(forward, adjoint):
    with pytest.raises(UserError, match="adjoint"):
        operators.check(Operator("mine", forward, adjoint), (4, 4, 1))


def dense(operator, shape):
    """A [M, N] float64."""
    N = math.prod(shape)
    return np.asarray(operator.forward(jnp.eye(N).reshape(N, *shape))).reshape(N, -1).T.astype(np.float64)


def test_conditioned_is_the_gaussian_posterior():
    """Mean and covariance of draws against the closed form, blur, two spreads: 5 sigma."""
    shape, B = (4, 4, 1), 4000
    operator, s, spread = operators.blur(0.8, shape), 0.3, 0.7
    A, x, m = dense(operator, shape), images(1).reshape(-1), images(1, seed=1).reshape(-1)
    precision = A.T @ A / s**2 + np.eye(16) / spread
    covariance = np.linalg.inv(precision)
    mean = covariance @ (A.T @ m / s**2 + x / spread)
    rng = np.random.default_rng(2)
    draws = operators.conditioned(
        operator,
        jnp.asarray(x + math.sqrt(spread) * rng.normal(size=(B, 16)), jnp.float32).reshape(B, *shape),
        jnp.asarray(m + s * rng.normal(size=(B, 16)), jnp.float32).reshape(B, *shape),
        s**2,
        jnp.full(B, spread),
    )
    draws = np.asarray(draws).reshape(B, 16)
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs((draws.mean(axis=0) - mean) / deviation).max() < 5 / math.sqrt(B)
    normal = np.linalg.solve(np.linalg.cholesky(covariance), (draws - mean).T)  # a unit covariance if right
    assert np.abs(normal @ normal.T / B - np.eye(16)).max() < 5 * math.sqrt(2 / B)


# ---- noise


@pytest.mark.parametrize("kind", noise.KINDS)
def test_noise_has_the_variance_it_says(kind):
    clean, level = jnp.tile(jnp.array([-1.0, 0, 1]), (20_000, 1)), jnp.full(20_000, 0.3)
    drawn = np.asarray(noise.draw(kind, jax.random.split(KEY, 20_000), level, clean)) - np.asarray(clean)
    expected = np.asarray(noise.variance(kind, level, clean))[0]
    # Student's t with 3 degrees of freedom has no fourth moment: its quantiles are compared instead.
    if kind == "heavy":
        quartile = np.quantile(np.abs(drawn), 0.5, axis=0)
        np.testing.assert_allclose(quartile, 0.3 * scipy.stats.t(3).ppf(0.75), rtol=0.05)
        np.testing.assert_allclose(expected, 3 * 0.09, rtol=1e-6)
    else:
        np.testing.assert_allclose(drawn.var(axis=0), expected, rtol=5 * math.sqrt(2 / 20_000))


@pytest.mark.parametrize("kind", noise.KINDS)
def test_log_likelihood(kind):
    """Differences of log-likelihoods against SciPy's densities."""
    clean, m, s = images(3, (5,)) / 2, images(3, (5,), seed=1) / 2, np.array([0.2, 0.5, 1.0])
    scale = s[:, None] * np.ones((3, 5))
    if kind == "poisson":
        scale = scale * np.sqrt(np.maximum((1 + clean) / 2, 0.02))
    law = scipy.stats.t(3, loc=clean, scale=scale) if kind == "heavy" else scipy.stats.norm(clean, scale)
    zero = scipy.stats.t(3, scale=s[:, None]) if kind == "heavy" else scipy.stats.norm(0, 1)
    constant = 5 * (zero.logpdf(0)[:, 0] if kind == "heavy" else zero.logpdf(0))
    result = noise.log_likelihood(kind, jnp.asarray(s, jnp.float32), jnp.asarray(m), jnp.asarray(clean))
    np.testing.assert_allclose(result, law.logpdf(m).sum(axis=1) - constant, rtol=1e-4, atol=1e-4)


class Gaussian:
    """Data N(0, v) in every pixel: the posterior of anything linear is known. D = ∞."""

    def __init__(self, v):
        self.v = v

    def __call__(self, x, sigma):
        sigma = per_example(sigma, x)
        return self.v / (self.v + sigma**2) * x


def test_the_level_is_estimated():
    """Maximum likelihood of N(0, v + s²): mean x² − v, to what 1024 pixels can tell."""
    x = 1.2 * images(4, (32, 32, 1))
    levels = np.asarray(noise.estimated(Gaussian(0.5), jax.random.split(KEY, 4), jnp.asarray(x), 0.002, 80.0))
    np.testing.assert_allclose(levels**2, np.mean(x**2, axis=(1, 2, 3)) - 0.5, rtol=1e-3)


def test_the_level_of_an_image_does_not_depend_on_the_others():
    x = 0.6 * images(1, (8, 8, 1))
    keys = jax.random.split(KEY, 2)
    level = lambda x: float(noise.estimated(Gaussian(0.25), keys[: len(x)], jnp.asarray(x), 0.002, 80.0)[0])
    assert level(np.concatenate([x, np.full_like(x, -1)])) == pytest.approx(level(x), rel=1e-6)


# ---- methods on Gaussian data, whose posterior is known


def problem(m, operator, level, mask=True, spread=1.0):
    return Problem(jnp.asarray(m), operator, "gaussian", jnp.full(len(m), level), level == 0, jnp.asarray(mask), spread)


def posterior_of(A, v, s, m):
    covariance = np.linalg.inv(A.T @ A / s**2 + np.eye(A.shape[1]) / v)
    return covariance @ A.T @ m / s**2, covariance


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("matched", 0.02), ("pigdm", 0.05), ("split_gibbs", 0.12)],  # of V = 0 in steps, and of ρ > 0
)
def test_draws_of_a_gaussian_posterior(name, tolerance):
    """Means and variances of 4000 draws at D = ∞; ΠGDM is exact where its prior is the data's."""
    shape, s, v, B = (2, 2, 1), 0.6, 1.0, 4000
    operator = operators.identity if name == "matched" else operators.blur(0.7, shape)
    A, m = dense(operator, shape), images(1, shape, seed=3).reshape(-1)
    mean, covariance = posterior_of(A, v, s, m)
    steps = {"matched": 8, "pigdm": 60, "split_gibbs": 5}[name]
    options = METHODS[name].options | {"steps": steps}
    run = jax.jit(
        lambda m, keys: METHODS[name].run(problem(m, operator, s), Gaussian(v), edm(0.002, 40.0), keys, **options)
    )
    draws = np.asarray(run(jnp.tile(m.reshape(1, *shape), (B, 1, 1, 1)), jax.random.split(KEY, B))).reshape(B, -1)
    scatter = 5 / math.sqrt(B)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=scatter + tolerance / 2)
    np.testing.assert_allclose(draws.var(axis=0), np.diag(covariance), rtol=tolerance + scatter * math.sqrt(2))


@pytest.mark.parametrize("D", [8.0, math.inf])
def test_repaint_keeps_noiseless_pixels_and_fills_the_rest(D):
    """Independent pixels: those that are hidden follow the data's N(0, v) whatever is seen."""
    shape, v, B = (4, 4, 1), 1.0, 500
    mask = np.zeros(shape, bool)
    mask[:, 2:] = True
    m = np.where(mask, images(B, shape), 0)
    run = jax.jit(
        lambda m, keys: METHODS["repaint"].run(
            problem(m, operators.masked(mask), 0.0, mask), Gaussian(v), pfgmpp(D), keys, steps=30, resample=2
        )
    )
    x = np.asarray(run(m, jax.random.split(KEY, B)))
    np.testing.assert_array_equal(x[:, :, 2:], m[:, :, 2:])
    if math.isinf(D):
        hidden = x[:, :, :2]
        assert abs(hidden.mean()) < 5 / math.sqrt(hidden.size) and abs(hidden.var() / v - 1) < 0.12


@pytest.mark.parametrize("D", [8.0, 128.0, math.inf])
@pytest.mark.parametrize("sweeps", [7, 60])
def test_few_sweeps_of_split_gibbs_end_where_the_data_are(D, sweeps):
    """Means of 2 × 2 pixels of N(0, 1), measured without noise, leave three quarters of the variance open.

    At finite D the denoiser here is that of D = ∞, and seven sweeps are few: hence 20 %. A chain that forgets nothing
    is off by a factor of five and more in those at finite D.
    """
    shape, B = (8, 8, 1), 200
    operator = operators.average(2, shape)
    m = operator.forward(images(B, shape))
    options = METHODS["split_gibbs"].options | {"sweeps": sweeps}
    run = jax.jit(
        lambda m, keys: METHODS["split_gibbs"].run(problem(m, operator, 0.0), Gaussian(1.0), pfgmpp(D), keys, **options)
    )
    x = run(m, jax.random.split(KEY, B))
    np.testing.assert_allclose(operator.forward(x), m, atol=1e-4)
    details = x - jnp.repeat(jnp.repeat(m, 2, axis=1), 2, axis=2)
    assert np.square(details).mean() == pytest.approx(0.75, rel=0.2)


def test_one_evaluation_is_the_posterior_mean():
    m = images(3, (4, 4, 1))
    x = METHODS["matched"].run(
        problem(m, operators.identity, 0.5), Gaussian(1.0), edm(), jax.random.split(KEY, 3), steps=1
    )
    np.testing.assert_allclose(x, m / 1.25, rtol=1e-5)


def test_the_noise_of_a_state_is_found():
    """τ σ², from the state alone, against E‖x − y‖² of the exact field: the noise is twice the said level."""
    rng, D = np.random.default_rng(0), 4.0
    points = rng.normal(size=(40, 8, 8, 1)).astype(np.float32)
    x = jnp.asarray(points[:20] + 1.0 * rng.normal(size=(20, 8, 8, 1)), jnp.float32)
    sigma = jnp.full(20, 0.5)
    step = reverse.posterior_moments(field.exact_denoiser(points, D), jax.random.split(KEY, 20), x, sigma, D)
    squared = np.asarray(field.second_moment(x, sigma, points, D))
    np.testing.assert_allclose(step.noise, (D * 0.25 + squared) / (64 + D - 2), rtol=0.1)
    np.testing.assert_allclose(step.mean, field.posterior_mean(x, sigma, points, D), atol=1e-5)


# ---- the exact posterior


@pytest.mark.parametrize("D", [1.0, 3.5, 128.0, math.inf])
def test_conditional_mean(D):
    """Against the formula in float64."""
    points, x = images(50), images(6, seed=1)
    sigma, log = np.geomspace(0.05, 5, 6), 3 * images(6, (50,), seed=2)
    log[:, :5] = -np.inf
    squared = np.sum((x[:, None].astype(np.float64) - points) ** 2, axis=(2, 3, 4))
    if math.isinf(D):
        weights = -squared / (2 * sigma[:, None] ** 2)
    else:
        weights = -(16 + D) / 2 * np.log(squared + D * sigma[:, None] ** 2)
    weights = weights + log
    weights = np.exp(weights - weights.max(axis=1, keepdims=True))
    expected = (weights / weights.sum(axis=1, keepdims=True)) @ points.reshape(50, -1)
    result = conditional_mean(jnp.asarray(x), jnp.asarray(sigma, jnp.float32), points, D, jnp.asarray(log))
    np.testing.assert_allclose(np.asarray(result).reshape(6, -1), expected, atol=2e-5)


@pytest.mark.parametrize("D", [1.0, 64.0, math.inf])
def test_the_exact_conditional_flow_ends_in_the_posterior(D):
    """Shares of the points among 1500 draws against the weights: χ², and not those without the measurement."""
    points = 2 * images(12, seed=4)
    m = points[:1] + 2.5 * images(1, seed=5)
    posterior = exact.posterior(points, m, operators.identity, "gaussian", 2.5)
    n, weights = 1500, posterior.weights[0]
    counts = np.bincount(posterior.draws(pfgmpp(D, sigma_max=200.0), KEY, n)[0], minlength=12)
    many = n * weights > 5
    left = 1 - weights[many].sum()
    observed, expected = np.append(counts[many], n - counts[many].sum()), n * np.append(weights[many], left)
    kept = expected > 5
    statistic = np.sum((observed[kept] - expected[kept]) ** 2 / expected[kept])
    assert statistic < scipy.stats.chi2(kept.sum()).ppf(1 - 1e-6)
    assert np.sum((counts - n / 12) ** 2 / (n / 12)) > 100  # the data's own weights do not fit


def test_what_no_posterior_is_made_of():
    points = images(20)
    with pytest.raises(UserError, match="matches no image"):
        exact.posterior(points, images(1, seed=9), operators.identity, "gaussian", 0.01)
    with pytest.raises(UserError, match="held-out images match no other"):
        exact.posterior(points, points[:1], operators.identity, "gaussian", 0.0)
    with pytest.raises(UserError, match="raise the noise level"):
        exact.posterior(points, points[:1], operators.identity, "gaussian", 0.1).require_calibratable()
    with pytest.raises(UserError, match="lower the noise level"):
        many = images(200)
        exact.posterior(many, many[:1], operators.identity, "gaussian", 30.0).require_calibratable()


def test_sets_and_distances():
    weights = np.array([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]])
    assert exact.credible_set(weights).tolist() == [[True, True, True, False], [True] * 4]
    assert exact.credible_set(weights, 0.5).tolist() == [[True, False, False, False], [True, True, False, False]]
    np.testing.assert_allclose(exact.total_variation(weights[:1], weights[1:]), [0.3])
    np.testing.assert_allclose(exact.frequencies(np.array([[0, 0, 3, 1]]), 4), [[0.5, 0.25, 0, 0.25]])
