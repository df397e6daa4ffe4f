"""The U-Net ADM ("Diffusion Models Beat GANs", arXiv 2105.05233, section 3; as in EDM, arXiv 2206.00364, appendix F.3),
at any image size from 8 px up.

Unlike DDPM++: the embedding scales and shifts inside each block, attention has several heads and sits in all blocks of
its resolutions, the residuals are plain sums, and a class enters behind the embedding's layers.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from pfgm_jax.errors import UserError
from pfgm_jax.models import layers
from pfgm_jax.models.unet import level_sizes

EPSILON = 1e-5  # of all group normalisations
ZEROS = (nn.initializers.zeros, nn.initializers.zeros)


def initial(inputs):
    """Options that start a layer of `inputs` numbers an output: weights and biases uniform within ±1/√inputs."""
    return dict(kernel_init=layers.fan_in, bias_init=layers.fan_in_bias(inputs))


class Block(nn.Module):
    """Residual block: norm, SiLU, convolution, norm scaled and shifted by the embedding, SiLU, dropout, convolution."""

    channels: int
    dropout: float
    dtype: jnp.dtype
    heads: int = 0  # of the attention, 0 for none
    resize: tuple = ()  # the size to go to, half or twice the input's; () keeps it
    canonical_conv: bool = False

    @nn.compact
    def __call__(self, x, emb, dropout_keys):
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype))
        conv = functools.partial(
            nn.Conv, self.channels, conv_general_dilated=layers.convolution(self.canonical_conv), **kwargs
        )
        h = nn.silu(layers.group_norm(x, self.dtype, "norm0", EPSILON))
        if self.resize:
            up = self.resize[0] > x.shape[1]
            h, x = (layers.upsample(a, self.resize) if up else layers.downsample(a) for a in (h, x))
        h = conv((3, 3), name="conv0", **initial(9 * h.shape[-1]))(h)
        both = nn.Dense(2 * self.channels, name="affine", **initial(emb.shape[-1]), **kwargs)(emb)[:, None, None]
        scale, shift = jnp.split(both, 2, axis=-1)
        h = nn.silu(layers.group_norm(h, self.dtype, "norm1", EPSILON) * (1 + scale) + shift)
        h = layers.Dropout(self.dropout, name="dropout")(h, dropout_keys)
        h = conv((3, 3), kernel_init=ZEROS[0], name="conv1")(h)
        if x.shape[-1] != self.channels:
            x = conv((1, 1), name="skip", **initial(x.shape[-1]))(x)
        h = x + h
        if not self.heads:
            return h
        inits = ((layers.fan_in, layers.fan_in_bias(self.channels)), ZEROS)
        return layers.Attention(self.dtype, self.heads, EPSILON, 1.0, inits, name="attention")(h)


class ADM(nn.Module):
    """`(x [B, H, W, C], noise [B], labels, dropout_keys, augment) -> [B, H, W, out_channels]`, float32.

    labels, dropout_keys and augment may be None, as in `UNet`, whose attributes these are:

    Attributes:
      out_channels, channels, multipliers, blocks, dropout, remat, canonical_conv, dtype: of `UNet`.
      attention: resolutions (heights) at which all blocks attend.
      head_channels: channels of an attention head; fewer than that make one head.
      noise_channels: positional features of the noise level, 0 for `channels`.
      embedding_channels: width of the embedding, 4 × channels as published.
      num_labels, augment_channels, condition_channels: 0 for none; a label of −1 stands for none.
    """

    out_channels: int
    channels: int = 192
    multipliers: tuple = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple = (32, 16, 8)
    head_channels: int = 64
    noise_channels: int = 0
    embedding_channels: int = 768
    num_labels: int = 0
    augment_channels: int = 0
    condition_channels: int = 0
    dropout: float = 0.1
    remat: bool = False
    canonical_conv: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, noise, labels=None, dropout_keys=None, augment=None):
        sizes = self.check_size(x.shape[1:3])
        widths = [self.channels * m for m in self.multipliers]
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype))
        conv = functools.partial(nn.Conv, conv_general_dilated=layers.convolution(self.canonical_conv), **kwargs)
        Residual = nn.remat(Block) if self.remat else Block
        emb = self._embed(noise, labels, augment)

        def block(h, name, level, attention=None, resize=()):
            # A block that resamples keeps its input's width and does not attend.
            width = h.shape[-1] if resize else widths[level]
            attention = not resize and sizes[level][0] in self.attention if attention is None else attention
            options = dict(dropout=self.dropout, dtype=self.dtype, canonical_conv=self.canonical_conv, resize=resize)
            heads = self._heads(width) if attention else 0
            return Residual(width, heads=heads, name=name, **options)(h, emb, dropout_keys)

        h = conv(widths[0], (3, 3), name="conv_in", **initial(9 * x.shape[-1]))(x)
        skips = [h]
        for level, size in enumerate(sizes):
            if level > 0:
                h = block(h, f"enc{level}_down", level, resize=size)
                skips.append(h)
            for i in range(self.blocks):
                h = block(h, f"enc{level}_block{i}", level)
                skips.append(h)

        deepest = len(sizes) - 1
        h = block(h, "mid_in", deepest, attention=bool(self.attention))
        h = block(h, "mid_out", deepest, attention=False)
        for level in reversed(range(len(sizes))):
            if level < deepest:
                h = block(h, f"dec{level}_up", level, resize=sizes[level])
            for i in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), f"dec{level}_block{i}", level)

        h = nn.silu(layers.group_norm(h, self.dtype, "norm_out", EPSILON))
        h = conv(self.out_channels, (3, 3), kernel_init=ZEROS[0], name="conv_out")(h)
        return h.astype(layers.param_dtype(self.dtype))

    def _heads(self, width):
        heads = max(1, width // self.head_channels)
        if width % heads:
            raise UserError(
                f"{width} channels cannot be shared by {heads} heads of {self.head_channels} (head_channels)"
            )
        return heads

    def _embed(self, noise, labels, augment):
        kwargs = dict(dtype=self.dtype, param_dtype=layers.param_dtype(self.dtype))
        features, width = self.noise_channels or self.channels, self.embedding_channels
        emb = layers.positional_embedding(noise, features, endpoint=False)
        augment = layers.check_augment(augment, self.augment_channels, emb)
        if augment is not None:
            options = dict(use_bias=False, kernel_init=ZEROS[0], **kwargs)
            emb = emb + nn.Dense(features, name="augment", **options)(augment)
        emb = nn.silu(nn.Dense(width, name="embed0", **initial(features), **kwargs)(emb))
        emb = nn.Dense(width, name="embed1", **initial(width), **kwargs)(emb)
        if self.num_labels:
            normal = nn.initializers.normal(1.0)
            dense = nn.Dense(width, use_bias=False, kernel_init=normal, name="label", **kwargs)
            emb = emb + dense(layers.one_hot(labels, self.num_labels, emb))
        return nn.silu(emb)

    def check_size(self, size):
        """(H, W) of each level for images of `size` (H, W); raises UserError where the network cannot take them."""
        return level_sizes(size, len(self.multipliers))
