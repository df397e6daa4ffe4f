"""Checkpoints by orbax, checked: every array's SHA-256 is saved beside it and compared when it is read.

Orbax itself restores a file with a flipped byte without a word. A step that is damaged or incomplete is passed over,
loudly, for the one before it. Saving is synchronous, so that a step exists only when all of it does.
"""

import hashlib
import pathlib
import sys

import jax
import numpy as np

from pfgm_jax.errors import UserError


def _manager(workdir, keep=None):
    import orbax.checkpoint as ocp  # takes seconds to import

    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    return ocp.CheckpointManager(pathlib.Path(workdir).absolute() / "checkpoints", options=options)


def _describe(items):
    """{item: {path: [shape, dtype, SHA-256]}} of trees of arrays."""

    def describe(leaf):
        array = np.ascontiguousarray(leaf)
        return [list(np.shape(leaf)), str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()]

    return {name: {path: describe(leaf) for path, leaf in _flatten(tree).items()} for name, tree in items.items()}


def _flatten(tree):
    """{path: leaf}: what is saved knows nothing of optax's and flax's classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def save(workdir, step, items, keep=2):
    """Saves `items`, a dict of trees of host arrays, as `step`; removes all but the newest `keep` steps.

    Steps from `step` on that are there already were passed over as damaged when the run was resumed, and are removed:
    orbax would refuse to save behind them without a word.
    """
    import orbax.checkpoint as ocp

    trees = {name: ocp.args.StandardSave(_flatten(tree)) for name, tree in items.items()}
    with _manager(workdir, keep) as manager:
        for damaged in [other for other in manager.all_steps() if other >= step]:
            manager.delete(damaged)
        if not manager.save(step, args=ocp.args.Composite(digest=ocp.args.JsonSave(_describe(items)), **trees)):
            raise RuntimeError(f"orbax did not save step {step} in {workdir}")


def restore(workdir, like):
    """The newest sound checkpoint: (step, items) with the items that `like` names, or None without any checkpoint.

    Args:
      like: dict of trees of arrays or ShapeDtypeStructs; items come back in that form, as host arrays.

    Raises:
      UserError: the checkpoint holds other arrays than `like` (another network), or every checkpoint is damaged.
    """
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
        return None
    with _manager(workdir) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return step, _restore_step(manager, step, like)
            except (UserError, MemoryError, PermissionError):
                raise
            except Exception as error:  # orbax and tensorstore raise many types for a damaged file
                reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
                print(f"checkpoint {step} in {workdir} is damaged and passed over: {reason}", file=sys.stderr)
    if steps:
        raise UserError(f"every checkpoint in {workdir}/checkpoints is damaged; remove the folder to start again")
    return None


def _restore_step(manager, step, like):
    import orbax.checkpoint as ocp

    digest = manager.restore(step, args=ocp.args.Composite(digest=ocp.args.JsonRestore()))["digest"]
    wanted = {name: _flatten(tree) for name, tree in like.items()}
    for name, leaves in wanted.items():
        for path in sorted(leaves.keys() | digest[name].keys()):
            there = "{1}{0}".format(*digest[name][path]) if path in digest[name] else "absent"
            here = f"{leaves[path].dtype}{list(leaves[path].shape)}" if path in leaves else "absent"
            if there != here:
                raise UserError(
                    f"checkpoint {step} is of another network: {name}{path} is {there} there and {here} here"
                )
    abstract = {
        name: ocp.args.StandardRestore({p: jax.ShapeDtypeStruct(a.shape, a.dtype) for p, a in leaves.items()})
        for name, leaves in wanted.items()
    }
    found = manager.restore(step, args=ocp.args.Composite(**abstract))
    items = {
        name: jax.tree.unflatten(jax.tree.structure(tree), [np.asarray(found[name][path]) for path in wanted[name]])
        for name, tree in like.items()
    }
    for name, described in _describe(items).items():
        for path, description in described.items():
            if description != digest[name][path]:
                raise ValueError(f"the checksum of {name}{path} does not match")
    return items
