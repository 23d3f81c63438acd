"""A server of files, which may fail in many ways, and models that it serves."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

import vqformat
from vqformat import safe_open

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'fsspec[http]'")
aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'fsspec[http]'")


Arrays = dict[str, np.ndarray[Any, Any]]
TAIL_NBYTES = 1 << 16  # the end of the file is read at once
HEADER_NBYTES = 16
N_LAYERS = 4
KINDS: dict[str, dict[str, Any]] = {
    "fast": {"preset": "fast"},
    "default": {},
    "small": {"preset": "small"},  # with FREQ chunks
    "shared codebook": {"recipe": {"*.weight": "kmeans:entries=16,share=all"}},  # with a BOOK chunk
    "raw": {"recipe": "raw"},
}


class Server(ThreadingHTTPServer):
    """Serves files by name, whole or a range of bytes, and notes what it has sent.

    Attributes:
        sent: Bytes of each answer to GET.
        fault: Looks at a GET, by its number and the handler, and may answer in its own way: then it is true.
        has_ranges: Whether ranges are known.
        headers: Further headers of each answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.sent: list[int] = []
        self.fault: Callable[[int, Handler], bool] | None = None
        self.has_ranges = True
        self.headers: dict[str, str] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may close before it has read everything
            super().handle_error(request, client_address)

    def url(self, data: bytes, name: str = "model.vqm") -> str:
        self.files[name] = data
        self.sent.clear()
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def asked(self) -> tuple[bytes, int, int]:
        """The file, and what is asked for of it."""
        data = self.server.files[self.path[1:]]
        asked = self.headers.get("Range")
        if asked is None or not self.server.has_ranges:
            return data, 0, len(data)
        start, last = map(int, asked.removeprefix("bytes=").split("-"))
        return data, start, min(last + 1, len(data))

    def answer(self, data: bytes, start: int, end: int, status: int = 206, n_sent: int | None = None) -> None:
        """Say that bytes ``start:end`` follow, and send them, or the first ``n_sent`` and no more."""
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        if self.server.has_ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            body = data[start:end][:n_sent]
            self.server.sent.append(len(body))
            self.wfile.write(body)
            self.close_connection = n_sent is not None

    def do_GET(self) -> None:
        fault = self.server.fault
        if fault is not None and fault(len(self.server.sent), self):
            return
        if self.path[1:] not in self.server.files:
            self.send_error(404)
            return
        data, start, end = self.asked()
        if start >= len(data):
            self.send_error(416)
            return
        self.answer(data, start, end, 206 if self.server.has_ranges and self.headers.get("Range") else 200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *args: Any) -> None:
        pass


@cache
def model() -> Arrays:
    rng = np.random.default_rng(0)
    return {f"layers.{i}.{name}": rng.standard_normal(shape).astype(np.float32)
            for i in range(N_LAYERS) for name, shape in (("weight", (300, 900)), ("bias", (300,)))}  # fmt: skip


@cache
def file(kind: str) -> bytes:
    """A file of several layers, 0.5 to 4 MB."""
    return vqformat.save(model(), {"of": "tests"}, **KINDS[kind])


@cache
def local(kind: str) -> Arrays:
    return vqformat.load(file(kind))


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array), name


def of_layer(arrays: Arrays, i: int) -> Arrays:
    return {name: array for name, array in arrays.items() if name.startswith(f"layers.{i}.")}


def chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """Type, start and end of each chunk, but for the index."""
    with safe_open(io.BytesIO(data)) as f:
        index = f._reader.index
        return [(index.chunk_type(at), *index.span(at)) for at in range(index.n_chunks)]


def nbytes(data: bytes, *types: bytes) -> list[int]:
    return [end - start for type, start, end in chunks(data) if type in types]
