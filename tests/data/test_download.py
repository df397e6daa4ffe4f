"""Downloads from a server on this machine: resumed, started over, wrong, offline, two at once, without room."""

import contextlib
import email.utils
import errno
import hashlib
import http.server
import os
import shutil
import socket
import struct
import threading
import time

import numpy as np
import pytest

from pfgm_jax.data import download
from pfgm_jax.errors import UserError

BODY = np.random.default_rng(0).bytes(3 * 2**20)
OTHER = np.random.default_rng(1).bytes(2 * 2**20)


class Server:
    """A web server of one body on this machine, which notes the Range of every visit.

    ranges: whether it knows Range. cut: how many bytes an answer has at most. etag: of the body, if any.
    """

    def __init__(self, body=BODY, ranges=True, cut=None, etag='"1"', status=200, wait=0.0):
        self.body, self.ranges, self.cut, self.etag, self.status, self.wait = body, ranges, cut, etag, status, wait
        self.visits = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                server.visits.append(asked)
                body, start = server.body, 0
                time.sleep(server.wait)
                if self.headers.get("If-Range") not in (None, server.etag):
                    asked = None
                if asked and server.ranges:
                    start = int(asked.removeprefix("bytes=").removesuffix("-"))
                    if start >= len(body):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(body)}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                else:
                    self.send_response(server.status)
                if server.etag:
                    self.send_header("ETag", server.etag)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                self.wfile.write(body[start : None if server.cut is None else start + server.cut])

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # a client that goes away
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.bin?download=1"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("PFGM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "WAIT", 0.01)
    return tmp_path / "cache" / "data" / "file.bin"


def md5(body):
    return hashlib.md5(body).hexdigest()


def fails(server, path, *words, checksum=None):
    """The one line of the UserError that a download gives, which holds every one of `words`."""
    url = server if isinstance(server, str) else server.url
    with pytest.raises(UserError) as caught:
        download.fetch(url, path, checksum or md5(BODY))
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    assert [word for word in words if word not in line] == [], line
    return line


def begun(path, body, etag='"1"'):
    """What an interrupted download leaves behind."""
    path.parent.mkdir(parents=True)
    path.with_name("file.bin.part").write_bytes(body)
    if etag:
        path.with_name("file.bin.part.etag").write_text(etag)


@pytest.mark.parametrize("digest", [hashlib.md5, hashlib.sha256])
def test_downloads_once_into_the_cache(path, digest, capsys):
    checksum = digest(BODY).hexdigest()
    with Server() as server:
        for _ in range(2):
            assert download.cached(server.url, "file.bin", checksum) == path
        assert server.visits == [None]
    assert path.read_bytes() == BODY and os.listdir(path.parent) == ["file.bin"]
    assert "file.bin: 100%" in capsys.readouterr().err
    path.write_bytes(BODY[:-1])
    with pytest.raises(UserError, match="delete it, and the next run downloads it again"):
        download.cached(server.url, "file.bin", checksum)


@pytest.mark.parametrize("etag", ['"1"', None])
def test_a_cut_connection_is_continued(path, etag):
    with Server(cut=2**20, etag=etag) as server:
        download.fetch(server.url, path, md5(BODY))
        assert server.visits == [None, "bytes=1048576-", "bytes=2097152-"]
    assert path.read_bytes() == BODY and os.listdir(path.parent) == ["file.bin"]


@pytest.mark.parametrize("etag", ['"1"', None])
def test_a_later_run_goes_on_where_one_was_interrupted(path, etag):
    begun(path, BODY[:1000], etag)
    with Server() as server:
        download.fetch(server.url, path, md5(BODY))
        assert server.visits == ["bytes=1000-"]
    assert path.read_bytes() == BODY and os.listdir(path.parent) == ["file.bin"]


def test_a_part_that_is_whole_already(path):
    begun(path, BODY)
    with Server() as server:
        download.fetch(server.url, path, md5(BODY))
        assert server.visits == [f"bytes={len(BODY)}-"]
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("part", [OTHER, OTHER[:99], BODY + b"more"], ids=["longer", "shorter", "more"])
@pytest.mark.parametrize("etag", ['"2"', None])
def test_a_part_of_another_file_starts_over(path, part, etag):
    # With an ETag the server says so; without, the length or the checksum does.
    begun(path, part, etag)
    with Server() as server:
        download.fetch(server.url, path, md5(BODY))
        assert len(server.visits) <= 2
    assert path.read_bytes() == BODY and os.listdir(path.parent) == ["file.bin"]


def test_a_server_without_ranges_starts_over(path):
    begun(path, BODY[:1000])
    with Server(ranges=False) as server:
        download.fetch(server.url, path, md5(BODY))
        assert server.visits == ["bytes=1000-"]
        path.unlink()
        server.cut = 1000
        fails(server, path, "the first 0.0 MB are kept", "run again", "data.dir=FOLDER")
    assert path.with_name("file.bin.part").stat().st_size == 1000 and not path.exists()


def test_a_wrong_checksum_leaves_nothing(path):
    with Server(b"not the file") as server:
        fails(server, path, server.url, md5(BODY), md5(b"not the file"), "get file.bin by other means")
        assert server.visits == [None]
        assert os.listdir(path.parent) == []
        fails(server, path, "SHA-256", checksum="0" * 64)


def test_an_answer_that_is_an_error(path):
    with Server(status=404) as server:
        fails(server, path, server.url, "404", "data.dir=FOLDER")
    assert os.listdir(path.parent) == []


def test_offline_is_one_line_within_seconds(path, monkeypatch):
    fails("http://127.0.0.1:9/file.bin", path, "cannot download http://127.0.0.1:9/file.bin", "check the network")
    assert os.listdir(path.parent) == []
    monkeypatch.setattr(download, "CONNECT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        start = time.monotonic()
        fails(f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin", path, "no answer within 0.3 s")
        assert time.monotonic() - start < 5  # far below TIMEOUT, above any delay of a busy machine


def test_two_at_once_download_once(path, capsys):
    with Server(wait=0.5) as server:
        calls = [threading.Thread(target=download.fetch, args=(server.url, path, md5(BODY))) for _ in range(3)]
        for call in calls:
            call.start()
        for call in calls:
            call.join(30)
        assert server.visits == [None]
    assert path.read_bytes() == BODY and os.listdir(path.parent) == ["file.bin"]
    assert capsys.readouterr().err.count("another process is downloading file.bin") == 2


def test_the_one_that_waits_goes_on_where_the_first_failed(path):
    with Server(b"not the file", wait=0.5) as server:
        failed = []

        def first():
            with pytest.raises(UserError):
                download.fetch(server.url, path, md5(BODY))
            server.body, server.wait = BODY, 0
            failed.append(True)

        thread = threading.Thread(target=first)
        thread.start()
        while not server.visits:
            time.sleep(0.01)
        server.wait = 0.2
        try:
            download.fetch(server.url, path, md5(BODY))
        except UserError:  # it asked before the file was right
            download.fetch(server.url, path, md5(BODY))
        thread.join()
    assert failed and path.read_bytes() == BODY and os.listdir(path.parent) == ["file.bin"]


def test_a_full_disk_is_one_line(path, monkeypatch):
    with Server() as server:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 2**20))
            fails(server, path, f"no space in {path.parent}", "3 MB to download, 1 MB free", "PFGM_JAX_CACHE")

        class Full:
            def __init__(self, stream):
                self.stream = stream

            def write(self, _):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            def __getattr__(self, name):
                return getattr(self.stream, name)

        attempt = download._attempt
        monkeypatch.setattr(download, "_attempt", lambda url, part, stream: attempt(url, part, Full(stream)))
        fails(server, path, f"no space in {path.parent}", "No space left on device", "PFGM_JAX_CACHE")
    assert not path.exists()


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with Server() as server:
        fails(server, tmp_path / "file" / "data" / "file.bin", "cannot write to", "set PFGM_JAX_CACHE")
        assert server.visits == []


# ---- servers that are busy, break, stall, or say what makes no sense


def raw(*answers):
    """A server that sends these bytes, one answer a connection, the last of them ever after: (url, visits, close).

    An answer is bytes, or (bytes, seconds): those bytes one by one, with a pause after each.
    """
    listener, visits = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                visits.append(connection.recv(65536))
                answer = answers[min(len(visits), len(answers)) - 1]
                if answer is None:  # reset
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif isinstance(answer, bytes):
                    connection.sendall(answer)
                else:
                    for byte in answer[0]:
                        connection.sendall(bytes([byte]))
                        time.sleep(answer[1])

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/file.bin", visits, listener.close


def answer(body=b"", status="200 OK", **headers):
    given = {"Content-Length": len(body)} | {key.replace("_", "-"): value for key, value in headers.items()}
    lines = [f"{key}: {value}\r\n" for key, value in given.items() if value is not None]
    return f"HTTP/1.1 {status}\r\n{''.join(lines)}Connection: close\r\n\r\n".encode("latin-1") + body


@pytest.mark.parametrize(
    "bad",
    [answer(status=f"{code} Busy") for code in (408, 429, 500, 502, 503, 504)] + [None, b"", answer(Content_Length=9)],
)
def test_what_may_pass_is_tried_again(path, bad, capsys):
    url, visits, close = raw(bad, bad, answer(b"the file"))
    download.fetch(url, path, md5(b"the file"))
    close()
    assert path.read_bytes() == b"the file" and len(visits) == 3 and os.listdir(path.parent) == ["file.bin"]
    said = [line for line in capsys.readouterr().err.splitlines() if "; try " in line]
    assert [line.partition("; ")[2] for line in said] == ["try 2 of 4 in 0.01 s", "try 3 of 4 in 0.02 s"]


def test_tries_come_to_an_end(path):
    url, visits, close = raw(answer(status="503 Service \x1b[31mred"))
    fails(url, path, r"HTTP Error 503: Service \x1b[31mred", "check the network")
    close()
    assert len(visits) == download.TRIES


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "410 Gone"])
def test_what_will_not_pass_is_not_tried_again(path, status):
    url, visits, close = raw(answer(status=status))
    fails(url, path, status[:3])
    close()
    assert len(visits) == 1


def test_a_server_says_when_to_come_again(path, capsys):
    in_a_second = email.utils.formatdate(time.time() + 1.5, usegmt=True)
    busy = [answer(status="429 Slow down", Retry_After=after) for after in ("0", in_a_second, "soon")]
    url, visits, close = raw(*busy, answer(b"the file"))
    download.fetch(url, path, md5(b"the file"))
    close()
    waits = [
        float(line.split(" in ")[1].split()[0]) for line in capsys.readouterr().err.splitlines() if "; try " in line
    ]
    assert waits[0] == 0 and 0 <= waits[1] <= 1.5 and waits[2] == 0.04  # WAIT, doubled twice, where it makes no sense
    url, visits, close = raw(answer(status="429 Slow down", Retry_After="3600"))
    path.unlink()
    fails(url, path, "429", "asks to wait 3600 s")
    close()
    assert len(visits) == 1


@pytest.mark.parametrize("length", ["abc", "-5", "", None])
def test_a_length_that_is_no_number(path, length):
    url, _, close = raw(answer(b"the file", Content_Length=length))
    download.fetch(url, path, md5(b"the file"))
    close()
    assert path.read_bytes() == b"the file"


@pytest.mark.parametrize("length", [10**6 + 1, None], ids=["declared", "endless"])
def test_a_file_without_end_is_refused(path, length, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 10**6)
    url, _, close = raw(answer(bytes(10**6 + 1), Content_Length=length))
    fails(url, path, "file.bin has more than 0.001 GB")
    close()
    assert os.listdir(path.parent) == []


def test_a_trickle_is_given_up(path, monkeypatch):
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.15)
    url, visits, close = raw((answer(bytes(10**6)), 0.01))
    start = time.monotonic()
    fails(url, path, "in 0.15 s", "run again")
    close()
    assert time.monotonic() - start < 30 and len(visits) == download.TRIES
