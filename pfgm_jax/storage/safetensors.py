"""Weights in safetensors files: flat names, shapes and bytes, nothing that can run, and a checksum over them."""

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util

from pfgm_jax.errors import UserError, printable
from pfgm_jax.storage import atomic, digests

# The file that makes a folder an exported run.
EXPORTED = "model.safetensors"
# Checksums in a file's metadata: of its arrays, and of the config.json that belongs to them.
ARRAYS, CONFIG = "arrays_sha256", "config_sha256"


def _flatten(tree):
    """{"a/b/c": leaf} of nested dicts."""
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def checksum(arrays):
    """SHA-256 over names, types, shapes and bytes of {name: array}."""
    parts = []
    for name, array in sorted(arrays.items()):
        parts += [f"{name} {array.dtype} {np.shape(array)}\n", array]
    return digests.sha256(*parts)


def save(path, params, metadata):
    """Writes a tree of arrays, bit for bit and in one piece, a dict of strings that describes it, and its checksum."""
    from safetensors.numpy import save as to_bytes

    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _flatten(params).items()}
    content = to_bytes(arrays, metadata | {ARRAYS: checksum(arrays)})
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(content)


# What a network's own parameters lack and imported ones bring (`layers.FourierEmbedding`).
_BROUGHT = {"fourier/frequencies"}
# One may stand for another; numbers of other kinds are no weights.
_FLOATS = {np.dtype(name) for name in ("float16", ml_dtypes.bfloat16, "float32", "float64")}


def load(path, like, config=None):
    """The tree of arrays in a file, in the form and with the types of `like` (arrays or ShapeDtypeStructs).

    Imported weights may bring the frequencies of a Fourier embedding, which `like` does not name.

    Args:
      config: checksum of the config.json beside the file (`run_record.fingerprint`), compared where the file names one.

    Raises:
      UserError: no safetensors file, a damaged one, one that belongs to another config.json, or weights of another
        network (naming the first that differs).
    """
    from safetensors import SafetensorError, safe_open

    wanted = _flatten(like)
    try:
        with safe_open(path, framework="numpy") as file:
            said, names = file.metadata() or {}, set(file.keys())
            loaded = {name: file.get_tensor(name) for name in names}
            # First of all: a damaged name is no sign of another network.
            if ARRAYS in said and checksum(loaded) != said[ARRAYS]:
                raise UserError(f"{path} is damaged: its checksum does not match; copy or export it again")
            for name in sorted((names ^ set(wanted)) - _BROUGHT):
                what = "lacks" if name in wanted else "has one more weight,"
                raise UserError(f"{path} {what} {printable(repr(name))}: it holds the weights of another network")
    except (OSError, SafetensorError, AttributeError, TypeError) as error:  # the last two: types that NumPy has not
        reason = printable(" ".join(str(error).split()))
        raise UserError(f"{path} is not a readable safetensors file: {reason}") from None
    if config is not None and said.get(CONFIG, config) != config:
        raise UserError(
            f"the config.json beside {path} is not the one that it was exported with, or is damaged: copy or export "
            "both again"
        )
    for name, leaf in wanted.items():
        array = loaded[name]
        if array.shape != leaf.shape:
            raise UserError(f"{path}: {name!r} is {array.shape}, not {leaf.shape}: weights of another network")
        if not np.can_cast(array.dtype, leaf.dtype) and not {array.dtype, leaf.dtype} <= _FLOATS:
            raise UserError(f"{path}: {name!r} is {array.dtype}, not {leaf.dtype}: weights of another network")
    dtypes = {name: leaf.dtype for name, leaf in wanted.items()}
    typed = {name: array.astype(dtypes.get(name, array.dtype)) for name, array in loaded.items()}
    return traverse_util.unflatten_dict(typed, sep="/")
