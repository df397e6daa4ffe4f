"""The run directory: opened by one training at a time, and which of its checkpoints is the best."""

import contextlib
import math
import os
import pathlib
import socket
import sys

from pfgm_jax import run_record
from pfgm_jax.errors import UserError, printable
from pfgm_jax.storage import checkpoint, safetensors
from pfgm_jax.storage.metrics_file import read_metrics

LOCK = "train.lock"


@contextlib.contextmanager
def opened(workdir, config, derived):
    """Makes the run directory, or accepts the one there if it is the same run, and keeps other trainings out of it.

    Yields the config that the run was last trained with, None for a new run.

    Raises:
      UserError: a folder that cannot be written, a run whose config differs (naming the keys), one that holds weights
        alone, or one in which another process trains.
    """
    workdir = pathlib.Path(workdir)
    recorded = _same_run(workdir, config, derived)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        stream = open(workdir / LOCK, "a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write to workdir {workdir}: {error.strerror or error}") from None
    with stream:
        _lock(stream, workdir)
        try:
            run_record.save(workdir, config, derived)
        except OSError as error:
            raise UserError(f"cannot write to workdir {workdir}: {error.strerror or error}") from None
        checkpoint.clean(workdir)
        yield recorded


def _same_run(workdir, config, derived):
    """The config recorded in `workdir`, None where there is none; UserError if it is of another run."""
    if os.path.exists(workdir / safetensors.EXPORTED):
        raise UserError(f"{workdir} holds exported weights and no checkpoint to continue from; use another workdir")
    if not os.path.exists(workdir / "config.json"):
        return None
    recorded, facts = run_record.load(workdir)
    different = run_record.differences(config, recorded)
    # Another data folder may hold other images: what was derived from them is part of the run too.
    different += [f"data ({key})" for key in facts if not different and facts[key] != derived.get(key)]
    if different:
        raise UserError(
            f"{workdir} holds a run with different {', '.join(different)}; use its values or another workdir"
        )
    if config.optim.decay == "cosine" and recorded.train.images != config.train.images:
        print(
            f"the learning rate's cosine, which ended at {recorded.train.images:,} images, now ends at "
            f"{config.train.images:,}",
            file=sys.stderr,
        )
    stages = config.tune.stages if config.train.objective == "consistency" else 1
    if stages > 1 and recorded.train.images != config.train.images:
        where = "an earlier" if config.train.images > recorded.train.images else "a later"
        print(
            f"the {stages} stages of tuning, which ended at {recorded.train.images:,} images, now end at "
            f"{config.train.images:,}: the run may go on in {where} one",
            file=sys.stderr,
        )
    return recorded


def trained_by(workdir):
    """Which process trains in `workdir` now ("process NUMBER on HOST"), "" for none."""
    try:
        import fcntl

        with open(pathlib.Path(workdir, LOCK), encoding="utf-8", errors="replace") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder(stream)
    except (ImportError, OSError):  # no locks there, or no training yet
        pass
    return ""


def _holder(stream):
    """What the process that holds the lock wrote into its file."""
    stream.seek(0)
    return printable(stream.read(200).strip()) or "another process"


def _lock(stream, workdir):
    """Takes the lock on the open file, which the operating system lifts when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows has none
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{workdir} is being trained by {_holder(stream)}: wait for it or stop it, or use another workdir"
        ) from None
    except OSError as error:  # a file system without locks
        print(f"{workdir} cannot be locked ({error.strerror}): do not start a second training there", file=sys.stderr)
        return
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()


def accept_empty(workdir, first_save):
    """Says in a line that a run that has trained, but has no checkpoint, starts again from 0.

    Args:
      first_save: images after which its first checkpoint was due.

    Raises:
      UserError: it had a checkpoint.
    """
    trained = max((record["images"] for record in read_metrics(workdir)), default=0)
    if trained > first_save:
        raise UserError(
            f"{workdir} trained {trained:,} images, as its metrics.jsonl says, but its checkpoints are gone: put "
            "checkpoints/ back, or use another workdir (to start again in this one, remove metrics.jsonl)"
        )
    if trained:
        print(f"{workdir} ended at {trained:,} images, before its first checkpoint: it starts again", file=sys.stderr)


def validation_losses(workdir, batch):
    """{step: validation loss} of the evaluations in metrics.jsonl, those that are finite."""
    evaluated = [record for record in read_metrics(workdir) if math.isfinite(record.get("eval/val", math.nan))]
    return {record["images"] // batch: record["eval/val"] for record in evaluated}


def best_step(workdir, losses):
    """The checkpoint with the lowest of `losses` {step: loss}, None if none was evaluated."""
    return min((step for step in checkpoint.steps(workdir) if step in losses), key=losses.get, default=None)


def how_to_get_best(workdir, step):
    """Where the checkpoint with the lowest validation loss is, in a line."""
    return f'the lowest validation loss is at step {step}: pfgm_jax.load({str(workdir)!r}, step="best")'


def last_checkpoint(workdir):
    """Where a run stands, as the end of a sentence."""
    there = checkpoint.steps(workdir)
    return f"the last checkpoint, of step {there[-1]}, is kept" if there else "no checkpoint was saved yet"
