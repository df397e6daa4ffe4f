"""A run made ready to travel: a folder with its EMA weights, config, model card and pictures; `load` opens it.

What the release gate refuses is exported only with export.force, and the model card says so.
"""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from pfgm_jax import __version__, plots, run_record
from pfgm_jax import run as run_lib
from pfgm_jax.errors import UserError, printable
from pfgm_jax.evaluation import protocol
from pfgm_jax.exchange import release_gate
from pfgm_jax.sampling import schedules
from pfgm_jax.storage import atomic, safetensors
from pfgm_jax.training import monitor

FULL = 300  # samples, of records that do not say themselves whether they are of the full protocol


def export(workdir, overrides):
    """Writes workdir/export: model.safetensors, config.json, samples.png, copies.png and README.md, the model card.

    With export.dtype=bfloat16 the weights are rounded first: what is sampled and examined is what is written. The
    folder of the data stays behind.

    Returns the lines that say so.

    Raises:
      UserError: no run or checkpoint in workdir, a folder that cannot be written, or weights that the release gate
        refuses.
    """
    generator = protocol.open_run(workdir, overrides, conditioned=True)
    force, results = generator.config.export.force, _results(workdir, generator.weights_digest)
    generator = generator.with_params(_rounded(generator.params, generator.config.export.dtype))
    generator.labels()  # those that the network does not know are refused before anything is written
    folder = atomic.writable(pathlib.Path(workdir, "export"))
    gate = release_gate.examine(generator, workdir)
    if gate.reasons and not force:
        panel = f"; look at {gate.panel}" if gate.panel else ""
        raise UserError(f"not exported: {'; '.join(gate.reasons)}{panel}; export.force=True exports anyway")
    picture, how = _shown(generator)
    card = model_card(generator, how, results, gate)
    try:
        return _write(generator, folder, picture, card, gate)
    except OSError as error:
        raise UserError(f"nothing usable was exported: {atomic.unwritable(folder, error)}") from None


def _shown(generator):
    """(a picture of what the network makes, how it was made): samples, or restorations of real images."""
    if generator.run.condition:
        dataset = protocol.real_images(generator)
        name = next(name for name in ("val", "test", "train") if len(getattr(dataset, name)))
        split, key = getattr(dataset, name), jax.random.key(generator.config.sample.seed)
        shown = min(len(split), monitor.RESTORED)
        how = f"Restorations of the first {shown} images of {name}, conditioned on {generator.run.condition}"
        return monitor.restored(generator, split, key), how
    settings = dataclasses.replace(generator.settings, guide=protocol.guide_of(generator))
    images, stats = generator.sample(settings=settings)
    return plots.picture(images), protocol.sampled(generator, settings, stats)


def _rounded(params, dtype):
    """The weights in float32 as they are, or as bfloat16 holds them: half the bytes, three digits."""
    if dtype == "float32":
        return params
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16).astype(leaf.dtype), params)


def _write(generator, folder, picture, card, gate):
    """Writes the exported folder; returns the lines that say so."""
    dtype = generator.config.export.dtype
    if generator.config.sample.guide:  # which stays behind
        generator = generator.with_overrides({"sample.guide": "", "sample.guidance": 1.0})
    generator = generator.with_overrides({"data.dir": "", "export.force": False, "export.dtype": "float32"})
    config, derived = generator.config, generator.derived | {"step": generator.step}
    imported = derived.get("imported")
    origin = (
        {"imported": imported}
        if imported
        else {"images": run_lib.seen(generator.run.init_images, generator.step * config.train.batch)}
    )
    fingerprint = run_record.fingerprint(run_record.record(config, derived))
    about = origin | {"pfgm_jax": __version__, safetensors.CONFIG: fingerprint}
    params = generator.params
    if dtype == "bfloat16":  # exact: they were rounded before
        params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), params)
    safetensors.save(folder / safetensors.EXPORTED, params, about)
    plots.save(picture, folder / "samples.png")
    panel = release_gate.take_panel(gate, folder)
    atomic.write_text(folder / "README.md", card)
    if generator.schedule is not None and generator.schedule.weights == generator.weights_digest:
        schedules.save(folder, generator.schedule)
    run_record.save(folder, config, derived)  # last: it makes the folder a run
    names = (safetensors.EXPORTED, "config.json", "samples.png", *([panel] if panel else []), "README.md")
    lines = [f"exported   {folder}", *(f"  {name:18}{(folder / name).stat().st_size:>12,} bytes" for name in names)]
    return "\n".join([*lines, *(f"gate       {line}" for line in (*_verdict(gate), *gate.lines))])


def _verdict(gate):
    """What the gate says, in a line or a few."""
    return tuple(f"refused, and exported by force: {reason}" for reason in gate.reasons) or (
        ("passed",) if gate.panel else ()
    )


def _results(workdir, weights):
    """{name: record} of the run's results/*.json, those with scores and the protocol that they were measured by.

    Figures of other weights than those with the digest `weights` stay out, such as of an earlier checkpoint, and of
    fewer samples than the protocol asks for, and those of anyone's images (`audit-…`). Older records do not name their
    weights.
    """
    records = {}
    for path in sorted(pathlib.Path(workdir, "results").glob("*.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        scored = isinstance(record, dict) and {"scores", "protocol"} <= record.keys()
        own = scored and record.get("weights", weights) == weights
        if own and record.get("full", _fewest(record) >= FULL) and not path.name.startswith("audit-"):
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
    falling = f", falling by a cosine to {config.optim.lr_end:g} of it" if config.optim.decay == "cosine" else ""
    target = f"the posterior mean of {large} images" if large else "the clean image"
    if generator.run.tuned:
        target = (
            f"the end of the flow, by consistency tuning of step {tune.step:,} (weights {tune.digest}) from {target}"
        )
    return (
        f"{config.data.name}, {derived['train_images']} training images ({counts})",
        derived.get("licence", "not recorded"),
        (f"from the weights of {printable(config.train.init)}, " if config.train.init else "")
        + f"{generator.run.images_seen(generator.step)} at batch {config.train.batch}, "
        f"{config.optim.name} at a learning rate of {derived['lr']:.2e}{falling}, "
        f"target {target}; the weights are the "
        f"exponential moving average, half-life {config.train.ema_halflife:,} images",
    )


def _release(gate):
    """The gate as Markdown: its verdict, its measurements and its picture."""
    lines = [*_verdict(gate), *gate.lines]
    if not lines:
        return "Nothing was examined."
    panel = f"![the samples closest to training images]({release_gate.PANEL})\n\n" if gate.panel else ""
    return panel + "\n".join(f"* {line}" for line in lines)


_SAMPLE = "images, stats = g.sample(jax.random.key(0), 16)"
_MEASURE = "evaluate the run before it is exported"
_MEASURE_CONDITIONED = "`--mode=restore` with `restore.simulate=True` measures restorations of images that are known"
_RESTORE = """measurements, how = g.measured(clean_images)  # or measurements of your own
result = g.restore(measurements, n=8, **how)  # draws, mean, std"""


def model_card(generator, sampled, results, gate=release_gate.Gate()):  # noqa: B008, a constant
    """The model card of a Generator, Markdown: data and licence, process, budget, figures with protocol, the gate."""
    config, derived = generator.config, generator.derived
    process = generator.process
    trained_on, licence, training = _origin(generator)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(generator.params))
    title = f"{process.name}, {derived.get('imported') or config.data.name}, {'×'.join(map(str, derived['shape']))}"
    figures = "\n\n".join(_figures(name, record) for name, record in results.items())
    network = f"{config.model.name}, {parameters:,} parameters"
    network += ", class-conditional" if config.model.conditional else ""
    network += f", conditioned on {generator.run.condition}" if generator.run.condition else ""
    use, how = (_RESTORE, _MEASURE_CONDITIONED) if generator.run.condition else (_SAMPLE, _MEASURE)
    return f"""# {title}

![samples](samples.png)

*{sampled}. Not chosen.*

| | |
|---|---|
| data | {trained_on} |
| licence of the data | {licence} |
| process | {process.name}, D = {process.D:g}, σ from {process.sigma_max:.4g} to {process.sigma_min:.4g} |
| network | {network} |
| trained | {training} |

```python
import jax, pfgm_jax

g = pfgm_jax.load("THIS_FOLDER")
{use}
```

## Figures

{figures or f"None measured: {how}."}

## Copies and membership

{_release(gate)}

## Limits

Images drawn by this network are synthetic. They follow its training set, with that set's classes, their frequencies
and its biases, and may resemble single training images. They are no substitute for real images in a diagnosis:
nobody has tested what a reader or a classifier would miss who learned from them. That no copies were found, and no
membership by this attack, is no proof of privacy.
"""
