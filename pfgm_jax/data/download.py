"""Files from their official URLs: checked, whole or not at all, and continued where a connection was cut.

What has come is kept as NAME.part beside NAME, with the server's ETag in NAME.part.etag: the next attempt, of this run
or of a later one, asks for the rest. NAME itself appears only once its checksum is right. A server that is busy, or a
connection that breaks or brings next to nothing, is tried again a few times, after waits that grow.
"""

import contextlib
import email.utils
import errno
import http.client
import os
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm.auto import tqdm

from pfgm_jax.errors import UserError, counted, printable
from pfgm_jax.storage import atomic, digests

TIMEOUT = 10  # seconds without a byte
CONNECT = 15  # seconds until there is an answer
BLOCK = 2**20
MAX_BYTES = 64 * 10**9  # of a file; the largest of MedMNIST's has 17 GB
SLOW_SECONDS, SLOW_BYTES = 30, 30 * 2**10  # so few bytes in so many seconds are a connection that stalls
TRIES = 4  # in a row that bring no more than SLOW_BYTES
WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the second try, doubled for each; the longest that a server may ask for
BUSY = (408, 429, 500, 502, 503, 504)  # statuses that may be others a little later


def cache_dir() -> Path:
    """Where downloaded files are kept: $PFGM_JAX_CACHE/data, else ~/.cache/pfgm_jax/data."""
    return atomic.cache_root() / "data"


def verify(path: Path, expected: str, advice: str, name: str = "") -> None:
    """UserError, naming the file `name` or by its path, unless its MD5 (32 digits) or SHA-256 (64) is `expected`."""
    kind = {32: "MD5", 64: "SHA-256"}[len(expected)]
    try:
        actual = digests.of_file(path, kind.lower().replace("-", ""))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})") from error
    if actual != expected:
        what = f"{name or path} is not the official file ({kind} expected {expected}, found {actual})"
        raise UserError(f"{what}: {advice}")


def cached(url: str, name: str, checksum: str) -> Path:
    """The file `name` of the cache, downloaded from `url` if it is not there; always of that MD5 or SHA-256."""
    path = cache_dir() / name
    if path.exists():
        verify(path, checksum, "delete it, and the next run downloads it again")
    else:
        fetch(url, path, checksum)
    return path


def page(url: str, elsewhere: str) -> str:
    """The text of a small page, at most 1 MB of it. UserError, with the advice `elsewhere`, where it does not come."""
    try:
        with _open(urllib.request.Request(url, headers={"User-Agent": "pfgm_jax"})) as response:
            return response.read(BLOCK).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot read {url} ({one_line(error)}): check the network, or {elsewhere}") from error


def fetch(url: str, path: Path, checksum: str, elsewhere: str = "") -> None:
    """Downloads `url` to `path`, where the file appears whole and checked or not at all.

    A second process that asks for the same file waits for the first.

    Args:
      checksum: MD5 or SHA-256, in hexadecimal digits.
      elsewhere: what errors advise in place of this download; "": to get the file by other means, for `data.dir`.

    Raises:
      UserError: no connection, a connection cut for good (what has come is kept), a wrong checksum, no room.
    """
    elsewhere = elsewhere or f"get {path.name} by other means and pass data.dir=FOLDER"
    part = path.with_name(path.name + ".part")
    with _disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(part, elsewhere) as stream:
        if path.exists():  # another process was first
            _forget(part)
            return
        for again in (False, True):
            resumed = _receive(url, part, stream, elsewhere)
            try:
                verify(part, checksum, f"run again, or {elsewhere}", name=f"what came from {url}")
                break
            except UserError:
                stream.truncate(0)
                if again or not resumed:
                    _forget(part)
                    raise  # otherwise the pieces may be of two files: once more from the start
        with _disk(path):
            os.replace(part, path)
        _forget(part)


def _receive(url, part, stream, elsewhere):
    """Fills the part file from where it ends to the file's end, over as many connections as that takes.

    Returns whether it held something before. UserError for what trying again does not mend, or did not.
    """
    before = most = stream.seek(0, os.SEEK_END)
    failures, name = 0, part.name.removesuffix(".part")
    while True:
        wait = WAIT * 2**failures
        try:
            if _attempt(url, part, stream):
                return before > 0
            reason = "the connection was cut"
        except (OSError, http.client.HTTPException) as error:
            reason, requested = one_line(error), _retry_after(error)
            wait = requested if requested is not None else wait
            failures = failures if _may_pass(error) else TRIES
        now = stream.seek(0, os.SEEK_END)
        if now > most + SLOW_BYTES:
            failures, most, wait = 0, now, 0.0
        else:
            failures += 1
        if failures >= TRIES or wait > LONGEST_WAIT:
            kept = f"; the first {now / 1e6:.1f} MB are kept" if now else ""
            if not now:
                _forget(part)
            asks = f", and asks to wait {wait:.0f} s" if wait > LONGEST_WAIT else ""
            advice = f"check the network{' and run again' if now else ''}, or {elsewhere}"
            raise UserError(f"cannot download {url} ({reason}{asks}{kept}): {advice}")
        if failures:
            print(f"{name}: {reason}; try {failures + 1} of {TRIES} in {wait:.3g} s", file=sys.stderr)
            time.sleep(wait)


def _may_pass(error):
    """Whether the same request may succeed a little later."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in BUSY
    broken = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, http.client.HTTPException, _Stalled)
    return isinstance(getattr(error, "reason", error), broken)


def _retry_after(error):
    """Seconds that a server asks to wait, or None: the header Retry-After is a number of them or a date."""
    text = (getattr(error, "headers", None) or {}).get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


class _Stalled(TimeoutError):
    """A connection that is open and brings next to nothing."""


def _attempt(url, part, stream):
    """One connection: appends what comes to `stream`; returns whether that was all. OSError or HTTPException."""
    have, etag = stream.seek(0, os.SEEK_END), part.with_name(part.name + ".etag")
    headers = {"User-Agent": "pfgm_jax"}
    if have:
        headers["Range"] = f"bytes={have}-"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if (tag := etag.read_text()).isascii() and tag.isprintable():
                headers["If-Range"] = tag  # another file since then comes whole
    try:
        response = _open(urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        error.close()
        if not have or error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # The part is as long as the file, or longer than another that is there now.
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return True
        stream.truncate(0)
        return _attempt(url, part, stream)
    with response:
        continued = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status != http.client.PARTIAL_CONTENT:
            stream.truncate(0)
            have = stream.seek(0)
        elif not continued:
            raise OSError("the server sent a different part than requested")
        with _disk(part):
            tag = response.headers.get("ETag", "")
            if tag.startswith('"'):  # a weak one does not promise the same bytes
                etag.write_text(tag)
            else:
                etag.unlink(missing_ok=True)
        total = None if response.length is None else have + response.length  # of Content-Length, if it is a number
        _check_length(part, total or 0)
        free = shutil.disk_usage(part.parent).free
        if total and total - have > free:
            raise UserError(_no_room(part, f"{(total - have) / 1e6:.0f} MB to download, {free / 1e6:.0f} MB free"))
        for block in _blocks(response, part.name.removesuffix(".part"), have, total):
            with _disk(part):
                stream.write(block)
                stream.flush()
            have += len(block)
            _check_length(part, have)
    return total is None or have == total


def _check_length(part, length):
    """UserError, and nothing is kept, where a file has or would have more than MAX_BYTES."""
    if length > MAX_BYTES:
        _forget(part)
        name, most = part.name.removesuffix(".part"), f"{MAX_BYTES / 1e9:.3g} GB"
        raise UserError(f"{name} has more than {most}, above any expected size: the server sends something else")


def _blocks(response, name, have, total):
    """Yields what comes, with a progress bar; _Stalled where that is next to nothing."""
    since, until = 0, time.monotonic() + SLOW_SECONDS
    with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name) as bar:
        while block := response.read1(BLOCK):
            yield block
            since += len(block)
            bar.update(len(block))
            if time.monotonic() > until:
                if since < SLOW_BYTES:
                    raise _Stalled(f"only {counted(since, 'byte')} in {SLOW_SECONDS:g} s")
                since, until = 0, time.monotonic() + SLOW_SECONDS


def _open(request):
    """`urlopen` that gives up after CONNECT seconds in all: its own timeout is for each address of a host in turn."""
    answer = []

    def ask():
        try:
            answer.append(urllib.request.urlopen(request, timeout=TIMEOUT))
        except Exception as error:
            answer.append(OSError(one_line(error)) if isinstance(error, ValueError) else error)  # an odd address

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT)
    if not answer:
        raise TimeoutError(f"no answer within {CONNECT} s")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


@contextlib.contextmanager
def _alone(part, elsewhere):
    """The part file, open at its end, held by this process alone: waits for another that is downloading it."""
    name = part.name.removesuffix(".part")
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:
        raise UserError(f"this system has no flock, which downloads need: {elsewhere}") from None
    told = False
    while True:
        with _disk(part):
            stream = open(part, "ab")
        with stream:
            try:
                flock(stream, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                if not told:  # of several that wait, all but one wait again, for each other
                    print(f"another process is downloading {name}: waiting for it", file=sys.stderr)
                told = True
                flock(stream, LOCK_EX)
            # That process may have finished, or thrown the part away.
            if not part.exists() or os.fstat(stream.fileno()).st_ino != part.stat().st_ino:
                continue
            yield stream
            return


def _forget(part):
    """Removes the part file and its ETag."""
    for path in (part, part.with_name(part.name + ".etag")):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk(path):
    """Errors of the disk as one line, apart from those of the network."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(_no_room(path, one_line(error))) from error
        raise UserError(
            f"cannot write to {path.parent} ({one_line(error)}): set PFGM_JAX_CACHE to a writable folder"
        ) from error


def _no_room(path, detail):
    return f"no space in {path.parent} ({detail}): free some, or set PFGM_JAX_CACHE to a folder on another disk"


def one_line(error) -> str:
    """What an exception says, printable and without line breaks."""
    return printable(" ".join(str(error).split())) or type(error).__name__
