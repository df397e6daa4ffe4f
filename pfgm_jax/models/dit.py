"""A patch transformer, DiT (arXiv 2212.09748): dense products where a U-Net has convolutions, at any image size.

The image is cut into p × p patches, each of which becomes a token; blocks of self-attention and a two-layer perceptron
are modulated by the embedding of noise level and class (adaptive layer norm, initialised as the identity); each token
becomes a patch of the output. Queries and keys are normalised (arXiv 2302.05442), which lets the learning rate be
higher.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfgm_jax.errors import UserError
from pfgm_jax.models import layers


class Block(nn.Module):
    """Self-attention and a perceptron of 4 × width, each x + gate · f(scale · norm(x) + shift) (adaLN-Zero)."""

    heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, emb, dropout_keys):
        B, T, C = x.shape
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype))
        dense = lambda width, name, init=layers.xavier: nn.Dense(width, kernel_init=init, name=name, **kwargs)
        modulation = dense(6 * C, "modulation", layers.last)(emb)[:, None]
        shift0, scale0, gate0, shift1, scale1, gate1 = jnp.split(modulation, 6, axis=-1)

        h = layer_norm(x, self.dtype) * (1 + scale0) + shift0
        q, k, v = jnp.moveaxis(dense(3 * C, "qkv")(h).reshape(B, T, 3, self.heads, C // self.heads), 2, 0)
        q, k = (nn.RMSNorm(name=name, **kwargs)(a) for name, a in (("norm_q", q), ("norm_k", k)))
        # The library's attention computes its softmax in float32.
        h = jax.nn.dot_product_attention(q, k, v).reshape(B, T, C)
        x = x + gate0 * dense(C, "proj")(h)

        h = layer_norm(x, self.dtype) * (1 + scale1) + shift1
        h = nn.gelu(dense(4 * C, "mlp0")(h))
        h = layers.Dropout(self.dropout, name="dropout")(h, dropout_keys)
        return x + gate1 * dense(C, "mlp1")(h)


class DiT(nn.Module):
    """`(x [B, H, W, C], noise [B], labels, dropout_keys, augment) -> [B, H, W, out_channels]`, float32.

    labels [B] whole numbers, dropout_keys [B] keys and augment [B, augment_channels] may be None, as in `unet.UNet`.

    Attributes:
      out_channels: channels of the output.
      channels: width of a token.
      blocks: their number.
      patch: side of a patch in pixels; an image whose side is no multiple is continued with zeros, and cut again.
      head_channels: width of an attention head.
      embedding, log_noise, noise_channels, embedding_channels, num_labels, augment_channels, condition_channels,
        dropout, remat, dtype: as in `unet.UNet`.
    """

    out_channels: int
    channels: int = 192
    blocks: int = 8
    patch: int = 4
    head_channels: int = 64
    embedding: str = "positional"
    log_noise: bool = False
    noise_channels: int = 0
    embedding_channels: int = 256
    num_labels: int = 0
    augment_channels: int = 0
    condition_channels: int = 0
    dropout: float = 0.0
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, noise, labels=None, dropout_keys=None, augment=None):
        B, H, W, _ = x.shape
        rows, columns = self.check_size((H, W))
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype))
        emb = layers.embed(self, noise, labels, augment)
        padding = ((0, 0), (0, rows * self.patch - H), (0, columns * self.patch - W), (0, 0))
        h = nn.Dense(self.channels, kernel_init=layers.xavier, name="patch_in", **kwargs)(
            to_patches(jnp.pad(x, padding), self.patch)
        )
        h = h + positions(rows, columns, self.channels).astype(h.dtype)
        heads = max(1, self.channels // self.head_channels)
        Residual = nn.remat(Block) if self.remat else Block
        for i in range(self.blocks):
            h = Residual(heads, self.dropout, self.dtype, name=f"block{i}")(h, emb, dropout_keys)
        modulation = nn.Dense(2 * self.channels, kernel_init=layers.last, name="modulation_out", **kwargs)(emb)
        shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
        h = layer_norm(h, self.dtype) * (1 + scale) + shift
        out = nn.Dense(self.patch**2 * self.out_channels, kernel_init=layers.last, name="patch_out", **kwargs)(h)
        out = from_patches(out, rows, columns, self.patch)[:, :H, :W]
        return out.astype(layers.param_dtype(self.dtype))

    def check_size(self, size):
        """(rows, columns) of patches for images of `size` (H, W); raises UserError where there is only one patch."""
        if self.patch < 1 or self.channels % 4 or self.channels % max(1, self.channels // self.head_channels):
            raise UserError(
                "model.name=dit needs patch >= 1 and channels divisible by 4 and by the number of heads, got "
                f"patch {self.patch}, channels {self.channels}, head_channels {self.head_channels}"
            )
        rows, columns = (-(-side // self.patch) for side in size)
        if rows * columns < 2:
            raise UserError(f"an image of {size[0]}×{size[1]} px is one patch: set model.patch below {min(size)}")
        return rows, columns


def layer_norm(x, dtype):
    """Layer normalisation without parameters, which the modulation brings; statistics in float32."""
    return nn.LayerNorm(use_bias=False, use_scale=False, epsilon=1e-6, dtype=dtype)(x)


def to_patches(x, patch):
    """[B, h p, w p, C] -> [B, h w, p p C], patches in the order of reading."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // patch, patch, W // patch, patch, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, patch * patch * C)


def from_patches(x, rows, columns, patch):
    """The inverse of `to_patches`: [B, h w, p p C] -> [B, h p, w p, C]."""
    B = len(x)
    x = x.reshape(B, rows, columns, patch, patch, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * patch, columns * patch, -1)


def positions(rows, columns, channels):
    """Features [h w, channels] of where a patch is: sines and cosines of its row, then of its column."""
    features = [layers.positional_embedding(jnp.arange(n, dtype=jnp.float32), channels // 2) for n in (rows, columns)]
    shape = (rows, columns, channels // 2)
    each = [jnp.broadcast_to(f, shape) for f in (features[0][:, None], features[1][None])]
    return jnp.concatenate(each, axis=-1).reshape(rows * columns, channels)
