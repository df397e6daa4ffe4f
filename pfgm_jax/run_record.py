"""config.json, the truth about a run: its config and everything derived, written in one piece and read back checked."""

import json
import math
import os
import pathlib

from pfgm_jax import __version__
from pfgm_jax.config import default, flatten, override
from pfgm_jax.config_rules import check
from pfgm_jax.errors import UserError, printable
from pfgm_jax.storage import atomic, digests

# How a run was measured or used, which is no part of it.
_MEASURES = ("evaluate.", "likelihood.", "latents.", "restore.", "export.", "schedule.", "diagnose.")
# What may change when a run is continued or used; any other difference is another run.
MUTABLE = (
    "sample.", *_MEASURES,
    "train.images", "train.log_every", "train.eval_every", "train.sample_every", "train.save_every", "train.keep",
    "train.steps_per_call", "train.grace", "train.microbatch", "train.skip_outliers", "data.dir", "data.check_md5",
    "data.resident",
)  # fmt: skip
# Settings of what is done with a trained run.
USES = ("sample.", *_MEASURES, "data.")
# Of these, what no use changes: the condition, and which of the run's own images the network was not trained on.
CONDITION = ("data.condition",)
SPLIT = ("data.val", "data.test", "data.split_seed", "data.group")


def differences(config, other):
    """Names of the fields in which two configs differ and which make them different runs."""
    a, b = flatten(config), flatten(other)
    return [key for key in a if a[key] != b.get(key) and not key.startswith(MUTABLE)]


def with_overrides(config, overrides):
    """A checked copy of a config with {"section.field": value or text} in place of its own; UserError as `override`."""
    changed = default()
    for key, value in [*flatten(config).items(), *overrides.items()]:
        override(changed, key, value)
    check(changed)
    return changed


def record(config, derived):
    """What config.json holds."""
    return _to_json({"version": __version__, "config": flatten(config), "derived": dict(derived)})


def _to_json(value):
    """Infinity is no JSON: it is written as a string."""
    if isinstance(value, dict):
        return {key: _to_json(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def save(workdir, config, derived):
    """Writes config.json in one piece."""
    atomic.write_text(_path(workdir), json.dumps(record(config, derived), indent=1) + "\n")


def read(workdir):
    """The `record` in a folder's config.json, unchecked."""
    return json.loads(_path(workdir).read_text(encoding="utf-8"))


def fixed(record):
    """What makes weights mean what they mean: a `record` without what may change when it is used."""
    config = {key: value for key, value in record["config"].items() if not key.startswith(MUTABLE)}
    return {"config": config, "derived": record["derived"]}


def fingerprint(record):
    """SHA-256 over `fixed`."""
    return digests.of_json(list(fixed(record).values()))


def load(workdir):
    """(config, derived) of a run directory.

    Raises:
      UserError: no run there, or a config.json that this version cannot read: the file, and which field of it.
    """
    path = _path(workdir)
    if not os.path.isfile(path):
        raise UserError(f"{workdir} holds no run (no config.json); train one there first")
    try:
        recorded = read(workdir)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {printable(error)}") from None
    try:
        for section in ("config", "derived"):
            if not isinstance(recorded, dict) or not isinstance(recorded.get(section), dict):
                raise UserError(f"it has no section {section!r} of names and values")
        config = default()
        known = flatten(config)
        for key, value in recorded["config"].items():
            if key in known or not key.startswith(_MEASURES):  # how a run was measured is not part of it
                override(config, key, value)
    except UserError as error:
        raise UserError(f"{path} is not a record of a run: {printable(error)}") from None
    return config, recorded["derived"]


def _path(workdir):
    return pathlib.Path(workdir) / "config.json"
