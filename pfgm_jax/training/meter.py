"""The speed of training between two log lines, and what it waited for."""

import contextlib
import time


class Meter:
    """Images a second, the share of the time that was spent waiting for input, and seconds of waiting for checkpoints.

    Until the first `start` neither of the first two is measured: the first device call compiles.
    """

    def __init__(self, batch):
        """batch: images in a step."""
        self._batch, self._begun, self._step, self._waited, self._saving = batch, None, 0, 0.0, 0.0

    @property
    def running(self):
        return self._begun is not None

    def start(self, step):
        """Measures from now, the end of `step`, on."""
        self._begun, self._step, self._waited, self._saving = time.perf_counter(), step, 0.0, 0.0

    @contextlib.contextmanager
    def waiting(self):
        """Around a wait for input."""
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    @contextlib.contextmanager
    def saving(self):
        """Around a wait for a checkpoint: for the one before it to be written, and for a copy of the state."""
        begun = time.perf_counter()
        yield
        self._saving += time.perf_counter() - begun

    @contextlib.contextmanager
    def paused(self):
        """Around what is no training: it does not count."""
        begun = time.perf_counter()
        yield
        self._begun += time.perf_counter() - begun

    def lap(self, step):
        """{name: value} from `start` to the end of `step`, and starts again; no speed where no step has ended since."""
        seconds, images = time.perf_counter() - self._begun, (step - self._step) * self._batch
        speed = {"images_per_second": images / seconds, "input_wait": self._waited / seconds} if images else {}
        rates = speed | {"save_wait": self._saving}
        self.start(step)  # at once: writing a log line takes time too
        return rates
