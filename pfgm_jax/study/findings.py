"""What a study has found: its records, and what is asked of them by tables, figures and verdicts alike."""

import math
from typing import NamedTuple

NOT_MEASURED = "not measured"
OWN, ALSO = "own sampler", "in "  # stages, the second before the name of features
CLOSE = 1.1  # a distance within 10 % of the best counts as reaching it


class Findings(NamedTuple):
    """What a study has found: its Entries in order, and {(entry's name, stage): record} of what is done."""

    study: object
    entries: list
    records: dict

    def get(self, entry, stage):
        """The record of a stage of an entry, None where there is none or it was left out."""
        record = self.records.get((entry.name, stage))
        return None if record is None or "skipped" in record else record

    def points(self, entry):
        """Rows of the quality curve of an entry, by solver in the study's order and then by evaluations."""
        stages = [f"{solver} {value:g}" for solver, values in self.study.ways.items() for value in values]
        return [record for stage in stages if (record := self.get(entry, stage))]

    @property
    def distance(self):
        """The name of the Fréchet distance of the features that were used, None before anything is measured."""
        figures = [record["figures"] for (_, stage), record in self.records.items()
                   if "nfe" in record and "figures" in record and not stage.startswith(ALSO)]  # fmt: skip
        return next((name for name in ("fid", "fd") if figures and name in figures[0]), None)

    def reached(self, entry):
        """(best point, the point with the fewest evaluations within CLOSE of it) of an entry's curve, or None."""
        points, distance = self.points(entry), self.distance
        if not points:
            return None
        best = min(points, key=lambda point: point["figures"][distance]["value"])
        limit = CLOSE * best["figures"][distance]["value"]
        near = [point for point in points if point["figures"][distance]["value"] <= limit]
        return best, min(near, key=lambda point: point["nfe"])

    def at_D(self):
        """(D, entry, headline's record) of the entries that have a place on the axis of D; one network, first seeds."""
        first = self.entries[0]
        network = dict(first.config.model)
        for entry in self.entries:
            record, trained = self.get(entry, "headline"), self.get(entry, "train")
            same = dict(entry.config.model) == network and entry.name == entry.variant
            if record and trained and same and entry.config.process.name in ("pfgm", "pfgmpp", "edm"):
                yield float(trained["process"][1]), entry, record

    def disturbed(self, entry):
        """{"noise, 18 steps" | "weights": {α or bits: point}} of an entry; {} where it was not measured."""
        record, found = self.get(entry, "robustness"), {}
        for point in record["points"]["noise"] if record else ():
            found.setdefault(f"noise, {point['steps']} steps", {})[point["alpha"]] = point
        for point in record["points"]["weights"] if record else ():
            found.setdefault("weights", {})[point["bits"]] = point
        return found


def finite(value):
    """Whether a figure is a number."""
    return value is not None and math.isfinite(value)
