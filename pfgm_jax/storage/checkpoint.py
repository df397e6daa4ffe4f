"""Checkpoints by orbax, checked: every array's SHA-256 is saved beside it and compared when it is read.

Orbax itself restores a file with a flipped byte without a word. A step that is damaged or incomplete is passed over,
loudly, for the one before it. A step exists only when all of it does, and no step is removed before its successor
exists and has been read back.

The checksums (`digest`) are under a checksum of their own, with the number of the step and the settings and derived
numbers that give the arrays their meaning: a digest that is damaged, or of another step, is damage too, and no sign of
another network; arrays are not restored under other settings. Beside it lies a list of the step's files (`step_files`),
which names the one that was changed. Steps of older versions lack some or all of this, and open.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import time

import jax
import numpy as np

from pfgm_jax.errors import UserError, printable
from pfgm_jax.storage import digests, step_files


def _folder(workdir):
    return pathlib.Path(workdir).absolute() / "checkpoints"


@contextlib.contextmanager
def _manager(workdir):
    """Orbax's manager, which removes nothing by itself, leaves it to us to say what went wrong, and waits for no other
    process: only one of them writes."""
    import orbax.checkpoint as ocp  # takes seconds to import

    me = ocp.multihost.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=str(me))
    options = ocp.CheckpointManagerOptions(
        enable_async_checkpointing=False, create=False, multiprocessing_options=alone
    )
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with ocp.CheckpointManager(_folder(workdir), options=options) as manager:
            yield manager
    finally:
        logger.setLevel(level)


def steps(workdir):
    """The steps that there are, sound or not, in ascending order."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = [entry.name for entry in os.scandir(_folder(workdir)) if entry.is_dir()]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))
    return []


def _describe(items):
    """{item: {path: [shape, dtype, SHA-256]}} of trees of arrays."""

    def describe(leaf):
        array = np.asarray(leaf)
        return [list(array.shape), str(array.dtype), digests.sha256(array)]

    return {name: {path: describe(leaf) for path, leaf in _flatten(tree).items()} for name, tree in items.items()}


def _flatten(tree):
    """{path: leaf}: what is saved knows nothing of optax's and flax's classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _seal(step, arrays, run):
    """The digest of a step: its number, what `_describe` says of its arrays, its run, and a checksum over all."""
    content = {"step": step, "arrays": arrays} | ({} if run is None else {"run": run})
    return content | {"sha256": digests.of_json(content)}


def _unseal(step, digest):
    """(what `_describe` said, the run or None, whether a checksum vouches for it).

    ValueError for a digest that is not of this step.
    """
    if not {"step", "arrays", "sha256"} & digest.keys():
        return digest, None, False
    if digest != _seal(digest["step"], digest["arrays"], digest.get("run")):
        raise ValueError("the checksum of its digest does not match")
    if digest["step"] != step:
        raise ValueError(f"it is step {digest['step']} under another number")
    return digest["arrays"], digest.get("run"), True


def save(workdir, step, items, keep=2, best=None, run=None):
    """Saves `items`, a dict of trees of host arrays, as `step`; then removes all but the newest `keep` and `best`.

    What was written is read back before anything is removed. A step that is there with the same content is left as it
    is. Steps after `step` were passed over as damaged when the run was resumed, and are removed too.

    Args:
      run: {section: {name: value}} of what makes the arrays mean what they mean (`run_record.fixed`), kept with them.

    Raises:
      NotFinite: a value is not; nothing was written or removed.
      OSError: it could not be written, such as on a full disk; nothing was removed and nothing half-written is left.
    """
    import orbax.checkpoint as ocp

    if bad := _not_finite(items):
        raise NotFinite(f"the values of {bad[0]} at step {step} are not finite: they are not saved")
    arrays, folder = _describe(items), _folder(workdir) / str(step)
    trees = {name: ocp.args.StandardSave(_flatten(tree)) for name, tree in items.items()}
    content = ocp.args.Composite(digest=ocp.args.JsonSave(_seal(step, arrays, run)), **trees)
    if step in steps(workdir):
        if _holds(workdir, step, items, arrays):
            return
        shutil.rmtree(folder)
    _require_space(workdir, items)
    try:
        with _lost_callbacks_muted(), _manager(workdir) as manager:
            # Forced: orbax would not save behind a later step, even a damaged one.
            manager.save(step, args=content, force=True)
    except Exception as error:
        clean(workdir)
        if code := re.search(r"os_error_code='(\d+)'", str(error)):  # of tensorstore, which raises a ValueError
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(_folder(workdir) / str(step))) from error
        raise
    there = steps(workdir)
    if step not in there:
        raise RuntimeError(f"orbax did not save step {step} in {workdir}")
    step_files.write(folder)
    if not _holds(workdir, step, items, arrays):  # a disk that does not keep what it takes
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))
    before = [other for other in there if other <= step]
    for other in [s for s in there if s > step] + [s for s in before[:-keep] if s != best]:
        shutil.rmtree(_folder(workdir) / str(other))


def _not_finite(items):
    """Names of the arrays that hold a value which is not finite."""
    leaves = {f"{name}{path}": leaf for name, tree in items.items() for path, leaf in _flatten(tree).items()}
    return [path for path, leaf in leaves.items() if not np.isfinite(leaf).all()]


def _require_space(workdir, items):
    """Raises OSError where the disk has no room for the arrays of `items`, before orbax fills what is left of it."""
    folder = _folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(items)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


@contextlib.contextmanager
def _lost_callbacks_muted():
    """A save that fails leaves threads of tensorstore, each with a traceback for a loop that is closed by then.

    They stay mute until the process ends.
    """
    before = sys.unraisablehook

    def hook(lost):
        if "Event loop is closed" not in str(lost.exc_value):
            before(lost)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = before


def _holds(workdir, step, items, arrays):
    """Whether `step` is there with these items, undamaged."""
    try:
        with _manager(workdir) as manager:
            return _describe(_restore_step(manager, step, items)) == arrays
    except Exception:
        return False


def clean(workdir):
    """Removes what a save that was cut off left behind."""
    for _ in range(5):
        leftovers = list(_folder(workdir).glob("*.orbax-checkpoint-tmp*"))
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        if not leftovers:
            return
        time.sleep(0.2)  # threads of the failed save may still be writing


def restore(workdir, like, step=None, run=None, optional=()):
    """The newest sound checkpoint, or that of `step`: (step, items) with the items that `like` names.

    None without any checkpoint.

    Args:
      like: dict of trees of arrays or ShapeDtypeStructs; items come back in that form, as host arrays.
      run: what config.json says now, in the form that `save` takes; compared where the step kept it.
      optional: items that a step may lack; they are left out then.

    Raises:
      UserError: the checkpoint holds other arrays than `like` (another network) or is of another `run` than config.json
        says, every checkpoint is damaged, or there is none of `step`.
    """
    there = steps(workdir)
    if step is not None and step not in there:
        known = ", ".join(map(str, there)) or "none"
        raise UserError(f"{workdir} has no checkpoint of step {step}; there are {known}")
    if not there:
        return None
    doubtful, passed_over = None, []
    try:
        with _manager(workdir) as manager:
            for number in [step] if step is not None else reversed(there):
                try:
                    items = _restore_step(manager, number, like, run, optional)
                    passed_over += [
                        f"checkpoint {number} in {workdir}: {line}; its values are right"
                        for line in step_files.strays(_folder(workdir) / str(number))
                    ]
                    return number, items
                except (MemoryError, PermissionError):
                    raise
                except _OtherRun as error:
                    if error.certain:
                        raise
                    doubtful, reason = doubtful or error, error
                except Exception as error:  # orbax and tensorstore raise many types for a damaged file
                    reason = error
                line = "; ".join(step_files.changes(_folder(workdir) / str(number))) or _line(reason)
                passed_over.append(f"checkpoint {number} in {workdir} is damaged and skipped: {line}")
        if doubtful:  # and nothing else, so it is no damage
            passed_over.clear()
            raise doubtful
    finally:
        for line in passed_over:
            print(line, file=sys.stderr)
    if step is not None:
        raise UserError(f"checkpoint {step} in {workdir} is damaged; leave out the step to use the newest intact one")
    raise UserError(
        f"every checkpoint in {workdir}/checkpoints is damaged; put a copy back, or start again in another folder"
    )


def examine(workdir, step, like, run=None, optional=()):
    """(whether a step can be used, what is wrong with it in lines): every file is read.

    It can where its values are those that were saved, and are finite; a stray file, or damage to one that holds no
    values, does not hinder. Arguments as for `restore`.
    """
    wrong = step_files.changes(_folder(workdir) / str(step))
    try:
        with _manager(workdir) as manager:
            items = _restore_step(manager, step, like, run, optional)
    except Exception as error:
        return False, wrong or [_line(error)]
    bad = _not_finite(items)
    return not bad, wrong + [f"{printable(path)} holds values that are not finite" for path in bad]


def _line(error):
    return printable((str(error).splitlines() or [type(error).__name__])[0][:200])


class NotFinite(UserError):
    """Values that are not finite are not saved: they would push out the last healthy step."""


class _OtherRun(UserError):
    """The arrays are not those that are asked for; `certain` where the digest that says so has a checksum."""

    def __init__(self, text, certain):
        super().__init__(text)
        self.certain = certain


def _require_run(step, there, here):
    """Raises _OtherRun where a value that both runs name differs; versions may name more, or fewer."""
    here = json.loads(json.dumps(here))  # tuples are lists there
    for section, values in there.items():
        for key, value in values.items():
            if key in (now := here.get(section, {})) and now[key] != value:
                name = key if section == "config" else f"{section}.{key}"
                raise _OtherRun(
                    f"checkpoint {step} was made with {printable(f'{name}={value}')}, but config.json says "
                    f"{printable(str(now[key]))}: config.json was changed or damaged since; put that value back",
                    True,
                )


def _restore_step(manager, step, like, run=None, optional=()):
    import orbax.checkpoint as ocp

    read = manager.restore(step, args=ocp.args.Composite(digest=ocp.args.JsonRestore()))["digest"]
    digest, there, certain = _unseal(step, read)
    if there is not None and run is not None:
        _require_run(step, there, run)
    like = {name: tree for name, tree in like.items() if name in digest or name not in optional}
    wanted = {name: _flatten(tree) for name, tree in like.items()}
    for name, leaves in wanted.items():
        for path in sorted(leaves.keys() | digest[name].keys()):
            there = "{1}{0}".format(*digest[name][path]) if path in digest[name] else "absent"
            here = f"{leaves[path].dtype}{list(leaves[path].shape)}" if path in leaves else "absent"
            if there != here:
                raise _OtherRun(
                    f"checkpoint {step} is of another network: {name}{printable(path)} is {printable(there)} there "
                    f"and {here} here",
                    certain,
                )
    abstract = {
        name: ocp.args.StandardRestore({p: jax.ShapeDtypeStruct(a.shape, a.dtype) for p, a in leaves.items()})
        for name, leaves in wanted.items()
    }
    restored = manager.restore(step, args=ocp.args.Composite(**abstract))
    items = {
        name: jax.tree.unflatten(jax.tree.structure(tree), [np.asarray(restored[name][path]) for path in wanted[name]])
        for name, tree in like.items()
    }
    for name, described in _describe(items).items():
        for path, description in described.items():
            if description != digest[name][path]:
                raise ValueError(f"the checksum of {name}{path} does not match")
    return items
