"""A residual network of dense layers, for points in the plane and other data without neighbourhoods."""

import math

import flax.linen as nn
import jax.numpy as jnp

from pfgm_jax.models import layers


class Block(nn.Module):
    """Residual block: norm, SiLU, dense, + embedding, norm, SiLU, dropout, dense."""

    channels: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, emb, dropout_keys):
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype))
        h = nn.silu(layers.group_norm(x, self.dtype, "norm0"))
        h = nn.Dense(self.channels, kernel_init=layers.xavier, name="dense0", **kwargs)(h)
        h = h + nn.Dense(self.channels, kernel_init=layers.xavier, name="affine", **kwargs)(emb)
        h = nn.silu(layers.group_norm(h, self.dtype, "norm1"))
        h = layers.Dropout(self.dropout, name="dropout")(h, dropout_keys)
        h = nn.Dense(self.channels, kernel_init=layers.last, name="dense1", **kwargs)(h)
        return (x + h) * math.sqrt(0.5)


class MLP(nn.Module):
    """`(x [B, H, W, C], noise [B], labels, dropout_keys, augment) -> [B, H, W, out_channels]`, float32.

    labels [B] whole numbers, dropout_keys [B] keys and augment [B, augment_channels] may be None, as in `unet.UNet`.

    Far from the data, at any D, what it is to learn is a multiple of x that depends on the noise level alone, plus
    something bounded. So the output is g(noise) x + dense layers, and these see x with its rms r brought to asinh(r):
    heavy-tailed noise (small D) reaches hundreds of times the data's size.

    Attributes:
      out_channels: channels of the output, at least those of x.
      channels: width of the layers.
      blocks: residual blocks, of two layers each.
      embedding, log_noise, noise_channels, embedding_channels, num_labels, augment_channels, dropout, dtype: as in
        `unet.UNet`.
    """

    out_channels: int
    channels: int = 128
    blocks: int = 4
    embedding: str = "positional"
    log_noise: bool = False
    noise_channels: int = 0
    embedding_channels: int = 512
    num_labels: int = 0
    augment_channels: int = 0
    dropout: float = 0.13
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, noise, labels=None, dropout_keys=None, augment=None):
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype))
        emb = layers.embed(self, noise, labels, augment)
        B, H, W, C = x.shape

        flat = x.reshape(B, -1)
        rms = jnp.sqrt(jnp.mean(jnp.square(flat), axis=1, keepdims=True) + 1e-12)
        h = nn.Dense(self.channels, kernel_init=layers.xavier, name="dense_in", **kwargs)(flat * jnp.arcsinh(rms) / rms)
        for i in range(self.blocks):
            h = Block(self.channels, self.dropout, self.dtype, name=f"block{i}")(h, emb, dropout_keys)
        h = nn.silu(layers.group_norm(h, self.dtype, "norm_out"))
        h = nn.Dense(H * W * self.out_channels, kernel_init=layers.last, name="dense_out", **kwargs)(h)

        gain = nn.Dense(C, kernel_init=layers.last, name="gain", **kwargs)(emb)
        linear = jnp.pad(gain[:, None, None] * x, ((0, 0), (0, 0), (0, 0), (0, self.out_channels - C)))
        return (h.reshape(B, H, W, self.out_channels) + linear).astype(layers.param_dtype(self.dtype))

    def check_size(self, size):
        """Any size will do."""
