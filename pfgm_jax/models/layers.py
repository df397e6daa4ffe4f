"""Layers of the U-Nets: embeddings of the noise level, convolutions, resampling, attention, dropout by example."""

import math
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Xavier-uniform as in DDPM and EDM; `last` starts a block as the identity.
xavier = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
last = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")


def positional_embedding(noise, channels, max_period=10_000.0):
    """[B] -> [B, channels]: sines and cosines at frequencies from 1 to 1/max_period (DDPM, score_sde)."""
    half = channels // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=noise.dtype) / max(half - 1, 1))
    angles = noise[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


class FourierEmbedding(nn.Module):
    """[B] -> [B, channels]: sines and cosines at fixed random frequencies ~ N(0, scale²) (NCSN++, arXiv 2011.13456)."""

    channels: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, noise):
        # Drawn from a constant key, so that the frequencies belong to the architecture and are not trained.
        frequencies = self.scale * jax.random.normal(jax.random.key(0), (self.channels // 2,), noise.dtype)
        angles = 2 * math.pi * noise[:, None] * frequencies
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


class Dropout(nn.Module):
    """Dropout whose mask for an example depends on that example's key alone, not on the batch or the device."""

    rate: float

    @nn.compact
    def __call__(self, x, keys):
        """x: [B, ...]; keys: [B] or None for no dropout."""
        if keys is None or self.rate == 0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())  # a fixed number for each layer, the same in every run

        def keep(key):
            return jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(keep)(keys), x / (1 - self.rate), 0)


def group_norm(x, dtype, name):
    """Group normalisation over at most 32 groups of at least 4 channels (EDM), with statistics in float32 or better."""
    channels = x.shape[-1]
    groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, param_dtype=param_dtype(dtype), name=name)(x)


def param_dtype(dtype):
    """Parameters are float32, whatever is computed in bfloat16; float64 where float64 is computed."""
    return jnp.promote_types(jnp.float32, dtype)


@jax.custom_vjp
def _conv_canonical(x, kernel):
    return _same_conv(x, kernel)


def _same_conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _conv_canonical_backward(residuals, g):
    x, kernel = residuals
    grad_x = _same_conv(g, jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2))
    # The kernel's gradient is a convolution of x by g over the batch: channels play the batch, the batch the channels.
    padding = [((side - 1) // 2,) * 2 for side in kernel.shape[:2]]
    grad_kernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return grad_x, grad_kernel.transpose(1, 2, 0, 3)


_conv_canonical.defvjp(lambda x, kernel: (_same_conv(x, kernel), (x, kernel)), _conv_canonical_backward)


def canonical_conv(x, kernel, strides, padding, **_):
    """`nn.Conv`'s convolution (odd kernel, stride 1, SAME) whose gradients are convolutions in NHWC/HWIO order too.

    XLA's CPU compiler brings convolutions into the order that its fast routine needs only in a program's outermost
    computation. Inside `lax.scan` JAX's own gradients, which swap dimensions, fall to a naive loop, 50 times slower.
    It has no forward-mode derivative: it is for training alone.
    """
    del strides, padding
    return _conv_canonical(x, kernel)


def convolution(canonical):
    return canonical_conv if canonical else lax.conv_general_dilated


def downsample(x):
    """Mean over 2×2 pixels, [B, H, W, C] -> [B, ⌈H/2⌉, ⌈W/2⌉, C]; at an odd edge over the pixels that exist."""
    return nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)


def upsample(x, size):
    """Nearest neighbour, twice each side, cut to `size` = (H, W), which may be odd."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, : size[0], : size[1]]


class Attention(nn.Module):
    """Self-attention over all pixels with one head, as a residual (DDPM++)."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        B, H, W, C = x.shape
        kwargs = dict(dtype=self.dtype, param_dtype=param_dtype(self.dtype))
        h = group_norm(x, self.dtype, "norm").reshape(B, H * W, C)
        qkv = nn.Dense(3 * C, kernel_init=xavier, name="qkv", **kwargs)(h).reshape(B, H * W, 3, 1, C)
        # The library's attention computes its softmax in float32.
        h = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        h = nn.Dense(C, kernel_init=last, name="proj", **kwargs)(h.reshape(B, H * W, C))
        return (x + h.reshape(x.shape)) * math.sqrt(0.5)
