"""Run logging: metrics.jsonl, TensorBoard events, pictures, and a progress bar."""

import contextlib
import json
import pathlib
import sys
import time

import numpy as np
from tqdm.auto import tqdm

from pfgm_jax.storage import atomic
from pfgm_jax.storage.metrics_file import read_metrics


class Log:
    """Writes scalars and pictures of a run to its directory and its progress to stderr.

    Args:
      workdir: the run directory.
      images: images to train in all. done: images trained before.
    """

    def __init__(self, workdir, images, done=0):
        self.workdir = pathlib.Path(workdir)
        self._forget_after(done)
        self._events = _Events(self.workdir / "tensorboard", purge=done + 1)
        # A terminal gets a live bar; a file gets a line now and then.
        interval = 0.2 if sys.stderr.isatty() else 10.0
        options = dict(unit="img", unit_scale=True, mininterval=interval, dynamic_ncols=True, smoothing=0.1)
        self._bar = tqdm(total=images, initial=done, desc="train", **options)

    def _forget_after(self, images):
        """Drops records after `images`: a resumed run writes them again."""
        path = self.workdir / "metrics.jsonl"
        if path.exists():
            kept = [json.dumps(record) + "\n" for record in read_metrics(self.workdir) if record["images"] <= images]
            atomic.write_text(path, "".join(kept))

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
        self._events.scalars(images, values)

    def picture(self, images, tag, picture):
        """A PIL image for TensorBoard."""
        self._events.picture(images, tag, picture)

    def doing(self, what="train"):
        """Labels the bar with the current activity: "train", "evaluating", "saving"."""
        self._bar.set_description(what)

    def say(self, text):
        """A line above the bar."""
        self._bar.write(text, file=sys.stderr)

    def close(self):
        self.doing()
        self._bar.close()
        self._events.close()


class Quiet:
    """The Log of a process that is not the first of several: it writes and says nothing."""

    def __init__(self, *_):
        nothing = lambda *_: None
        self.progress = self.scalars = self.picture = self.doing = self.say = self.close = nothing


class _Events:
    """A TensorBoard event file, written by the caller's thread.

    tensorboardX's own writer runs in a thread: its errors (a full disk) are lost, and the caller then blocks.
    """

    def __init__(self, folder, purge):
        """purge: TensorBoard drops events of earlier files from this step on."""
        from tensorboardX import summary  # pulls protobuf in
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._summary, self._event = summary, Event
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._file.write_event(Event(step=purge, file_version="brain.Event:2"))
        self._file.write_event(Event(step=purge, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step, values):
        for name, value in values.items():
            self._write(step, self._summary.scalar(name, value))
        self._file.flush()

    def picture(self, step, name, picture):
        self._write(step, self._summary.image(name, np.asarray(picture.convert("RGB")), dataformats="HWC"))
        self._file.flush()

    def _write(self, step, summary):
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self):
        with contextlib.suppress(OSError, ValueError):  # every line was flushed; ValueError: closed already
            self._file.close()
