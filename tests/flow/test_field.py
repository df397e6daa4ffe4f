"""The exact field against NumPy float64, and the same field streamed, sharded, masked and differentiated."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pfgm_jax import parallel
from pfgm_jax.data import to_unit
from pfgm_jax.errors import UserError
from pfgm_jax.flow import field
from pfgm_jax.flow.process import perturb, pfgmpp

displacement = jax.jit(field.displacement, static_argnames=("D", "chunk"))
posterior_mean = jax.jit(field.posterior_mean, static_argnames=("D", "chunk"))

SIGMAS = [0.002, 0.01, 0.1, 1, 7, 10, 80]


@functools.cache
def images(n=4096, N=3072):
    """Independent points, and around the first of them near and exact duplicates."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (n, N)).astype(np.float32)
    copies = np.arange(1, n, n // 20)[:18]  # spread over chunks and devices
    points[copies] = points[0]
    points[copies[:10]] += 1e-2 * rng.normal(size=(10, N)).astype(np.float32)
    points[copies[10:15]] += 1e-4 * rng.normal(size=(5, N)).astype(np.float32)
    return points


def queries(points, D, sigmas=SIGMAS):
    """Two draws of the kernel at every σ: around the point that has duplicates, and around one without."""
    sigma = np.repeat(np.asarray(sigmas, np.float32), 2)
    y = jnp.asarray(points[np.tile([0, 5], len(sigmas))])
    return perturb(pfgmpp(D), jax.random.split(jax.random.key(1), len(sigma)), y, sigma), jnp.asarray(sigma)


def relative_error(ours, expected):
    ours, expected = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (ours, expected))
    return np.linalg.norm(ours - expected, axis=1) / np.linalg.norm(expected, axis=1)


# ---- accuracy


@pytest.mark.parametrize("D", [1, 2, 128, 2048, 1e6, math.inf])
def test_float32_field_against_float64(D):
    points = images()
    x, sigma = queries(points, D=D)
    expected = np.asarray(x, np.float64) - oracles.posterior_mean(x, sigma, points, D)
    # Relative to ‖x − E[y]‖ alone, which is smaller than the field; 4e-8 was measured. Nearest points whose differences
    # cancel give 1e-5 and more, and ‖x‖² left in the differences 2e-7 to 8e-7.
    assert relative_error(displacement(x, sigma, points, D=D), expected).max() < 1.5e-7
    # The mean is rounded once more, as a difference from x.
    mean = np.asarray(posterior_mean(x, sigma, points, D=D), np.float64)
    error = np.linalg.norm(np.asarray(x, np.float64) - expected - mean, axis=1)
    assert (error / np.linalg.norm(np.asarray(x), axis=1)).max() < 1e-6
    if not math.isinf(D):
        E_x, E_r = field.poisson_field(x, sigma, points, D)
        np.testing.assert_allclose(E_r, np.asarray(sigma, np.float64) * math.sqrt(D), rtol=1e-6)
        assert relative_error(E_x, expected).max() < 1e-6


def copies(kind, N, n=1024):
    """Images of 256 levels; 300 of them are the first again, exactly, or one level off in so many pixels, or nearly."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (n, N))
    levels[100:400] = levels[0]
    if isinstance(kind, int):
        for image in levels[100:400]:
            changed = rng.choice(N, kind, replace=False)
            image[changed] += np.where(image[changed] < 255, 1, -1)
    points = (levels / 127.5 - 1).astype(np.float32)
    if kind == "noisy":
        points[100:400] += 3e-3 * rng.normal(size=(300, N)).astype(np.float32)
    return points


@pytest.mark.parametrize("kind, N", [("exact", 3072), (20, 2352), (20, 3072), (1, 3072), ("noisy", 3072)])
@pytest.mark.parametrize("D", [1, 128, math.inf])
def test_hundreds_of_copies_of_an_image(D, kind, N):
    # More of them than always have exact differences: the others' were off by 2⁻²³ ‖y‖²/σ² in the weight, and their
    # sum by 2⁻²³ ‖y‖: 5e-4 of the displacement at σ = 0.002, up to 1e-1 for one pixel.
    points = copies(kind, N)
    x, sigma = queries(points, D, [5e-4, 0.002, 0.01, 0.05, 0.3, 1, 10])
    expected = np.asarray(x, np.float64) - oracles.posterior_mean(x, sigma, points, D)
    tolerance = 1e-5 if kind == "noisy" else 1e-6
    assert relative_error(displacement(x, sigma, points, D=D), expected).max() < tolerance
    if D == 128:
        streamed = displacement(x, sigma, points, D=D, chunk=200)
        assert relative_error(streamed, expected).max() < tolerance


def test_only_copies():
    # Every point is in the last, shorter block of exact differences or before it.
    points = copies(1, 192)[100:400]
    x, sigma = queries(points, 128, [0.002, 0.05, 1])
    expected = np.asarray(x, np.float64) - oracles.posterior_mean(x, sigma, points, 128)
    assert relative_error(displacement(x, sigma, points, D=128), expected).max() < 1e-5
    allowed = jnp.asarray(np.random.default_rng(3).uniform(size=(6, 300)) < 0.7)
    masked = displacement(x, sigma, points, D=128, allowed=allowed)
    for i in range(6):
        mean = oracles.posterior_mean(x[i : i + 1], sigma[i : i + 1], points[np.asarray(allowed[i])], 128)
        assert relative_error(masked[i : i + 1], np.asarray(x[i], np.float64) - mean).max() < 1e-5


def test_copies_over_devices():
    points = copies(1, 192)
    x, sigma = queries(points, 128, [0.002, 0.05, 1])
    expected = np.asarray(x, np.float64) - oracles.posterior_mean(x, sigma, points, 128)
    sharded = parallel.pmap(lambda part: field.displacement(x, sigma, part, 128, axis_name=parallel.AXIS))(
        points.reshape(8, 128, 192)
    )
    assert relative_error(sharded[5], expected).max() < 1e-5


def test_vmap_keeps_the_branch_for_copies():
    # With a condition that is mapped, both sides of the branch would be computed for all data.
    points = images(512, 192)
    x, sigma = queries(points, 128)
    mapped = jax.vmap(lambda x, sigma: field.posterior_mean(x[None], sigma[None], points, 128))
    assert "cond[" in str(jax.make_jaxpr(mapped)(x, sigma))


@pytest.mark.parametrize("D", [1, 2.5, 40])
def test_poisson_field_is_the_sum_over_charges(D):
    # E ∝ Σ (x̃ − ỹ_i) / ‖x̃ − ỹ_i‖^(N+D), x̃ = (x, r), ỹ = (y, 0): at D = 1 Coulomb's law in N + 1 dimensions.
    rng = np.random.default_rng(0)
    points, x = rng.normal(size=(40, 6)), 2 * rng.normal(size=(9, 6))
    sigma = np.geomspace(0.05, 5, 9)
    radius = sigma * math.sqrt(D)
    extra = np.broadcast_to(radius[:, None, None], (9, 40, 1))
    augmented = np.concatenate([x[:, None] - points, extra], axis=2)
    E = np.sum(augmented / np.linalg.norm(augmented, axis=2, keepdims=True) ** (6 + D), axis=1)
    E_x, E_r = field.poisson_field(jnp.asarray(x, jnp.float32), jnp.asarray(sigma, jnp.float32), points, D=D)
    ours = np.concatenate([E_x, np.asarray(E_r)[:, None]], axis=1)
    unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)  # noqa: E731
    np.testing.assert_allclose(unit(ours), unit(E), rtol=0, atol=1e-6)


@pytest.mark.parametrize("D", [1, 128, 1e6, math.inf])
def test_equidistant_points_weigh_the_same(D):
    points = np.concatenate([np.eye(5), -np.eye(5)]).astype(np.float32)[1:]
    mean = posterior_mean(jnp.zeros((3, 5)), jnp.array([1e-3, 0.1, 10]), points, D=D)
    np.testing.assert_allclose(mean, np.tile(points.mean(axis=0), (3, 1)), rtol=0, atol=1e-7)


@pytest.mark.parametrize("D", [3.5, math.inf])
def test_limits_in_sigma(D):
    points = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    x = points[:4] + 0.01
    np.testing.assert_allclose(posterior_mean(x, 1e-4, points, D=D), points[:4], rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        posterior_mean(x, 1e4, points, D=D), np.tile(points.mean(axis=0), (4, 1)), rtol=0, atol=1e-6
    )
    alone = displacement(x, 1.0, points[:1], D=D)
    np.testing.assert_allclose(alone, x - points[0], rtol=1e-6)


# ---- the same sum in other orders


@pytest.mark.parametrize("D, chunk", [(1, 100), (128, 1), (128, 100), (128, 511), (128, 9999), (math.inf, 100)])
def test_streamed_equals_whole(D, chunk):
    # Chunks of 1 have one neighbour each, 100 and 511 a last chunk that overlaps the one before.
    points = images(512, 192)
    x, sigma = queries(points, D)
    whole = displacement(x, sigma, points, D=D)
    assert relative_error(displacement(x, sigma, points, D=D, chunk=chunk), whole).max() < 1e-6


def test_images_become_points_chunk_by_chunk():
    """A streamed set of uint8 images is nowhere whole as floats."""
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3000, 8, 8, 1)), jnp.uint8)
    x, sigma = to_unit(images[:16]) + 0.3, jnp.full(16, 0.5)
    run = jax.jit(lambda x, sigma, images: field.posterior_mean(x, sigma, images, 128, chunk=200, prepare=to_unit))
    whole = posterior_mean(x, sigma, to_unit(images), D=128)
    np.testing.assert_allclose(run(x, sigma, images), whole, atol=1e-6)
    temporary = run.lower(x, sigma, images).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * images.size / 2  # half of the set as floats


def test_the_exact_denoiser_streams_where_it_must(monkeypatch):
    points = jnp.asarray(np.random.default_rng(0).normal(size=(3000, 40)), jnp.float32)
    x, sigma = points[:16] + 0.3, jnp.full(16, 0.5)
    assert field.fitting_chunk(16, points.shape) is None
    whole = field.exact_denoiser(points, 128)(x, sigma)
    monkeypatch.setattr(field, "MEMORY", 2**18)
    assert field.fitting_chunk(16, points.shape) == field.fitting_chunk(16, (10**9, 40)) == 256
    np.testing.assert_allclose(field.exact_denoiser(points, 128)(x, sigma), whole, atol=1e-6)


@pytest.mark.parametrize("D, chunk", [(1, None), (128, 50), (math.inf, None)])
def test_sharded_equals_whole(D, chunk):
    points = images(512, 192)
    x, sigma = queries(points, D)
    sharded = parallel.pmap(lambda part: field.displacement(x, sigma, part, D, chunk=chunk, axis_name=parallel.AXIS))(
        points.reshape(8, 64, 192)
    )
    whole = displacement(x, sigma, points, D=D)
    for device in range(8):
        assert relative_error(sharded[device], whole).max() < 1e-6


@pytest.mark.parametrize("chunk", [None, 37])
def test_transformed_by_jax(chunk):
    points = images(512, 192).reshape(512, 8, 8, 3)
    x, sigma = queries(points, 128)
    assert x.shape == (14, 8, 8, 3)
    plain = posterior_mean(x, sigma, points, D=128)  # jit
    denoise = field.exact_denoiser(points, 128, chunk)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(denoise(x, sigma), plain)  # step by step
    # vmap over an axis of queries, and over σ, one level for all queries.
    halves = jax.jit(jax.vmap(denoise))(x.reshape(2, 7, 8, 8, 3), sigma.reshape(2, 7))
    close(halves, plain.reshape(2, 7, 8, 8, 3))
    over_sigma = jax.jit(jax.vmap(denoise, in_axes=(None, 0)))(x, jnp.array([0.1, 10]))
    close(over_sigma[1], posterior_mean(x, jnp.full(14, 10.0), points, D=128))


@pytest.mark.parametrize("D, chunk", [(1, 50), (128, None), (128, 120), (math.inf, 50)])
def test_allowed_points_are_the_field_of_the_subset(D, chunk):
    points = images(512, 192)
    label = np.random.default_rng(2).integers(0, 5, 512)
    label[300:] = np.maximum(label[300:], 1)  # whole chunks without label 0
    label[[7, 9]] = 5, 6  # one point of label 5, one of label 6
    x, sigma = queries(points, D)
    wanted = np.arange(14) % 7
    allowed = jnp.asarray(wanted[:, None] == label)
    masked = displacement(x, sigma, points, D=D, chunk=chunk, allowed=allowed)
    for i in range(14):
        subset = points[label == wanted[i]]
        alone = np.asarray(x[i], np.float64) - oracles.posterior_mean(x[i : i + 1], sigma[i : i + 1], subset, D)
        assert relative_error(masked[i : i + 1], alone).max() < 1e-6


def test_allowed_points_over_devices():
    points = images(512, 192)
    x, sigma = queries(points, 128)
    allowed = np.zeros((14, 512), bool)
    allowed[:7, 100:130] = True  # on two devices only
    allowed[7:, 511] = True
    sharded = parallel.pmap(
        lambda part, mask: field.displacement(x, sigma, part, 128, allowed=mask, axis_name=parallel.AXIS)
    )(points.reshape(8, 64, 192), allowed.reshape(14, 8, 64).transpose(1, 0, 2))
    near = displacement(x[:7], sigma[:7], points[100:130], D=128)
    assert relative_error(sharded[0][:7], near).max() < 1e-6
    assert relative_error(sharded[3][7:], x[7:] - points[511]).max() < 1e-6


def test_memory_of_the_streamed_field_does_not_grow_with_the_data():
    def temporary_bytes(n, chunk):
        function = jax.jit(lambda x, sigma, points: field.displacement(x, sigma, points, 128, chunk=chunk))
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(64, 192), (64,), (n, 192)]]
        return function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8192, 256) <= 1.01 * temporary_bytes(2048, 256)
    assert temporary_bytes(8192, None) > 3 * temporary_bytes(2048, None)  # so the figure does measure it
    # Nowhere a [queries, data, N] array: that would be 64 · 8192 · 192 floats.
    assert temporary_bytes(8192, None) < 64 * 8192 * 192 * 4 / 20


# ---- derivatives


@pytest.mark.parametrize("D, chunk", [(1, None), (3.5, 7), (128, None), (math.inf, 7)])
def test_derivatives_against_finite_differences(x64, D, chunk):
    rng = np.random.default_rng(3)
    points, x, v = rng.normal(size=(40, 5)), rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    sigma = jnp.geomspace(0.3, 3, 6)
    allowed = jnp.asarray(rng.uniform(size=(6, 40)) < 0.5).at[:, 0].set(True).at[2, 1:].set(False)
    mean = functools.partial(field.posterior_mean, points=points, D=D, chunk=chunk, allowed=allowed)
    mean = jax.jit(mean)
    slope = jax.jit(lambda x: jax.jvp(mean, (x, sigma), (v, jnp.ones(6)))[1])(jnp.asarray(x))
    step = 1e-6  # central differences: step² and 2⁻⁵²/step are both below 1e-9
    expected = (mean(x + step * v, sigma + step) - mean(x - step * v, sigma - step)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-8)
    u = rng.normal(size=(6, 5))
    gradient = jax.jit(jax.grad(lambda x, sigma: jnp.sum(u * mean(x, sigma)), argnums=(0, 1)))
    grad_x, grad_sigma = gradient(x, sigma)
    along_v = jnp.sum(grad_x * v, axis=1) + grad_sigma
    np.testing.assert_allclose(along_v, np.sum(u * slope, axis=1), rtol=0, atol=1e-12)


def test_jacobian_is_the_posterior_covariance(x64):
    # At D = ∞, ∂E[y|x]/∂x = Cov[y|x]/σ².
    rng = np.random.default_rng(4)
    points, x, sigma = rng.normal(size=(30, 4)), rng.normal(size=4), 0.8
    weight = np.exp(-np.sum((x - points) ** 2, axis=1) / (2 * sigma**2))
    covariance = np.cov(points.T, aweights=weight, bias=True)
    jacobian = jax.jacfwd(lambda x: posterior_mean(x[None], sigma, points, D=math.inf)[0])(x)
    np.testing.assert_allclose(jacobian, covariance / sigma**2, rtol=0, atol=1e-13)


@pytest.mark.parametrize("D, chunk", [(1, 50), (128, None), (math.inf, 50)])
def test_float32_derivatives_are_finite(D, chunk):
    points = images(512, 192)
    x, sigma = queries(points, D)
    x = jnp.concatenate([x, points[:1]])  # a query on a charge, which has duplicates
    sigma = jnp.append(sigma, 0.002)
    mean = functools.partial(field.posterior_mean, points=points, D=D, chunk=chunk)
    slope = jax.jit(lambda x: jax.jvp(lambda x: mean(x, sigma), (x,), (jnp.ones_like(x),))[1])(x)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(mean(x, sigma))))(x)
    assert np.isfinite(slope).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("D", [1, math.inf])
def test_derivatives_among_copies(D):
    # Against float64, where no difference needs to be exact. 40 copies are within σ, so the Jacobian is not small.
    points = copies("noisy", 48)[:140]
    x, sigma = queries(points, D, [0.003, 0.01])
    v, u = np.random.default_rng(5).normal(size=(2, *x.shape)).astype(np.float32)

    @jax.jit
    def derivatives(x, sigma, points, u, v):
        mean = functools.partial(field.posterior_mean, sigma=sigma, points=points, D=D)
        _, pull = jax.vjp(mean, x)
        return jax.jvp(mean, (x,), (v,))[1], pull(u)[0]

    ours = derivatives(x, sigma, points, u, v)
    with jax.enable_x64(True):
        exact = derivatives(*(jnp.asarray(np.asarray(a), jnp.float64) for a in (x, sigma, points, u, v)))
    for a, b in zip(ours, exact, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b)
        assert D == 1 or np.linalg.norm(b[2]) > 1e-3
        assert (np.linalg.norm(a - b, axis=1) / np.linalg.norm(v, axis=1)).max() < 1e-4


# ---- mistakes


@pytest.mark.parametrize("chunk", [None, 100])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_query_that_is_not_finite_has_no_finite_field(bad, chunk):
    points = images(512, 192)
    x, sigma = queries(points, 128)
    x, sigma = x.at[3, 7].set(bad), sigma.at[5].set(bad)
    others = np.delete(np.arange(14), [3, 5])
    whole = displacement(x[others], sigma[others], points, D=128)
    for function in [field.posterior_mean, field.displacement, field.poisson_field]:
        result = function(x, sigma, points, 128, chunk=chunk)
        result = result[0] if function is field.poisson_field else result
        assert not np.isfinite(result[np.array([3, 5])]).any() and np.isfinite(result[others]).all()
        if function is not field.posterior_mean:
            assert relative_error(result[others], whole).max() < 1e-6


def test_errors():
    x, points = jnp.zeros((2, 4)), jnp.ones((3, 4))
    with pytest.raises(UserError, match="finite D"):
        field.poisson_field(x, 1.0, points, math.inf)
    with pytest.raises(UserError, match="data points of that shape"):
        field.posterior_mean(x, 1.0, jnp.ones((3, 5)), 1)
    with pytest.raises(UserError, match="data points of that shape"):
        field.posterior_mean(x, 1.0, jnp.ones((0, 4)), 1)
    with pytest.raises(UserError, match="chunk must be at least 1"):
        field.posterior_mean(x, 1.0, points, 1, chunk=0)
    for D in [0, -2, math.nan, 0.1, 0.49]:
        for function in [field.posterior_mean, field.displacement, field.poisson_field]:
            with pytest.raises(UserError, match="^D must be inf or at least 0.5.*got"):
                function(x, 1.0, points, D)


def test_whole_numbers_as_queries_do_not_round_the_levels_and_the_data():
    points, x = np.array([[-0.5], [0.5]]), np.array([[1], [0], [-2]])
    for D in (1.0, math.inf):
        mean, exact = (field.exact_denoiser(points, D)(x.astype(kind), 0.6) for kind in (int, np.float32))
        np.testing.assert_array_equal(mean, exact)
        assert 0 < abs(float(mean[0, 0])) < 0.5
    with pytest.raises(UserError, match="no queries in x of shape \\(0, 1\\)"):
        field.exact_denoiser(points, 1.0)(np.zeros((0, 1)), 0.6)
