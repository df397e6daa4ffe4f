"""The U-Nets DDPM++ and NCSN++ (arXiv 2011.13456, section 4.1 and appendix H; as one network, EDM, arXiv 2206.00364,
appendix F.2), at any image size from 8 px up.

Encoder and decoder of residual blocks, resampling inside blocks, skip connections from every encoder block, attention
at chosen resolutions, block outputs scaled by √½. NCSN++ filters where it resamples, feeds the encoder a pyramid of the
input, and may sum its output over a pyramid too. Odd sizes are halved upwards (7 → 4) and come back cut to the size
they had.
"""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp

from pfgm_jax.models import layers
from pfgm_jax.presets import level_sizes


class Block(nn.Module):
    """Residual block: norm, SiLU, convolution, + embedding, norm, SiLU, dropout, convolution; perhaps attention."""

    channels: int
    dropout: float
    dtype: jnp.dtype
    attention: bool = False
    resize: tuple = ()  # the size to go to, half or twice the input's; () keeps it
    taps: tuple = layers.BOX  # of the resampling filter
    canonical_conv: bool = False

    @nn.compact
    def __call__(self, x, emb, dropout_keys):
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype))
        conv = functools.partial(
            nn.Conv, self.channels, conv_general_dilated=layers.convolution(self.canonical_conv), **kwargs
        )
        h = nn.silu(layers.group_norm(x, self.dtype, "norm0"))
        if self.resize and self.resize[0] > x.shape[1]:
            h, x = (layers.upsample(a, self.resize, self.taps) for a in (h, x))
        elif self.resize:
            h, x = (layers.downsample(a, self.taps) for a in (h, x))
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
    """`(x [B, H, W, C], noise [B], labels, dropout_keys, augment) -> [B, H, W, out_channels]`, float32.

    labels [B] whole numbers, dropout_keys [B] keys and augment [B, augment_channels] may be None: no class, no dropout,
    images that were not augmented.

    Attributes:
      out_channels: channels of the output.
      channels: width of the first level.
      multipliers: width of each level relative to it; their number is the number of levels.
      blocks: residual blocks a level.
      attention: resolutions (heights) at which blocks attend.
      encoder: "standard", "skip" or "residual": what the encoder sees of the image at lower levels: nothing, the
        downsampled image through a 1×1 convolution, or a pyramid of strided convolutions, averaged with the features.
      decoder: "standard", or "skip" for an output summed over all levels, upsampled.
      resample_filter: taps of the resampling filter, (1, 1) in DDPM++ and (1, 3, 3, 1) in NCSN++.
      keep_width: a block that resamples keeps its input's width, as published; else it takes that of its new level.
        Where all multipliers are the same, so are the two.
      embedding: "positional" or "fourier" features of the noise level.
      stored_frequencies: those of "fourier" are kept with the weights (`layers.FourierEmbedding`).
      log_noise: features of the noise level's logarithm, as PFGM's NCSN++ has it, which is given z itself.
      noise_channels: number of those features, 0 for `channels`; 2 × channels in NCSN++.
      embedding_channels: width of the embedding's two layers.
      num_labels: classes, 0 for an unconditional network; a label of −1 stands for none.
      augment_channels: numbers that describe an image's augmentation (9 in EDM, appendix F.2), 0 for none.
      condition_channels: of x, its last ones, those of an image condition (`models.concat_condition`); 0 for none.
      dropout: rate in [0, 1).
      remat: recompute blocks in the backward pass instead of keeping what is inside them.
      canonical_conv: use `layers.canonical_conv`, for training on a CPU.
      dtype: of the computation: float32 or bfloat16 (parameters, normalisation statistics and the output stay float32).
    """

    out_channels: int
    channels: int = 128
    multipliers: tuple = (2, 2, 2)
    blocks: int = 4
    attention: tuple = (16,)
    encoder: str = "standard"
    decoder: str = "standard"
    resample_filter: tuple = layers.BOX
    keep_width: bool = False
    embedding: str = "positional"
    stored_frequencies: bool = False
    log_noise: bool = False
    noise_channels: int = 0
    embedding_channels: int = 512
    num_labels: int = 0
    augment_channels: int = 0
    condition_channels: int = 0
    dropout: float = 0.13
    remat: bool = False
    canonical_conv: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, noise, labels=None, dropout_keys=None, augment=None):
        sizes = self.check_size(x.shape[1:3])
        deepest, taps = len(sizes) - 1, self.resample_filter
        widths = [self.channels * m for m in self.multipliers]
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype))
        conv = functools.partial(nn.Conv, conv_general_dilated=layers.convolution(self.canonical_conv), **kwargs)
        Residual = nn.remat(Block) if self.remat else Block
        emb = layers.embed(self, noise, labels, augment)

        def block(h, name, level, attention=False, resize=()):
            width = h.shape[-1] if resize and self.keep_width else widths[level]
            options = dict(taps=taps, dropout=self.dropout, dtype=self.dtype, canonical_conv=self.canonical_conv)
            return Residual(width, attention=attention, resize=resize, name=name, **options)(h, emb, dropout_keys)

        def attends(level):
            return sizes[level][0] in self.attention

        def output(h, norm, last):
            h = nn.silu(layers.group_norm(h, self.dtype, norm))
            return conv(self.out_channels, (3, 3), kernel_init=layers.last, name=last)(h)

        pyramid = x
        h = conv(self.channels, (3, 3), kernel_init=layers.xavier, name="conv_in")(x)
        skips = [h]
        for level, size in enumerate(sizes):
            if level > 0:
                h = block(h, f"enc{level}_down", level, resize=size)
                side = (3, 3) if self.encoder == "residual" else (1, 1)
                aux = functools.partial(conv, h.shape[-1], side, kernel_init=layers.xavier, name=f"enc{level}_aux")
                if self.encoder == "residual":
                    h = pyramid = (h + layers.downsampled_conv(aux(), pyramid, taps)) * math.sqrt(0.5)
                elif self.encoder == "skip":
                    pyramid = layers.downsample(pyramid, taps)
                    h = h + aux()(pyramid)
                skips.append(h)
            for i in range(self.blocks):
                h = block(h, f"enc{level}_block{i}", level, attends(level))
                skips.append(h)

        h = block(h, "mid_in", deepest, attention=bool(self.attention))
        h = block(h, "mid_out", deepest)
        out = None
        for level in reversed(range(len(sizes))):
            if level < deepest:
                h = block(h, f"dec{level}_up", level, resize=sizes[level])
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, f"dec{level}_block{i}", level, attends(level) and i == self.blocks)
            if self.decoder == "skip" and level > 0:
                here = output(h, f"dec{level}_norm", f"dec{level}_conv")
                out = layers.upsample(here if out is None else out + here, sizes[level - 1], taps)

        here = output(h, "norm_out", "conv_out")
        return (here if out is None else out + here).astype(layers.param_dtype(self.dtype))

    def check_size(self, size):
        """(H, W) of each level for images of `size` (H, W); raises UserError where the network cannot take them."""
        return level_sizes(size, len(self.multipliers))
