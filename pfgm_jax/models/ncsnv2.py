"""NCSNv2 ("Improved Techniques for Training Score-Based Generative Models", arXiv 2006.09011, appendix A): a RefineNet
(arXiv 1611.06612) conditioned on neither noise level nor class.

Two residual blocks a stage with InstanceNorm++ (arXiv 1907.05600, appendix A) and ELU, the last two stages dilated
instead of downsampled; then a refinement of each stage by the one below. The published output is divided by σ, which
here is the parametrisation's part (`parametrization.Score`).
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from pfgm_jax.errors import UserError
from pfgm_jax.models import layers
from pfgm_jax.models.unet import level_sizes


class InstanceNormPlus(nn.Module):
    """InstanceNorm++: each channel normalised over pixels, plus α times its mean, normalised over channels.

    Statistics are float32 or better; the channels' variance of means is the unbiased one, as published.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        kind, shape = layers.param_dtype(self.dtype), x.shape[-1:]
        around_one = lambda key, shape, dtype: 1 + nn.initializers.normal(0.02)(key, shape, dtype)
        alpha = self.param("alpha", around_one, shape, kind)
        gamma = self.param("gamma", around_one, shape, kind)
        beta = self.param("beta", nn.initializers.zeros, shape, kind)
        x = x.astype(kind)
        mean, var = (f(x, axis=(1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
        spread = jnp.var(mean, axis=-1, ddof=1, keepdims=True)
        relative = (mean - jnp.mean(mean, axis=-1, keepdims=True)) / jnp.sqrt(spread + 1e-5)
        h = (x - mean) / jnp.sqrt(var + 1e-5) + alpha * relative
        return (gamma * h + beta).astype(self.dtype)


def _conv(module, h, features, side, name, dilation=1, bias=True):
    """Convolution with zeros around the image, initialised uniformly within ±1/√fan_in."""
    return nn.Conv(
        features,
        (side, side),
        kernel_dilation=dilation,
        use_bias=bias,
        kernel_init=layers.fan_in,
        bias_init=layers.fan_in_bias(side**2 * h.shape[-1]),
        conv_general_dilated=layers.convolution(module.canonical_conv),
        dtype=module.dtype,
        param_dtype=layers.param_dtype(module.dtype),
        name=name,
    )(h)


class Residual(nn.Module):
    """Residual block (norm, ELU, convolution) × 2; in a first block, `dilation` > 1 replaces downsampling."""

    channels: int
    dtype: jnp.dtype
    first: bool = False  # of a stage below the top one
    dilation: int = 1
    canonical_conv: bool = False

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(_conv, self)
        average = self.first and self.dilation == 1
        h = nn.elu(InstanceNormPlus(self.dtype, name="norm1")(x))
        h = conv(h, x.shape[-1] if self.first else self.channels, 3, "conv1", self.dilation)
        h = nn.elu(InstanceNormPlus(self.dtype, name="norm2")(h))
        h = conv(h, self.channels, 3, "conv2", self.dilation)
        if self.first:
            x = conv(x, self.channels, 1 if self.dilation == 1 else 3, "skip", self.dilation)
        return x + h if not average else layers.downsample(x) + layers.downsample(h)


class Units(nn.Module):
    """Residual convolution units: `number` times x + two ELU-convolutions of x."""

    number: int
    dtype: jnp.dtype
    canonical_conv: bool = False

    @nn.compact
    def __call__(self, x):
        for i in range(self.number):
            h = x
            for j in range(2):
                h = _conv(self, nn.elu(h), x.shape[-1], 3, f"conv{i}_{j}", bias=False)
            x = x + h
        return x


class Refine(nn.Module):
    """RefineNet's block: units on each input, sum at the largest size, chained 5×5 pooling, units."""

    channels: int
    dtype: jnp.dtype
    units: int = 1  # at the output
    canonical_conv: bool = False

    @nn.compact
    def __call__(self, inputs):
        options = dict(dtype=self.dtype, canonical_conv=self.canonical_conv)
        inputs = [Units(2, name=f"units{i}", **options)(h) for i, h in enumerate(inputs)]
        h = inputs[0]
        if len(inputs) > 1:
            fused = (_conv(self, g, self.channels, 3, f"fuse{i}") for i, g in enumerate(inputs))
            h = sum(resize_bilinear(g, h.shape[1:3]) for g in fused)
        h = path = nn.elu(h)
        for i in range(2):
            path = nn.max_pool(path, (5, 5), padding=((2, 2), (2, 2)))
            path = _conv(self, path, self.channels, 3, f"pool{i}", bias=False)
            h = h + path
        return Units(self.units, name="units_out", **options)(h)


def resize_bilinear(x, size):
    """[B, H, W, C] -> [B, *size, C], the corner pixels of input and output at the same places (`align_corners`)."""
    weights = (_interpolation(n, m).astype(x.dtype) for n, m in zip(x.shape[1:3], size, strict=True))
    return x if x.shape[1:3] == tuple(size) else jnp.einsum("bhwc,Hh,Ww->bHWc", x, *weights)


def _interpolation(n, m):
    """[m, n]: row i has the weights of n pixels in the i-th of m, linear in its place i (n − 1)/(m − 1)."""
    place = np.arange(m) * ((n - 1) / max(m - 1, 1))
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(n)))


class NCSNv2(nn.Module):
    """`(x [B, H, W, C], noise [B], labels, dropout_keys) -> [B, H, W, out_channels]`; only x matters.

    Attributes:
      out_channels: channels of the output.
      channels: width of the first stage.
      multipliers: width of each stage relative to it; the last two are dilated by 2 and 4, all others but the first
        downsample. (1, 2, 2, 2) is the published network below 96 px, (1, 2, 2, 4, 4) the one to 128 px, (1, 2, 2, 2,
        4, 4) the one to 256 px.
      canonical_conv, dtype: as of `UNet`.
    """

    out_channels: int
    channels: int = 128
    multipliers: tuple = (1, 2, 2, 2)
    canonical_conv: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, noise, labels=None, dropout_keys=None, augment=None):
        del noise, labels, dropout_keys
        self.check_size(x.shape[1:3])
        layers.check_augment(augment, 0, x)
        options = dict(dtype=self.dtype, canonical_conv=self.canonical_conv)
        widths = [self.channels * m for m in self.multipliers]
        last = len(widths) - 1
        h = _conv(self, x, widths[0], 3, "conv_in")
        stages = []
        for stage, width in enumerate(widths):
            dilation = {last - 1: 2, last: 4}.get(stage, 1)
            for i in range(2):
                first = stage > 0 and i == 0
                h = Residual(width, first=first, dilation=dilation, name=f"stage{stage}_block{i}", **options)(h)
            stages.append(h)
        for stage in reversed(range(len(widths))):
            inputs = [stages[stage]] if stage == last else [stages[stage], h]
            units = 3 if stage == 0 else 1
            h = Refine(widths[max(stage - 1, 0)], units=units, name=f"refine{stage}", **options)(inputs)
        h = nn.elu(InstanceNormPlus(self.dtype, name="norm_out")(h))
        return _conv(self, h, self.out_channels, 3, "conv_out").astype(layers.param_dtype(self.dtype))

    def check_size(self, size):
        """(H, W) of each resolution for images of `size`; raises UserError where the network cannot take them."""
        if len(self.multipliers) < 3 or self.multipliers[-1] != self.multipliers[-2]:
            raise UserError(
                "NCSNv2 needs at least 3 stages (model.multipliers), the last two of equal width, got "
                f"{self.multipliers}"
            )
        return level_sizes(size, len(self.multipliers) - 2)
