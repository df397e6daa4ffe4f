"""The gradient of a convolution by its kernel on a CPU: ways to compute it, inside `lax.scan` as training does.

    python -m benchmarks.convolutions [--batch=64] [--seconds=2]

Prints GFLOP/s of each way at the shapes of small U-Nets, 3×3 kernels, beside those of the forward convolution and the
peak, the best of five float32 products of 2048³ in the same run. Each way is compared with JAX's own gradient first.
Times are the best of calls that go on for `--seconds`, of a scan over eight different gradients.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.training import peak, timed
from pfgm_jax.models import layers

SHAPES = ((28, 32, 32), (28, 64, 32), (14, 64, 64), (14, 128, 64), (7, 128, 128))  # side, channels in, channels out
SIZE, ONE = (3, 3), (1, 1)
STEPS = 8


def own(x, g):
    """What JAX derives from the convolution."""
    kernel = jnp.zeros((*SIZE, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.vjp(lambda kernel: layers._same_conv(x, kernel, ONE), kernel)[1](g)[0]


def as_convolution(x, g):
    """A convolution of the images, channels as examples, by the gradient as the kernel."""
    out = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), ONE, (ONE, ONE), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out.transpose(1, 2, 0, 3)


def shifts(x):
    """The nine shifts of x [B, H, W, C] beside each other, [B, H, W, 9 C]."""
    _, H, W, _ = x.shape
    x = jnp.pad(x, ((0, 0), ONE, ONE, (0, 0)))
    return jnp.concatenate([x[:, i : i + H, j : j + W] for i in range(3) for j in range(3)], axis=-1)


def of_the_images(x, g, images=None):
    """Products of shifted images with the gradient, a few images at a time."""
    total = summed(lambda x, g: jnp.tensordot(shifts(x), g, ((0, 1, 2), (0, 1, 2))), x, g, images)
    return total.reshape(*SIZE, x.shape[-1], g.shape[-1])


def of_the_gradient(x, g, images=None):
    """Products of shifted gradients with the images: `layers._kernel_gradient` with another number of images."""
    return layers._kernel_gradient(x, g, SIZE, ONE, images or len(x))


def shift_by_shift(x, g):
    """Nine products, one a shift."""
    parts = jnp.split(shifts(x), 9, axis=-1)
    return jnp.stack([jnp.tensordot(part, g, ((0, 1, 2), (0, 1, 2))) for part in parts]).reshape(
        *SIZE, x.shape[-1], g.shape[-1]
    )


def summed(product, x, g, images):
    if images is None:
        return product(x, g)
    chunks = jax.tree.map(lambda a: a.reshape(-1, images, *a.shape[1:]), (x, g))
    first = jax.tree.map(lambda a: a[0], chunks)
    start = jnp.zeros(jax.eval_shape(product, *first).shape, x.dtype)
    return lax.scan(lambda total, chunk: (total + product(*chunk), None), start, chunks)[0]


WAYS = {
    "a convolution by the gradient": as_convolution,
    "nine products, one a shift": shift_by_shift,
    "shifts of the images, one product": of_the_images,
    "… 4 images at a time": functools.partial(of_the_images, images=4),
    "shifts of the gradient, one product": of_the_gradient,
    "… 1 image at a time": functools.partial(of_the_gradient, images=1),
    "… 4 images at a time, as in the package": functools.partial(of_the_gradient, images=4),
    "… 16 images at a time": functools.partial(of_the_gradient, images=16),
}


def speed(way, x, gradients, seconds):
    """GFLOP/s of a way, in a scan over gradients [STEPS, B, H, W, K]."""
    run = jax.jit(lambda x, gs: lax.scan(lambda total, g: (total + way(x, g), None), way(x, gs[0]), gs)[0])
    jax.block_until_ready(run(x, gradients))
    operations = 2 * np.prod(SIZE) * x.size * gradients.shape[-1] * (STEPS + 1)
    return operations / min(timed(lambda: run(x, gradients), seconds)) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    flags = parser.parse_args()
    print(
        f"peak {peak():.0f} GFLOP/s\n{'':42}" + "".join(f"{f'{s}², {c} → {k}':>16}" for s, c, k in SHAPES), flush=True
    )
    rng = np.random.default_rng(0)
    cases = [
        (
            rng.normal(size=(flags.batch, side, side, c)).astype(np.float32),
            rng.normal(size=(STEPS, flags.batch, side, side, k)).astype(np.float32),
            rng.normal(size=(*SIZE, c, k)).astype(np.float32),
        )
        for side, c, k in SHAPES
    ]

    def say(name, values):
        print(f"{name:42}" + "".join(f"{value:16.0f}" for value in values), flush=True)

    say(
        "the convolution itself",
        (
            speed(lambda x, g, w=w: layers._same_conv(x, w + g[0, 0, 0, 0], ONE), x, gs, flags.seconds)
            for x, gs, w in cases
        ),
    )
    for name, way in WAYS.items():
        for x, gs, _ in cases:
            expected = own(x, gs[0])
            assert np.linalg.norm(way(x, gs[0]) - expected) <= 1e-4 * np.linalg.norm(expected), name
        say(name, [speed(way, x, gs, flags.seconds) for x, gs, _ in cases])


if __name__ == "__main__":
    main()
