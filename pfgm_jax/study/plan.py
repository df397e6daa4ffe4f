"""What a study is: one base config, named changes of it, and what is measured of each. Nothing here imports JAX.

def get_study(arg=None):
    return Study(
        title="Digits",
        base="digits.py:conditional",
        variants={"PFGM++": Variant(), "DDPM": Variant("process=ddpm"), "wide": Variant(changes={"model.channels": 32})},
        ways={"heun": (9, 18), "ancestral": (250,)},
        headline=("heun", 18),
    )
"""  # noqa: E501, an example

import dataclasses
import pathlib
import re
from collections.abc import Mapping

from ml_collections import ConfigDict

from pfgm_jax import config_file, run_record
from pfgm_jax.config import override
from pfgm_jax.errors import UserError
from pfgm_jax.storage import atomic


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the models that a study compares.

    Attributes:
      arguments: of the base's file, added to its own, such as "process=ddpm".
      changes: {"section.field": value} of the config that they make.
      seeds: of training; a run for each.
      own: (solver, number) of the sampler that the model was published with, measured beside the headline; () for none.
      run: the folder of a run that is trained elsewhere; its config stands in place of all this.
    """

    arguments: str = ""
    changes: Mapping = dataclasses.field(default_factory=dict)
    seeds: tuple = (0,)
    own: tuple = ()
    run: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Attributes:
      title: of the report.
      base: "FILE:ARGUMENTS" of the config that all variants change, FILE as seen from the study's own file.
      variants: {name: Variant}; the first is the one that all others are compared with.
      ways: {solver: numbers}, of steps, or tolerances for an adaptive solver; those that a process does not admit are
        left out for it.
      headline: (solver, number) by which all are sampled for tables, grids, copies and usefulness.
      common: {"section.field": value} for every variant.
      n: samples of the headline. curve: samples of every other point.
      features, split: as evaluate.features and evaluate.split.
      also: other features that headlines are measured in too, in a table of their own, each with its own floor.
      usefulness: classifiers of each kind, 2 or more; 0 to leave it out, as all of these:
      likelihood: images of each set. latents: pairs of images between which is interpolated.
      cost: measure memory, compilation and speed, in a process of their own.
      measure: False writes the report of what there is.
    """

    title: str
    base: str
    variants: Mapping[str, Variant]
    ways: Mapping[str, tuple]
    headline: tuple
    common: Mapping = dataclasses.field(default_factory=dict)
    n: int = 1000
    curve: int = 1000
    features: str = ""
    split: str = "train"
    also: tuple = ()
    usefulness: int = 2
    likelihood: int = 64
    latents: int = 4
    robustness: int = 0
    cost: bool = True
    measure: bool = True


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run of a study: a variant with a seed.

    Attributes:
      name: the variant's, and its seed where it is not the first.
      config: what it is trained and used with. folder: its run directory. trained_here: whether the study trains it.
    """

    name: str
    variant: str
    config: ConfigDict
    folder: pathlib.Path
    own: tuple = ()
    trained_here: bool = True
    changed: int = 0  # settings that differ from the base


def load_study(argument):
    """(Study, path of its file) that "FILE:ARGS" makes.

    Raises:
      UserError: no such file, or one without get_study(arg) that returns a Study with variants and a possible headline;
        a single classifier for its usefulness.
    """
    study, path = config_file.call(argument, "get_study", Study, "the Study")
    if not study.variants or len(study.headline) != 2:
        raise UserError(f"the study of {path} needs variants, and a headline such as ('heun', 18)")
    if study.usefulness == 1:
        raise UserError(f"the study of {path} has usefulness=1: error bars need 2 or more classifiers, 0 leaves it out")
    return study, path


def entries(study, path, workdir, overrides):
    """The Entries of a study, those of later seeds last.

    Args:
      overrides: {"section.field": text} for all that are trained here; those of `run_record.USES` for the others too.

    Raises:
      UserError: a setting or a config's argument that there is not, a seed, or two variants with one folder.
    """
    for changes in (overrides, study.common, *(variant.changes for variant in study.variants.values())):
        if "seed" in changes:
            seed = changes["seed"]
            raise UserError(
                f"seed={seed} has no effect in a study: its variants have their own, Variant(seeds=({seed},))"
            )
    first, later, folders = [], [], {}
    for name, variant in study.variants.items():
        seeds = list(variant.seeds) if isinstance(variant.seeds, tuple | list) else []
        if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int for seed in seeds):
            raise UserError(
                f"the variant {name!r} needs seeds that differ, such as (0,) or (0, 1), got {variant.seeds}"
            )
        if not folder_name(name).strip("."):
            raise UserError(f"the variant {name!r} needs a name that a folder can have")
    base = _config(study, path, Variant(), overrides)
    for name, variant in study.variants.items():
        if folders.setdefault(folder_name(name), name) != name:
            raise UserError(
                f"the variants {folders[folder_name(name)]!r} and {name!r} would share a folder: rename one"
            )
        if variant.run:
            folder = atomic.expanded(variant.run)
            uses = {key: value for key, value in overrides.items() if key.startswith(run_record.USES)}
            config = run_record.with_overrides(run_record.load(folder)[0], uses)
            changed = len(run_record.differences(config, base))
            first.append(Entry(name, name, config, folder, variant.own, False, changed))
            continue
        for i, seed in enumerate(variant.seeds):
            config = _config(study, path, variant, overrides)
            changed = len(run_record.differences(config, base))
            config.seed = seed
            suffix = f", seed {seed}" if i else ""
            folder = pathlib.Path(workdir, "runs", folder_name(name + suffix))
            (later if i else first).append(Entry(name + suffix, name, config, folder, variant.own, True, changed))
    return first + later


def _config(study, path, variant, overrides):
    """The config of a Variant."""
    base = str(pathlib.Path(path).parent / study.base)
    if variant.arguments:
        base += ("," if ":" in study.base else ":") + variant.arguments
    config = config_file.load_config(base)
    for key, value in [*study.common.items(), *variant.changes.items(), *overrides.items()]:
        override(config, key, value)
    return config


def folder_name(name):
    """What the folders of a variant are called."""
    return re.sub(r"[^\w.-]+", "_", name.replace("++", "pp")).strip("_").lower()


def steps_or_tolerance(solver, number):
    """The options of a solver that a number in `Study.ways` stands for.

    Raises:
      UserError: an unknown solver, or half a step.
    """
    from pfgm_jax import sampling

    if "steps" not in sampling.find(solver)[1]:
        return {"rtol": float(number), "atol": float(number)}
    if number != int(number) or number < 1:
        raise UserError(f"{solver} takes a whole number of steps, got {number:g}")
    return {"steps": int(number)}
