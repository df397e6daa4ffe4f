"""`--mode=average`: how long the weights' average should be, by the loss of held-out images (arXiv 2312.02696, 3.2)."""

import json
import pathlib

import numpy as np
from tqdm.auto import tqdm

from pfgm_jax import averages, data, parallel, plots, stored_run
from pfgm_jax import generator as generator_lib
from pfgm_jax.errors import UserError
from pfgm_jax.metrics.tables import aligned
from pfgm_jax.storage import atomic
from pfgm_jax.training.step import make_task
from pfgm_jax.training.validation import evaluate_losses, make_batches

LENGTHS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.12, 0.15, 0.20, 0.25)


def compare(workdir, overrides):
    """Losses of validation images by relative width, at the newest checkpoint: a table, a picture, a JSON file.

    Raises:
      UserError: a run that tracked no averages or has none of its newest checkpoint, or a data set without validation
        images.
    """
    generator = generator_lib.load(workdir).with_overrides(overrides)
    if not generator.config.train.power_ema:
        raise UserError(f"{workdir} was trained without train.power_ema=True, so the length of its average is fixed")
    val = data.load(generator.config.data).val
    if not len(val):
        raise UserError("the data set has no validation images: data.val=0.1 sets some aside")
    folder = atomic.writable(pathlib.Path(workdir, "results"))
    least, most = averages.possible(averages.required(stored_run.folder(workdir), generator.step))
    loss = _loss(generator, val)
    rows = {"the run's own": loss(generator.with_overrides({"sample.ema_width": 0.0}).params)}
    for width in tqdm([w for w in LENGTHS if least <= w <= most], desc="averages"):
        rows[width] = loss(generator.with_overrides({"sample.ema_width": width}).params)
    best = min((name for name in rows if name != "the run's own"), key=rows.get)
    record = {"step": generator.step, "images": len(val), "losses": {str(name): value for name, value in rows.items()}}
    with atomic.writing_to(folder):
        atomic.write_text(folder / "average.json", json.dumps(record, indent=1) + "\n")
        _draw(rows, best, folder / "average.png")
    table = aligned([["relative width", "validation loss"], *([f"{n}", f"{v:.5f}"] for n, v in rows.items())])
    return (
        f"{table}\n\nloss of {len(val):,} validation images, the same noise for all, after step {generator.step:,}\n"
        f"  picture    {folder / 'average.png'}\n"
        f"  the best   --config.sample.ema_width={best:g}, with any mode that uses the run"
    )


def _loss(generator, val):
    """`params -> mean loss` of the validation images, as training measures it."""
    task = make_task(generator.config, generator.derived)
    batches = make_batches(len(val), task.batch)
    images = parallel.replicate((np.asarray(val.images), val.labels))
    return lambda params: float(evaluate_losses(task, parallel.replicate(params), *images, batches)[0])


def _draw(rows, best, path):
    from matplotlib.figure import Figure  # no pyplot: no global state and no screen

    canvas = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = canvas.subplots()
    plots.use_palette(axes)
    widths = [name for name in rows if name != "the run's own"]
    axes.plot(widths, [rows[width] for width in widths], marker="o", label="averages of other lengths")
    axes.plot([best], [rows[best]], marker="o", markersize=10, fillstyle="none", linestyle="", label=f"best: {best:g}")
    axes.axhline(rows["the run's own"], color="grey", linestyle="--", label="the run's own average")
    axes.set(xlabel="relative width of the average", ylabel="validation loss")
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(frameon=False, fontsize="small")
    plots.save_figure(canvas, path)
