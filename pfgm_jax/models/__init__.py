"""Networks, each `(x [B, H, W, C], noise [B], labels, dropout_keys, augment) -> [B, H, W, out_channels]`."""

import jax
import jax.numpy as jnp

from pfgm_jax.models.adm import ADM
from pfgm_jax.models.dit import DiT
from pfgm_jax.models.mlp import MLP
from pfgm_jax.models.ncsnv2 import NCSNv2
from pfgm_jax.models.unet import UNet
from pfgm_jax.presets import PRESETS, attend_alike, preset

__all__ = ["ADM", "DiT", "MLP", "NCSNv2", "NETWORKS", "PRESETS", "UNet", "attend_alike", "init", "preset"]

NETWORKS = {"unet": UNet, "adm": ADM, "ncsnv2": NCSNv2, "mlp": MLP, "dit": DiT}


def init(model, shape, key=None):
    """Parameters of a network for images of `shape` (H, W, C)."""
    key = jax.random.key(0) if key is None else key
    dtype = jnp.result_type(float)
    return model.init(key, jnp.zeros((1, *shape), dtype), jnp.zeros(1, dtype))["params"]
