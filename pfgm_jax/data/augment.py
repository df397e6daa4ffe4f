"""Non-leaky augmentation (EDM, arXiv 2206.00364, appendix F.2): images are changed, and the network gets the change.

Flips, scaling, rotation, stretching and shifting, each with a probability of its own; nine labels an image say what was
done, all zero for an unchanged image. A model trained this way draws images of the data when its labels are zero.

A flip moves pixels. All else is one affine map from an output's coordinates to the image's, sampled against aliasing as
in StyleGAN2-ADA (arXiv 2006.06676, appendix B.2): the image, mirrored at its edges, is doubled in size with the
low-pass filter h of the sym6 wavelet, read bilinearly at the half pixels of the output, and halved with h again,

    double: u_j = Σ_m h[j − 2m + 5] x_m,     halve: y_i = Σ_j h[j − 2i + 5] v_j,

index j of the doubled image lying at pixel j/2. h is orthogonal to its own shifts by even numbers, so doubling and
halving alone change nothing: the identity is exact, and so is a shift by whole pixels.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CHANNELS = 9  # labels an image

# Of the normal draws: octaves of size and of stretch, shares of a side.
SCALE, STRETCH, SHIFT = 0.2, 0.2, 0.125
# Images are sampled in chunks of an eighth of the batch, or of so many pixels if that is less: doubled they take 16
# times their memory.
CHUNKS, CHUNK_PIXELS = 8, 2**16
# Low-pass filter of the symlet with six vanishing moments (Daubechies, Ten Lectures on Wavelets, 1992, section 8.1), as
# tabulated by PyWavelets: pywt.Wavelet("sym6").dec_lo.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
BEFORE, AFTER = 5, 6  # taps on either side of the filter's centre


class Change(NamedTuple):
    """What is done to each image, in this order; arrays [B], and 0 is nothing.

    flip_x, flip_y: 1 for left-right and upside down.
    scale: the image grows 2^(0.2 scale) times.
    rotation: radians, counter-clockwise as an image is looked at.
    stretch, axis: it grows 2^(0.2 stretch) times along a direction and shrinks as much across; `axis` is the angle of
      that direction to the x axis, radians counter-clockwise.
    shift_x, shift_y: to the right and down, in eighths of a side.
    """

    flip_x: jax.Array
    flip_y: jax.Array
    scale: jax.Array
    rotation: jax.Array
    stretch: jax.Array
    axis: jax.Array
    shift_x: jax.Array
    shift_y: jax.Array


def augment(keys, images, probability):
    """Changes each image at random: (images [B, H, W, C], labels [B, 9]), of the images' type.

    Args:
      keys: [B]; what happens to an image depends on its own key alone.
      images: [B, H, W, C] floats of any size; edges are mirrored, so values stay near their range ([-1, 1]).
      probability: of each kind of change, but flips left to right, which half the images are whenever it is not 0.
    """
    change = draw(keys, probability, images.dtype)
    return transform(images, change), labels(change)


def draw(keys, probability, dtype=jnp.float32):
    """A random `Change` for each of keys [B], with EDM's distributions (appendix F.2, table 6)."""

    def one(key):
        uniform_key, normal_key = jax.random.split(key)
        coin_x, coin_y, angle, axis, tilted, *gates = jax.random.uniform(uniform_key, (10,), dtype)
        scale, stretch, shift_x, shift_y = jax.random.normal(normal_key, (4,), dtype)
        flips, scales, rotates, stretches, shifts = (gate < probability for gate in gates)
        only = lambda applied, value: jnp.where(applied, value, 0).astype(dtype)
        return Change(
            flip_x=only((probability > 0) & (coin_x < 0.5), 1),
            flip_y=only(flips & (coin_y < 0.5), 1),
            scale=only(scales, scale),
            rotation=only(rotates, math.pi * (2 * angle - 1)),
            stretch=only(stretches, stretch),
            axis=only(stretches & (tilted < 0.5), math.pi * (2 * axis - 1)),
            shift_x=only(shifts, shift_x),
            shift_y=only(shifts, shift_y),
        )

    return jax.vmap(one)(keys)


def labels(change):
    """The labels of a `Change` for the network, [B, 9]; zeros for an unchanged image.

    The two numbers of a stretch are the same for (stretch, axis) and (−stretch, axis + π), as published: for a tilted
    axis they say how much, but not whether along or across.
    """
    c = change
    columns = (
        c.flip_x, c.flip_y, c.scale, jnp.cos(c.rotation) - 1, jnp.sin(c.rotation),
        c.stretch * jnp.cos(c.axis), c.stretch * jnp.sin(c.axis), c.shift_x, c.shift_y,
    )  # fmt: skip
    return jnp.stack(columns, axis=-1)


def transform(images, change):
    """The images [B, H, W, C] after a `Change`. One whose change is all zeros comes back bit for bit."""
    pixels = lambda flag: (flag > 0)[:, None, None, None]
    images = jnp.where(pixels(change.flip_x), images[:, :, ::-1], images)
    images = jnp.where(pixels(change.flip_y), images[:, ::-1], images)
    moves = (change.scale, change.rotation, change.stretch, change.shift_x, change.shift_y)
    moved = functools.reduce(jnp.logical_or, (move != 0 for move in moves))

    # Most images stay as they are (60 % at EDM's p = 0.12), so those that move come first, and only they are sampled.
    size = max(1, min(-(-len(images) // CHUNKS), CHUNK_PIXELS // math.prod(images.shape[1:3])))
    order = jnp.argsort(~moved, stable=True)
    matrices = affine(change, *images.shape[1:3])

    def sample_chunk(i, result):
        # The last chunk may begin early and meet images for the second time: it reads `images`, not `result`.
        rows = lax.dynamic_slice_in_dim(order, i * size, size)
        sampled = jnp.where(pixels(moved[rows]), warp(images[rows], matrices[rows]), images[rows])
        return result.at[rows].set(sampled, unique_indices=True)

    return lax.fori_loop(0, (jnp.sum(moved) + size - 1) // size, sample_chunk, images)


def affine(change, height, width):
    """The map [B, 2, 3] of a `Change` without its flips, from an output's coordinates to the image's, as for `warp`."""

    def one(c):
        size, ratio = 2.0 ** (SCALE * c.scale), 2.0 ** (STRETCH * c.stretch)
        stretched = _rotation(-c.axis), jnp.diag(jnp.stack([1 / ratio, ratio])), _rotation(c.axis)
        # The highest precision, for some devices would round the factors to 10 bits.
        linear = jnp.linalg.multi_dot([_rotation(c.rotation) / size, *stretched], precision="highest")
        shift = SHIFT * jnp.stack([width * c.shift_x, height * c.shift_y])
        return jnp.concatenate([linear, -jnp.sum(linear * shift, axis=1, keepdims=True)], axis=1)

    return jax.vmap(one)(change)


def _rotation(angle):
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])


def warp(images, matrices):
    """Images sampled at matrices · (x, y, 1), for every pixel (x, y) of the output, without aliasing.

    Args:
      images: [B, H, W, C], continued for ever by reflection at their outermost pixels.
      matrices: [B, 2, 3] from (x to the right, y down), in pixels from the centre, to the same of the image.
    """
    H, W = images.shape[1:3]
    doubled = _along_sides(images, _doubling(H), _doubling(W))
    # The output's coordinates at half pixels, and the indices that they become in the doubled image.
    x, y = ((jnp.arange(2 * n + BEFORE + AFTER - 1, dtype=images.dtype) - BEFORE - (n - 1)) / 2 for n in (W, H))
    (xx, xy, x0), (yx, yy, y0) = jnp.moveaxis(matrices, 0, -1)[..., None, None]
    x, y = xx * x + xy * y[:, None] + x0, yx * x + yy * y[:, None] + y0
    sampled = jax.vmap(_bilinear)(doubled, 2 * y + (H - 1), 2 * x + (W - 1))
    return _along_sides(sampled, _halving(H), _halving(W))


def _bilinear(image, y, x):
    """A periodic image [P, Q, C] between its pixels, at indices y, x [H, W]: [H, W, C]."""
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = (y - top)[..., None], (x - left)[..., None]
    around = lambda first, period: [(first.astype(jnp.int32) + k) % period for k in (0, 1)]
    rows, columns = around(top, image.shape[0]), around(left, image.shape[1])
    upper, lower = ((1 - right) * image[i, columns[0]] + right * image[i, columns[1]] for i in rows)
    return (1 - down) * upper + down * lower


def _along_sides(images, rows, columns):
    """[B, H, W, C] -> [B, P, Q, C]: matrices [P, H] and [Q, W], applied to the images' columns and rows."""
    rows, columns = (jnp.asarray(a, images.dtype) for a in (rows, columns))
    images = jnp.einsum("ph,bhwc->bpwc", rows, images, precision="highest")
    return jnp.einsum("qw,bpwc->bpqc", columns, images, precision="highest")


def _doubling(n):
    """One period [P, n] of the doubled image of n pixels.

    The mirrored image repeats itself after 2(n − 1) pixels, so this serves every map: no margin can be too narrow.
    """
    period = max(1, 2 * (n - 1))
    matrix = np.zeros((2 * period, n))
    for j in range(2 * period):
        for m in range(-(-(j - AFTER) // 2), (j + BEFORE) // 2 + 1):
            matrix[j, min(m % period, -m % period)] += SYM6[j - 2 * m + BEFORE]
    return matrix


def _halving(n):
    """[n, 2n + 10]: n pixels from the half pixels −5/2, −2, …, n + 2."""
    matrix = np.zeros((n, 2 * n + BEFORE + AFTER - 1))
    for i in range(n):
        matrix[i, 2 * i : 2 * i + len(SYM6)] = SYM6
    return matrix
