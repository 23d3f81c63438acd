"""Files that are elsewhere: few reads, few bytes, through any file of fsspec; what goes wrong there is an error."""

from __future__ import annotations

import io
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqformat
from vqformat import VqmError, safe_open

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'fsspec[http]'")
aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'fsspec[http]'")

TAIL_NBYTES = 1 << 16  # the end of the file is read at once
Arrays = dict[str, np.ndarray[Any, Any]]


class Server(ThreadingHTTPServer):
    """Serves files by name, whole or a range of bytes, and notes what it has sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.sent: list[int] = []  # bytes of each answer to GET
        self.breaks_after: int | None = None

    def url(self, data: bytes) -> str:
        name = f"{len(self.files)}.vqm"
        self.files[name] = data
        self.sent.clear()
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def _answer(self, *, has_body: bool) -> None:
        data = self.server.files.get(self.path[1:])
        if data is None:
            self.send_error(404)
            return
        total = len(data)
        asked = self.headers.get("Range")
        if asked is not None:
            start, end = asked.removeprefix("bytes=").split("-")
            data = data[int(start) : int(end) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(data) - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if has_body:
            self.server.sent.append(len(data))
            self.wfile.write(data[: self.server.breaks_after])
            if self.server.breaks_after is not None:
                self.close_connection = True

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def remote(server: Server) -> Any:
    """Opens a URL through fsspec, whose own reading ahead is off: every read is a request."""
    files = fsspec.filesystem("http")
    return lambda data: files.open(server.url(data), "rb", cache_type="none")


def model(n_layers: int = 6) -> Arrays:
    rng = np.random.default_rng(0)
    return {f"layers.{i}.{name}": rng.standard_normal(shape).astype(np.float32)
            for i in range(n_layers) for name, shape in (("weight", (800, 900)), ("bias", (800,)))}  # fmt: skip


FILES = {
    "fast": vqformat.save(model(), preset="fast"),
    "default": vqformat.save(model()),
    "small": vqformat.save(model(), preset="small"),
    "shared codebook": vqformat.save(model(), recipe={"*.weight": "kmeans:entries=16,share=all"}),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_layer_takes_four_reads_and_hardly_more_bytes_than_it_has(kind: str, server: Server, remote: Any) -> None:
    data = FILES[kind]
    expected = vqformat.load(data)

    with remote(data) as stream, safe_open(stream) as file:
        weight, bias = file["layers.3.weight"], file["layers.3.bias"]
        reader = file._reader
        chunk = reader.entry("layers.3.weight").chunk
        start, end = reader.index.chunk_offsets[chunk : chunk + 2]
        books = sum(b - a for t, a, b in zip(reader.index.chunk_types, reader.index.chunk_offsets,
                                             reader.index.chunk_offsets[1:], strict=False)
                    if t in (b"BOOK", b"FREQ"))  # fmt: skip

    assert np.array_equal(weight, expected["layers.3.weight"])
    assert np.array_equal(bias, expected["layers.3.bias"])
    assert len(server.sent) <= 4
    assert sum(server.sent) <= TAIL_NBYTES + (end - start) + books + 1000


def test_opening_takes_two_reads(server: Server, remote: Any) -> None:
    with remote(FILES["default"]) as stream, safe_open(stream) as file:
        assert len(file) == 12
        assert file.metadata() == {}

    assert len(server.sent) == 2
    assert sum(server.sent) <= TAIL_NBYTES + 100


def test_an_index_longer_than_the_tail_is_a_read_more(server: Server, remote: Any) -> None:
    rng = np.random.default_rng(0)  # names that do not compress
    tensors = {f"{rng.bytes(32).hex()}": np.full(3, i, np.float32) for i in range(2500)}
    data = vqformat.save(tensors)
    name = list(tensors)[2000]

    with remote(data) as stream, safe_open(stream) as file:
        assert np.array_equal(file[name], tensors[name])
        index = file._reader.index.chunk_offsets

    assert len(data) - index[-1] > TAIL_NBYTES
    assert len(server.sent) <= 4
    assert sum(server.sent) < 0.8 * len(data)


@pytest.mark.parametrize("preset", ["fast", "default", "small"])
def test_rows_of_an_embedding_take_their_blocks(preset: str, server: Server, remote: Any) -> None:
    table = np.random.default_rng(0).standard_normal((30_000, 64)).astype(np.float32)
    data = vqformat.save({"embed.weight": table}, preset=preset)
    expected = vqformat.load(data)["embed.weight"]

    with remote(data) as stream, safe_open(stream) as file:
        part = file.get_slice("embed.weight")
        assert np.array_equal(part[20_000:20_010], expected[20_000:20_010])
        assert np.array_equal(part[[7]], expected[[7]])

    assert sum(server.sent) < TAIL_NBYTES + 0.45 * len(data)


def test_a_response_is_streamed(server: Server) -> None:
    data = FILES["small"]
    expected = vqformat.load(data)

    with urllib.request.urlopen(server.url(data)) as response:
        found = {name: array for layer in vqformat.stream(response) for name, array in layer.items()}

    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_every_verb_takes_a_file_of_fsspec(remote: Any) -> None:
    tensors = {"x": model(1)["layers.0.weight"]}
    with fsspec.open("memory://model.vqm", "wb") as stream:
        vqformat.save_file(tensors, stream)
    with fsspec.open("memory://written.vqm", "wb") as stream, vqformat.writer(stream) as w:
        w.add_layer("", tensors)

    for name in ("model", "written"):
        with fsspec.open(f"memory://{name}.vqm", "rb") as stream:
            expected = vqformat.load_file(stream)["x"]
            stream.seek(0)
            assert vqformat.verify(stream)
            stream.seek(0)
            assert np.array_equal(next(vqformat.stream(stream))["x"], expected)
            with safe_open(stream) as file:
                assert np.array_equal(file["x"], expected)


def test_models_of_torch_are_filled_and_streamed_from_afar(remote: Any) -> None:
    torch = pytest.importorskip("torch")
    from vqformat.torch import load_model, save_model, stream_model

    model = torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.ReLU(), torch.nn.Linear(300, 200))
    target = io.BytesIO()
    save_model(model, target)
    loaded, streamed = (torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.ReLU(), torch.nn.Linear(300, 200))
                        for _ in range(2))  # fmt: skip
    with remote(target.getvalue()) as stream, torch.no_grad():
        load_model(loaded, stream)
        stream_model(streamed, stream)
        x = torch.randn(2, 200)
        assert torch.equal(streamed(x), loaded(x))


def test_several_threads_read_one_file(remote: Any) -> None:
    data = FILES["default"]
    expected = vqformat.load(data)

    with remote(data) as stream, safe_open(stream) as file, ThreadPoolExecutor(4) as pool:
        found = dict(zip(file, pool.map(file.get_tensor, file), strict=True))

    assert all(np.array_equal(found[name], expected[name]) for name in expected)


class Short(io.BytesIO):
    """Gives less than it is asked for."""

    def read(self, n: int | None = -1) -> bytes:
        return super().read(n if n is None or n < 0 else min(n, 1000))


@pytest.mark.parametrize("kind", FILES)
def test_short_reads_are_gone_on_with(kind: str) -> None:
    expected = vqformat.load(FILES[kind])

    with safe_open(Short(FILES[kind])) as file:
        assert all(np.array_equal(file[name], expected[name]) for name in expected)
    assert all(np.array_equal(a, expected[name]) for name, a in vqformat.load_file(Short(FILES[kind])).items())


def test_a_file_that_is_not_there_is_an_error(server: Server) -> None:
    url = server.url(b"") + ".none"

    with pytest.raises(FileNotFoundError), fsspec.open(url, "rb") as stream:
        safe_open(stream)


def test_an_answer_that_breaks_off_is_an_error(server: Server, remote: Any) -> None:
    with remote(FILES["fast"]) as stream, safe_open(stream) as file:
        server.breaks_after = 2000
        with pytest.raises((OSError, VqmError, aiohttp.ClientError)):
            file["layers.5.weight"]


def test_a_file_that_changes_while_it_is_read_is_caught(server: Server, remote: Any) -> None:
    data = FILES["default"]
    other = bytearray(data)
    with remote(data) as stream, safe_open(stream) as file:
        offsets = file._reader.index.chunk_offsets
        for start, end in pairwise(offsets[1:]):
            other[start + 5000 : end] = np.random.default_rng(1).bytes(end - start - 5000)
        server.files[next(iter(server.files))] = bytes(other)
        with pytest.raises(VqmError):
            file["layers.2.weight"]


def test_the_same_by_paths(tmp_path: Path) -> None:
    path = tmp_path / "model.vqm"
    path.write_bytes(FILES["default"])

    with fsspec.open(f"file://{path}", "rb") as stream, safe_open(stream) as file:
        assert list(file) == list(model())
