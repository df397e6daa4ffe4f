"""What the networks share, ADM and NCSNv2, resampling filters, presets: sizes, labels, precision, memory, errors."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from random_networks import images, random_params

from pfgm_jax import config as config_lib
from pfgm_jax import config_rules, models
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError
from pfgm_jax.models import layers, ncsnv2

TINY = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(), embedding_channels=16, dropout=0.0)
NCSNPP = TINY | dict(encoder="residual", resample_filter=(1, 3, 3, 1), embedding="fourier", keep_width=True)
NETWORKS = {
    "ncsnpp": functools.partial(models.UNet, **NCSNPP),
    "skip": functools.partial(models.UNet, **(NCSNPP | dict(encoder="skip", decoder="skip"))),
    "adm": functools.partial(models.ADM, head_channels=8, **(TINY | dict(attention=(4, 5)))),
    "ncsnv2": functools.partial(models.NCSNv2, channels=4),
    "dit": functools.partial(models.DiT, channels=16, blocks=2, head_channels=8, embedding_channels=16),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (28, 28), (33, 33), (8, 13), (224, 224)])
def test_output_has_the_input_s_size(name, size):
    model = NETWORKS[name](out_channels=4)
    x, noise = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    out, params = jax.eval_shape(model.init_with_output, jax.random.key(0), x, noise)
    assert out.shape == (2, *size, 4) and out.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", ["ncsnpp", "adm", "dit"])
def test_remat_keeps_less_for_the_same_gradient(name):
    x, noise = images(8, 12, 12, 3), jnp.linspace(-1, 1, 8)
    keys = jax.random.split(jax.random.key(0), 8)
    size = {} if name == "dit" else dict(multipliers=(1,))
    plain, remat = (NETWORKS[name](out_channels=3, dropout=0.3, remat=remat, **size) for remat in (False, True))
    params = random_params(plain, x)

    def loss(params, model):
        return jnp.mean(jnp.sin(model.apply(params, x, noise, None, keys)))

    def kept(model):
        """Bytes that the forward pass leaves for the backward pass: what the pulled-back function holds."""
        # XLA's CPU compiler merges the two computations again, so that its own analysis shows no difference there.
        pull = jax.eval_shape(lambda p: jax.vjp(functools.partial(loss, model=model), p)[1], params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))

    expected, found = (jax.jit(functools.partial(jax.grad(loss), model=model))(params) for model in (plain, remat))
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    # The same sums in another order, in float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(a).max()), expected, found)
    assert kept(remat) < 0.3 * kept(plain)


@pytest.mark.parametrize("name", ["ncsnpp", "adm", "ncsnv2", "dit"])
def test_bfloat16_computes_near_float32(name):
    x, noise = images(2, 8, 8, 3), jnp.array([-0.01, 0.01])
    exact, rough = (NETWORKS[name](out_channels=3, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = random_params(exact, x)
    shapes = jax.eval_shape(rough.init, jax.random.key(0), x, noise)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    a, b = jax.jit(exact.apply)(params, x, noise), jax.jit(rough.apply)(params, x, noise)
    assert b.dtype == jnp.float32
    # A number of bfloat16 is rounded at 2⁻⁹; some dozens of layers in a row.
    assert 1e-4 < np.linalg.norm(a - b) / np.linalg.norm(a) < 40 * 2.0**-9


@pytest.mark.parametrize("name", ["ncsnpp", "adm", "dit"])
def test_labels_augmentation_and_dropout_by_example(name):
    x, noise = images(3, 8, 8, 3), jnp.full(3, 0.01)
    model = NETWORKS[name](out_channels=3, num_labels=4, augment_channels=9, dropout=0.3)
    params, apply = random_params(model, x), jax.jit(model.apply)
    keys = jax.random.split(jax.random.key(0), 3)

    def changed(labels=None, keys=None, augment=None):
        """Which examples differ from the plain output."""
        return (np.abs(apply(params, x, noise, labels, keys, augment) - plain).max(axis=(1, 2, 3)) > 1e-4).tolist()

    plain = apply(params, x, noise)
    assert changed(labels=jnp.array([-1, 2, 3])) == [False, True, True]
    assert changed(augment=jnp.zeros((3, 9)).at[1, 4].set(1.0)) == [False, True, False]
    dropped = apply(params, x, noise, None, keys)
    assert changed(keys=keys) == [True] * 3
    moved = apply(params, x[::-1], noise, None, keys[::-1])
    np.testing.assert_allclose(moved[::-1], dropped, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="takes 9 augmentation labels .* got 3"):
        model.apply(params, x, noise, augment=jnp.zeros((3, 3)))


def test_networks_without_augmentation_refuse_it():
    for name in ("ncsnpp", "adm", "ncsnv2"):
        with pytest.raises(UserError, match="takes 0 augmentation labels"):
            NETWORKS[name](out_channels=3).init(
                jax.random.key(0), images(1, 8, 8, 3), jnp.ones(1), augment=jnp.ones((1, 9))
            )


def test_log_noise_is_the_logarithm():
    x, z = images(2, 8, 8, 3), jnp.array([0.5, 1.7])
    plain, log = (NETWORKS["ncsnpp"](out_channels=3, multipliers=(1,), log_noise=log) for log in (False, True))
    params = random_params(plain, x)
    np.testing.assert_allclose(log.apply(params, x, z), plain.apply(params, x, jnp.log(z)), rtol=0, atol=1e-5)


def test_frequencies_that_come_as_parameters_are_used_and_not_trained():
    frequencies, noise = jnp.array([0.5, -2.0]), jnp.array([0.1, 0.7])
    embed = lambda f: layers.FourierEmbedding(4).apply({"params": {"frequencies": f}}, noise)
    angles = 2 * np.pi * np.outer(noise, frequencies)
    np.testing.assert_allclose(embed(frequencies), np.hstack([np.cos(angles), np.sin(angles)]), rtol=0, atol=1e-6)
    assert not np.any(jax.grad(lambda f: jnp.sum(embed(f) ** 3))(frequencies))


# ---- filters


def even(x):
    return np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), mode="edge")


@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 5, 10, 10, 5, 1), (1, 1)])
def test_downsampling_filter(x64, taps, size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    kernel = np.outer(taps, taps)[None, :, :, None] / sum(taps) ** 2
    half = len(taps) // 2 - 1
    padded = np.pad(even(x), ((0, 0), (half, half), (half, half), (0, 0)))
    expected = scipy.signal.convolve(padded, kernel, mode="valid")[:, ::2, ::2]
    np.testing.assert_allclose(layers.downsample(x, taps), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 5, 10, 10, 5, 1), (1, 1)])
def test_upsampling_filter(x64, taps, size):
    x = np.random.default_rng(0).normal(size=(2, (size[0] + 1) // 2, (size[1] + 1) // 2, 3))
    expected = x
    for axis in (1, 2):
        # Zeros between the pixels, filtered, less what the filter reaches beyond the image.
        kernel = np.array(taps).reshape([-1 if i == axis else 1 for i in range(4)]) * 2 / sum(taps)
        stuffed = np.zeros([2 * n if i == axis else n for i, n in enumerate(expected.shape)])
        np.moveaxis(stuffed, axis, 0)[::2] = np.moveaxis(expected, axis, 0)
        start = len(taps) // 2 - 1
        full = np.moveaxis(scipy.signal.convolve(stuffed, kernel), axis, 0)[start : start + stuffed.shape[axis]]
        expected = np.moveaxis(full, 0, axis)
    np.testing.assert_allclose(layers.upsample(x, size, taps), expected[:, : size[0], : size[1]], rtol=0, atol=1e-12)


def test_fused_downsampling_convolution_pads_only_once(x64):
    rng = np.random.default_rng(0)
    x, kernel, taps = rng.normal(size=(2, 7, 6, 3)), rng.normal(size=(3, 3, 3, 5)), (1, 3, 3, 1)
    conv = lambda x: layers.canonical_conv(x, kernel, (1, 1), "SAME")
    fir = np.outer(taps, taps) / 64
    # One kernel of 6×6: the filter and the weights in one.
    both = np.stack(
        [[scipy.signal.convolve2d(kernel[:, :, i, o], fir[::-1, ::-1]) for o in range(5)] for i in range(3)]
    )
    padded = np.pad(even(x), ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (6, 6), axis=(1, 2))[:, ::2, ::2]
    expected = np.einsum("bhwiyx,ioyx->bhwo", windows, both)
    np.testing.assert_allclose(layers.downsampled_conv(conv, x, taps), expected, rtol=0, atol=1e-11)


# ---- NCSNv2


def test_instance_norm_plus(x64):
    rng = np.random.default_rng(0)
    x = 2 + rng.normal(size=(2, 5, 4, 6)) * np.linspace(0.5, 3, 6)
    alpha, gamma, beta = rng.normal(size=(3, 6))
    params = {"params": {"alpha": alpha, "gamma": gamma, "beta": beta}}
    expected = np.empty_like(x)
    for b in range(2):
        means = x[b].mean(axis=(0, 1))
        relative = (means - means.mean()) / math.sqrt(((means - means.mean()) ** 2).sum() / 5 + 1e-5)
        for c in range(6):
            channel = x[b, ..., c]
            normed = (channel - channel.mean()) / math.sqrt(channel.var() + 1e-5)
            expected[b, ..., c] = gamma[c] * (normed + alpha[c] * relative[c]) + beta[c]
    np.testing.assert_allclose(ncsnv2.InstanceNormPlus(jnp.float64).apply(params, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 9), (5, 5), (1, 2)])
def test_bilinear_resizing_puts_corners_on_corners(x64, size):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
    places = np.meshgrid(
        *(np.linspace(0, n - 1, m) if m > 1 else [0] for n, m in zip((5, 4), size, strict=True)), indexing="ij"
    )
    sample = lambda channel: scipy.ndimage.map_coordinates(channel, places, order=1)
    expected = [[sample(x[b, ..., c]) for c in range(3)] for b in range(2)]
    np.testing.assert_allclose(ncsnv2.resize_bilinear(x, size), np.moveaxis(expected, 1, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_canonical_convolution_with_dilation(x64, dilation):
    rng = np.random.default_rng(0)
    x, kernel, g = (rng.normal(size=shape) for shape in ((3, 9, 6, 3), (3, 3, 3, 5), (3, 9, 6, 5)))
    options = dict(rhs_dilation=(dilation, dilation))

    def library(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers, **options)

    value, pull = jax.vjp(lambda x, k: layers.canonical_conv(x, k, (1, 1), "SAME", **options), x, kernel)
    expected, expected_pull = jax.vjp(library, x, kernel)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(pull(g), expected_pull(g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


# ---- sizes, presets, config


def test_networks_say_which_sizes_they_take():
    assert models.NCSNv2(3).check_size((28, 28)) == [(28, 28), (14, 14)]
    assert models.ADM(3).check_size((28, 28)) == [(28, 28), (14, 14), (7, 7), (4, 4)]
    for model in (models.UNet(3), models.ADM(3), models.NCSNv2(3)):
        with pytest.raises(UserError, match="8 px or more"):
            model.check_size((7, 7))
    with pytest.raises(UserError, match=r"at least 3 stages .* got \(1, 2\)"):
        models.NCSNv2(3, multipliers=(1, 2)).check_size((8, 8))
    with pytest.raises(UserError, match="72 channels cannot be shared by 5 heads of 14"):
        models.ADM(3, head_channels=14)._heads(72)


@pytest.mark.parametrize("name", models.PRESETS)
def test_presets_make_networks(name):
    config = config_lib.default()
    config.model.update(**models.preset(name))
    config_rules.check(config)
    model = run_lib.make_model(config, {"shape": [28, 28, 3], "classes": ["a", "b"], "sigma_data": 0.5})
    fields = models.preset(name)
    assert type(model) is models.NETWORKS[fields.pop("name")] and model.out_channels == 3
    assert {key: getattr(model, key) for key in fields} == fields
    # A preset sets all that its network has, so that another before it leaves nothing behind.
    free = {
        "out_channels",
        "num_labels",
        "condition_channels",
        "augment_channels",
        "remat",
        "canonical_conv",
        "dtype",
        "parent",
        "name",
    }
    assert {field.name for field in dataclasses.fields(model)} - free == set(fields)


def test_the_default_network_is_the_one_it_was():
    model = run_lib.make_model(config_lib.default(), {"shape": [32, 32, 3], "classes": ["a"], "sigma_data": 0.5})
    assert model == models.UNet(3)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(encoder="residul"), "model.encoder=residul .* did you mean 'residual'"),
        (dict(decoder="residual"), "model.decoder=residual .* one of standard, skip"),
        (dict(resample_filter=(1, 2, 1)), "model.resample_filter=.* an even number of taps"),
        (dict(resample_filter=(1, 2, 3, 1)), "symmetric"),
        (dict(resample_filter=()), "an even number of taps"),
        (dict(head_channels=0), "model.head_channels=0 .* at least 1"),
        (dict(name="ncsnv2", conditional=True), "model.conditional=True .* ncsnv2 has no such option"),
        (dict(name="adm", encoder="residual"), "model.encoder=residual .* adm has no such option"),
        (dict(name="ncsnv2", remat=True), "model.remat=True .* ncsnv2 has no such option"),
    ],
)
def test_impossible_options(changes, message):
    config = config_lib.default()
    config.model.update(**changes)
    with pytest.raises(UserError, match=message):
        config_rules.check(config)


def test_unknown_preset():
    with pytest.raises(UserError, match="unknown network 'ncsnp'; choose from .*; did you mean 'ncsnpp'"):
        models.preset("ncsnp")
