"""The command line: flags and --mode, nothing else.

python -m pfgm_jax.main --config=configs/digits.py[:ARGUMENTS] --workdir=runs/digits [--config.train.batch=128 ...]
python -m pfgm_jax.main --mode=sample --workdir=runs/digits [--config.sample.n=100 ...]
python -m pfgm_jax.main --mode=data|advise|stats --config=configs/digits.py[:ARGUMENTS]
python -m pfgm_jax.main --mode=audit --source=IMAGES --config=configs/digits.py
"""

import argparse
import importlib.util
import os
import pathlib
import sys

from pfgm_jax.errors import UserError, nearest
from pfgm_jax.interrupt import Interrupt

MODES = ("train", "data", "advise", "sample", "evaluate", "compare", "curve", "stats", "audit", "export", "import")
PLANNING = ("train", "data", "advise", "stats", "audit")  # those that take a config file; the others open a run
MEASURING = ("evaluate", "compare", "curve")  # those that open real images too
SOURCES = {"import": "the checkpoint to import", "audit": "the images, a folder or an npz file",
           "compare": "the run to compare with"}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def parse(argv):
    """(flags, overrides {"section.field": text}) of a command line; UserError for what it cannot mean."""
    parser = _Parser(prog="python -m pfgm_jax.main", allow_abbrev=False,
                     usage="%(prog)s [options] [--config.a.b=value ...]",
                     description="Train, sample and score Poisson flow generative models.")  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE[:ARGS]", help=f"config file and its arguments, for --mode={', '.join(PLANNING)}"
    )
    parser.add_argument("--workdir", help="the run directory")
    parser.add_argument("--mode", default="train", metavar="|".join(MODES), help="what to do (train)")
    help_ = "; ".join(f"--mode={mode}: {what}" for mode, what in SOURCES.items())
    parser.add_argument("--source", metavar="PATH", help=help_)
    parser.add_argument("--dry_run", action="store_true", help="print what --mode=train would do, and stop")
    flags, rest = parser.parse_known_args(argv)
    overrides = {}
    for item in rest:
        key, equals, value = item.partition("=")
        if not key.startswith("--config.") or not equals:
            hint = nearest(key, ["--config", "--workdir", "--mode", "--source", "--dry_run"])
            if key.startswith("--config.") or not hint:
                hint = "; overrides are written --config.section.field=value"
            raise UserError(f"unknown argument {item!r}{hint}")
        overrides[key.removeprefix("--config.")] = value
    if flags.mode not in MODES:
        raise UserError(f"--mode={flags.mode} is not one of {', '.join(MODES)}{nearest(flags.mode, MODES)}")
    if flags.dry_run and flags.mode != "train":
        raise UserError(f"--dry_run is for --mode=train, not for --mode={flags.mode}")
    if flags.mode in SOURCES and flags.source is None:
        raise UserError(f"--mode={flags.mode} needs --source=PATH: {SOURCES[flags.mode]}")
    if flags.source is not None and flags.mode not in SOURCES:
        raise UserError(f"--source=PATH is for --mode={' or '.join(SOURCES)}, not for --mode={flags.mode}")
    if not flags.workdir and not flags.dry_run and flags.mode not in ("data", "advise", "stats", "audit"):
        raise UserError("--workdir=FOLDER is missing: the folder of the run")
    if (flags.workdir or "").startswith("pretrained:"):
        raise UserError(f"--workdir is a folder to write to; {flags.workdir} is opened by pfgm_jax.load")
    return flags, overrides


def load_config(argument, overrides):
    """The config that `FILE[:ARGS]` and the overrides make.

    Raises:
      UserError: no such file, no get_config in it, or an argument or key that it does not know.
    """
    from pfgm_jax.config import override

    path, _, args = (argument or "").partition(":")
    if not path:
        raise UserError("--config=FILE is missing, such as --config=configs/digits.py")
    if not pathlib.Path(path).is_file():
        raise UserError(f"--config={path}: there is no such file")
    spec = importlib.util.spec_from_file_location("pfgm_jax_run_config", path)
    if spec is None:
        raise UserError(f"--config={path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={path} has no function get_config(arg)")
    config = module.get_config(args or None)
    for key, text in overrides.items():
        override(config, key, text)
    return config


def run(argv):
    """Does what the command line asks."""
    flags, overrides = parse(argv)
    _keep_compiled_programs()
    if flags.mode == "import":
        from pfgm_jax import importer

        config = load_config(flags.config, {}) if flags.config else None
        print(importer.import_run(flags.source, flags.workdir, config, overrides))
        return
    if flags.mode not in PLANNING:
        from pfgm_jax.config import default, override

        for key, text in overrides.items():
            override(default(), key, text)  # unknown keys and wrong types first
            sections = ("sample.", "evaluate.", *(("data.",) if flags.mode in MEASURING else ()))
            if not key.startswith(sections):
                there = " and ".join(f"{section}*" for section in sections)
                raise UserError(f"--mode={flags.mode} takes overrides of {there}, not of {key}")
    if flags.mode in PLANNING:
        config = load_config(flags.config, overrides)
    if flags.mode == "data":
        from pfgm_jax import card

        print(card.write(config, flags.workdir))
    elif flags.mode == "advise":
        from pfgm_jax.advise import advise

        print(advise(config, flags.config, overrides, flags.workdir))
    elif flags.mode == "train":
        from pfgm_jax import plan, train

        if flags.dry_run:
            print(plan.dry_run(config))
        else:
            train.train(config, flags.workdir)
    elif flags.mode == "stats":
        from pfgm_jax import auditing

        print(auditing.stats(config))
    elif flags.mode == "audit":
        from pfgm_jax import auditing

        print(auditing.run(flags.source, config, flags.workdir))
    elif flags.mode == "compare":
        from pfgm_jax import evaluate

        print(evaluate.compare(flags.workdir, flags.source, overrides))
    else:
        from pfgm_jax import curve, evaluate, export

        modes = {"sample": evaluate.sample, "evaluate": evaluate.evaluate, "curve": curve.curve}
        print((modes | {"export": export.export})[flags.mode](flags.workdir, overrides))


def _keep_compiled_programs():
    """Before JAX is imported: compiled programs are kept between runs, where JAX's own settings say nothing else."""
    cache = pathlib.Path(os.environ.get("PFGM_JAX_CACHE") or "~/.cache/pfgm_jax").expanduser() / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def main():
    try:
        with Interrupt():
            run(sys.argv[1:])
    except UserError as error:
        print(f"pfgm_jax: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        sys.exit(getattr(stop, "code", 130))


if __name__ == "__main__":
    main()
