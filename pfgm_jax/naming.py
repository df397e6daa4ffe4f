"""Names of result files: other settings give other names, the same settings the same name.

samples/rk45.png                 the run's own settings
samples/rk45-n=100,seed=3.png    what differs from them, in the order of the config
results/pixel_score-3f2a91c0.json    a hash of it, where it is long or is no file name
"""

import hashlib
import json
import re

from pfgm_jax import config as config_lib

LONGEST = 60  # characters of settings in a name
_SAFE = re.compile(r"[\w.+=,-]*", re.ASCII)


def key_of(facts, length=8):
    """A short hash of JSON-like facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:length]


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


def file_name(text, longest=40):
    """A text as a part of a file name, printable everywhere: other characters than letters, digits, . + - become _."""
    safe = re.sub(r"[^\w.+-]+", "_", str(text), flags=re.ASCII).strip("._")[:longest]
    return safe or "_"
