"""The tables of a study, made of its records alone; what was not measured is said so."""

from typing import NamedTuple

import numpy as np

from pfgm_jax.evaluation.score import TITLES, number
from pfgm_jax.metrics import tables
from pfgm_jax.run import seen
from pfgm_jax.study.findings import ALSO, CLOSE, NOT_MEASURED, OWN


class Table(NamedTuple):
    """A table: a short name for files, a title, cells of text, and a note to stand below."""

    name: str
    title: str
    header: list
    rows: list
    note: str = ""

    def markdown(self):
        """As Markdown, with its title and note."""
        cells = [[cell.replace("|", "\\|") for cell in row] for row in self.rows]
        parts = [f"## {self.title}", tables.markdown(self.header, cells) if cells else f"*{NOT_MEASURED}*", self.note]
        return "\n\n".join(part for part in parts if part) + "\n"


def every(findings):
    """All Tables of a study, in the order of the report."""
    makers = (
        quality, also, evaluations, fewest, by_D, robustness, truth, costs, differences, likelihoods, copies,
        usefulness, settings,
    )  # fmt: skip
    return [maker(findings) for maker in makers]


def _interval(figure):
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"


def quality(findings):
    """Figures of every entry's samples, by the headline's sampler and by its own, and of real images."""
    rows, real, names, protocol = [], {}, [], {}
    for entry in findings.entries:
        trained = findings.get(entry, "train")
        for stage in ("headline", OWN):
            record = findings.get(entry, stage)
            if record is None:
                if stage == "headline":
                    rows.append((entry.name, None, trained, None))
                continue
            names, protocol = list(record["figures"]), record["measured"]
            real |= record["real"]
            rows.append((entry.name, record, trained, stage))
    cells = []
    for name, record, trained, _ in rows:
        images = seen(trained.get("init_images", 0), trained["images"]) if trained else NOT_MEASURED
        if record is None:
            cells.append([name, images, NOT_MEASURED, *[""] * (2 + len(names))])
            continue
        first, *others = (record["figures"][figure] for figure in names)
        sampler = f"{record['solver']}, {record['setting']}"
        figures = [_interval(first), *(number(figure["value"]) for figure in others)]
        cells.append([name, images, sampler, f"{record['nfe']:g}", f"{record['n']:,}", *figures])
    cells += _over_seeds(findings, names)
    for name, figures in real.items():
        cells.append([name, "", "", "", f"{figures['n']:,}", *(number(figures[figure]) for figure in names)])
    header = ["", "images trained", "sampler", "evaluations", "n", *(TITLES.get(name, name) for name in names)]
    note = "; ".join(f"{what}: {words}" for what, words in protocol.items())
    return Table("quality", "Quality", header, cells, note)


def also(findings):
    """Figures of the headline's samples in the study's other features, with each one's floor."""
    rows, notes = [], []
    for features in findings.study.also:
        found = [(entry, findings.get(entry, ALSO + features)) for entry in findings.entries]
        found = [(entry.name, record) for entry, record in found if record]
        for name, record in found:
            rows.append([features, name, f"{record['n']:,}", *map(_interval, record["figures"].values())])
        if found:
            _, record = found[-1]
            for name, row in record["real"].items():
                rows.append([features, name, f"{row['n']:,}", *(number(row[figure]) for figure in record["figures"])])
            notes.append(f"{features}: {record['measured']['features']}")
    # The distances, which go by other names in other features, come first in all of them.
    figures = next((list(r["figures"])[2:] for (_, stage), r in findings.records.items() if stage.startswith(ALSO)), ())
    header = ["features", "", "n", "Fréchet distance", "kernel distance", *figures]
    return Table("also", "The same samples in other features", header, rows, "; ".join(notes))


def _over_seeds(findings, names):
    """A row of mean ± standard deviation for each variant with several seeds."""
    rows = []
    for variant in dict.fromkeys(entry.variant for entry in findings.entries):
        own = [findings.get(entry, "headline") for entry in findings.entries if entry.variant == variant]
        own = [record for record in own if record]
        if len(own) > 1:
            values = [[record["figures"][name]["value"] for record in own] for name in names]
            cells = [f"{number(np.mean(v))} ± {number(np.std(v, ddof=1))}" for v in values]
            rows.append([f"{variant}, {len(own)} training seeds", "", "", "", "", *cells])
    return rows


def evaluations(findings):
    """Every point of every curve."""
    distance = findings.distance
    rows = [[entry.name, record["solver"], record["setting"], f"{record['nfe']:.4g}",
             _interval(record["figures"][distance]),
             NOT_MEASURED if record["seconds"] is None else f"{1000 * record['seconds']:.3g}"]
            for entry in findings.entries for record in findings.points(entry)]  # fmt: skip
    header = ["", "solver", "setting", "evaluations", TITLES.get(distance, ""), "ms a sample"]
    note = f"{findings.study.curve:,} samples a point, from the same noise; milliseconds as they were while measuring"
    return Table("evaluations", "Quality against evaluations, solver by solver", header, rows, note)


def fewest(findings):
    """How many evaluations reach an entry's own best, against the most that were tried; and the price of few steps."""
    rows, distance = [], findings.distance
    for entry in findings.entries:
        found = findings.reached(entry)
        if found is None:
            continue
        best, near = found
        most = max(findings.points(entry), key=lambda point: point["nfe"])
        worst = []
        for solver in findings.study.ways:
            own = [point for point in findings.points(entry) if point["solver"] == solver]
            if len(own) > 1:
                few, many = (pick(own, key=lambda point: point["nfe"]) for pick in (min, max))
                ratio = few["figures"][distance]["value"] / many["figures"][distance]["value"]
                worst.append(f"{solver} {ratio:.3g}")
        show = lambda point: f"{point['solver']}, {point['nfe']:.4g}: {number(point['figures'][distance]['value'])}"
        rows.append([entry.name, show(best), show(near), f"{most['nfe'] / near['nfe']:.3g}", ", ".join(worst)])
    header = ["", "best", f"fewest within {CLOSE - 1:.0%} of it", "times fewer than the most tried",
              "distance at the fewest evaluations over that at the most"]  # fmt: skip
    note = "solver, evaluations: distance; intervals are in the table above, and a ratio of 1 is a solver without loss"
    return Table("fewest", "How few evaluations do", header, rows, note)


def by_D(findings):
    """The headline's figures against D, of the processes that are one flow: PFGM, PFGM++, EDM."""
    rows = []
    for D, entry, record in findings.at_D():
        values = record["figures"]
        first, *others = values
        cells = [_interval(values[first]), *(number(values[name]["value"]) for name in others)]
        rows.append((D, [f"{D:g}", entry.name, *cells], list(values)))
    rows.sort(key=lambda row: row[0])
    header = ["D", "", *(TITLES.get(name, name) for name in rows[0][2])] if rows else ["D"]
    note = "PFGM (D = 1) has a training law and an output of its own; the others differ in D alone"
    return Table("D", "Quality against D", header, [row[1] for row in rows], note)


def robustness(findings):
    """Distances with noise injected at every step, and with weights of few bits."""
    rows, columns, said = [], [], ""
    for entry in findings.entries:
        found = findings.disturbed(entry)
        if not found:
            continue
        said = findings.get(entry, "robustness")["protocol"]
        columns = [(kind, x) for kind, points in found.items() for x in points if (kind, x) != ("weights", 32)]
        rows.append([entry.name, *(_interval(found[kind][x]) for kind, x in columns)])
    header = ["", *(f"{x} bits" if kind == "weights" else f"{kind}, α = {x:g}" for kind, x in columns)]
    note = f"α σ N(0, I) added before every step, the level staying σ; kernels rounded to so many bits. {said}"
    return Table("robustness", "Noise at every step, weights of few bits", header, rows, note if rows else "")


def truth(findings):
    """The distance to the exact posterior mean at the end of training, level by level."""
    last = {}
    for entry in findings.entries:
        curves = (findings.get(entry, "train") or {}).get("curves", [])
        ends = [record for record in curves if any(key.startswith("truth/") for key in record)]
        if ends:
            last[entry.name] = {float(k.split("=")[1]): v for k, v in ends[-1].items() if k.startswith("truth/")}
    levels = sorted({level for values in last.values() for level in values})
    show = lambda values, level: f"{values[level]:.3f}" if level in values else ""
    rows = [[name, *(show(values, level) for level in levels)] for name, values in last.items()]
    note = "rms error per value, images in [-1, 1], against the posterior mean of the training set; EMA weights"
    header = ["σ", *(f"{level:g}" for level in levels)]
    return Table("truth", "Distance to the truth", header, rows, note)


def costs(findings):
    """Parameters, memory, compilation, speed, settings changed."""
    rows, said = [], ""
    for entry in findings.entries:
        trained, record = findings.get(entry, "train"), findings.get(entry, "cost")
        if trained is None:
            continue
        MB = lambda value: f"{value / 2**20:,.0f}"
        speed = trained["images a second"]
        cells = [f"{trained['parameters']:,}", str(trained["changed"]), f"{speed:.0f}" if speed else NOT_MEASURED]
        if record is None:
            rows.append([entry.name, *cells, *[NOT_MEASURED] * 6])
            continue
        said = f"{record['batch']} images at once by the headline's sampler on {record['devices']} × {record['device']}"
        rows.append([entry.name, *cells, f"{record['images a second']:.3g}", f"{record['ms an image']:.3g}",
                     f"{record['seconds to compile sampling']:.1f}", f"{record['seconds to compile training']:.1f}",
                     MB(record["bytes at the peak of sampling"]), MB(record["bytes of training"])])  # fmt: skip
    header = ["", "parameters", "settings changed", "images/s trained", "images/s sampled", "ms an image",
              "s to compile sampling", "s to compile training", "MiB, peak of sampling", "MiB of training"]  # fmt: skip
    note = f"{said}; the process's peak with Python and JAX in it, training by the compiler's count. Images/s trained "
    note += "are the median of the run's log. Other work on the machine slows all of it"
    return Table("cost", "Speed and memory", header, rows, note if said else "")


def differences(findings):
    """The first entry minus every other one, with intervals."""
    rows, names = [], []
    for entry in findings.entries[1:]:
        record = findings.get(entry, "difference")
        if record is None:
            continue
        names = list(record["figures"])
        rows.append([entry.name, *map(_difference, record["figures"].values())])
    first = findings.entries[0].name
    note = "95 %, over samples of one training run each: another training run would move them too"
    header = [f"{first} minus", *(TITLES.get(name, name) for name in names)]
    return Table("differences", f"{first} against the others", header, rows, note)


def _difference(figure):
    low, high = (number(figure["difference"][end]) for end in ("low", "high"))
    text = f"{number(figure['difference']['value'])} [{low}, {high}]"
    return text if figure["resolved"] else f"{text} not resolved"


def likelihoods(findings):
    """Bits per dimension."""
    rows, sets, protocol = [], [], ""
    for entry in findings.entries:
        record = findings.get(entry, "likelihood")
        if record:
            sets, protocol = list(record["figures"]), record["protocol"]
            rows.append([entry.name, *(f"{f['bits per dimension']:.3f} ± {f['standard error']:.3f}"
                                       for f in record["figures"].values())])  # fmt: skip
    note = f"bits per dimension ± standard error; {protocol}. A likelihood does not measure how usual an image is"
    return Table("likelihood", "Likelihood", ["", *sets], rows, note if rows else "")


def copies(findings):
    """Copies of training images among the samples."""
    rows, protocol = [], ""
    for entry in findings.entries:
        record = findings.get(entry, "copies")
        if record:
            protocol = record["protocol"]
            rows.append([entry.name, f"{record['n']:,}", f"{record['share']:.2%} [{record['low']:.2%}, "
                         f"{record['high']:.2%}]", f"{record['expected']:.2%}", f"{record['chance']:.2g}",
                         f"{record['identical']:.0f}"])  # fmt: skip
    header = ["", "n", "nearer to a training image", "of held-out images", "chance", "equal to one"]
    return Table("copies", "Memorisation", header, rows, protocol)


def usefulness(findings):
    """Accuracy on real test images of classifiers trained on real images, on samples, on both."""
    rows, protocol = [], ""
    show = lambda figure: f"{figure['mean']:.3f} ± {figure['error']:.3f}"
    cells = lambda scores, arm: [show(scores[arm][name]) for name in ("accuracy", "balanced accuracy")]
    for entry in findings.entries:
        record = findings.get(entry, "usefulness")
        if not record:
            continue
        scores, protocol = record["scores"], record["protocol"]
        if "real" in scores:
            rows.insert(0, ["real images", "", *cells(scores, "real"), *cells(scores, "repeated")])
        rows.append([entry.name, f"{record['n']:,}", *cells(scores, "synthetic"), *cells(scores, "filled")])
    header = [
        "trained on",
        "samples",
        "accuracy",
        "balanced accuracy",
        "accuracy with rare classes filled up",
        "balanced",
    ]
    note = f"in the row of real images, rare ones are repeated in place of filled up; {protocol}" if rows else ""
    return Table("usefulness", "Usefulness: trained on samples, tested on real images", header, rows, note)


def settings(findings):
    """Everything in which the entries' configs, processes and networks differ."""
    trained = {entry.name: findings.get(entry, "train") for entry in findings.entries}
    trained = {name: record for name, record in trained.items() if record}
    if not trained:
        return Table("settings", "Differences in architecture, training and sampling", ["setting"], [])
    ignored = ("data.dir", "data.check_md5", "data.resident", "export.", "evaluate.", "likelihood.", "latents.")
    facts = {}
    for name, record in trained.items():
        config = {key: value for key, value in record["config"].items() if not key.startswith(ignored)}
        low, high = (f"{record['process'][i]:.4g}" for i in (3, 2))
        facts[name] = config | {
            "→ D": record["process"][1], "→ smallest σ": low, "→ largest σ": high,
            "→ the network's output": record["parametrisation"], "→ noise in training": record["law"],
            "→ parameters": f"{record['parameters']:,}", "→ learning rate": f"{record['lr']:.3g}",
            "→ images trained": seen(record.get("init_images", 0), record["images"]),
        }  # fmt: skip
    keys = dict.fromkeys(key for values in facts.values() for key in values)
    text = lambda value: "" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)
    rows = [[key, *(text(values.get(key)) for values in facts.values())] for key in keys
            if len({text(values.get(key)) for values in facts.values()}) > 1]  # fmt: skip
    note = "settings that are equal in all are left out; → are consequences of settings and data"
    return Table("settings", "Differences in architecture, training and sampling", ["setting", *facts], rows, note)
