"""Networks, each `(x [B, H, W, C], noise [B], labels, dropout_keys) -> [B, H, W, out_channels]`."""

from pfgm_jax.models.unet import UNet

__all__ = ["NETWORKS", "UNet"]

NETWORKS = {"unet": UNet}
