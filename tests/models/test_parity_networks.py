"""The networks against the published PyTorch code: the same weights and inputs, the same output and input gradient.

`fixtures/networks.py` says how the stored figures were made, and holds the recipe of the weights.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import networks

from pfgm_jax import models
from pfgm_jax.errors import UserError
from pfgm_jax.exchange.torch_networks import from_torch

NARROW = dict(channels=16, embedding_channels=64, multipliers=(1, 2), blocks=1, attention=(8,))
TOLD = dict(num_labels=3, augment_channels=9)
SKIP = dict(encoder="skip", decoder="skip")
ADM = dict(channels=32, noise_channels=32, embedding_channels=128, multipliers=(1, 4), blocks=1, attention=(8,))
# name of the fixture: (preset, what is other than in it, kind of weights).
CASES = {
    "edm_ddpmpp": ("ddpmpp", NARROW | TOLD | dict(noise_channels=16), "edm"),
    "edm_ncsnpp": ("ncsnpp", NARROW | TOLD | dict(noise_channels=32, multipliers=(1, 2, 2)), "edm"),
    "edm_skip": ("ncsnpp", NARROW | SKIP | dict(noise_channels=32), "edm"),
    "edm_adm": ("adm", ADM | TOLD, "edm"),
    "pfgm_ddpmpp": ("ddpmpp_song", NARROW | dict(noise_channels=16, out_channels=4), "score_sde"),
    "pfgm_ncsnpp": ("ncsnpp_pfgm", NARROW | dict(noise_channels=32, out_channels=4), "score_sde"),
    "score_sde_skip": ("ncsnpp_pfgm", NARROW | SKIP | dict(noise_channels=32), "score_sde"),
    "ncsnv2": ("ncsnv2", dict(channels=16), "ncsnv2"),
    "ncsnv2_256": ("ncsnv2_256", dict(channels=8), "ncsnv2"),
}


def make(preset, **changes):
    fields = models.preset(preset)
    return models.NETWORKS[fields.pop("name")](**(dict(out_channels=3) | fields | changes))


@functools.cache
def case(name):
    preset, changes, kind = CASES[name]
    return make(preset, **changes), networks.load(name), kind


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", CASES)
def test_published_network(name):
    model, stored, kind = case(name)
    params = from_torch(model, networks.state(stored), kind, size=16)
    told = {key: stored[key] for key in ("labels", "augment") if getattr(model, "num_labels", 0)}

    @functools.partial(jax.grad, has_aux=True)
    def gradient(x, params):
        out = model.apply({"params": params}, x, jnp.asarray(stored["noise"]), **told)
        y, z = out[..., :3], jnp.mean(out[..., 3:], axis=(1, 2))
        score = jnp.sum(y * stored["g"][..., :3])
        return score + (jnp.sum(z[:, 0] * stored["g"][:, 0, 0, 3]) if z.size else 0), (y, z)

    gx, (y, z) = jax.jit(gradient)(jnp.asarray(stored["x"]), params)
    # float32 through some dozens of layers gives 1e-6; Fourier features of angles up to 2π·16·3 · 2 add 1e-5.
    assert relative(y, stored["y"]) < 2e-5 and relative(gx, stored["gx"]) < 4e-5
    if z.size:
        np.testing.assert_allclose(z[:, 0], stored["z"], rtol=2e-5, atol=2e-5)


def test_prefixes_and_buffers():
    model, stored, kind = case("edm_skip")
    state = networks.state(stored)
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1])[None, None] / 64
    wrapped = {f"module.model.{name}": value for name, value in state.items()}
    wrapped["module.model.enc.8x8_down.conv0.resample_filter"] = taps
    plain, other = (from_torch(model, s, kind) for s in (state, wrapped))
    jax.tree.map(np.testing.assert_array_equal, plain, other)
    with pytest.raises(UserError, match="resample_filter is not of"):
        from_torch(model, state | {"enc.8x8_down.conv0.resample_filter": np.full((1, 1, 2, 2), 0.25)}, kind)


def test_weights_that_do_not_fit():
    model, stored, kind = case("edm_ddpmpp")
    state = networks.state(stored)
    without = {name: value for name, value in state.items() if name != "map_layer1.weight"}
    with pytest.raises(UserError, match="missing map_layer1.weight$"):
        from_torch(model, without, kind)
    with pytest.raises(UserError, match="left over enc.extra, enc.other$"):
        from_torch(model, state | {"enc.extra": np.zeros(2), "enc.other": np.zeros(2)}, kind)
    with pytest.raises(UserError, match=r"of another shape map_layer1.bias \(7,\) for embed1/bias \(64,\)"):
        from_torch(model, state | {"map_layer1.bias": np.zeros(7)}, kind)
    with pytest.raises(UserError, match="missing .*16x16_block.* and [0-9]+ more$"):
        from_torch(model.clone(blocks=2), state, kind)
    with pytest.raises(UserError, match="has no counterpart"):
        from_torch(model, networks.state(networks.load("pfgm_ddpmpp")), "score_sde")
    with pytest.raises(UserError, match="unknown kind of weights 'edn'; choose from .*; did you mean 'edm'"):
        from_torch(model, state, "edn")
    with pytest.raises(UserError, match="not weights of kind 'ncsnv2'"):
        from_torch(model, state, "ncsnv2")


@pytest.mark.parametrize(
    "preset, size, changes, count",
    [
        # The published code's own counts, less score_sde's frequencies, which are not trained. The bias of EDM's label
        # layer (noise_channels numbers) is here in the next layer's.
        ("ddpmpp", 32, {}, 55_732_739),
        ("ddpmpp", 32, dict(num_labels=10, augment_channels=9), 55_735_299),
        ("ncsnpp", 32, dict(num_labels=10, augment_channels=9), 56_400_643),
        ("ddpmpp_song", 32, dict(out_channels=4), 61_805_572),
        ("ddpmpp_deep", 32, dict(out_channels=4), 106_633_732),
        ("ncsnpp_pfgm", 32, dict(out_channels=4), 62_759_940),
        ("adm", 64, dict(num_labels=1000, augment_channels=9), 295_900_995),
        ("ncsnv2", 32, {}, 29_694_083),
    ],
)
def test_parameter_counts(preset, size, changes, count):
    model = make(preset, **changes)
    shapes = jax.eval_shape(lambda: models.init(model, (size, size, 3)))
    found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    merged = model.noise_channels if preset in ("ddpmpp", "ncsnpp") and model.num_labels else 0
    assert found + merged == count
