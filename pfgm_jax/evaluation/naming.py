"""Names of result files: other settings give other names, the same settings the same name.

samples/rk45.png                 the run's own settings
samples/rk45-n=100,seed=3.png    what differs from them, in alphabetical order
results/pixel_score-3f2a91c0.json   a hash of it, where it is long or is no file name
"""

import re

from pfgm_jax import config as config_lib
from pfgm_jax.storage import digests

MOST_LETTERS = 60  # of a folder of a class: 240 bytes at most
LONGEST = 60  # characters of settings in a name
_SAFE = re.compile(r"[\w.+=,-]*", re.ASCII)


def key_of(facts, length=8):
    """A short hash of JSON-like facts."""
    return digests.of_json(facts)[:length]


def suffix(config, own, relevant):
    """What of the settings called `relevant` ("sample.n", …) differs from a run's own: "" or "-name=value,…"."""
    now, before = config_lib.flatten(config), config_lib.flatten(own)
    changed = {name: now[name] for name in now if name in relevant and now[name] != before.get(name)}
    if not changed:
        return ""
    words = ",".join(f"{name.partition('.')[2]}={_word(value)}" for name, value in changed.items())
    return "-" + (words if len(words) <= LONGEST and _SAFE.fullmatch(words) else key_of(changed))


def _word(value):
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def folder_names(classes):
    """A folder's name for each class: its own where that is safe, printable and no other's, else a numbered one."""
    names = [safe(name) for name in classes]
    once = lambda name: sum(name.casefold() == other.casefold() for other in names) == 1
    return [name if name == own and once(name) else f"{k}_{name}"[:MOST_LETTERS] for k, (name, own) in
            enumerate(zip(names, classes, strict=True))]  # fmt: skip


def safe(name):
    """A text without what a file system or a terminal could take amiss."""
    kept = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name)[:MOST_LETTERS]
    return kept.strip(" .") or "_"
