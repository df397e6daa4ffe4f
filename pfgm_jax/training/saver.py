"""Checkpoints written by a thread, while training goes on."""

from concurrent.futures import ThreadPoolExecutor


class Saver:
    """Writes one checkpoint at a time; leaving its block waits for the last one.

    What goes wrong in the thread is raised by the next call of any method, as what the thread raised.

        with Saver(write) as saver:
            saver.begin(step, state)
    """

    def __init__(self, write):
        """write: called in the thread with the arguments of `begin`."""
        self._write, self._pending = write, None
        self._pool = ThreadPoolExecutor(1, "pfgm_jax save")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self._pool.shutdown()
        if kind is None:  # else what ended the block is what counts
            self.wait()

    def begin(self, *args):
        """Begins to write, after what was begun before is written. The arguments are the thread's own from now on."""
        self.wait()
        self._pending = self._pool.submit(self._write, *args)

    def check(self):
        """Raises what went wrong, if the thread has come to its end."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self):
        """Waits until everything begun is written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
