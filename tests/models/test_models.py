"""The U-Net and its layers: sizes, labels, dropout by example, and each layer against NumPy."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from random_networks import images, random_params

from pfgm_jax.errors import UserError
from pfgm_jax.models import layers
from pfgm_jax.models.unet import Block, UNet, level_sizes

small = functools.partial(
    UNet, channels=8, multipliers=(1, 2), blocks=1, attention=(), embedding_channels=16, dropout=0.0
)


def paths(params):
    return ["/".join(str(k.key) for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


# ---- sizes


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (28, 28), (29, 29), (33, 33), (8, 13)])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2)])
def test_output_has_the_input_s_size(size, C, multipliers):
    model = small(out_channels=C + 1, multipliers=multipliers, attention=(5, 7, 9))
    x = jax.ShapeDtypeStruct((2, *size, C), jnp.float32)
    noise = jax.ShapeDtypeStruct((2,), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x, noise)
    out = jax.eval_shape(model.apply, params, x, noise)
    assert out.shape == (2, *size, C + 1) and out.dtype == jnp.float32


def test_level_sizes():
    assert level_sizes((28, 28), 4) == [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert level_sizes((33, 9), 3) == [(33, 9), (17, 5), (9, 3)]
    assert level_sizes((8, 8), 3)[-1] == (2, 2)
    with pytest.raises(UserError, match="8 px or more, got 7×28"):
        level_sizes((7, 28), 2)
    with pytest.raises(UserError, match="4 levels .* too many for 8×8"):
        level_sizes((8, 8), 4)
    with pytest.raises(UserError, match="8 px or more"):
        jax.eval_shape(small(out_channels=1).init, jax.random.key(0), images(1, 7, 7, 1), jnp.ones(1))


# ---- the whole network


@functools.cache
def labelled():
    model, x = small(out_channels=3, num_labels=4), images(3, 9, 9, 3)
    return jax.jit(model.apply), random_params(model, x), x


def test_labels():
    apply, params, x = labelled()
    noise, none = jnp.array([-1.0, 0, 0.5]), jnp.full(3, -1)
    assert params["params"]["label"]["kernel"].shape[0] == 4
    without = apply(params, x, noise, none)
    np.testing.assert_array_equal(without, apply(params, x, noise))
    some = apply(params, x, noise, jnp.array([-1, 2, 3]))
    np.testing.assert_allclose(some[0], without[0], rtol=0, atol=1e-6)
    assert all(np.abs(some[i] - without[i]).max() > 1e-3 for i in (1, 2))


def test_a_label_adds_its_row_times_the_root_of_their_number():
    model, x = small(out_channels=1, multipliers=(1,), num_labels=4), images(3, 8, 8, 1)
    params = random_params(model, x)

    @jax.jit
    def added(labels):
        only = dict(capture_intermediates=lambda module, _: module.name == "label")
        return model.apply(params, x, jnp.zeros(3), labels, **only)[1]["intermediates"]["label"]["__call__"][0]

    kernel = params["params"]["label"]["kernel"]
    np.testing.assert_allclose(added(jnp.array([-1, 2, 3])), [0 * kernel[0], 2 * kernel[2], 2 * kernel[3]], rtol=1e-6)


def test_noise_level_and_image_reach_the_output():
    apply, params, x = labelled()
    noise = jnp.array([-1.0, 0, 0.5])
    plain = apply(params, x, noise, jnp.full(3, -1))
    other = apply(params, x, noise.at[1].add(0.3), jnp.full(3, -1))
    changed = np.abs(other - plain).max(axis=(1, 2, 3))
    assert changed[1] > 1e-3 and max(changed[0], changed[2]) < 1e-6
    # One pixel reaches every other through the lower level.
    touched = np.abs(apply(params, x.at[0, 0, 0].add(1), noise, jnp.full(3, -1)) - plain)[0].max(axis=-1)
    assert (touched[:5, :5] > 1e-6).all()


def test_dropout_by_example():
    model, x = small(out_channels=3, multipliers=(1,), dropout=0.4), images(4, 8, 8, 3)
    params, noise = random_params(model, x), jnp.zeros(4)
    apply = jax.jit(model.apply)
    keys = jax.random.split(jax.random.key(0), 4)
    plain, dropped = apply(params, x, noise), apply(params, x, noise, None, keys)
    np.testing.assert_array_equal(plain, apply(params, x, noise))
    assert (np.abs(dropped - plain).max(axis=(1, 2, 3)) > 1e-3).all()
    # An example among others, elsewhere in the batch: the same output. Another key: another.
    order = jnp.array([2, 0, 3, 3])
    moved = apply(params, x[order], noise, None, keys[order].at[3].set(keys[1]))
    np.testing.assert_allclose(moved[:3], dropped[order[:3]], rtol=0, atol=1e-5)
    assert np.abs(moved[3] - dropped[3]).max() > 1e-3


def test_a_block_starts_as_the_identity():
    x, emb = images(2, 8, 8, 8), jnp.ones((2, 16))
    out, _ = Block(8, dropout=0.0, dtype=jnp.float32).init_with_output(jax.random.key(0), x, emb, None)
    # (x + h) √½ with h of the size of the last layer's weights, 1e-5.
    np.testing.assert_allclose(out, x * math.sqrt(0.5), rtol=0, atol=1e-3)
    assert np.abs(out - x * math.sqrt(0.5)).max() > 1e-8


def test_bfloat16_computes_near_float32():
    x, noise = images(2, 8, 8, 3), jnp.array([-1.0, 1.0])
    exact, rough = (
        small(out_channels=3, attention=(4,)),
        small(out_channels=3, attention=(4,), dtype=jnp.bfloat16),
    )
    params = random_params(exact, x)
    shapes = jax.eval_shape(rough.init, jax.random.key(0), x, noise)
    assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    a, b = jax.jit(exact.apply)(params, x, noise), jax.jit(rough.apply)(params, x, noise)
    assert b.dtype == jnp.float32
    # A number of bfloat16 is rounded at 2⁻⁹; some dozens of layers in a row.
    error = np.linalg.norm(a - b) / np.linalg.norm(a)
    assert 1e-4 < error < 30 * 2.0**-9


def test_attention_is_where_it_was_asked_for():
    def attended(**options):
        model = small(out_channels=1, multipliers=(1, 1, 1), blocks=2, **options)
        x = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32))
        return {path.split("/")[1] for path in paths(params) if "/attention/" in path}

    # All encoder blocks of the level, the last of the decoder's, and the one in the middle.
    assert attended(attention=(14,)) == {"enc1_block0", "enc1_block1", "dec1_block2", "mid_in"}
    assert attended(attention=(28, 7)) == {
        *("enc0_block0", "enc0_block1", "dec0_block2", "mid_in"),
        *("enc2_block0", "enc2_block1", "dec2_block2"),
    }
    assert attended(attention=()) == set()


def test_fourier_embedding_replaces_the_positional_one():
    x, noise = images(2, 8, 8, 3), jnp.array([-1.0, 0.5])
    model = small(out_channels=3, multipliers=(1,), embedding="fourier")
    params = random_params(model, x)
    assert not any("fourier" in path for path in paths(params))  # its frequencies are not trained
    out = jax.jit(model.apply)(params, x, noise)
    assert np.isfinite(out).all() and np.abs(out[0] - out[1]).max() > 1e-3


# ---- layers


def test_positional_embedding():
    noise = np.array([-1.5, 0.0, 0.3, 80.0], np.float32)
    frequencies = 10_000.0 ** (-np.arange(8) / 7)  # 1 to 1e-4
    angles = noise[:, None].astype(float) * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    # The angle 80 is rounded at 4e-6 and the frequencies at 1e-7 of it.
    np.testing.assert_allclose(layers.positional_embedding(jnp.asarray(noise), 16), expected, rtol=0, atol=2e-5)


def test_fourier_embedding(x64):
    noise = jnp.linspace(-0.05, 0.05, 201)
    emb = np.asarray(layers.FourierEmbedding(256).apply({}, noise))
    assert emb.shape == (201, 256)
    np.testing.assert_allclose(emb[:, :128] ** 2 + emb[:, 128:] ** 2, 1, rtol=0, atol=1e-12)
    # Slopes at 0 are the frequencies 2π f, f ~ N(0, 16²): their standard deviation to 5 sigma, 5/√(2·128) = 0.31.
    slope = (emb[101, 128:] - emb[99, 128:]) / (noise[101] - noise[99])
    assert np.std(slope) == pytest.approx(2 * math.pi * 16, rel=0.31)


@pytest.mark.parametrize(
    "setting",
    [jax.enable_x64, jax.threefry_partitionable, lambda on: jax.default_prng_impl("rbg" if on else "threefry2x32")],
    ids=["x64", "threefry_partitionable", "rbg"],
)
def test_fourier_frequencies_do_not_depend_on_settings_of_jax(setting):
    """They are no parameter, so that weights mean something beside these numbers alone."""
    for on in (False, True):
        with setting(on):
            sines = np.asarray(jax.jit(layers.FourierEmbedding(8).apply)({}, jnp.array([1e-3], jnp.float32)))[0, 4:]
        frequencies = np.arcsin(sines) / (2 * math.pi * 1e-3)
        np.testing.assert_allclose(frequencies, [25.962275, 32.404236, -6.937511, -1.2578776], rtol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_rate(rate):
    x, keys = jnp.ones((8, 50, 50, 2)), jax.random.split(jax.random.key(0), 8)
    out = np.asarray(layers.Dropout(rate).apply({}, x, keys))
    assert set(np.unique(out)) == {0, np.float32(1 / (1 - rate))}
    n = out.size
    assert abs(np.mean(out == 0) - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
    # Masks differ by example and by pixel: two of them agree as often as chance has it.
    agree = rate**2 + (1 - rate) ** 2
    for a, b in [(out[0], out[1]), (out[:, :25], out[:, 25:]), (out[..., 0], out[..., 1])]:
        assert abs(np.mean((a == 0) == (b == 0)) - agree) < 5 * math.sqrt(agree * (1 - agree) / a.size)
    np.testing.assert_array_equal(layers.Dropout(rate).apply({}, x, None), x)
    np.testing.assert_array_equal(layers.Dropout(0.0).apply({}, x, keys), x)


def test_dropout_masks_differ_by_layer():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            return layers.Dropout(0.5, name="a")(x, keys), layers.Dropout(0.5, name="b")(x, keys)

    a, b = Two().apply({}, jnp.ones((2, 40, 40, 1)), jax.random.split(jax.random.key(0), 2))
    assert abs(np.mean((a == 0) == (b == 0)) - 0.5) < 5 * math.sqrt(0.25 / a.size)


@pytest.mark.parametrize("side, dilation", [(1, 1), (3, 1), (5, 1), (3, 2)])
@pytest.mark.parametrize("shape", [(8, 8, 8), (3, 9, 6)])  # two chunks of images, and three
def test_canonical_convolution(x64, side, dilation, shape):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(*shape, 3)), rng.normal(size=(side, side, 3, 5))
    g = rng.normal(size=(*shape, 5))

    def library(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", rhs_dilation=(dilation, dilation), dimension_numbers=numbers
        )

    def canonical(x, kernel):
        return layers.canonical_conv(x, kernel, (1, 1), "SAME", rhs_dilation=(dilation, dilation))

    value, pull = jax.vjp(canonical, x, kernel)
    expected, expected_pull = jax.vjp(library, x, kernel)
    np.testing.assert_array_equal(value, expected)
    for ours, theirs in zip(pull(g), expected_pull(g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_canonical_network_is_the_same_network(x64):
    x, noise = jnp.asarray(images(2, 9, 9, 3), jnp.float64), jnp.array([-1.0, 0.5])
    options = dict(out_channels=3, multipliers=(1,), dtype=jnp.float64)
    plain, canonical = small(**options), small(**options, canonical_conv=True)
    params = random_params(plain, x)
    assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype(np.float64)}

    def loss_and_gradient(model):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(model.apply(p, x, noise)))))(params)

    (a, grad_a), (b, grad_b) = loss_and_gradient(plain), loss_and_gradient(canonical)
    np.testing.assert_allclose(a, b, rtol=1e-12)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-10), grad_a, grad_b)


@pytest.mark.parametrize("H, W", [(8, 8), (7, 9), (8, 5)])
def test_downsample_averages_the_pixels_that_exist(H, W):
    x = np.random.default_rng(0).normal(size=(2, H, W, 3)).astype(np.float32)
    out = np.asarray(layers.downsample(jnp.asarray(x)))
    assert out.shape == (2, -(-H // 2), -(-W // 2), 3)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            block = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]  # cut off by NumPy at the edge
            np.testing.assert_allclose(out[:, i, j], block.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)


def test_upsample_repeats_pixels_and_cuts():
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 2)).astype(np.float32)
    out = np.asarray(layers.upsample(jnp.asarray(x), (7, 6)))
    expected = [[x[:, i // 2, j // 2] for j in range(6)] for i in range(7)]
    np.testing.assert_array_equal(out, np.transpose(expected, (2, 0, 1, 3)))
    # A constant image survives both, at odd sizes too.
    np.testing.assert_allclose(layers.upsample(layers.downsample(jnp.full((1, 7, 9, 1), 0.3)), (7, 9)), 0.3, rtol=1e-6)


@pytest.mark.parametrize("channels, groups", [(3, 1), (8, 2), (10, 2), (20, 5), (128, 32), (130, 26), (256, 32)])
def test_group_norm(channels, groups):
    # At most 32 groups, of at least 4 channels each where there are 4, that divide the channels.
    rng = np.random.default_rng(0)
    x = 2 + 3 * rng.normal(size=(2, 5, 4, channels)) * np.linspace(0.5, 2, channels)

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.group_norm(x, jnp.float32, "norm")

    out, _ = Norm().init_with_output(jax.random.key(0), jnp.asarray(x, jnp.float32))
    split = x.reshape(2, 20, groups, channels // groups)
    mean, var = split.mean(axis=(1, 3), keepdims=True), split.var(axis=(1, 3), keepdims=True)
    np.testing.assert_allclose(out, ((split - mean) / np.sqrt(var + 1e-6)).reshape(x.shape), rtol=0, atol=2e-5)


def test_group_norm_is_flaxs(x64):
    # flax.linen.GroupNorm in float64, an independent implementation: with a scale and bias, and in its gradients.
    rng = np.random.default_rng(0)
    x, weight = 2 + rng.normal(size=(2, 3, 5, 4, 12))
    params = {"params": {"scale": rng.normal(size=12), "bias": rng.normal(size=12)}}
    ours, theirs = (norm(3, epsilon=1e-3, dtype=jnp.float64) for norm in (layers.GroupNorm, nn.GroupNorm))
    assert jax.tree.structure(ours.init(jax.random.key(0), x)) == jax.tree.structure(params)
    loss = lambda norm: lambda params, x: jnp.sum(weight * norm.apply(params, x) ** 2)
    values, expected = (jax.value_and_grad(loss(norm), (0, 1))(params, x) for norm in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), values, expected)
    half = layers.GroupNorm(3, 1e-3, jnp.bfloat16).apply(params, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    # bfloat16 has 8 bits: the input is rounded, and the result.
    np.testing.assert_allclose(half.astype(np.float64), theirs.apply(params, x), rtol=2**-7, atol=2**-5)


def test_attention(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 8))
    model = layers.Attention(jnp.float64)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    params = jax.tree.map(lambda a: 0.5 * rng.normal(size=a.shape), shapes)
    p = params["params"]
    split = x.reshape(2, 12, 2, 4)
    normed = (split - split.mean(axis=(1, 3), keepdims=True)) / np.sqrt(split.var(axis=(1, 3), keepdims=True) + 1e-6)
    h = normed.reshape(2, 12, 8) * p["norm"]["scale"] + p["norm"]["bias"]
    q, k, v = np.split(h @ p["qkv"]["kernel"] + p["qkv"]["bias"], 3, axis=-1)
    weight = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(8))
    weight /= weight.sum(axis=-1, keepdims=True)
    h = weight @ v @ p["proj"]["kernel"] + p["proj"]["bias"]
    # The softmax is float32's whatever goes in.
    np.testing.assert_allclose(model.apply(params, x), (x + h.reshape(x.shape)) * math.sqrt(0.5), rtol=0, atol=1e-5)
