"""Log-likelihoods against closed forms: Gaussians, and point charges whose smoothed density is the kernel's mixture."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import CHARGES, Gaussian
from scipy.integrate import quad
from scipy.special import gammaln

from pfgm_jax.errors import UserError
from pfgm_jax.flow import process as processes
from pfgm_jax.flow.field import exact_denoiser
from pfgm_jax.inference import bits_per_dim, dequantised
from pfgm_jax.inference.likelihood import EXACT, log_likelihood

HIGH = 80.0


def log_normal(x, mean, variance):
    """log N(x; mean, diag variance) of rows."""
    return -0.5 * np.sum((x - mean) ** 2 / variance + np.log(2 * np.pi * variance), axis=1)


def log_mixture(x, points, sigma, D):
    """Log-density of equally charged points smoothed by the kernel at σ, in float64; x [B, N], points [n, N]."""
    x, points = np.asarray(x, np.float64), np.asarray(points, np.float64)
    N = points.shape[1]
    squared = np.sum((x[:, None] - points) ** 2, axis=-1)
    if math.isinf(D):
        log_kernel = -N / 2 * math.log(2 * math.pi * sigma**2) - squared / (2 * sigma**2)
    else:
        constant = gammaln((N + D) / 2) - gammaln(D / 2) - N / 2 * math.log(math.pi * D * sigma**2)
        log_kernel = constant - (N + D) / 2 * np.log1p(squared / (D * sigma**2))
    largest = log_kernel.max(axis=1)
    return largest + np.log(np.mean(np.exp(log_kernel - largest[:, None]), axis=1))


@pytest.fixture(scope="module")
def gaussian():
    """A Gaussian, draws of it at σ = 0.05, and their log-density there."""
    data = Gaussian(N=4)
    rng, process = np.random.default_rng(1), processes.edm(0.05, HIGH)
    spread = np.sqrt(data.variance + process.sigma_min**2)
    along = rng.normal(size=(5, 4)) * spread
    x = jnp.asarray(data.mean + along @ data.axes.T, jnp.float32)
    return data, process, x, log_normal(along, 0, spread**2)


def exact_prior(data):
    def log_density(process, z):
        along = (z - data.mean) @ data.axes
        variance = data.variance + process.sigma_max**2
        return -0.5 * jnp.sum(along**2 / variance + np.log(2 * np.pi * variance), axis=1)

    return log_density


@pytest.mark.parametrize("steps", [0, 40])
def test_gaussian(gaussian, steps):
    data, process, x, expected = gaussian
    found = log_likelihood(process, data.denoise, x, vectors=EXACT, steps=steps, prior=exact_prior(data))
    assert found.completed
    # What tolerances of 1e-5 leave over a path of ln(80/0.05) = 7.4, in nats; 40 equal steps leave less.
    np.testing.assert_allclose(found.log_prob, expected, atol=1e-3)


def test_centred_prior_is_off_by_its_mismatch(gaussian):
    """A prior centred at 0 is off by up to ‖mean‖ ‖z‖/σ² and a bit at σ_max: less than 1e-3 nats at 2000."""
    data, process, x, expected = gaussian
    errors = {}
    for high in (80.0, 2000.0):
        found = log_likelihood(processes.edm(0.05, high), data.denoise, x, vectors=EXACT, rtol=1e-6, atol=1e-6)
        errors[high] = np.abs(np.asarray(found.log_prob) - expected).max()
    reach = np.linalg.norm((np.asarray(x) - data.mean) / np.sqrt(data.variance.min()), axis=1).max()  # ‖z‖/σ, at most
    assert 2e-3 < errors[80.0] < np.linalg.norm(data.mean) * reach / 80.0
    assert errors[2000.0] < 1e-3


def test_hutchinson_is_unbiased_and_says_its_error(gaussian):
    data, process, x, expected = gaussian
    keys = jax.random.split(jax.random.key(0), len(x))
    found = log_likelihood(process, data.denoise, x, keys, vectors=256, steps=30, prior=exact_prior(data))
    deviation = (np.asarray(found.log_prob) - expected) / np.asarray(found.error)
    assert np.all(np.asarray(found.error) > 0)
    assert np.all(np.abs(deviation) < 4)  # five normal deviates beyond 4: 1 in 3000
    one = log_likelihood(process, data.denoise, x, keys, vectors=1, steps=30, prior=exact_prior(data))
    assert np.all(np.isnan(one.error))


@pytest.mark.parametrize("D", [1.0, 3.5, 128.0, math.inf])
def test_point_charges(D):
    """At every D the smoothed density of charges is the kernel's mixture."""
    process, points = processes.pfgmpp(D, 0.3, HIGH), jnp.asarray(CHARGES, jnp.float32)
    keys = jax.random.split(jax.random.key(1), len(points))
    x = processes.perturb(process, keys, points, jnp.full(len(points), process.sigma_min))

    def prior(process, z):
        N = z.shape[1]
        squared = jnp.sum((z[:, None] - points) ** 2, axis=-1)
        if math.isinf(D):
            log_kernel = -N / 2 * math.log(2 * math.pi * HIGH**2) - squared / (2 * HIGH**2)
        else:
            constant = gammaln((N + D) / 2) - gammaln(D / 2) - N / 2 * math.log(math.pi * D * HIGH**2)
            log_kernel = constant - (N + D) / 2 * jnp.log1p(squared / (D * HIGH**2))
        return jax.scipy.special.logsumexp(log_kernel, axis=1) - math.log(len(points))

    found = log_likelihood(process, exact_denoiser(points, D), x, vectors=EXACT, prior=prior)
    # Tolerances of 1e-5 over ln(80/0.3) = 5.6; at D = 1 draws lie far out, where log p is −40.
    np.testing.assert_allclose(found.log_prob, log_mixture(x, points, process.sigma_min, D), atol=2e-3)


def test_density_integrates_to_one():
    """In one dimension the whole of exp(log p) can be summed: constants of the prior and of the path included."""
    points, D = jnp.asarray([[-1.0], [0.5]]), 2.0
    process = processes.pfgmpp(D, 0.2, 500.0)
    x = jnp.linspace(-300, 300, 24001).reshape(-1, 1)
    inner = x[jnp.abs(x[:, 0]) < 30]
    found = log_likelihood(process, exact_denoiser(points, D), inner, vectors=EXACT, steps=40)
    total = np.sum(np.exp(np.asarray(found.log_prob, np.float64))) * float(x[1, 0] - x[0, 0])
    outside = 1 - quad(lambda v: math.exp(log_mixture(np.array([[v]]), points, 0.2, D)[0]), -30, 30, limit=500)[0]
    assert abs(total + outside - 1) < 2e-3


def test_published_constant_of_pfgm_is_off_by_3_nats():
    """The prior on the hyperplane needs the area of the N-sphere in R^(N+1); published code takes S^(N−1)'s."""
    N, z = 3072, 40.0
    log_area = lambda n: math.log(2) + (n + 1) / 2 * math.log(math.pi) - gammaln((n + 1) / 2)  # of S^n
    x = np.random.default_rng(0).normal(size=(1, N)) * 30
    squared = np.sum(x**2) + z**2
    density = lambda area: math.log(2) + math.log(z) - area - (N + 1) / 2 * math.log(squared)
    ours = float(processes.log_prior(processes.pfgm(291, N, z_max=z), jnp.asarray(x, jnp.float32))[0])
    assert abs(ours - density(log_area(N))) < 2e-2  # float32 of 12 000 nats
    assert abs(ours - density(log_area(N - 1))) == pytest.approx(3.1, abs=0.03)


def test_bits_per_dim():
    """A uniform density over the grey levels' range costs 8 bits; each level's interval is 1/127.5 wide."""
    N = 12
    log_uniform = -N * math.log(256 / 127.5)
    assert bits_per_dim(log_uniform, N) == pytest.approx(8.0)
    assert bits_per_dim(0.0, N, levels_per_unit=256) == pytest.approx(8.0)  # data in [0, 1)


def test_dequantised_stays_within_its_level():
    images = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    x = np.asarray(dequantised(images, jax.random.split(jax.random.key(0), 2)))
    np.testing.assert_array_equal(np.round((x + 1) * 127.5), images)
    assert np.std((x + 1) * 127.5 - images) == pytest.approx(1 / math.sqrt(12), rel=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [(dict(vectors=-1), "at least 1"), (dict(rtol=0.0), "rtol > 0"), (dict(vectors=EXACT), "5,000 derivatives")],
)
def test_refusals(options, words):
    x = jnp.zeros((1, 5000))
    with pytest.raises(UserError, match=words):
        log_likelihood(processes.edm(), lambda x, sigma: x, x, jax.random.split(jax.random.key(0), 1), **options)
