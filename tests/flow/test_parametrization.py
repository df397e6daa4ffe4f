"""Parametrisations and the loss against the papers' formulas in NumPy float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pfgm_jax.flow import losses
from pfgm_jax.flow import process as processes
from pfgm_jax.flow.parametrization import EDM, Epsilon, PoissonField, Score, denoiser
from pfgm_jax.flow.process import ddpm, edm, pfgm, pfgmpp, subvp, ve, vp

SIGMA = np.array([0.002, 0.1, 0.5, 3.0, 80.0])


def batch(shape=(5, 4, 4, 3), seed=0):
    """Noised images, their noise levels and stand-ins for the posterior means."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(-1, 1, shape)
    return mean + SIGMA[:, None, None, None] * rng.normal(size=shape), SIGMA, mean


def per_image(a):
    return a[:, None, None, None]


# ---- EDM


@pytest.mark.parametrize("D", [1, 128, math.inf])
def test_edm_preconditioning(x64, D):
    x, sigma, mean = batch()
    sigma_data = 0.7
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
    c_in = 1 / np.sqrt(sigma**2 + sigma_data**2)

    parametrization, process = EDM(sigma_data), pfgmpp(D)
    inputs, noise = parametrization.inputs(process, jnp.asarray(x), jnp.asarray(sigma))
    np.testing.assert_allclose(inputs, per_image(c_in) * x, rtol=1e-14)
    np.testing.assert_allclose(noise, np.log(sigma) / 4, rtol=1e-14)

    # The denoiser that a network gives, written as in the paper: c_skip x + c_out F(c_in x, ln σ / 4).
    def network(x, noise):
        return jnp.sin(3 * x) + per_image(noise)

    expected = per_image(c_skip) * x + per_image(c_out) * (
        np.sin(3 * per_image(c_in) * x) + per_image(np.log(sigma) / 4)
    )
    np.testing.assert_allclose(denoiser(parametrization, process, network)(x, sigma), expected, rtol=1e-12)

    # λ ‖denoise − y‖² with λ = 1/c_out², averaged over pixels.
    loss = losses.squared_error(parametrization, process, network, jnp.asarray(x), jnp.asarray(sigma), mean)
    by_hand = np.mean(((expected - mean) / per_image(c_out)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss, by_hand, rtol=1e-10)


@pytest.mark.parametrize("D", [1, 128, math.inf])
def test_edm_target_leads_back_to_the_mean(x64, D):
    x, sigma, mean = (jnp.asarray(a) for a in batch())
    parametrization, process = EDM(), pfgmpp(D)
    target = parametrization.target(process, x, sigma, mean)
    np.testing.assert_allclose(parametrization.to_denoiser(process, target, x, sigma), mean, rtol=0, atol=1e-12)


def test_edm_inputs_and_targets_have_unit_variance():
    # The point of the preconditioning, for data of standard deviation σ_data and Gaussian noise.
    rng = np.random.default_rng(0)
    y = 0.5 * rng.normal(size=(5, 40, 40, 30))
    x = jnp.asarray(y + per_image(SIGMA) * rng.normal(size=y.shape), jnp.float32)
    parametrization, sigma = EDM(0.5), jnp.asarray(SIGMA, jnp.float32)
    inputs, _ = parametrization.inputs(edm(), x, sigma)
    target = parametrization.target(edm(), x, sigma, jnp.asarray(y, jnp.float32))
    for a in (inputs, target):  # the standard deviation of a variance of n = 48 000 numbers is √(2/n)
        np.testing.assert_allclose(np.var(a, axis=(1, 2, 3)), 1, rtol=0, atol=5 * math.sqrt(2 / 48_000) + 1e-3)


# ---- PFGM's field


def field_by_algorithm_1(x, y, z, gamma=5.0):
    """PFGM's target as published: E of the batch y at the points (x, z), then −√N E/(‖E‖ + γ)."""
    B, N = x.shape
    targets = []
    for i in range(B):
        augmented = np.concatenate([x[i] - y, np.full((len(y), 1), z[i])], axis=1)
        weight = np.linalg.norm(augmented, axis=1) ** -(N + 1.0)
        E = weight @ augmented / weight.sum()
        targets.append(-math.sqrt(N) * E / (np.linalg.norm(E) + gamma))
    return np.stack(targets)


def test_poisson_target_is_algorithm_1(x64):
    rng = np.random.default_rng(0)
    references = rng.uniform(-1, 1, (64, 2, 2, 3))
    y, z = references[:5], np.array([0.01, 0.3, 1.0, 6.0, 40.0])
    x = y + per_image(z) * rng.normal(size=y.shape)
    process = pfgm(M=287, N=12)
    mean = losses.posterior_target(process, jnp.asarray(x), jnp.asarray(z), y, references)
    target = PoissonField().target(process, jnp.asarray(x), jnp.asarray(z), mean)
    expected = field_by_algorithm_1(x.reshape(5, 12), references.reshape(64, 12), z)
    np.testing.assert_allclose(target, expected, rtol=1e-9, atol=1e-12)
    # With labels, the field of the charges of the same label.
    label = rng.integers(0, 3, 64)
    allowed = label[:5, None] == label
    mean = losses.posterior_target(process, jnp.asarray(x), jnp.asarray(z), y, references, allowed)
    target = PoissonField(gamma=2.0).target(process, jnp.asarray(x), jnp.asarray(z), mean)
    for i in range(5):
        own = references.reshape(64, 12)[allowed[i]]
        expected = field_by_algorithm_1(x.reshape(5, 12)[i : i + 1], own, z[i : i + 1], gamma=2.0)
        np.testing.assert_allclose(target[i : i + 1], expected, rtol=1e-9, atol=1e-12)
    # Without references, the clean image.
    assert losses.posterior_target(process, x, z, y) is y


@pytest.mark.parametrize("D", [1, 3.5, 128, 1e6])
@pytest.mark.parametrize("near", [0.0, 5.0, math.inf])  # the ratio, both, the norm
def test_poisson_target_leads_back_to_the_mean(x64, D, near):
    x, _, mean = (jnp.asarray(a) for a in batch())
    r = jnp.array([1e-3, 0.4, 4.99, 5.01, 300.0])
    sigma = r / math.sqrt(D)
    parametrization, process = PoissonField(near=near), pfgmpp(D)
    target = parametrization.target(process, x, sigma, mean)
    assert target.shape == (5, 49)
    # ‖E‖/(‖E‖ + γ) leaves 1 − n = 1e-4 or more here: ten digits of sixteen remain.
    np.testing.assert_allclose(parametrization.to_denoiser(process, target, x, sigma), mean, rtol=0, atol=1e-8)


def test_norm_inversion_against_the_first_order():
    """The published e = γ n/(1 − n) is our formula at r = 0, and is off by more the larger r."""
    N, gamma = 48, 5.0
    x, mean = np.full((1, 4, 4, 3), 0.3), np.zeros((1, 4, 4, 3))
    norm_x = np.linalg.norm(x)
    errors = []
    for r in [1e-3, 0.1, 1.0]:
        target = np.asarray(PoissonField().target(pfgmpp(1), jnp.asarray(x), jnp.array([r]), jnp.asarray(mean)))
        n = np.linalg.norm(target[0, :-1]) / math.sqrt(N)
        errors.append(abs(gamma * n / (1 - n) - norm_x))
        back = PoissonField().to_denoiser(pfgmpp(1), jnp.asarray(target), jnp.asarray(x), jnp.array([r]))
        np.testing.assert_allclose(back, mean, rtol=0, atol=1e-5)
    assert errors[0] < 1e-5 < errors[1] < errors[2]
    assert errors[2] > 0.05


@pytest.mark.parametrize("D", [1, 128])
def test_poisson_inputs_outputs_and_loss(x64, D):
    x, sigma, mean = (jnp.asarray(a) for a in batch())
    parametrization, process = PoissonField(), pfgmpp(D)
    inputs, noise = parametrization.inputs(process, x, sigma)
    np.testing.assert_array_equal(inputs, x)
    np.testing.assert_allclose(noise, SIGMA * math.sqrt(D), rtol=1e-14)
    # The network's last channel, averaged over pixels, is v_r; the others are v_x.
    raw = np.random.default_rng(1).normal(size=(5, 4, 4, 4))
    expected = np.concatenate([raw[..., :3].reshape(5, 48), raw[..., 3].mean(axis=(1, 2))[:, None]], axis=1)
    np.testing.assert_allclose(parametrization.outputs(jnp.asarray(raw)), expected, rtol=1e-14)
    # ½ Σ over the N + 1 outputs.
    target = np.asarray(parametrization.target(process, x, sigma, mean))
    loss = losses.squared_error(parametrization, process, lambda *_: jnp.asarray(raw), x, sigma, mean)
    np.testing.assert_allclose(loss, np.sum((expected - target) ** 2, axis=1) / 2, rtol=1e-12)


def test_poisson_denoiser_of_a_poor_network_is_finite():
    x, sigma, _ = (jnp.asarray(a, jnp.float32) for a in batch())
    raw = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4, 4, 4)), jnp.float32)
    for scale in [0.0, 1.0, 1e3]:  # ‖v_x‖ above √N, v_r of the wrong sign, and all zero
        for process in [pfgmpp(1), pfgmpp(128)]:
            for sign in [1, -1]:
                denoise = denoiser(PoissonField(), process, lambda x, noise: sign * scale * raw)  # noqa: B023
                assert np.isfinite(denoise(x, sigma)).all()


@pytest.mark.parametrize("D", [1, 128])
@pytest.mark.parametrize("parametrization", [EDM(), Epsilon(), Score(), PoissonField()], ids=lambda p: type(p).__name__)
def test_a_perfect_network_has_no_loss_and_is_the_exact_denoiser(x64, parametrization, D):
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (30, 2, 2, 3))
    sigma = jnp.array([0.05, 0.4, 2.0, 10.0])
    x = jnp.asarray(points[:4] + per_image(np.asarray(sigma)) * rng.normal(size=(4, 2, 2, 3)))
    process = pfgmpp(D)
    mean = losses.posterior_target(process, x, sigma, points[:4], points)
    target = parametrization.target(process, x, sigma, mean)
    if parametrization.extra_channels:
        last = jnp.broadcast_to(target[:, -1].reshape(4, 1, 1, 1), (4, 2, 2, 1))
        target = jnp.concatenate([target[:, :-1].reshape(4, 2, 2, 3), last], axis=-1)

    def network(x, noise):
        return target

    np.testing.assert_allclose(denoiser(parametrization, process, network)(x, sigma), mean, rtol=0, atol=1e-9)
    loss = losses.squared_error(parametrization, process, network, x, sigma, mean)
    np.testing.assert_allclose(loss, 0, rtol=0, atol=1e-20)


# ---- the noise, and the score


@pytest.mark.parametrize("process", [vp(), subvp(), vp(0.5, 8.0)], ids=["vp", "subvp", "vp, other β"])
def test_epsilon_sees_the_process_in_its_own_time(x64, process):
    t = np.array([1e-3, 0.01, 0.2, 0.7, 1.0])
    B = process.schedule.beta_min * t + (process.schedule.beta_max - process.schedule.beta_min) * t**2 / 2
    sigma = np.sqrt(np.exp(B) - 1) if process.name == "vp" else (1 - np.exp(-B)) * np.exp(B / 2)
    mean = np.random.default_rng(0).uniform(-1, 1, (5, 4, 4, 3))
    x = mean + per_image(sigma) * np.random.default_rng(1).normal(size=mean.shape)
    inputs, noise = Epsilon().inputs(process, jnp.asarray(x), jnp.asarray(sigma))
    # x_t = e^(−B/2) (y + σ n); the network is told 999 t. The oracle's e^B − 1 has lost four of its digits at small t.
    np.testing.assert_allclose(inputs, per_image(np.exp(-B / 2)) * x, rtol=1e-10)
    np.testing.assert_allclose(noise, 999 * t, rtol=1e-10)


def test_epsilon_sees_ddpm_from_0_to_T_minus_1():
    process, i = ddpm(), np.array([1, 2, 500, 999, 1000])
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[i - 1]
    x = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype(np.float32)
    sigma = np.sqrt((1 - alpha_bar) / alpha_bar).astype(np.float32)
    inputs, noise = Epsilon(1.0, -1.0).inputs(process, jnp.asarray(x), jnp.asarray(sigma))
    np.testing.assert_allclose(inputs, per_image(np.sqrt(alpha_bar)) * x, rtol=2e-6)
    # Whole numbers, up to float32's ln σ: 5e-7 against levels that lie 0.005 apart.
    np.testing.assert_allclose(noise, i - 1, rtol=0, atol=1e-3)


def test_epsilon_target_loss_and_denoiser(x64):
    x, sigma, mean = batch()
    epsilon = (x - mean) / per_image(sigma)
    arguments = vp(), jnp.asarray(x), jnp.asarray(sigma)
    np.testing.assert_allclose(Epsilon().target(*arguments, mean), epsilon, rtol=1e-12)
    raw = np.random.default_rng(1).normal(size=x.shape)
    np.testing.assert_array_equal(Epsilon().outputs(raw), raw)
    # The plain mean squared error of ε.
    loss = losses.squared_error(Epsilon(), *arguments[:1], lambda *_: jnp.asarray(raw), *arguments[1:], mean)
    np.testing.assert_allclose(loss, np.mean((raw - epsilon) ** 2, axis=(1, 2, 3)), rtol=1e-12)
    back = denoiser(Epsilon(), vp(), lambda *_: jnp.asarray(raw))(*arguments[1:])
    np.testing.assert_allclose(back, x - per_image(sigma) * raw, rtol=1e-12)


def test_score_inputs_target_loss_and_denoiser(x64):
    x, sigma, y = batch()
    n = (x - y) / per_image(sigma)
    arguments = ve(), jnp.asarray(x), jnp.asarray(sigma)
    inputs, noise = Score().inputs(*arguments)
    np.testing.assert_array_equal(inputs, x)
    np.testing.assert_allclose(noise, np.log(sigma / 2), rtol=1e-14)
    # With s(x, σ) = F/σ for the score, denoising score matching is ½ Σ ‖σ s + n‖².
    raw = np.random.default_rng(1).normal(size=x.shape)
    loss = losses.squared_error(Score(), *arguments[:1], lambda *_: jnp.asarray(raw), *arguments[1:], y)
    score = raw / per_image(sigma)
    by_hand = np.sum((per_image(sigma) * score + n) ** 2, axis=(1, 2, 3)) / 2
    np.testing.assert_allclose(loss, by_hand, rtol=1e-10)
    # Tweedie: E[y | x, σ] = x + σ² s.
    back = denoiser(Score(), ve(), lambda *_: jnp.asarray(raw))(*arguments[1:])
    np.testing.assert_allclose(back, x + per_image(sigma) ** 2 * score, rtol=1e-12)


def test_the_score_of_a_data_set(x64):
    # σ² ∇ log p by differentiation of the mixture of Gaussians is σ times the Score target at the exact mean.
    points = np.random.default_rng(0).uniform(-1, 1, (7, 3))
    x, sigma = jnp.asarray([[0.3, -0.2, 0.9], [2.0, 1.0, -4.0]]), jnp.asarray([0.4, 3.0])

    def log_density(x, sigma):
        return jax.nn.logsumexp(-jnp.sum((x - points) ** 2, axis=1) / (2 * sigma**2))

    score = jax.vmap(jax.grad(log_density))(x, sigma)
    target = Score().target(ve(), x, sigma, oracles.posterior_mean(x, sigma, points, math.inf))
    np.testing.assert_allclose(target, sigma[:, None] * score, rtol=1e-10)


# ---- one field, whatever it is written in


def forms(D):
    """Every parametrisation that has a meaning at D."""
    return [EDM(0.5), Epsilon(), Score(), *([] if math.isinf(D) else [PoissonField()])]


def distance(a, b):
    return np.linalg.norm(
        np.asarray(a, np.float64).reshape(len(a), -1) - np.asarray(b, np.float64).reshape(len(b), -1), axis=1
    )


@pytest.mark.parametrize("D", [1, 128, math.inf])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_mean_survives_the_way_through_every_parametrisation(D, precision):
    """target → to_denoiser, alone and in a ring through all of them, is the identity on posterior means.

    The error is measured against ‖x − mean‖ + ‖mean‖: x itself is rounded at ε times that, and where σ is large x − σ
    out is a small difference of large numbers, so no parametrisation but EDM's can do better. Each way back is some ten
    roundings. The norm form of the field loses 1/(1 − n) more, n the saturated norm: 5 at most for these r < 5.
    """
    with jax.enable_x64(precision == "float64"):
        sigma = np.array([0.001, 0.02, 0.3, 0.7, 3.0, 20.0, 150.0, 2e4])
        rng = np.random.default_rng(0)
        mean = rng.uniform(-1, 1, (8, 4, 4, 3)).astype(precision)
        x = jnp.asarray(mean + per_image(sigma) * rng.normal(size=mean.shape), precision)
        sigma, process = jnp.asarray(sigma, precision), pfgmpp(D)
        size = distance(x, mean) + np.linalg.norm(mean.reshape(8, -1), axis=1)

        @jax.jit
        def there_and_back(mean):
            alone = [p.to_denoiser(process, p.target(process, x, sigma, mean), x, sigma) for p in forms(D)]
            ring = mean
            for p in [*forms(D)[1:], *forms(D)]:  # ε → score → field → EDM → ε → score → field
                ring = p.to_denoiser(process, p.target(process, x, sigma, ring), x, sigma)
            return *alone, ring

        tolerance = {"float32": 1e-5, "float64": 1e-10}[precision]
        for back in there_and_back(jnp.asarray(mean)):
            assert back.dtype == precision
            assert (distance(back, mean) < tolerance * size).all()
        # EDM's c_skip and c_out keep the mean's own digits at every σ.
        assert (distance(there_and_back(jnp.asarray(mean))[0], mean) < tolerance * np.linalg.norm(mean)).all()


def test_pfgmpp_at_D_1_is_pfgm(x64):
    ours, theirs = pfgmpp(1), pfgm(M=287, N=12)
    x, sigma, mean = (jnp.asarray(a) for a in batch((5, 2, 2, 3)))
    points = np.random.default_rng(3).uniform(-1, 1, (20, 2, 2, 3))
    # The same field of the same data, whichever process asks, and that of algorithm 1: z = σ.
    targets = []
    for process in (ours, theirs):
        exact = losses.posterior_target(process, x, sigma, mean, points)
        targets.append(PoissonField().target(process, x, sigma, exact))
        np.testing.assert_array_equal(PoissonField().inputs(process, x, sigma)[1], sigma)
    np.testing.assert_array_equal(*targets)
    expected = field_by_algorithm_1(np.asarray(x).reshape(5, 12), points.reshape(20, 12), SIGMA)
    np.testing.assert_allclose(targets[0], expected, rtol=1e-9, atol=1e-12)
    # And the same prior, but for PFGM's clip.
    unclipped = pfgm(M=287, N=12, z_max=80.0, max_norm=math.inf)
    keys = jax.random.split(jax.random.key(0), 5)
    np.testing.assert_array_equal(processes.prior(ours, keys, (2, 2, 3)), processes.prior(unclipped, keys, (2, 2, 3)))


def test_pfgmpp_tends_to_edm(x64):
    x, sigma, mean = (jnp.asarray(a) for a in batch((5, 2, 2, 3)))
    points, keys = np.random.default_rng(3).uniform(-1, 1, (20, 2, 2, 3)), jax.random.split(jax.random.key(0), 5)

    def everything(process):
        exact = losses.posterior_target(process, x, sigma, mean, points)
        output = EDM().target(process, x, sigma, exact)
        return exact, output, EDM().inputs(process, x, sigma)[0], processes.prior(process, keys, (2, 2, 3)) / 80

    limit, errors = everything(edm()), []
    for D in [1e4, 1e6, 1e8]:
        errors.append([np.abs(a - b).max() for a, b in zip(everything(pfgmpp(D)), limit, strict=True)])
    # The kernels differ by O(1/D) in their density, draws of the prior by its radius, 1 ± 1/√(2D).
    means, outputs, inputs, priors = np.array(errors).T
    assert (inputs == 0).all()
    assert means[2] < 1e-6 and outputs[2] < 1e-5 and priors[2] < 5 / math.sqrt(2e8) * 4
    np.testing.assert_allclose(means[:-1] / means[1:], 100, rtol=0.1)
    for a, b in zip(everything(pfgmpp(math.inf)), limit, strict=True):
        np.testing.assert_array_equal(a, b)
