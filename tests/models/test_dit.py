"""The patch transformer: its patches, its block against NumPy in float64, and what its beginning leaves unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_networks import images, random_params
from scipy.special import softmax

from pfgm_jax import models
from pfgm_jax.errors import UserError
from pfgm_jax.models import dit


def test_patches_are_read_in_order_and_put_back():
    x = jnp.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    patches = dit.to_patches(x, 4)
    assert patches.shape == (2, 6, 48)
    np.testing.assert_array_equal(patches[1, 4].reshape(4, 4, 3), x[1, 4:8, 4:8])
    np.testing.assert_array_equal(dit.from_patches(patches, 2, 3, 4), x)


def test_every_place_has_features_of_its_own():
    features = np.asarray(dit.positions(7, 9, 32))
    assert features.shape == (63, 32)
    gaps = np.linalg.norm(features[:, None] - features[None], axis=-1) + 10 * np.eye(63)
    assert gaps.min() > 0.3
    # The first half tells the row alone, the second the column.
    np.testing.assert_array_equal(features[0, :16], features[8, :16])
    np.testing.assert_array_equal(features[0, 16:], features[9, 16:])


def test_block_against_numpy(x64):
    heads, C = 2, 8
    random = np.random.default_rng(0)
    x, emb = random.normal(size=(2, 5, C)), random.normal(size=(2, 6))
    block = dit.Block(heads, 0.0, jnp.float64)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, emb, None)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape) * 0.4, shapes)
    p = params["params"]

    def dense(a, name):
        return a @ p[name]["kernel"] + p[name]["bias"]

    def norm(a):
        return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)

    def rms_norm(a, name):
        return a / np.sqrt(np.square(a).mean(-1, keepdims=True) + 1e-6) * p[name]["scale"]

    def gelu(a):  # by the hyperbolic tangent
        return a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))

    shift0, scale0, gate0, shift1, scale1, gate1 = np.split(dense(emb, "modulation")[:, None], 6, axis=-1)
    qkv = dense(norm(x) * (1 + scale0) + shift0, "qkv").reshape(2, 5, 3, heads, C // heads)
    q, k, v = rms_norm(qkv[:, :, 0], "norm_q"), rms_norm(qkv[:, :, 1], "norm_k"), qkv[:, :, 2]
    weights = softmax(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(C / heads), axis=-1)
    h = x + gate0 * dense(np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 5, C), "proj")
    expected = h + gate1 * dense(gelu(dense(norm(h) * (1 + scale1) + shift1, "mlp0")), "mlp1")
    # The library's softmax is float32's, which rounds at 6e-8.
    np.testing.assert_allclose(block.apply(params, x, emb, None), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_blocks_begin_as_the_identity():
    x, noise = images(2, 8, 8, 3), jnp.zeros(2)
    options = dict(out_channels=3, channels=16, head_channels=8, embedding_channels=16)
    deep, none = models.DiT(blocks=3, **options), models.DiT(blocks=0, **options)
    params = random_params(none, x)
    begun = deep.init(jax.random.key(0), x, noise)
    merged = {"params": begun["params"] | params["params"]}
    # The gates start at 1e-5 of a normal initialisation.
    np.testing.assert_allclose(deep.apply(merged, x, noise), none.apply(params, x, noise), rtol=0, atol=1e-3)


def test_a_side_that_is_no_multiple_of_the_patch_sees_zeros_beyond_it():
    model = models.DiT(3, channels=16, blocks=1, head_channels=8, embedding_channels=16)
    x = images(2, 6, 7, 3)
    params = random_params(model, x)
    padded = jnp.pad(x, ((0, 0), (0, 2), (0, 1), (0, 0)))
    np.testing.assert_array_equal(
        model.apply(params, x, jnp.ones(2)), model.apply(params, padded, jnp.ones(2))[:, :6, :7]
    )


@pytest.mark.parametrize(
    "options, size, message",
    [
        (dict(patch=8), (8, 8), "is one patch: set model.patch below 8"),
        (dict(patch=0), (8, 8), "patch >= 1"),
        (dict(channels=18), (8, 8), "divisible by 4 and by the number of heads"),
        (dict(channels=20, head_channels=6), (8, 8), "the number of heads"),
    ],
)
def test_impossible_options(options, size, message):
    with pytest.raises(UserError, match=message):
        models.DiT(3, **options).check_size(size)
