"""What a study's figures say for and against its first variant, from measured rows alone."""

from pfgm_jax.evaluation.score import TITLES, number
from pfgm_jax.study import tables
from pfgm_jax.study.findings import NOT_MEASURED, finite

# Whether more is better; density above the real images' is samples in the middle of the data, so it is not judged.
BETTER = {"fid": -1, "fd": -1, "kid": -1, "kd": -1, "is": 1, "precision": 1, "recall": 1, "coverage": 1}
NOTABLE = 1.1  # single measurements, of time and memory, differ by their noise below this ratio


def table(findings):
    """A row for each other entry: in what the first is ahead, in what behind, what is not resolved or not measured."""
    first = findings.entries[0]
    rows = []
    for entry in findings.entries[1:]:
        verdicts = {"ahead": [], "behind": [], "not resolved": [], NOT_MEASURED: []}
        for name, (verdict, words) in judged(findings, first, entry).items():
            verdicts[verdict].append(f"{name} ({words})" if words else name)
        rows.append([entry.name, *("; ".join(some) or "–" for some in verdicts.values())])
    header = [f"{first.name} against", "ahead in", "behind in", "not resolved", NOT_MEASURED]
    note = (
        "figures of samples: resolved where the 95 % interval of the difference leaves out 0, over samples of one "
        "training run; accuracy: more than two standard errors; time, memory and evaluations: a ratio above "
        f"{NOTABLE:g}, each measured once"
    )
    return tables.Table("verdict", "Advantages and disadvantages, as measured", header, rows, note)


def judged(findings, first, entry):
    """{criterion: ("ahead" | "behind" | "not resolved" | "not measured", numbers in words)} of the first entry."""
    verdicts, missing = {}, (NOT_MEASURED, "")
    difference = findings.get(entry, "difference")
    for name in difference["figures"] if difference else ():
        figure = difference["figures"][name]
        if name in BETTER:
            gain = BETTER[name] * figure["difference"]["value"]
            words = f"{number(figure['a'])} against {number(figure['b'])}"
            side = "ahead" if gain > 0 else "behind"
            verdicts[TITLES.get(name, name)] = (side if figure["resolved"] else "not resolved", words)
    if difference is None:
        verdicts["figures of samples"] = missing
    verdicts["evaluations to its own best"] = _ratio(*(_fewest(findings, each) for each in (first, entry)))
    for name, key in (("time an image", "ms an image"), ("memory of sampling", "bytes at the peak of sampling"),
                      ("memory of training", "bytes of training")):  # fmt: skip
        values = [(findings.get(each, "cost") or {}).get(key) for each in (first, entry)]
        verdicts[name] = _ratio(*values)
    accuracies = [findings.get(each, "usefulness") for each in (first, entry)]
    if None in accuracies:
        verdicts["usefulness of samples"] = missing
    else:
        a, b = (record["scores"]["synthetic"]["accuracy"] for record in accuracies)
        gain, error = a["mean"] - b["mean"], (a["error"] ** 2 + b["error"] ** 2) ** 0.5
        side = "not resolved" if abs(gain) <= 2 * error else "ahead" if gain > 0 else "behind"
        verdicts["usefulness of samples"] = (side, f"{a['mean']:.3f} against {b['mean']:.3f}")
    bits = [findings.get(each, "likelihood") for each in (first, entry)]
    if None in bits or any("held out" not in record["figures"] for record in bits):
        verdicts["likelihood"] = missing
    else:
        a, b = (record["figures"]["held out"] for record in bits)
        gain = b["bits per dimension"] - a["bits per dimension"]
        # Of the same images: their own differences, which would be narrower, are not kept.
        error = (a["standard error"] ** 2 + b["standard error"] ** 2) ** 0.5
        side = "not resolved" if abs(gain) <= 2 * error else "ahead" if gain > 0 else "behind"
        words = f"{a['bits per dimension']:.3f} against {b['bits per dimension']:.3f} bits/dim"
        verdicts["likelihood"] = (side, words)
    return verdicts


def _fewest(findings, entry):
    found = findings.reached(entry)
    return found and found[1]["nfe"]


def _ratio(a, b):
    """The verdict on two costs, of which less is better."""
    if not (finite(a) and finite(b)):
        return NOT_MEASURED, ""
    if max(a, b) < NOTABLE * min(a, b):
        return "not resolved", "alike"
    words = f"{b / a:.3g} times less" if b > a else f"{a / b:.3g} times more"
    return ("ahead" if a < b else "behind"), words
