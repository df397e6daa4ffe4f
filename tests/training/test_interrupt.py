"""SIGTERM and Ctrl-C are answered at once, and obeyed where nothing is lost."""

import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pfgm_jax.interrupt import Interrupt, Interrupted


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_stops_at_once_until_it_is_deferred(capsys, number, code):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, Interrupt("nothing to save"):
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert caught.value.code == code and signal.getsignal(number) is before
    assert "nothing to save; again to stop now" in capsys.readouterr().err


def test_a_deferred_signal_is_noted_and_answered(capsys):
    with Interrupt() as interrupt:
        interrupt.defer()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert interrupt.asked == signal.SIGTERM
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    assert "SIGTERM: stopping after this step; again to stop now" in capsys.readouterr().err


def test_an_exception_that_was_lost_is_raised_where_it_is_asked_for():
    class Callback:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # Python drops what is raised here

    with Interrupt() as interrupt:
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            Callback()
        finally:
            sys.unraisablehook = hook
        with pytest.raises(Interrupted):
            interrupt.defer()


def test_what_may_be_abandoned_is_left_at_the_first_signal_and_the_second_raises():
    steps = []

    def act():
        steps.append("begun")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        steps.append("went on")

    with Interrupt() as interrupt:
        interrupt.defer()
        assert interrupt.abandoning(lambda a: a + 1, 2) == 3
        assert interrupt.abandoning(act) is None and interrupt.asked == signal.SIGTERM
        assert interrupt.abandoning(act) is None and steps == ["begun"]  # not begun again
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)


def test_a_stop_may_take_as_long_as_it_takes(monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_value))
    with Interrupt(grace=math.inf) as interrupt:
        interrupt.defer()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    assert interrupt.asked == signal.SIGTERM and not raised


class _Trap:
    """An object whose end raises, as a signal does that arrives in a callback: Python can only report it."""

    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_stop_is_not_reported_as_an_error(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(type(unraisable.exc_value)))
    with Interrupt():
        _Trap(Interrupted(signal.SIGINT))
        _Trap(OSError())
    _Trap(KeyError())
    assert reported == [OSError, KeyError]


STUCK = """
import hashlib
from pfgm_jax import interrupt

interrupt.AT_ONCE = 0.3
with interrupt.Interrupt("stopping", {grace}, lambda: "all is kept") as asked:
    asked.defer()
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"p", b"s", 10**9)  # minutes without Python, as in the compiler
"""


@pytest.mark.parametrize("signals, grace", [(2, 15.0), (1, 0.5)])
def test_a_process_that_is_inside_compiled_code_answers_and_ends(signals, grace):
    """After the second signal, or when the time after the first is over."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", STUCK.format(grace=grace)], **pipes)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        lines = [process.stderr.readline() for _ in range(2)]
        assert "SIGTERM: stopping after this step" in lines[1]
        if signals == 2:
            process.send_signal(signal.SIGTERM)
        else:
            assert (
                "not finished after 0.5 s, ending now; all is kept" in [process.stderr.readline() for _ in range(2)][1]
            )
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()
        process.wait()
