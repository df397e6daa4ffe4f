"""Weights in safetensors files: flat names, shapes and bytes, nothing that can run."""

import pathlib

import jax
import numpy as np
from flax import traverse_util

from pfgm_jax.errors import UserError

# The file that makes a folder an exported run.
EXPORTED = "model.safetensors"


def _flatten(tree):
    """{"a/b/c": leaf} of nested dicts."""
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def save(path, params, metadata):
    """Writes a tree of arrays, bit for bit, and a dict of strings that describes it."""
    from safetensors.numpy import save_file

    save_file({name: np.asarray(leaf, order="C") for name, leaf in _flatten(params).items()}, path, metadata)


# What a network's own parameters lack and imported ones bring (`layers.FourierEmbedding`).
_BROUGHT = {"fourier/frequencies"}


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
    except (OSError, SafetensorError) as error:
        raise UserError(f"{pathlib.Path(path)} is no readable safetensors file: {error}") from None
    for name, leaf in wanted.items():
        if found[name].shape != leaf.shape:
            raise UserError(f"{path}: {name!r} is {found[name].shape}, not {leaf.shape}: weights of another network")
    dtypes = {name: leaf.dtype for name, leaf in wanted.items()}
    typed = {name: array.astype(dtypes.get(name, array.dtype)) for name, array in found.items()}
    return traverse_util.unflatten_dict(typed, sep="/")
