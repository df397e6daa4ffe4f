"""A run made ready to travel: a folder with its EMA weights, config, model card and a picture; `load` opens it."""

import dataclasses
import json
import math
import pathlib

import jax

from pfgm_jax import __version__, plots, run_record
from pfgm_jax.errors import UserError, printable
from pfgm_jax.evaluation import evaluate
from pfgm_jax.storage import atomic, safetensors

FULL = 300  # samples, of records that do not say themselves whether they are of the full protocol


def export(workdir, overrides):
    """Writes workdir/export: model.safetensors, config.json, samples.png and README.md, the model card.

    Returns the lines that say so.

    Raises:
      UserError: no run or checkpoint in workdir, or a folder that cannot be written.
    """
    generator = evaluate.open_run(workdir, overrides)
    folder = atomic.writable(pathlib.Path(workdir, "export"))
    settings = dataclasses.replace(generator.settings, guide=evaluate.guide_of(generator))
    images, stats = generator.sample(settings=settings)
    card = model_card(generator, evaluate.protocol(generator, settings, stats), _results(workdir))
    try:
        return _write(generator, folder, plots.picture(images), card)
    except OSError as error:
        raise UserError(f"nothing usable was exported: {atomic.unwritable(folder, error)}") from None


def _write(generator, folder, picture, card):
    """Writes the exported folder; returns the lines that say so."""
    if generator.config.sample.guide:  # which stays behind
        generator = generator.with_overrides({"sample.guide": "", "sample.guidance": 1.0})
    config, derived = generator.config, generator.derived | {"step": generator.step}
    imported = derived.get("imported")
    origin = {"imported": imported} if imported else {"images": str(generator.step * config.train.batch)}
    fingerprint = run_record.fingerprint(run_record.record(config, derived))
    about = origin | {"pfgm_jax": __version__, safetensors.CONFIG: fingerprint}
    safetensors.save(folder / safetensors.EXPORTED, generator.params, about)
    plots.save(picture, folder / "samples.png")
    atomic.write_text(folder / "README.md", card)
    run_record.save(folder, config, derived)  # last: it makes the folder a run
    names = (safetensors.EXPORTED, "config.json", "samples.png", "README.md")
    return "\n".join(
        [f"exported   {folder}", *(f"  {name:18}{(folder / name).stat().st_size:>12,} bytes" for name in names)]
    )


def _results(workdir):
    """{name: record} of the run's results/*.json, those with scores and the protocol that they were measured by.

    Figures of fewer samples than the protocol asks for stay out, and those of anyone's images (`audit-…`).
    """
    records = {}
    for path in sorted(pathlib.Path(workdir, "results").glob("*.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        scored = isinstance(record, dict) and {"scores", "protocol"} <= record.keys()
        if scored and record.get("full", _fewest(record) >= FULL) and not path.name.startswith("audit-"):
            records[path.stem] = record
    return records


def _fewest(record):
    """The smallest number of samples among a record's rows of them; inf where they do not say it."""
    rows = [score for name, score in record["scores"].items() if name.startswith("samples") and isinstance(score, dict)]
    return min((score["n"] for score in rows if "n" in score), default=math.inf)


def _figures(name, record):
    """A result file as Markdown: its protocol, and its scores as a table."""
    rows = {row: score for row, score in record["scores"].items() if isinstance(score, dict)}
    columns = list(dict.fromkeys(column for score in rows.values() for column in score if column != "failed"))
    lines = [f"### {name.replace('_', ' ')}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, score in rows.items():
        cells = [f"{score[c]:.3g}" if isinstance(score.get(c), int | float) else str(score.get(c, "")) for c in columns]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"* {key}: {value}" for key, value in record["protocol"].items())])


def _origin(generator):
    """(data, licence, training) of the weights: what is known of them, and where it is not."""
    config, derived = generator.config, generator.derived
    if imported := derived.get("imported"):
        unknown = "unknown: the imported file does not say it"
        return unknown, unknown, f"by other code; imported from {imported}"
    counts = ", ".join(f"{name} {n}" for name, n in zip(derived["classes"], derived["label_counts"], strict=True))
    large, tune = config.train.large_batch, config.tune
    target = f"the posterior mean of {large} images" if large else "the clean image"
    if generator.run.tuned:
        target = (
            f"the end of the flow, by consistency tuning of step {tune.step:,} (weights {tune.digest}) from {target}"
        )
    return (
        f"{config.data.name}, {derived['train_images']} training images ({counts})",
        derived.get("licence", "not recorded"),
        (f"from the weights of {printable(config.train.init)}, " if config.train.init else "")
        + f"{generator.step * config.train.batch:,} images at batch {config.train.batch}, "
        f"learning rate {derived['lr']:.2e}, "
        f"target {target}; the weights are the "
        f"exponential moving average, half-life {config.train.ema_halflife:,} images",
    )


def model_card(generator, sampled, results):
    """The model card of a Generator, Markdown: data and licence, process, budget, figures with their protocol."""
    config, derived = generator.config, generator.derived
    process = generator.process
    trained_on, licence, training = _origin(generator)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(generator.params))
    title = f"{process.name}, {derived.get('imported') or config.data.name}, {'×'.join(map(str, derived['shape']))}"
    figures = "\n\n".join(_figures(name, record) for name, record in results.items())
    return f"""# {title}

![samples](samples.png)

*{sampled}. Not chosen.*

| | |
|---|---|
| data | {trained_on} |
| licence of the data | {licence} |
| process | {process.name}, D = {process.D:g}, σ from {process.sigma_max:.4g} to {process.sigma_min:.4g} |
| network | {config.model.name}, {parameters:,} parameters{", class-conditional" if config.model.conditional else ""} |
| trained | {training} |

```python
import jax, pfgm_jax

g = pfgm_jax.load("THIS_FOLDER")
images, stats = g.sample(jax.random.key(0), 16)
```

## Figures

{figures or "None measured: evaluate the run before it is exported."}

## Limits

Images drawn by this network are synthetic. They follow its training set, with that set's classes, their frequencies
and its biases, and may resemble single training images. They are no substitute for real images in a diagnosis.
"""
