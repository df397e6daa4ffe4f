"""The DDPM++ U-Net (arXiv 2011.13456, in EDM's arrangement, arXiv 2206.00364 appendix F), at any image size from 8 px
up.

Encoder and decoder of residual blocks, resampling inside blocks, skip connections from every encoder block, attention
at chosen resolutions, block outputs scaled by √½. Odd sizes are halved upwards (7 → 4) and come back cut to the size
they had.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfgm_jax.errors import UserError
from pfgm_jax.models import layers


class Block(nn.Module):
    """Residual block: norm, SiLU, convolution, + embedding, norm, SiLU, dropout, convolution; perhaps attention."""

    channels: int
    dropout: float
    dtype: jnp.dtype
    attention: bool = False
    resize: tuple = ()  # the size to go to, half or twice the input's; () keeps it
    canonical_conv: bool = False

    @nn.compact
    def __call__(self, x, emb, dropout_keys):
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype))
        conv = functools.partial(
            nn.Conv, self.channels, conv_general_dilated=layers.convolution(self.canonical_conv), **kwargs
        )
        h = nn.silu(layers.group_norm(x, self.dtype, "norm0"))
        if self.resize and self.resize[0] > x.shape[1]:
            h, x = layers.upsample(h, self.resize), layers.upsample(x, self.resize)
        elif self.resize:
            h, x = layers.downsample(h), layers.downsample(x)
        h = conv((3, 3), kernel_init=layers.xavier, name="conv0")(h)
        h = h + nn.Dense(self.channels, kernel_init=layers.xavier, name="affine", **kwargs)(emb)[:, None, None]
        h = nn.silu(layers.group_norm(h, self.dtype, "norm1"))
        h = layers.Dropout(self.dropout, name="dropout")(h, dropout_keys)
        h = conv((3, 3), kernel_init=layers.last, name="conv1")(h)
        if x.shape[-1] != self.channels or self.resize:
            x = conv((1, 1), kernel_init=layers.xavier, name="skip")(x)
        h = (x + h) * math.sqrt(0.5)
        return layers.Attention(self.dtype, name="attention")(h) if self.attention else h


class UNet(nn.Module):
    """`(x [B, H, W, C], noise [B], labels [B] or None, dropout_keys [B] or None) -> [B, H, W, out_channels]`, float32.

    Attributes:
      out_channels: channels of the output.
      channels: width of the first level.
      multipliers: width of each level relative to it; their number is the number of levels.
      blocks: residual blocks a level.
      attention: resolutions (heights) at which blocks attend.
      embedding: "positional" or "fourier" features of the noise level.
      noise_channels: number of those features, 0 for `channels`.
      embedding_channels: width of the embedding's two layers.
      num_labels: classes, 0 for an unconditional network; a label of −1 stands for none.
      dropout: rate in [0, 1).
      canonical_conv: use `layers.canonical_conv`, for training on a CPU.
      dtype: of the computation: float32 or bfloat16 (parameters, normalisation statistics and the output stay float32).
    """

    out_channels: int
    channels: int = 128
    multipliers: tuple = (2, 2, 2)
    blocks: int = 4
    attention: tuple = (16,)
    embedding: str = "positional"
    noise_channels: int = 0
    embedding_channels: int = 512
    num_labels: int = 0
    dropout: float = 0.13
    canonical_conv: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, noise, labels=None, dropout_keys=None):
        sizes = level_sizes(x.shape[1:3], len(self.multipliers))
        widths = [self.channels * m for m in self.multipliers]
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype))
        conv = functools.partial(nn.Conv, conv_general_dilated=layers.convolution(self.canonical_conv), **kwargs)
        block_options = dict(dropout=self.dropout, dtype=self.dtype, canonical_conv=self.canonical_conv)
        emb = self._embed(noise, labels)

        def block(h, name, level, attention=False, resize=()):
            attention = attention and sizes[level][0] in self.attention
            module = Block(widths[level], attention=attention, resize=resize, name=name, **block_options)
            return module(h, emb, dropout_keys)

        h = conv(self.channels, (3, 3), kernel_init=layers.xavier, name="conv_in")(x)
        skips = [h]
        for level, size in enumerate(sizes):
            if level > 0:
                h = block(h, f"enc{level}_down", level, resize=size)
                skips.append(h)
            for i in range(self.blocks):
                h = block(h, f"enc{level}_block{i}", level, attention=True)
                skips.append(h)

        deepest = len(sizes) - 1
        middle = Block(widths[-1], attention=bool(self.attention), name="mid_in", **block_options)
        h = block(middle(h, emb, dropout_keys), "mid_out", deepest)
        for level in reversed(range(len(sizes))):
            if level < deepest:
                h = block(h, f"dec{level}_up", level, resize=sizes[level])
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, f"dec{level}_block{i}", level, attention=i == self.blocks)

        h = nn.silu(layers.group_norm(h, self.dtype, "norm_out"))
        h = conv(self.out_channels, (3, 3), kernel_init=layers.last, name="conv_out")(h)
        return h.astype(layers.param_dtype(self.dtype))

    def _embed(self, noise, labels):
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype), kernel_init=layers.xavier)
        features = self.noise_channels or self.channels
        if self.embedding == "fourier":
            emb = layers.FourierEmbedding(features, name="fourier")(noise)
        else:
            emb = layers.positional_embedding(noise, features)
        if self.num_labels:
            if labels is None:
                labels = jnp.full(noise.shape, -1)
            one_hot = jax.nn.one_hot(labels, self.num_labels, dtype=emb.dtype) * math.sqrt(self.num_labels)
            emb = emb + nn.Dense(emb.shape[-1], use_bias=False, name="label", **kwargs)(one_hot)
        emb = nn.silu(nn.Dense(self.embedding_channels, name="embed0", **kwargs)(emb))
        return nn.silu(nn.Dense(self.embedding_channels, name="embed1", **kwargs)(emb))


def level_sizes(size, levels):
    """(H, W) of each level: halved upwards each time.

    Raises:
      UserError: images smaller than 8 px, or so many levels that the smallest would be under 2 px.
    """
    if min(size) < 8:
        raise UserError(f"the U-Net takes images of 8 px or more, got {size[0]}×{size[1]}")
    sizes = [tuple(size)]
    for _ in range(levels - 1):
        sizes.append(tuple(-(-s // 2) for s in sizes[-1]))
    if min(sizes[-1]) < 2:
        raise UserError(
            f"{levels} levels (model.multipliers) are too many for {size[0]}×{size[1]} px: the last is of one pixel"
        )
    return sizes
