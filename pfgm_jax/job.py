"""The job that this process belongs to, if there are several: how a process that ends notifies the others.

All keep a connection to the first process (JAX's coordination service), where one that stops leaves its last words.
The others look for them every half a second, from a thread, so that they stop with the same line and exit code,
wherever they are.
"""

import contextlib
import json
import os
import sys
import threading
import time

from pfgm_jax.errors import UserError, printable

PATIENCE = "PFGM_JAX_PATIENCE"
LOST = 75  # exit code after another process was lost: the same command may well succeed later
HANGS = 30  # in times of the patience: a process that is waited for so long is taken to hang
_EVER = 10**6  # seconds
_KEY = "pfgm_jax/stopped"


class Lost(UserError):
    """Another process has gone; main ends with exit code `code`."""

    code = LOST


class _Job:
    client = None  # of JAX's coordination service; None where this process is alone
    number = 0  # of this process
    listener = None  # the thread that receives the others' messages
    over = threading.Event()
    ending = threading.Lock()  # taken, for good, by the thread that ends this process


def patience():
    """Seconds after which a silent process counts as dead: PFGM_JAX_PATIENCE, or 60; UserError if unreadable."""
    try:
        seconds = int(os.environ.get(PATIENCE) or 60)
    except ValueError:
        seconds = 0
    if seconds < 1:
        raise UserError(f"{PATIENCE} must be a whole number of seconds, at least 1")
    return seconds


def joined():
    """Whether this process is one of several."""
    return _Job.client is not None


def is_first():
    """Whether this is the process that writes files and prints."""
    return _Job.number == 0


def start(client, number):
    """Hears the other processes from now on, as process `number`."""
    _Job.client, _Job.number = client, number
    _Job.listener = threading.Thread(target=_listen, name="pfgm_jax job", daemon=True)
    _Job.listener.start()


def stop():
    """Hears the others no more: all is done."""
    _Job.over.set()
    _Job.listener.join()
    _Job.client = None


def meet(bounded):
    """Waits until all processes are here. Devices that wait for others' may give up: those of CPUs after half a minute.

    bounded: one that is waited for HANGS times the patience is taken to hang.

    Raises:
      Lost: another process has died, or hangs.
    """
    seconds = HANGS * patience() if bounded else _EVER
    try:
        _Job.client.wait_at_barrier("pfgm_jax/meeting", 1000 * seconds)
    except Exception as error:
        raise Lost("another process was lost, or hangs: the same command continues from the last checkpoint") from error


def _listen():
    while not _Job.over.wait(0.5):
        try:
            number, code, line = json.loads(_Job.client.key_value_try_get(_KEY))
        except Exception:  # no word yet; or no connection, of which JAX itself tells
            continue
        if number != _Job.number:
            _Job.ending.acquire()
            print(f"\npfgm_jax: process {number}: {printable(line)}", file=sys.stderr, flush=True)
            _end(code)
        return


def leave(code, line, said=False):
    """Ends this process with a line, unless it was `said`, once the others could receive it; they end alike."""
    if _Job.number:
        time.sleep(1)  # where all stop for one reason, the first process prints: only it knows the run's folder
    _Job.ending.acquire()  # where the others' word has arrived, that is what ends this process
    with contextlib.suppress(Exception):  # the connection is lost: they notice by the silence
        _Job.client.key_value_set(_KEY, json.dumps([_Job.number, code, line]))
    if not said:
        print(f"pfgm_jax: {line}", file=sys.stderr, flush=True)
    _end(code)


def _end(code):
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # The first process holds what all listen to: were it gone, JAX would end them without a word.
    time.sleep(1 if _Job.number else 3)
    os._exit(code)  # JAX's own end would wait for processes that do not come
