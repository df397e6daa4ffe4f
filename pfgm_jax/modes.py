"""The table of modes: what each does with its flags, its config (None where it opens a run) and the overrides.

Modules are imported where they are used, so that a mistake on the command line is answered at once.
"""

import os
import shlex
import sys
from collections.abc import Callable
from typing import NamedTuple


def _train(flags, config, overrides):
    from pfgm_jax import config_rules
    from pfgm_jax.training import dry_run, loop

    if flags.dry_run:
        config_rules.check_new(config)
        return dry_run.dry_run(config)
    loop.train(config, flags.workdir)
    return _how_to_restore(flags.workdir, config) if config.data.condition else _how_to_sample(flags.workdir)


def _how_to_sample(workdir):
    """The exact command, and the three lines of Python, that sample from a run."""
    return (
        "\nSample from it:\n"
        f"  {os.path.basename(sys.executable)} -m pfgm_jax.main --mode=sample --workdir={shlex.quote(workdir)}\n"
        "or in Python:\n"
        "  import jax, pfgm_jax\n"
        f"  g = pfgm_jax.load({workdir!r})\n"
        "  images, stats = g.sample(jax.random.key(0), 16)"
    )


def _how_to_restore(workdir, config):
    """The exact command that uses an image-conditional run."""
    return (
        f"\nRestore with it:\n  {os.path.basename(sys.executable)} -m pfgm_jax.main --mode=restore "
        f"--workdir={shlex.quote(workdir)} --source=FOLDER --config.restore.task={config.data.condition.split(':')[0]}"
    )


def _tune(flags, config, overrides):
    from pfgm_jax.training import tune

    return tune.tune(flags.source, flags.workdir, overrides) + "\n" + _how_to_sample(flags.workdir)


def _data(flags, config, overrides):
    from pfgm_jax.evaluation import data_card

    return data_card.write(config, flags.workdir)


def _advise(flags, config, overrides):
    from pfgm_jax.training.advise import advise

    return advise(config, flags.config, overrides, flags.workdir)


def _sample(flags, config, overrides):
    from pfgm_jax.evaluation import evaluate

    return evaluate.sample(flags.workdir, overrides)


def _evaluate(flags, config, overrides):
    from pfgm_jax.evaluation import evaluate

    return evaluate.evaluate(flags.workdir, overrides)


def _average(flags, config, overrides):
    from pfgm_jax.training import average_length

    return average_length.compare(flags.workdir, overrides)


def _compare(flags, config, overrides):
    from pfgm_jax.evaluation import evaluate

    return evaluate.compare(flags.workdir, flags.source, overrides)


def _curve(flags, config, overrides):
    from pfgm_jax.evaluation import nfe_curve

    return nfe_curve.curve(flags.workdir, overrides)


def _diagnose(flags, config, overrides):
    from pfgm_jax.evaluation import diagnose

    return diagnose.diagnose(flags.workdir, source_paths(flags), overrides)


def _likelihood(flags, config, overrides):
    from pfgm_jax.evaluation import likelihood

    return likelihood.likelihood(flags.workdir, overrides)


def _interpolate(flags, config, overrides):
    from pfgm_jax.evaluation import interpolation

    return interpolation.interpolate(flags.workdir, overrides)


def _restore(flags, config, overrides):
    from pfgm_jax.evaluation import restoration

    return restoration.restore(flags.workdir, flags.source, overrides)


def _schedule(flags, config, overrides):
    from pfgm_jax.evaluation import schedule

    return schedule.schedule(flags.workdir, overrides)


def _stats(flags, config, overrides):
    from pfgm_jax.evaluation import audit

    return audit.stats(config)


def _audit(flags, config, overrides):
    from pfgm_jax.evaluation import audit

    return audit.run(flags.source, config, flags.workdir)


def _verify(flags, config, overrides):
    from pfgm_jax.training import verify

    return verify.verify(flags.workdir)


def _export(flags, config, overrides):
    from pfgm_jax.exchange import export_run

    return export_run.export(flags.workdir, overrides)


def _import(flags, config, overrides):
    from pfgm_jax.exchange import import_run

    return import_run.import_run(flags.source, flags.workdir, config, overrides)


def _lessons(flags, config, overrides):
    from pfgm_jax import lessons

    return lessons.write(flags.workdir)


def _explore(flags, config, overrides):
    from pfgm_jax import explorer

    return explorer.write(flags.workdir, flags.source)


def _doctor(flags, config, overrides):
    from pfgm_jax import doctor

    return doctor.doctor()


def _study(flags, config, overrides):
    from pfgm_jax.study import plan

    study, path = plan.load_study(flags.config)
    entries = plan.entries(study, path, flags.workdir, overrides)
    from pfgm_jax.study import course

    return course.study(study, entries, flags.workdir)


class Mode(NamedTuple):
    """A row of the table of modes.

    Attributes:
      help: one line for --help.
      act: `(flags, config, overrides) -> text or None`.
      config: "needed", "optional" (the mode then applies the overrides itself), "study" for a study's file, which the
        mode reads, "none" for a mode without settings, "source" for that of the run in --source, or "" for a mode that
        opens the run in --workdir.
      workdir: whether --workdir is needed.
      sections: of the overrides that a mode takes which opens a run.
      source: what --source is; "" for a mode without it.
      needs_source: whether a mode with a source does nothing without one.
      runs: whether --source names runs, each of them to be opened.
      several: whether --source is any number of paths, with commas between them.
      together: whether several processes can do it as one.
    """

    help: str
    act: Callable
    config: str = ""
    workdir: bool = True
    sections: tuple = ("sample.",)
    source: str = ""
    needs_source: bool = True
    runs: bool = False
    several: bool = False
    together: bool = False


_WITH_DATA = ("sample.", "evaluate.", "data.")  # of modes that open real images too
MODES = {
    "train": Mode(
        "train the run in --workdir, or continue it from its last checkpoint", _train, "needed", together=True
    ),
    "tune": Mode(
        "tune the run in --source to 1 or 2 evaluations, as a new run in --workdir", _tune, "source",
        sections=("tune.", "train.", "optim.", "model.", *_WITH_DATA), source="the trained run to tune", runs=True,
    ),
    "data": Mode("a data card: what the data set of --config holds, implies and lacks", _data, "needed", False),
    "advise": Mode("try the plan of --config for 20 s: memory, speed, hours, what to change", _advise, "needed", False),
    "sample": Mode(
        "draw samples from the run in --workdir: a picture, an npz file, an animation", _sample, together=True
    ),
    "evaluate": Mode(
        "measure the run: FID, KID, precision, recall, copies, with intervals", _evaluate, sections=_WITH_DATA,
        together=True,
    ),
    "average": Mode(
        "choose the length of the weights' average after training (needs train.power_ema)", _average,
        sections=("data.",),
    ),
    "compare": Mode(
        "compare the runs in --workdir and --source: which differences are resolved", _compare,
        sections=_WITH_DATA, source="the run to compare with", runs=True,
    ),
    "curve": Mode("quality against evaluations of the network, solver by solver", _curve, sections=_WITH_DATA),
    "diagnose": Mode(
        "study the run, and others beside it: norms, errors, solvers, robustness", _diagnose,
        sections=("diagnose.", "evaluate.", "data."), source="further runs, RUN,RUN,…, if any", runs=True,
        several=True, needs_source=False,
    ),
    "likelihood": Mode(
        "bits per dimension of real images, and which sets they distinguish", _likelihood,
        sections=("likelihood.", "data."),
    ),
    "interpolate": Mode(
        "encode real images, and draw what lies between and around them", _interpolate,
        sections=("latents.", "data."),
    ),
    "restore": Mode(
        "restore images with their uncertainty: denoise, inpaint, superres, deblur", _restore,
        sections=("restore.",), source="the images to restore, a folder or an npz file",
    ),
    "schedule": Mode(
        "search solver grids for few evaluations, and measure the variance that sde needs, for the run", _schedule,
        sections=("schedule.", "data."),
    ),
    "stats": Mode("compute the reference features of --config's real images, once", _stats, "needed", False),
    "audit": Mode(
        "measure any folder of images against the data of --config: FID, KID, …", _audit, "needed", False,
        source="the images, a folder or an npz file",
    ),
    "verify": Mode("check the run's files for damage, and report what still works", _verify, sections=()),
    "export": Mode(
        "export the run's weights with config, model card and picture, if a gate finds no copies", _export,
        sections=("sample.", "export.", "data."),
    ),
    "import": Mode(
        "make a run in --workdir from another project's checkpoint, or from packaged weights", _import, "optional",
        source="the checkpoint to import, or pretrained:NAME",
    ),
    "study": Mode(
        "train and measure the variants of --config, and write a report that compares them", _study, "study",
    ),
    "lessons": Mode("explain Poisson flow in pictures, with formulas", _lessons, "none"),
    "explore": Mode(
        "write an interactive page, one HTML file: draw charges and watch samples flow to them", _explore, "none",
        source="points [n, 2] in a .npy file, or a run in the plane, to start from", needs_source=False,
    ),
    "doctor": Mode("check the installation; include the output in bug reports", _doctor, "none", False),
}  # fmt: skip


def source_paths(flags):
    """The paths in --source, none to several."""
    if not MODES[flags.mode].several:
        return [flags.source] if flags.source else []
    return [path for path in (flags.source or "").split(",") if path]
