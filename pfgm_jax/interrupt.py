"""SIGTERM and Ctrl-C: answered at once, obeyed where nothing is lost."""

import os
import signal
import sys
import threading

# Seconds that the first signal leaves for an orderly end, where nothing else is said, and that the second leaves.
GRACE, AT_ONCE = 15.0, 2.0


class Interrupted(KeyboardInterrupt):
    """A stop that a signal asked for; `code` is the exit code that says which, 143 for SIGTERM and 130 for Ctrl-C."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Interrupt:
    """Hears SIGTERM and Ctrl-C while its block runs.

    The first raises `Interrupted` where the program is, or, once `defer` was called, only sets `asked`, to be looked at
    between two steps. The second raises in either case. Python runs no handler while the main thread is inside the
    compiler, and an exception that is raised inside a callback of JAX's is lost: where the block has not ended `grace`
    seconds after the first signal, or AT_ONCE after the second, the process is ended. For the same reason a thread
    answers, which is woken as the signal arrives.

    Signals belong to the main thread; in another one (a notebook's worker) they stay as they are.

    Args:
      answer: what is said to the first signal before `defer`.
      grace: seconds that the first signal leaves; a notebook or a prompt has no such end.
      stands: `() -> text`, what is left, said when the process is ended.

    Attributes:
      asked: number of the first signal, None before.
    """

    def __init__(self, answer="stopping", grace=None, stands=lambda: "what was finished is kept"):
        self._said, self._grace, self._stands = answer, GRACE if grace is None else grace, stands

    def __enter__(self):
        self.asked, self._heard, self._deferring, self._before = None, 0, False, {}
        if threading.current_thread() is not threading.main_thread():
            return self
        self._over = threading.Event()
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._hear)
        self._woken_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._unraisable_before, sys.unraisablehook = sys.unraisablehook, self._lost
        self._thread = threading.Thread(target=self._answer, args=(reader,), name="pfgm_jax signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._woken_before)
        sys.unraisablehook = self._unraisable_before
        self._over.set()
        os.close(self._writer)  # ends the thread, which first says what it has to say
        self._thread.join()

    def defer(self):
        """From now on the first signal only sets `asked`."""
        self._deferring, self._said = True, "stopping after this step"
        self.check()

    def check(self):
        """Raises Interrupted after a signal whose exception was lost."""
        if self.asked is not None:
            raise Interrupted(self.asked)

    def _lost(self, unraisable):
        """Python reports an exception that a callback of JAX's swallowed; of an Interrupted, `check` knows."""
        if not isinstance(unraisable.exc_value, Interrupted):
            self._unraisable_before(unraisable)

    def abandoning(self, act, *args):
        """`act(*args)` after `defer`, left where it is by the first signal, before which it is not begun: None then."""
        try:
            self._deferring = False
            try:
                return act(*args) if self.asked is None else None
            finally:
                self._deferring = True
        except Interrupted:
            if self._heard > 1:
                raise
            self._deferring = True
        return None

    def _hear(self, number, frame):
        self._heard += 1
        again = self._heard > 1
        self.asked = self.asked or number
        if again or not self._deferring:
            raise Interrupted(number)

    def _answer(self, reader):
        heard = 0
        with open(reader, "rb", buffering=0) as signals:
            while byte := signals.read(1):
                number = byte[0]
                if number not in self._before:
                    continue
                heard += 1
                name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
                said = f"{self._said}; again to stop now" if heard == 1 else "stopping now"
                print(f"\n{name}: {said}", file=sys.stderr, flush=True)
                threading.Thread(target=self._end, args=(heard, number), daemon=True).start()

    def _end(self, heard, number):
        """Ends the process where its block does not end by itself."""
        seconds = min(self._grace if heard == 1 else AT_ONCE, threading.TIMEOUT_MAX)  # infinite: as long as it takes
        if not self._over.wait(seconds) and not _interactive():
            if heard == 1:
                print(f"\nnot finished after {seconds:g} s, ending now; {self._stands()}", file=sys.stderr, flush=True)
            os._exit(128 + number)


def _interactive():
    """Whether a person's session would end with the process: a notebook or a prompt."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules
