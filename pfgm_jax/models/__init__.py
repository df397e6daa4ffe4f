"""Networks, each `(x [B, H, W, C], noise [B], labels, dropout_keys, augment) -> [B, H, W, out_channels]`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax.models.adm import ADM
from pfgm_jax.models.dit import DiT
from pfgm_jax.models.mlp import MLP
from pfgm_jax.models.ncsnv2 import NCSNv2
from pfgm_jax.models.unet import UNet
from pfgm_jax.presets import PRESETS, attend_alike, preset

__all__ = [
    "ADM",
    "DiT",
    "MLP",
    "NCSNv2",
    "NETWORKS",
    "PRESETS",
    "UNet",
    "attend_alike",
    "beside",
    "init",
    "make",
    "options",
    "preset",
    "unused",
]

NETWORKS = {"unet": UNet, "adm": ADM, "ncsnv2": NCSNv2, "mlp": MLP, "dit": DiT}


def options(name):
    """Names of what the network called `name` can be made with: the fields of its dataclass."""
    return {field.name for field in dataclasses.fields(NETWORKS[name])}


def unused(settings):
    """Names in `settings` (config.model) that their network has no field for."""
    taken = options(settings.name)
    return [key for key in settings if {"conditional": "num_labels"}.get(key, key) not in taken]


def make(settings, **decided):
    """The network that `settings` (config.model) describe.

    Args:
      decided: fields that are no settings: out_channels, and num_labels, augment_channels and condition_channels where
        they are not 0.
    """
    taken = options(settings.name) - {"name", "dtype"}
    own = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items() if key in taken}
    dtype = "bfloat16" if settings.dtype == "bfloat16" else np.dtype(settings.dtype)
    return NETWORKS[settings.name](dtype=dtype, **own, **decided)


def concat_condition(x, condition):
    """The input of an image-conditional network: x [B, H, W, C] and behind it `condition` [B, H, W, K]; x for None."""
    return x if condition is None else jnp.concatenate([x, condition.astype(x.dtype)], axis=-1)


def init(model, shape, key=None):
    """Parameters of a network for images of `shape` (H, W, C)."""
    key = jax.random.key(0) if key is None else key
    dtype = jnp.result_type(float)
    H, W, C = shape
    x = jnp.zeros((1, H, W, C + getattr(model, "condition_channels", 0)), dtype)
    return model.init(key, x, jnp.zeros(1, dtype))["params"]
