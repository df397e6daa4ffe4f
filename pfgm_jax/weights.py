"""Weights in safetensors files: flat names, shapes and bytes, nothing that can run."""

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util

from pfgm_jax import files
from pfgm_jax.errors import UserError

# The file that makes a folder an exported run.
EXPORTED = "model.safetensors"


def _flatten(tree):
    """{"a/b/c": leaf} of nested dicts."""
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def save(path, params, metadata):
    """Writes a tree of arrays, bit for bit and in one piece, and a dict of strings that describes it."""
    from safetensors.numpy import save as to_bytes

    content = to_bytes({name: np.asarray(leaf, order="C") for name, leaf in _flatten(params).items()}, metadata)
    with files.replacing(path) as temporary:
        temporary.write_bytes(content)


# What a network's own parameters lack and imported ones bring (`layers.FourierEmbedding`).
_BROUGHT = {"fourier/frequencies"}
# One may stand for another; numbers of other kinds are no weights.
_FLOATS = {np.dtype(name) for name in ("float16", ml_dtypes.bfloat16, "float32", "float64")}


def load(path, like):
    """The tree of arrays in a file, in the form and with the types of `like` (arrays or ShapeDtypeStructs).

    Imported weights may bring the frequencies of a Fourier embedding, which `like` does not name.

    Raises:
      UserError: no safetensors file, or weights of another network (naming the first that differs).
    """
    from safetensors import SafetensorError, safe_open

    wanted = _flatten(like)
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            for name in sorted((names ^ set(wanted)) - _BROUGHT):
                what = "lacks" if name in wanted else "has one more weight,"
                raise UserError(f"{path} {what} {name!r}: it holds the weights of another network")
            found = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, AttributeError, TypeError) as error:  # the last two: types that NumPy has not
        raise UserError(f"{path} is no readable safetensors file: {' '.join(str(error).split())}") from None
    for name, leaf in wanted.items():
        array = found[name]
        if array.shape != leaf.shape:
            raise UserError(f"{path}: {name!r} is {array.shape}, not {leaf.shape}: weights of another network")
        if not np.can_cast(array.dtype, leaf.dtype) and not {array.dtype, leaf.dtype} <= _FLOATS:
            raise UserError(f"{path}: {name!r} is {array.dtype}, not {leaf.dtype}: weights of another network")
    dtypes = {name: leaf.dtype for name, leaf in wanted.items()}
    typed = {name: array.astype(dtypes.get(name, array.dtype)) for name, array in found.items()}
    return traverse_util.unflatten_dict(typed, sep="/")
