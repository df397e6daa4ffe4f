"""What a run tells while it works: metrics.jsonl, TensorBoard events, a progress bar, pictures."""

import json
import pathlib
import sys

import numpy as np
from tqdm import tqdm

from pfgm_jax import files


class Log:
    """Writes scalars and pictures of a run to its directory and its progress to stderr.

    Args:
      workdir: the run directory.
      images: images to train in all. done: images trained before.
    """

    def __init__(self, workdir, images, done=0):
        from tensorboardX import SummaryWriter  # pulls protobuf in

        self.workdir = pathlib.Path(workdir)
        self._forget_after(done)
        self._events = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=done + 1)
        # A terminal gets a live bar; a file gets a line now and then.
        interval = 0.2 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(total=images, initial=done, unit="img", unit_scale=True, mininterval=interval, desc="train",
                         dynamic_ncols=True, smoothing=0.1)  # fmt: skip

    def _forget_after(self, images):
        """A resumed run repeats what came after its checkpoint: those lines would stand twice."""
        path = self.workdir / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _images_of(line) <= images]
            files.write_text(path, "".join(line + "\n" for line in lines))

    def progress(self, images, loss=None):
        """Moves the bar to `images`."""
        if loss is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update(images - self._bar.n)

    def scalars(self, images, values):
        """One line of metrics.jsonl and TensorBoard scalars at `images` trained."""
        values = {key: float(value) for key, value in values.items()}
        with open(self.workdir / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"images": images} | values) + "\n")
        for key, value in values.items():
            self._events.add_scalar(key, value, images)
        self._events.flush()

    def picture(self, images, tag, picture):
        """A PIL image for TensorBoard."""
        self._events.add_image(tag, np.asarray(picture.convert("RGB")), images, dataformats="HWC")

    def phase(self, what):
        """What the bar says it is doing."""
        self._bar.set_description(what)

    def say(self, text):
        """A line above the bar."""
        self._bar.write(text, file=sys.stderr)

    def close(self):
        self._bar.close()
        self._events.close()


def _images_of(line):
    """The `images` of a line of metrics.jsonl; a line cut off by a kill counts as infinitely late."""
    try:
        return json.loads(line)["images"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(workdir):
    """The lines of a run's metrics.jsonl as dicts, in order."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
