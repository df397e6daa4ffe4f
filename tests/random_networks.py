"""Parameters and images for tests of networks."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def random_params(model, x, seed=0):
    """Parameters of which none is zero: at initialisation the last layers are, and hide the others."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, jnp.ones(len(x)))
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    # By fan-in, so that activations keep their size.
    scale = [1 / math.sqrt(max(1, math.prod(a.shape[:-1]))) if len(a.shape) > 1 else 0.3 for a in leaves]
    values = [s * rng.normal(size=a.shape).astype(a.dtype) for a, s in zip(leaves, scale, strict=True)]
    return jax.tree.unflatten(structure, values)


def images(B, H, W, C, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, H, W, C)), jnp.float32)
