"""Runs as they lie in folders: config.json and weights, of a run directory, an exported folder or `pretrained:NAME`."""

import os
import pathlib

import jax
import numpy as np

from pfgm_jax import averages, config_rules, models, run_folder, run_record
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError, nearest, printable
from pfgm_jax.storage import atomic, checkpoint, safetensors

# Weights that come with the package, each a folder as `export_run.export` writes it.
PRETRAINED = pathlib.Path(__file__).parent / "pretrained"


def folder(source):
    """The folder that `pretrained:NAME` means, or another path with its ~; UserError for an unknown NAME."""
    prefix, _, name = str(source).partition(":")
    if prefix != "pretrained":
        return atomic.expanded(source)
    names = sorted(file.parent.name for file in PRETRAINED.glob(f"*/{safetensors.EXPORTED}"))
    if name not in names:
        there = f"choose from {', '.join(names)}" if names else "there are none in this package"
        raise UserError(f"no pretrained weights are called {name!r}; {there}{nearest(name, names)}")
    return PRETRAINED / name


def read(workdir):
    """The Run that a folder's config.json describes; UserError where it makes none."""
    config, derived = run_record.load(workdir)
    try:
        config_rules.check(config)
        run_lib.check_derived(derived)
        return run_lib.make_run(config, derived)
    except UserError as error:
        raise UserError(
            f"{pathlib.Path(workdir, 'config.json')} does not describe a network: {printable(str(error))}"
        ) from None


def weights(workdir, run, step=None):
    """(EMA weights, their step) of the Run in a folder, or an exported folder's; `generator.load` has the argument.

    Raises:
      UserError: as `generator.load`.
    """
    like = jax.eval_shape(lambda: models.init(run.model, run.derived["shape"]))
    exported = pathlib.Path(workdir, safetensors.EXPORTED)
    if os.path.lexists(exported):
        if not exported.is_file():  # a pipe would be waited for
            raise UserError(f"{exported} is not a file of weights: export or import writes one")
        if step is not None:
            raise UserError(f"{workdir} holds exported weights, which have only one step: leave out step={step!r}")
        params = safetensors.load(exported, like, run_record.fingerprint(run_record.read(workdir)))
        return params, run.derived.get("step", 0)
    config, fixed = run.config, run_record.fixed(run_record.read(workdir))
    restored = checkpoint.restore(workdir, {"ema": like}, _numbered(workdir, config, step), fixed)
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet; its run saves one every {config.train.save_every:,} images")
    step, items = restored
    params, width = items["ema"], config.sample.ema_width
    return averages.of_width(workdir, width, step, params) if width else params, step


def _numbered(workdir, config, step):
    """The step that `load`'s argument means, None for the newest."""
    if step != "best":
        if step is not None and (isinstance(step, bool) or not isinstance(step, int | np.integer)):
            raise UserError(f'step={step!r} is not a step: give a number, "best", or None for the newest')
        return step
    best = run_folder.best_step(workdir, run_folder.validation_losses(workdir, config.train.batch))
    if best is None:
        raise UserError(f"no checkpoint in {workdir} has a validation loss in metrics.jsonl: give a number of a step")
    return best


def average(workdir, step, width, like):
    """The weights of the run in `workdir` at a step averaged with a relative width (sample.ema_width), or its own, 0.

    Raises:
      UserError: an exported folder, which holds one average, or as `averages.of_width`.
    """
    if os.path.lexists(pathlib.Path(workdir, safetensors.EXPORTED)):
        raise UserError(f"{workdir} holds exported weights, which have only one average: leave out sample.ema_width")
    if width:
        return averages.of_width(workdir, width, step, like)
    restored = checkpoint.restore(workdir, {"ema": like}, step)
    if restored is None:
        raise UserError(f"{workdir} no longer has a checkpoint, whose average sample.ema_width=0 uses")
    return restored[1]["ema"]
