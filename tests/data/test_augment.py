"""Augmentation against SciPy: the map, the sampling and every family in float64; its draws; what it leaves alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, signal, stats
from sklearn.datasets import load_digits

from pfgm_jax.data import augment as augmentation
from pfgm_jax.data.augment import CHANNELS, SYM6, Change, affine, augment, draw, labels, transform, warp

FIVE_SIGMA = 5.7e-7  # two-sided tail of a Gaussian
DRAWS = 20_000
FAMILIES = {
    "scale": dict(scale=-1.3),
    "rotation": dict(rotation=0.7),
    "stretch": dict(stretch=1.1),
    "tilted stretch": dict(stretch=-1.4, axis=2.2),
    "shift": dict(shift_x=0.8, shift_y=-1.7),
    "flips": dict(flip_x=1, flip_y=1),
    # Looks 4 sides beyond the image.
    "all": dict(flip_x=1, scale=-5.5, rotation=-2.5, stretch=0.9, axis=-0.4, shift_x=-3.0, shift_y=1.2),
}

jit_augment = jax.jit(augment)
jit_transform = jax.jit(transform)


def images(n, height=8, width=8, channels=1):
    """Digits in [−1, 1], float64; a larger image is a mosaic of them, channels are other digits."""
    digits = load_digits().images / 8 - 1
    rows, columns = -(-height // 8), -(-width // 8)
    tiles = digits[: n * channels * rows * columns].reshape(n, channels, rows, columns, 8, 8)
    mosaic = tiles.transpose(0, 2, 4, 3, 5, 1).reshape(n, rows * 8, columns * 8, channels)
    return mosaic[:, :height, :width]


def change(n=1, **values):
    given = dict.fromkeys(Change._fields, 0.0) | values
    return Change(**{name: jnp.full(n, value, jnp.float64) for name, value in given.items()})


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


# ---- the oracle


def reference(image, *, flip_x=0, flip_y=0, scale=0.0, rotation=0.0, stretch=0.0, axis=0.0, shift_x=0.0, shift_y=0.0):
    """The same for one image [H, W, C] in SciPy: a padding of five sides, upfirdn, map_coordinates, upfirdn."""
    image = np.asarray(image)
    if flip_x:
        image = np.fliplr(image)
    if flip_y:
        image = np.flipud(image)
    H, W = image.shape[:2]
    # Where the image's points go, with x to the right and y up, one change after the other.
    turn = lambda angle: np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    grow = 2 ** (0.2 * stretch)
    forward = turn(axis) @ np.diag([grow, 1 / grow]) @ turn(-axis) @ turn(rotation) * 2 ** (0.2 * scale)
    shift = np.array([W * shift_x, -H * shift_y]) / 8
    x, y = np.meshgrid(np.arange(-20, 2 * W + 20) / 2 - (W - 1) / 2, (H - 1) / 2 - np.arange(-20, 2 * H + 20) / 2)
    source = np.linalg.solve(forward, np.stack([x.ravel() - shift[0], y.ravel() - shift[1]]))
    pad = 5 * max(H, W)
    index = 2 * (np.stack([(H - 1) / 2 - source[1], (W - 1) / 2 + source[0]]) + pad)
    out = []
    for channel in np.moveaxis(image, -1, 0):
        doubled = np.pad(channel, pad, mode="reflect")
        for side in (0, 1):
            doubled = np.take(signal.upfirdn(SYM6, doubled, up=2, axis=side), range(5, 2 * doubled.shape[side]), side)
        sampled = ndimage.map_coordinates(doubled, index, order=1, mode="constant", cval=np.nan).reshape(x.shape)
        for side, n in ((0, H), (1, W)):
            # The whole pixels are the even samples, from −10 on.
            filtered = signal.upfirdn(SYM6[::-1], sampled, down=1, axis=side)
            sampled = np.take(filtered, 20 + 6 + 2 * np.arange(n), side)
        out.append(sampled)
    return np.stack(out, axis=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_scipys(family, x64):
    for x in (images(2, 8, 8), images(2, 11, 6, 3)):  # 8×8 digits; odd, not square, in three channels
        ours = jit_transform(x, change(2, **FAMILIES[family]))
        for image, result in zip(x, ours, strict=True):
            # Sums of 12² terms below 1: rounding; and flips alone pass through filters there, good to 1e-12.
            np.testing.assert_allclose(result, reference(image, **FAMILIES[family]), atol=1e-11)


def test_random_changes_are_scipys(x64):
    x, n = images(12, 28, 28), 12
    random = jax.tree.map(np.asarray, draw(keys(n), 0.5, jnp.float64))
    ours = jit_transform(x, random)
    each = [{name: float(value[i]) for name, value in random._asdict().items()} for i in range(n)]
    expected = np.stack([reference(image, **c) for image, c in zip(x, each, strict=True)])
    np.testing.assert_allclose(ours, expected, atol=1e-11)
    # In float32 a coordinate of up to 108 half pixels is good to 4e-6, and neighbours there differ by up to 1.
    single = jit_transform(x.astype(np.float32), jax.tree.map(np.float32, random))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, atol=3e-5)


def test_the_filter_is_orthonormal():
    h = np.array(SYM6)
    assert sum(h) == pytest.approx(math.sqrt(2), abs=1e-11)  # as PyWavelets has them
    autocorrelation = np.correlate(h, h, "full")[11::2]
    np.testing.assert_allclose(autocorrelation, [1, 0, 0, 0, 0, 0], atol=1e-11)
    # Six vanishing moments: the high-pass filter is blind to polynomials of degree five.
    high_pass = h * (-1) ** np.arange(12)
    for degree in range(6):
        assert abs(np.sum(high_pass * (np.arange(12) / 11) ** degree)) < 1e-9


# ---- closed forms


def test_turns_are_numpys(x64):
    y, x = np.mgrid[:24, :24] - 11.5
    smooth = lambda x, y: np.cos(0.3 * x + 0.2 * y) + 0.5 * np.sin(0.25 * x - 0.1 * y)  # 0.06 cycles a pixel
    inside = (slice(6, -6), slice(6, -6))  # the mirrored edges have a kink
    turned = transform(smooth(x, y)[None, :, :, None], change(rotation=math.pi / 2))[0, :, :, 0]
    # The filter is not quite symmetric: its centre of mass lies `delay` pixels behind its centre tap. Doubling and
    # halving undo each other's delay, but not if a turn comes between. So images move by up to 2 · 0.07 pixels.
    delay = (np.dot(np.arange(12), SYM6) / sum(SYM6) - 5) / 2
    assert delay == pytest.approx(0.049, abs=5e-4)
    # The slope is at most √(0.3² + 0.2²) + 0.5 √(0.25² + 0.1²) = 0.5.
    np.testing.assert_allclose(turned[inside], np.rot90(smooth(x, y))[inside], atol=2 * delay * 0.5)
    # That accounted for, bilinear reading at half pixels is off by (1/2)²/8 of second derivatives below 0.3.
    np.testing.assert_allclose(turned[inside], smooth(-y - 2 * delay, x)[inside], atol=0.01)


def test_flips_are_numpys(x64):
    digit = images(1, 9, 7, 2)
    np.testing.assert_array_equal(transform(digit, change(flip_x=1))[0], np.fliplr(digit[0]))
    np.testing.assert_array_equal(transform(digit, change(flip_y=1))[0], np.flipud(digit[0]))


def test_whole_shifts_move_pixels(x64):
    """Three to the left and two up, where the mirror image enters."""
    x = images(1, 16, 24)
    shifted = transform(x, change(shift_x=-1.0, shift_y=-1.0))[0]
    expected = np.pad(x[0], ((0, 2), (0, 3), (0, 0)), mode="reflect")[2:, 3:]
    np.testing.assert_allclose(shifted, expected, atol=1e-11)  # the filter's taps


def test_sizes_grow_as_they_say(x64):
    """Second moments of a blob: scale and stretch multiply its width by 2^(0.2 w), the stretch along its axis."""
    y, x = np.mgrid[:41, :41] - 20.0
    blob = np.exp(-(x**2 + y**2) / (2 * 3.0**2))[None, :, :, None]

    def covariance(**values):
        weight = np.asarray(transform(blob, change(**values)))[0, :, :, 0]
        points = np.stack([x.ravel(), -y.ravel()])  # y up
        return (points * weight.ravel()) @ points.T / weight.sum()

    # Bilinear reading at half pixels adds at most 1/4 · 1/4 to a variance of 9.
    grown = 9 * 2**0.4
    np.testing.assert_allclose(covariance(scale=1.0), grown * np.eye(2), atol=0.1)
    np.testing.assert_allclose(covariance(stretch=1.0), np.diag([grown, 81 / grown]), atol=0.1)
    along = np.array([math.cos(0.6), math.sin(0.6)])
    tilted = covariance(stretch=1.0, axis=0.6)
    assert along @ tilted @ along == pytest.approx(grown, abs=0.1)


def test_sides_of_one_and_two_pixels():
    x = jnp.linspace(-1, 1, 12).reshape(3, 1, 2, 2)
    result, _ = jit_augment(keys(3), x, 1.0)
    assert result.shape == x.shape and jnp.isfinite(result).all()
    constant, _ = jit_augment(keys(3), jnp.full((3, 5, 1, 1), 0.3), 1.0)
    np.testing.assert_allclose(constant, 0.3, rtol=1e-5)  # float32, sums of 12² terms


# ---- draws and labels


def test_probability_zero_leaves_all_alone():
    x = images(5, 28, 28).astype(np.float32)
    same, told = jit_augment(keys(5), x, 0.0)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(told, np.zeros((5, CHANNELS)))


@pytest.fixture(scope="module")
def drawn():
    return jax.tree.map(np.asarray, jax.jit(draw)(keys(DRAWS), 0.3))


def test_how_often_each_kind_happens(drawn):
    def share(happened, expected):
        return stats.binomtest(int(happened.sum()), happened.size, expected).pvalue > FIVE_SIGMA

    assert share(drawn.flip_x == 1, 0.5)
    assert share(drawn.flip_y == 1, 0.3 / 2)
    for field in ("scale", "rotation", "stretch", "shift_x", "shift_y"):
        assert share(getattr(drawn, field) != 0, 0.3), field
    stretched = drawn.stretch != 0
    assert share(drawn.axis[stretched] != 0, 0.5) and not drawn.axis[~stretched].any()
    np.testing.assert_array_equal(drawn.shift_x != 0, drawn.shift_y != 0)
    # The kinds are independent of each other: none, of five at 0.7 each.
    still = ~np.any([drawn.scale, drawn.rotation, drawn.stretch, drawn.shift_x, drawn.flip_y > 0], axis=0)
    assert share(still, 0.7**4 * 0.85)


def test_how_much_of_each(drawn):
    follows = lambda values, law: stats.kstest(values[values != 0], law).pvalue > FIVE_SIGMA
    circle = stats.uniform(-math.pi, 2 * math.pi).cdf
    for field in ("scale", "stretch", "shift_x", "shift_y"):
        assert follows(getattr(drawn, field), stats.norm.cdf), field
    for field in ("rotation", "axis"):
        assert follows(getattr(drawn, field), circle), field
    both = drawn.shift_x != 0
    # The correlation of n independent pairs has a standard error of 1/√n.
    assert abs(np.corrcoef(drawn.shift_x[both], drawn.shift_y[both])[0, 1]) < 5 / math.sqrt(both.sum())


def test_labels_say_what_was_done(drawn):
    told = np.asarray(labels(drawn))
    w, r = drawn.rotation, drawn.axis
    expected = [
        drawn.flip_x, drawn.flip_y, drawn.scale, np.cos(w) - 1, np.sin(w),
        drawn.stretch * np.cos(r), drawn.stretch * np.sin(r), drawn.shift_x, drawn.shift_y,
    ]  # fmt: skip
    assert told.shape == (DRAWS, CHANNELS)
    np.testing.assert_allclose(told, np.stack(expected, axis=1), atol=2e-6)  # float32 sines of up to 5
    assert not np.asarray(labels(Change(*np.zeros((8, 5), np.float32)))).any()


# ---- as part of a program


def test_a_key_decides_alone_and_jit_changes_nothing():
    x, n = images(23, 28, 28).astype(np.float32), 23
    several = keys(n, seed=5)
    together, told = jit_augment(several, x, 0.3)
    eager, told_eagerly = augment(several, x, 0.3)
    np.testing.assert_allclose(eager, together, atol=2e-5)  # float32 coordinates, as above
    np.testing.assert_allclose(told_eagerly, told, atol=1e-6)
    # In other company, at another place, with another number of images that move.
    chosen = np.array([20, 3, 11, 8, 22])
    apart, told_apart = jit_augment(several[chosen], x[chosen], 0.3)
    np.testing.assert_allclose(apart, together[chosen], atol=2e-5)
    np.testing.assert_array_equal(told_apart, told[chosen])
    moved = np.any(np.asarray(told)[:, 2:] != 0, axis=1)
    assert 0 < moved.sum() < n and moved.sum() % 3  # some share a chunk with them
    flipped = np.where(np.asarray(told)[:, 0, None, None, None] > 0, x[:, :, ::-1], x)
    flipped = np.where(np.asarray(told)[:, 1, None, None, None] > 0, flipped[:, ::-1], flipped)
    np.testing.assert_array_equal(np.asarray(together)[~moved], flipped[~moved])


@pytest.mark.parametrize("chunk_pixels", [1, 10**6])
def test_chunks_are_all_the_same(monkeypatch, chunk_pixels):
    """One and two images at a time; two do not divide eleven."""
    x = images(11).astype(np.float32)
    whole = warp(x, affine(draw(keys(11), 1.0), 8, 8))
    stretched = draw(keys(11), 1.0)._replace(flip_x=jnp.zeros(11), flip_y=jnp.zeros(11))
    monkeypatch.setattr(augmentation, "CHUNK_PIXELS", chunk_pixels)
    np.testing.assert_allclose(transform(x, stretched), whole, atol=1e-5)


def test_inside_scan_gradient_and_pmap():
    x = images(8).astype(np.float32)
    several = jax.random.split(jax.random.key(1), (8, 2, 2))

    def steps(weight, several, x):
        def loss(weight, pair):
            changed, told = augment(pair, x, 0.4)
            return jnp.mean((weight * changed - told.sum()) ** 2)

        return jax.lax.scan(lambda w, pair: (w - 0.01 * jax.grad(loss)(w, pair), None), weight, several)[0]

    x = np.stack([x[i : i + 2] for i in (0, 1, 2, 3, 4, 5, 6, 3)])
    mapped = jax.pmap(steps, in_axes=(None, 0, 0))(1.0, several, x)
    alone = jax.jit(steps)
    np.testing.assert_allclose(mapped, [alone(1.0, k, i) for k, i in zip(several, x, strict=True)], rtol=1e-4)
