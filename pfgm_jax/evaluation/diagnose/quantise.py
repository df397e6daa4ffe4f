"""Weights rounded to few bits after training, tensor by tensor (as in arXiv 2302.04265, section 5).

A tensor's values are rounded to q s, with the step s = (max − min)/(2^b − 1) and whole numbers q from a zero point on,
so that 0 stays 0. Biases and scales of norms are few and stay as they are, and so do tensors that are named.
"""

import jax
import numpy as np


def rounded(values, bits):
    """float32 values, any shape, rounded to at most 2^bits values between their least and largest, 0 among them."""
    values = np.asarray(values, np.float32)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    step = (high - low) / (2**bits - 1)
    if step == 0:
        return values
    zero = round(-low / step)
    whole = np.clip(np.rint(values.astype(np.float64) / step) + zero, 0, 2**bits - 1)
    return (step * (whole - zero)).astype(np.float32)


def quantised(params, bits, exact=()):
    """The parameters with their kernels rounded, but for those whose path holds one of the words `exact`."""
    change = lambda path, leaf: rounded(leaf, bits) if _is_rounded(path, leaf, exact) else leaf
    return jax.tree_util.tree_map_with_path(change, params)


def share(params, exact=()):
    """The share of the parameters that `quantised` rounds."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sizes = [(np.size(leaf), _is_rounded(path, leaf, exact)) for path, leaf in leaves]
    return sum(size for size, changed in sizes if changed) / sum(size for size, _ in sizes)


def _is_rounded(path, leaf, exact):
    name = "/".join(str(key.key) for key in path)
    return np.ndim(leaf) > 1 and not any(word in name for word in exact)
