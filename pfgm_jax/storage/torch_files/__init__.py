"""Checkpoints of other people's PyTorch code, read without running anything in them.

`read(path)` gives plain containers and NumPy arrays; `state_dict(tree)` the arrays of one network by dotted name.
A pickle is a program, and the official ones carry Python source as well. Here a small machine of our own reads them
(`pickle_machine.py`), knows an allow-list (`allowed_names.py`), and refuses every other by its name.
"""

import os
import stat
import struct
import zipfile

import numpy as np

from pfgm_jax.errors import UserError
from pfgm_jax.storage.torch_files import archives
from pfgm_jax.storage.torch_files.allowed_names import SCRIPTED
from pfgm_jax.storage.torch_files.limits import MAX_DEPTH, MAX_FILE, MAX_NAME, MAX_NAMES, Refusal, short

__all__ = ["read", "state_dict"]

# What NumPy, zipfile and conversions raise for a damaged file. Its author may choose every byte, so that the list of
# places where each can happen has no end; the fuzzing in the tests shows that no other type comes out.
_DAMAGE = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError, RuntimeError),
    *(struct.error, zipfile.BadZipFile),
)


def read(path):
    """The content of a checkpoint file as plain values; nothing in it is executed.

    Read are EDM's and PFGM++'s network pickles (.pkl) and training states (.pt), the checkpoints of PFGM and score_sde
    (.pth), everything else that torch.save wrote of tensors and modules, in either of its formats, the weights of
    TorchScript archives, and safetensors. The first bytes decide which it is, but for .safetensors.

    Args:
      path: a file.

    Returns:
      Nested dict, list, tuple, set, str, int, float, complex, bool, None, bytes and np.ndarray. A module, or another
      object of an allowed class, is {"class": name, "state": {attribute: value}}; a dtype, class or device is its name.
      Every array is a copy of its own, in C order.

    Raises:
      UserError: the file cannot be read, is damaged, asks for more memory than a checkpoint needs, or names something
        that no checkpoint needs.
    """
    name = short(os.fsdecode(path), 200)
    try:
        data = _content(path)
        if what := archives.not_a_checkpoint(data):
            raise Refusal(what)
        if os.fsdecode(path).endswith(".safetensors"):
            return archives.read_safetensors(data)
        return archives.read_zip(data) if data[:4] == archives.ZIP_MAGIC else archives.read_pickle(data)
    except Refusal as refusal:
        raise UserError(f"refuses to load {name}: {refusal}") from None
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or type(error).__name__}") from None
    except MemoryError:
        raise UserError(f"cannot read {name}: it does not fit into memory") from None
    except _DAMAGE as error:
        reason = short(str(error))
        raise UserError(f"refuses to load {name}: it is damaged or not a checkpoint ({reason})") from None


def _content(path):
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device has no end
        raise Refusal("it is not a file")
    if status.st_size > MAX_FILE:
        raise Refusal(f"it is larger than {MAX_FILE >> 30} GiB")
    with open(path, "rb") as file:
        return file.read(status.st_size)


def state_dict(tree):
    """The arrays of one network by dotted name, as PyTorch's `state_dict()` names them.

    Args:
      tree: a module as `read` returns it, {"class", "state"}, or a flat dict of arrays.

    Returns:
      {name: np.ndarray}: of a module its parameters and persistent buffers, in PyTorch's order.

    Raises:
      UserError: the tree is neither, or names more arrays than any network has.
    """
    if _is_module(tree):
        return _walk(tree)
    if isinstance(tree, dict) and tree and all(isinstance(value, np.ndarray) for value in tree.values()):
        return {str(name): value for name, value in tree.items()}
    inside = f"; it holds {short(', '.join(map(str, list(tree)[:12])))}" if isinstance(tree, dict) else ""
    raise UserError(f"state_dict needs one module or a flat dict of arrays, not a {type(tree).__name__}{inside}")


def _is_module(tree):
    return isinstance(tree, dict) and tree.keys() == {"class", "state"} and isinstance(tree["state"], dict)


def _parts(module):
    """Parameters, buffers and submodules of a module. TorchScript keeps all three as plain attributes."""
    state = module["state"]
    if not module["class"].startswith(SCRIPTED):
        return [state.get(part, {}) for part in ("_parameters", "_buffers", "_modules")]
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    return [arrays, {}, {name: value for name, value in state.items() if _is_module(value)}]


def _walk(module):
    arrays, entries = {}, 0

    def visit(module, prefix, depth):
        nonlocal entries
        if depth > MAX_DEPTH or len(prefix) > MAX_NAME or not _is_module(module):
            raise UserError(f"{short(prefix) or 'the tree'} is not a network: too deep, or no module there")
        parts = _parts(module)
        if not all(isinstance(part, dict) for part in parts):
            raise UserError(
                f"{short(prefix) or 'the tree'} is not a network: its _parameters or the like are not a dict"
            )
        entries += 1 + sum(map(len, parts))  # modules may be shared, and so name exponentially many arrays
        if entries > MAX_NAMES:
            raise UserError(f"{short(prefix) or 'the tree'} is not a network: it has more than {MAX_NAMES} parts")
        transient = module["state"].get("_non_persistent_buffers_set")
        transient = transient if isinstance(transient, set | list | tuple) else ()
        for name, value in [*parts[0].items(), *((k, v) for k, v in parts[1].items() if k not in transient)]:
            if value is not None:  # what the module does without
                if not isinstance(value, np.ndarray) or len(str(name)) > MAX_NAME:
                    raise UserError(f"{short(f'{prefix}{name}')} is not an array but a {type(value).__name__}")
                arrays[f"{prefix}{name}"] = value
        for name, child in parts[2].items():
            if child is not None:
                visit(child, f"{prefix}{name}.", depth + 1)

    visit(module, "", 0)
    return arrays
