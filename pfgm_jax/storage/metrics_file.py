"""A run's metrics.jsonl, read back: a line for each log, evaluation or distance to the truth."""

import json
import pathlib


def read_metrics(workdir):
    """The lines of a run's metrics.jsonl as dicts, in order.

    A line that is no record (cut off by a kill, or overwritten by a disk's damage) is left out.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [record for record in map(_record, lines) if record is not None]


def evaluated(workdir):
    """The numbers of images at which a run was evaluated."""
    return {r["images"] for r in read_metrics(workdir) if any(key.startswith(("eval/", "truth/")) for key in r)}


def _record(line):
    """A line of metrics.jsonl as a dict of numbers with `images` among them, or None."""
    try:
        record = json.loads(line)
        values = [value for value in record.values() if isinstance(value, int | float)]
        return record if len(values) == len(record) and record["images"] >= 0 else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # ValueError: no JSON, or no UTF-8
        return None
