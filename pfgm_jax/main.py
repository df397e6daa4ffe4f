"""The command line: flags, what they mean, and how it ends; what a mode does is in `modes`.

python -m pfgm_jax.main --config=configs/digits.py[:ARGUMENTS] --workdir=runs/digits [--config.train.batch=128 ...]
python -m pfgm_jax.main --mode=sample --workdir=runs/digits [--config.sample.n=100 ...]
python -m pfgm_jax.main --mode=data|advise|stats --config=configs/digits.py[:ARGUMENTS]
python -m pfgm_jax.main --mode=audit --source=IMAGES --config=configs/digits.py
python -m pfgm_jax.main --mode=study --config=configs/study_digits.py[:quick] --workdir=studies/digits
python -m pfgm_jax.main --mode=lessons|explore --workdir=lessons
"""

import argparse
import os
import re
import sys
import traceback

from ml_collections import ConfigDict

from pfgm_jax import __version__, config_file, failures, job
from pfgm_jax.config import default, keys_of, override
from pfgm_jax.errors import UserError, nearest, quoted
from pfgm_jax.interrupt import Interrupt
from pfgm_jax.modes import MODES, source_paths
from pfgm_jax.storage import atomic

FLAGS = ("--config", "--workdir", "--mode", "--source", "--dry_run", "--version")

_MORE = """
overrides, such as
  --config.data.dir=FOLDER           read the data from there
  --config.train.batch=128           images in a step; --config.train.images=500000: in the whole run
  --config.optim.lr=3e-4             learning rate
  --config.process.D=2048            extra dimensions of PFGM++
  --config.model.conditional=True    a class-conditional network
  --config.sample.n=100              samples; also sample.solver=heun, steps=18, labels=3,5, guidance=2, seed=1
  --config.evaluate.num_samples=5000
  `--config.optim.lr 3e-4` is the same as `--config.optim.lr=3e-4`. --dry_run prints all of a run's settings;
  pfgm_jax/config.py has the meaning of each.

examples
  pfgm-jax --config=digits --workdir=runs/digits
  pfgm-jax --config=medmnist:dataset=bloodmnist,cpu --dry_run
  pfgm-jax --mode=sample --workdir=runs/digits --config.sample.n=100
  `pfgm-jax` and `python -m pfgm_jax.main` are the same; a config is the name of one that comes along, or a file.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        if "--dry_run: ignored explicit argument" in message:
            message = "--dry_run takes no value"
        raise UserError(message)


def parse(argv):
    """(flags, overrides {"section.field": text}) of a command line; UserError for what it cannot mean."""
    argv, overrides = _overrides(argv)
    modes = "\n".join(f"  {name:13}{mode.help}" for name, mode in MODES.items())
    planning = [name for name, mode in MODES.items() if mode.config in ("needed", "study")]
    sources = {name: mode.source for name, mode in MODES.items() if mode.source}
    parser = _Parser(prog="pfgm-jax", allow_abbrev=False,
                     usage="%(prog)s [--mode=MODE] [--config=FILE[:ARGS]] [--workdir=FOLDER] "
                           "[--config.SECTION.FIELD=VALUE ...]",
                     description="Train, sample and measure Poisson flow generative models.",
                     epilog=f"modes\n{modes}\n{_MORE}",
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--mode", default="train", metavar="MODE", help="what to do, see below (default: train)")
    parser.add_argument("--config", metavar="FILE[:ARGS]", help=f"config file and its arguments: {', '.join(planning)}")
    parser.add_argument("--workdir", metavar="FOLDER", help="the folder of the run")
    parser.add_argument("--source", metavar="PATH", help="; ".join(f"{name}: {what}" for name, what in sources.items()))
    parser.add_argument("--dry_run", action="store_true", help="print what --mode=train would do, and stop")
    parser.add_argument("--version", action="version", version=f"pfgm_jax {__version__}")
    if not argv and not overrides:
        raise UserError("nothing to do: try --config=digits --workdir=runs/digits, or --help")
    flags, rest = parser.parse_known_args(argv)
    if rest:
        raise UserError(f"unknown argument {quoted(rest[0])}{_meant(rest[0], MODES.get(flags.mode))}")
    if flags.mode not in MODES:
        raise UserError(
            f"--mode={quoted(flags.mode)[1:-1]} is not one of {', '.join(MODES)}{nearest(flags.mode, MODES)}"
        )
    mode = MODES[flags.mode]
    if flags.dry_run and flags.mode != "train":
        raise UserError(f"--dry_run is for --mode=train, not for --mode={flags.mode}")
    if mode.source and not flags.source and mode.needs_source:
        raise UserError(f"--mode={flags.mode} needs --source=PATH: {mode.source}")
    if flags.source is not None and not mode.source:
        raise UserError(f"--source=PATH is for --mode={' or --mode='.join(sources)}, not for --mode={flags.mode}")
    if (flags.config or overrides) and mode.config == "none":
        raise UserError(f"--mode={flags.mode} has no settings: leave out --config")
    if flags.config and mode.config in ("", "source"):
        raise UserError(f"--mode={flags.mode} takes the config of its run: leave out --config=FILE")
    if not flags.workdir and not flags.dry_run and mode.workdir:
        raise UserError(
            "--workdir=FOLDER is missing: the folder " + ("to write to" if mode.config == "none" else "of the run")
        )
    if (flags.workdir or "").startswith("pretrained:"):
        raise UserError(
            f"--workdir is a folder to write to: --mode=import --source={flags.workdir} --workdir=FOLDER makes one"
        )
    for name in ("workdir", "source"):
        path = getattr(flags, name)
        if path:
            paths = path.split(",") if name == "source" and mode.several else [path]
            there = (p if p.startswith("pretrained:") else str(atomic.expanded(p)) for p in paths)
            setattr(flags, name, ",".join(there))
    return flags, overrides


def _overrides(argv):
    """(the other arguments, {"section.field": text}) of a command line; the value may follow = or a space.

    A boolean has a value like all others, so that no word behind it is taken for one.
    """
    others, overrides, words = [], {}, list(argv)
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if not key.startswith("--config."):
            others.append(word)
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"{quoted(key)[1:-1]} has no value; overrides are written --config.section.field=value")
            value = words.pop(0)
        overrides[key.removeprefix("--config.")] = value
    return others, overrides


def _meant(word, mode):
    """A hint at what an unknown argument may mean to a mode, None for one that there is not."""
    key, equals, value = word.partition("=")
    if key in MODES:
        return f"; did you mean --mode={key}?"
    if equals and "." in key:
        return f"; overrides are written --config.{quoted(key.lstrip('-') + equals + value)[1:-1]}"
    fields = keys_of(key.lstrip("-")) if key.startswith("--") else []
    if mode and mode.config == "":  # it opens a run, and takes some settings alone
        fields = [field for field in fields if field.startswith(mode.sections)]
    if fields:
        return f"; did you mean {' or '.join(f'--config.{field}={quoted(value)[1:-1]}' for field in fields)}?"
    return nearest(key, FLAGS) or "; see --help"


def run(argv):
    """Does what the command line asks."""
    perform(*parse(argv))


def perform(flags, overrides):
    """Does what a parsed command line asks, and prints the result; a refusal leaves no empty folder behind."""
    _keep_compiled_programs()
    _check_devices()
    _check_paths(flags)
    _join(flags)
    mode, config = MODES[flags.mode], None
    folders = [path for path in (flags.workdir, *(source_paths(flags) if mode.runs else ())) if path]
    with atomic.without_traces(*folders):
        if mode.config == "needed":
            config = config_file.load_config(flags.config, overrides)
        elif mode.config == "optional":
            config = config_file.load_config(flags.config) if flags.config else None
        elif not mode.config:
            _check_overrides(flags.mode, overrides)
        result = mode.act(flags, config, overrides)
    if result is not None and job.is_first():
        print(_as_flags(failures.shown(result, longest=None)))
    if job.joined():
        from pfgm_jax import parallel

        parallel.finish()


def _join(flags):
    """Joins the other processes of a job, where the environment says that there are some."""
    if not os.environ.get("PFGM_JAX_PROCESS"):
        return
    from pfgm_jax import parallel

    parallel.connect()
    if job.joined() and (flags.dry_run or not MODES[flags.mode].together):
        able = ", ".join(name for name, mode in MODES.items() if mode.together)
        asked = "--dry_run" if flags.dry_run else f"--mode={flags.mode}"
        raise UserError(f"{asked} runs in one process: unset PFGM_JAX_PROCESS; modes for several processes: {able}")


def _exit(code, line, said=False):
    """Ends the process with a line, unless it was `said`; where it is one of several, the others receive it too."""
    if job.joined():
        job.leave(code, line, said)
    if not said:
        print(f"pfgm_jax: {line}", file=sys.stderr)
    sys.exit(code)


def _check_devices():
    """Raises UserError for a JAX_NUM_CPU_DEVICES that JAX would end with, at its import or later."""
    number = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if not re.fullmatch(r"-1|[1-9]\d{0,3}", number):  # -1: one, unless XLA_FLAGS say otherwise
        raise UserError(f"JAX_NUM_CPU_DEVICES must be a positive integer, got {quoted(number)}")


def _check_paths(flags):
    """Raises UserError for a run or a source that is not there, before JAX is imported."""
    from pfgm_jax import run_record

    mode = MODES[flags.mode]
    if not mode.config:
        run_record.load(flags.workdir)
    for source in source_paths(flags):
        if mode.runs and not source.startswith("pretrained:"):
            run_record.load(source)
        elif not mode.runs and mode.needs_source and not os.path.exists(source) and not _packaged(flags.mode, source):
            raise UserError(f"--source={source} does not exist: give {mode.source}")


def _packaged(mode, source):
    """Whether a source is weights of the package, which `import` copies."""
    return mode == "import" and source.startswith("pretrained:")


def _check_overrides(mode, overrides):
    """Raises UserError for overrides that a mode does not take which opens a run."""
    sections = MODES[mode].sections
    if overrides and not sections:
        raise UserError(f"--mode={mode} has no settings: leave out --config.{next(iter(overrides))}")
    for key, text in overrides.items():
        override(default(), key, text)  # unknown keys and wrong types first
        if not key.startswith(sections):
            there = " and ".join(f"{section}*" for section in sections)
            raise UserError(f"--mode={mode} takes overrides of {there}, not of {key}")


def _keep_compiled_programs():
    """Before JAX is imported: compiled programs are kept between runs, where JAX's own settings say nothing else."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(atomic.cache_root() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def main():
    """The command line. Exit codes are 1 for a bug, with a traceback, 2 for a mistake or a machine at its limit.

    What stdout cannot encode is written out, and a reader that has gone away ends the command without a word.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    flags = None
    try:
        try:
            with Interrupt():
                flags, overrides = parse(sys.argv[1:])
                perform(flags, overrides)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        _exit(getattr(stop, "code", 130), f"stopped by {stop}", said=True)
    except BrokenPipeError:
        _drop_stdout()
        sys.exit(141)
    except Exception as error:
        line = failures.explain(error, flags.mode if flags else "")
        if line is None:
            print(f"pfgm_jax: {_bug(error, flags)}", file=sys.stderr)
            if not job.joined():
                raise
            traceback.print_exc()
            _exit(1, f"{type(error).__name__}: {str(error)[:200]}", said=True)
        _drop_stdout()
        _exit(getattr(error, "code", 2), _as_flags(line))


def _as_flags(line):
    """A text of the package, whose settings ("data.dir=FOLDER") are written as they are typed here."""
    sections = "|".join(name for name, value in default().items() if isinstance(value, ConfigDict))
    return re.sub(rf"(?<![\w./-])({sections})\.[A-Za-z]\w*=", r"--config.\g<0>", line)


def _bug(error, flags):
    """The line above the traceback of a bug: what was going on, and whose code it is."""
    config = (flags.config or "").partition(":")[0] if flags else ""
    line = config_file.line_in(config_file.find(config), error) if config else None
    if line:
        return f"{type(error).__name__} in your config file {config}, line {line}; its traceback:"
    doing = f"--mode={flags.mode}" if flags else "reading the command line"
    return f"a bug in pfgm_jax {__version__}, at {doing}; please report it with this traceback:"


def _drop_stdout():
    """What stdout cannot take (a closed pipe, a full disk) is dropped, or the end of the process would try again."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main()
