"""Training that starts from other weights (fine-tuning): `train.init`."""

import sys

import jax
import numpy as np

from pfgm_jax import config as config_lib
from pfgm_jax import generator, models, run_record
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError, printable


def origin(config, workdir):
    """What the run in `workdir` records of its first weights: {} for random and for tuned ones, else `Run.init_images`.

    A run that is there already keeps what it recorded, so that it goes on without those weights.

    Raises:
      UserError: no such weights.
    """
    if (workdir / "config.json").exists():
        return {key: n for key, n in run_record.load(workdir)[1].items() if key == "init_images"}
    if not config.train.init or run_lib.is_tuned(config):
        return {}
    return {"init_images": _load(config)[1].images_seen}


def start_from(config, derived, task, state):
    """The state before the first step with the weights that train.init names, as parameters and as their average.

    The optimiser starts anew. Weights that were trained on another scale are taken, with a line that says so.

    Raises:
      UserError: no such weights, or those of another network (it names the differences).
    """
    name, other = _load(config)
    if different := _differences(config, derived, other):
        raise UserError(f"{name} has another network: {'; '.join(different)}")
    params = jax.tree.map(np.asarray, jax.device_get(other.params))
    loaded, expected = (_shapes(tree) for tree in (params, state.params))
    for path in sorted(loaded.keys() | expected.keys()):
        if loaded.get(path) != expected.get(path):
            there, here = (shapes.get(path, "absent") for shapes in (loaded, expected))
            raise UserError(f"{name} has another network: {path} is {there} there and {here} here")
    there, here = (_scales(run) for run in (other.run, run_lib.make_run(config, derived)))
    if there != here:
        print(f"{name} was trained with {there}, and this run has {here}: it learns another scale", file=sys.stderr)
    params = jax.tree.map(lambda new, old: np.asarray(new, old.dtype), params, state.params)
    return state.replace(params=params, ema=params, opt_state=jax.device_get(jax.jit(task.optimizer.init)(params)))


def _load(config):
    """(the setting in words, its Generator); UserError where there are no such weights."""
    name = f"train.init={printable(config.train.init)}"
    try:
        return name, generator.load(config.train.init)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _differences(config, derived, other):
    """What makes the other network another one, each as "field is THERE there and HERE here"."""
    pairs = [("images", other.derived["shape"], derived["shape"])]
    here, there = (config_lib.flatten(c) for c in (config, other.config))
    # Neither changes the weights: dropout, and how the same numbers are computed.
    free = ("model.dropout", "model.remat", "model.dtype")
    unused = {f"model.{key}" for key in models.unused(config.model)}
    fields = [key for key in here if key.startswith("model.") and key not in unused.union(free)]
    if there["model.name"] != here["model.name"]:
        fields = ["model.name"]  # the others belong to it
    pairs += [(key, there[key], here[key]) for key in fields]
    pairs.append(("train.augment", *("on" if c.train.augment else "off" for c in (other.config, config))))
    if config.model.conditional and other.config.model.conditional:
        pairs.append(("classes", *(printable(", ".join(d["classes"])) for d in (other.derived, derived))))
    if other.run.tuned and not run_lib.is_tuned(config):
        pairs.append(("train.objective", other.config.train.objective, config.train.objective))
    kinds = (other.parametrization, run_lib.make_parametrization(config, derived))
    pairs.append(("parametrisation", *(type(kind).__name__ for kind in kinds)))
    return [f"{what} is {old} there and {new} here" for what, old, new in pairs if old != new]


def _scales(run):
    """The noise levels of a run, and what its network's inputs and outputs are measured in, in words."""
    levels = f"σ from {run.process.sigma_max:.3g} to {run.process.sigma_min:.3g}"
    sigma_data = getattr(run.parametrization, "sigma_data", None)
    return levels if sigma_data is None else f"{levels}, σ_data = {sigma_data:.3g}"


def _shapes(tree):
    return {jax.tree_util.keystr(path): list(a.shape) for path, a in jax.tree_util.tree_leaves_with_path(tree)}
