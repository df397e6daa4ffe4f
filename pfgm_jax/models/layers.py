"""Layers of the U-Nets: embeddings of the noise level, convolutions, resampling, attention, dropout by example."""

import functools
import math
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from pfgm_jax.errors import UserError

# Xavier-uniform as in DDPM and EDM; `last` starts a block as the identity.
xavier = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
last = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")
# Uniform within ±1/√fan_in, as in ADM and NCSNv2; for biases `fan_in_bias`.
fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def fan_in_bias(inputs):
    """Initialiser of biases, uniform within ±1/√inputs, `inputs` being the numbers that go into an output."""
    limit = 1 / math.sqrt(inputs)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def positional_embedding(noise, channels, max_period=10_000.0, endpoint=True):
    """[B] -> [B, channels]: sines and cosines at frequencies from 1 to 1/max_period (DDPM, score_sde).

    Without `endpoint` the lowest frequency stops one step above 1/max_period (ADM).
    """
    half = channels // 2
    steps = max(half - 1, 1) if endpoint else half
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=noise.dtype) / steps)
    angles = noise[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


class FourierEmbedding(nn.Module):
    """[B] -> [B, channels]: sines and cosines at fixed random frequencies ~ N(0, scale²) (NCSN++, arXiv 2011.13456).

    stored: they are the parameter `frequencies` [channels/2], without a gradient; converted weights bring their own.
    """

    channels: int
    scale: float = 16.0
    stored: bool = False

    @nn.compact
    def __call__(self, noise):
        frequencies = self.scale * _constant_normal(self.channels // 2)
        if self.stored or self.has_variable("params", "frequencies"):
            frequencies = lax.stop_gradient(self.param("frequencies", lambda _: frequencies))
        frequencies = frequencies.astype(noise.dtype)
        angles = 2 * math.pi * noise[:, None] * frequencies
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


def _constant_normal(n):
    """[n] float32 ~ N(0, 1), which belong to the architecture: the same whatever JAX's random bits are set to be."""
    with jax.ensure_compile_time_eval(), jax.threefry_partitionable(True):
        return jax.random.normal(jax.random.key(0, impl="threefry2x32"), (n,), jnp.float32)


def one_hot(labels, num_labels, like):
    """[B] -> [B, num_labels] of the embedding's type and batch; a row of zeros for −1 and where labels are None."""
    labels = jnp.full(len(like), -1) if labels is None else labels
    return jax.nn.one_hot(labels, num_labels, dtype=like.dtype)


def check_augment(augment, channels, like):
    """Augmentation labels [B, channels] for a network that takes them, zeros where None, or None for one that doesn't.

    Raises:
      UserError: labels of another width, or for a network that takes none.
    """
    if augment is None:
        return jnp.zeros((len(like), channels), like.dtype) if channels else None
    if augment.shape[-1] != channels:
        raise UserError(
            f"this network takes {channels} augmentation labels an image (augment_channels), got {augment.shape[-1]}"
        )
    return augment


def embed(network, noise, labels, augment):
    """[B] noise levels, [B] labels and [B, augment_channels] or None -> [B, embedding_channels], inside a network.

    `network` has the attributes of `unet.UNet` that say how; the layers become its own.
    """
    kwargs = dict(dtype=network.dtype, param_dtype=param_dtype(network.dtype), kernel_init=xavier)
    features = network.noise_channels or network.channels
    noise = jnp.log(noise) if network.log_noise else noise
    if network.embedding == "fourier":
        stored = getattr(network, "stored_frequencies", False)
        emb = FourierEmbedding(features, stored=stored, name="fourier")(noise)
    else:
        emb = positional_embedding(noise, features)
    if network.num_labels:
        classes = one_hot(labels, network.num_labels, emb) * math.sqrt(network.num_labels)
        emb = emb + nn.Dense(features, use_bias=False, name="label", **kwargs)(classes)
    augment = check_augment(augment, network.augment_channels, emb)
    if augment is not None:
        emb = emb + nn.Dense(features, use_bias=False, name="augment", **kwargs)(augment)
    emb = nn.silu(nn.Dense(network.embedding_channels, name="embed0", **kwargs)(emb))
    return nn.silu(nn.Dense(network.embedding_channels, name="embed1", **kwargs)(emb))


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


class GroupNorm(nn.Module):
    """Group normalisation (arXiv 1803.08494) of [B, ..., C], with statistics in float32 or better.

    The means of channels come first; a product with a constant matrix makes means of groups of them, as wide as the
    channels. XLA's CPU compiler writes vector instructions for that, and scalar loops for sums over a group's few
    channels and for numbers that several channels share (`flax.linen.GroupNorm`, whose parameters these are).
    """

    groups: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        channels, dtype = x.shape[-1], param_dtype(self.dtype)
        scale = self.param("scale", nn.initializers.ones, (channels,), dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), dtype)
        x = x.astype(jnp.promote_types(x.dtype, dtype))
        group = jnp.arange(channels) // (channels // self.groups)
        share = (group[:, None] == group).astype(x.dtype) * (self.groups / channels)

        def over_group(a):
            """[B, ..., C] -> [B, C]: means over all but the first axis, of every channel's whole group."""
            means = jnp.mean(a, tuple(range(1, a.ndim - 1)))
            return jnp.matmul(means, share, precision=lax.Precision.HIGHEST)

        mean = over_group(x)
        variance = jnp.maximum(over_group(x * x) - mean * mean, 0)
        scale = lax.rsqrt(variance + self.epsilon) * scale
        scale, shift = (a.reshape(len(x), *(1,) * (x.ndim - 2), channels) for a in (scale, bias - mean * scale))
        return (x * scale + shift).astype(self.dtype)


def group_norm(x, dtype, name, epsilon=1e-6):
    """Group normalisation over at most 32 groups of at least 4 channels (EDM)."""
    channels = x.shape[-1]
    groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    return GroupNorm(groups, epsilon, dtype, name=name)(x)


def param_dtype(dtype):
    """Parameters are float32, whatever is computed in bfloat16; float64 where float64 is computed."""
    return jnp.promote_types(jnp.float32, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_canonical(x, kernel, dilation):
    return _same_conv(x, kernel, dilation)


def _same_conv(x, kernel, dilation):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", rhs_dilation=dilation, dimension_numbers=numbers)


def _conv_canonical_backward(dilation, residuals, g):
    x, kernel = residuals
    grad_x = _same_conv(g, jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2), dilation)
    return grad_x, _kernel_gradient(x, g, kernel.shape[:2], dilation)


def _kernel_gradient(x, g, size, dilation, images=4):
    """Gradient [kh, kw, C, K] by the kernel: sums over pixels of x [B, H, W, C] times shifts of g [B, H, W, K].

    One product for every few images, whose kh kw shifts stay in the processor's cache: as one product over the batch
    they would be written to memory and read again, as a convolution whose kernel is g it is 2 to 5 times slower.
    """
    (rows, columns), (H, W) = size, x.shape[1:3]
    reach = [(side - 1) // 2 * step for side, step in zip(size, dilation, strict=True)]
    tops, lefts = ([2 * r - i * step for i in range(n)] for r, n, step in zip(reach, size, dilation, strict=True))
    images = math.gcd(len(x), images)

    def add(total, first):
        # Slices of the whole arrays: as chunks they would be reshaped, for which XLA computes what made them twice.
        some_x, some_g = (lax.dynamic_slice_in_dim(a, first, images) for a in (x, g))
        some_g = jnp.pad(some_g, ((0, 0), *((r, r) for r in reach), (0, 0)))
        shifts = jnp.concatenate([some_g[:, i : i + H, j : j + W] for i in tops for j in lefts], axis=-1)
        # The first factor is transposed in memory: the images, which are fewer numbers than the shifts.
        return total + jnp.tensordot(some_x, shifts, ((0, 1, 2), (0, 1, 2))), None

    C, K = x.shape[-1], g.shape[-1]
    total, _ = lax.scan(add, jnp.zeros((C, rows * columns * K), x.dtype), jnp.arange(0, len(x), images))
    return total.reshape(C, rows, columns, K).transpose(1, 2, 0, 3)


_conv_canonical.defvjp(
    lambda x, kernel, dilation: (_same_conv(x, kernel, dilation), (x, kernel)), _conv_canonical_backward
)


def canonical_conv(x, kernel, strides, padding, rhs_dilation=(1, 1), **_):
    """`nn.Conv`'s convolution (odd kernel, stride 1, SAME) whose gradients are fast on a CPU inside `lax.scan`.

    XLA's CPU compiler brings convolutions into the order that its fast routine needs only in a program's outermost
    computation. Inside `lax.scan` JAX's own gradients, which swap dimensions, fall to a naive loop, 50 times slower.
    Here the gradient by the image is a convolution in NHWC/HWIO order, and that by the kernel a sum of products.
    It has no forward-mode derivative: it is for training alone.
    """
    del strides, padding
    return _conv_canonical(x, kernel, tuple(rhs_dilation))


def convolution(canonical):
    return canonical_conv if canonical else lax.conv_general_dilated


BOX = (1, 1)  # the filter of plain averaging and of nearest-neighbour upsampling


def downsample(x, taps=BOX):
    """Half of each side, rounded up, [B, H, W, C] -> [B, ⌈H/2⌉, ⌈W/2⌉, C], through a separable FIR filter.

    Args:
      x: images.
      taps: filter of even length, applied as taps/Σ taps: (1, 1) is the mean over 2×2 pixels, (1, 3, 3, 1) NCSN++'s
        (arXiv 2011.13456, appendix H). Beyond the image lie zeros, as published; an odd side is first made even by
        repeating its last row, so that (1, 1) takes the mean over the pixels that exist.
    """
    if tuple(taps) == BOX:
        return nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)
    return _filter_and_halve(pad_edges(_make_even(x), len(taps) // 2 - 1), taps)


def upsample(x, size, taps=BOX):
    """Twice each side, cut to `size` = (H, W), which may be odd: zeros between the pixels, filtered by 2 taps/Σ taps.

    (1, 1) is nearest neighbour.
    """
    if tuple(taps) == BOX:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    else:
        for axis in (1, 2):
            x = _double(x, taps, axis)
    return x[:, : size[0], : size[1]]


def downsampled_conv(conv, x, taps):
    """`conv`, a SAME convolution, then `downsample`, with zeros around the input only and not between the two.

    The fused form of StyleGAN2 (arXiv 1912.04958), which the residual encoder of NCSN++ uses.
    """
    return _filter_and_halve(conv(pad_edges(_make_even(x), len(taps) // 2 - 1)), taps)


def pad_edges(x, width):
    """`width` zeros around each image."""
    return jnp.pad(x, ((0, 0), (width, width), (width, width), (0, 0)))


def _make_even(x):
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), mode="edge")


def _filter_and_halve(x, taps):
    """Every second pixel of the filtered image, where the filter lies inside it."""
    # Sums of slices, which fuse; grouped convolutions are slow on CPUs.
    for axis in (1, 2):
        out = (x.shape[axis] - len(taps)) // 2 + 1
        slices = (lax.slice_in_dim(x, k, k + 2 * out - 1, 2, axis) for k in range(len(taps)))
        x = sum(tap / sum(taps) * part for tap, part in zip(taps, slices, strict=True))
    return x


def _double(x, taps, axis):
    """Twice as long along `axis`: each phase of the output sees every second tap."""
    length, n = len(taps), x.shape[axis]
    reach = length // 4 + 1
    pads = [(reach, reach) if i == axis else (0, 0) for i in range(x.ndim)]
    padded = jnp.pad(x, pads)
    phases = []
    for phase in (0, 1):
        # Output 2m + phase takes tap `first` − 2d of the pixel m + d.
        first = phase + length // 2 - 1
        shifts = [d for d in range(-reach, reach + 1) if 0 <= first - 2 * d < length]
        slices = (lax.slice_in_dim(padded, reach + d, reach + d + n, 1, axis) for d in shifts)
        phases.append(sum(2 * taps[first - 2 * d] / sum(taps) * part for d, part in zip(shifts, slices, strict=True)))
    shape = (*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis=axis + 1).reshape(shape)


class Attention(nn.Module):
    """Self-attention over all pixels, as a residual.

    Attributes:
      dtype: of the computation.
      heads: their number; they share the channels.
      epsilon: of the group normalisation.
      scale: of the sum with the input: √½ in DDPM++ and NCSN++, 1 in ADM.
    """

    dtype: jnp.dtype
    heads: int = 1
    epsilon: float = 1e-6
    scale: float = math.sqrt(0.5)
    inits: tuple = ((xavier, nn.initializers.zeros), (last, nn.initializers.zeros))  # of weight and bias, in and out

    @nn.compact
    def __call__(self, x):
        B, H, W, C = x.shape
        kwargs = dict(dtype=self.dtype, param_dtype=param_dtype(self.dtype))
        first, second = (dict(kernel_init=weight, bias_init=bias) for weight, bias in self.inits)
        h = group_norm(x, self.dtype, "norm", self.epsilon).reshape(B, H * W, C)
        qkv = nn.Dense(3 * C, name="qkv", **first, **kwargs)(h).reshape(B, H * W, 3, self.heads, C // self.heads)
        # The library's attention computes its softmax in float32.
        h = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        h = nn.Dense(C, name="proj", **second, **kwargs)(h.reshape(B, H * W, C))
        return (x + h.reshape(x.shape)) * self.scale
