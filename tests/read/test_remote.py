"""Files that are elsewhere: few reads, few bytes, through any file of fsspec; what goes wrong there is an error."""

from __future__ import annotations

import io
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqformat
from vqformat import ChecksumError, TruncatedError, VqmError, safe_open

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
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.sent: list[int] = []
        self.fault: Callable[[int, _Handler], bool] | None = None
        self.has_ranges = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may close before it has read everything
            super().handle_error(request, client_address)

    def url(self, data: bytes, name: str = "model.vqm") -> str:
        self.files[name] = data
        self.sent.clear()
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
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


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def http(server: Server) -> Iterator[Any]:
    """fsspec's file system; a server that does not answer ends the test."""
    files = fsspec.filesystem("http", skip_instance_cache=True,
                              client_kwargs={"timeout": aiohttp.ClientTimeout(total=300)})  # fmt: skip
    yield files
    if files._session is not None:
        files.close_session(files.loop, files._session)


@pytest.fixture
def remote(server: Server, http: Any) -> Callable[[bytes], Any]:
    """Opens bytes over HTTP by fsspec, whose own reading ahead is off: every read is a request."""
    return lambda data: http.open(server.url(data), "rb", cache_type="none")


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
        return list(zip(index.chunk_types, index.chunk_offsets, index.chunk_offsets[1:], strict=False))


def nbytes(data: bytes, *types: bytes) -> list[int]:
    return [end - start for type, start, end in chunks(data) if type in types]


# How many reads, how many bytes.


@pytest.mark.parametrize(("kind", "n_reads"), [
    ("fast", 3), ("default", 3), ("small", 3), ("shared codebook", 4), ("raw", 3)])  # fmt: skip
def test_a_layer_is_a_read_after_those_of_the_tail_and_the_header(
    kind: str, n_reads: int, server: Server, remote: Any
) -> None:
    data = file(kind)
    expected = of_layer(local(kind), 2)

    with remote(data) as stream, safe_open(stream) as f:
        found = {name: f[name] for name in expected}

    assert_same(found, expected)
    assert len(server.sent) == n_reads
    tables = 2 * max(nbytes(data, b"FREQ"), default=0) + sum(nbytes(data, b"BOOK"))
    assert sum(server.sent) <= TAIL_NBYTES + HEADER_NBYTES + nbytes(data, b"LAYR")[2] + tables
    assert sum(server.sent) < 0.5 * len(data)


@pytest.mark.parametrize("kind", KINDS)
def test_all_layers_take_a_read_each(kind: str, server: Server, remote: Any) -> None:
    with remote(file(kind)) as stream, safe_open(stream) as f:
        assert_same(dict(f.items()), local(kind))

    assert len(nbytes(file(kind), b"LAYR")) == N_LAYERS
    assert len(server.sent) <= 2 + N_LAYERS  # a shared codebook lies before the first layer
    assert sum(server.sent) <= TAIL_NBYTES + HEADER_NBYTES + len(file(kind))


def test_opening_takes_two_reads_and_what_the_index_knows_none(server: Server, remote: Any) -> None:
    with remote(file("default")) as stream, safe_open(stream) as f:
        assert list(f) == list(model())
        assert f.metadata() == {"of": "tests"}

    assert server.sent == [TAIL_NBYTES, HEADER_NBYTES]


@pytest.mark.parametrize("preset", ["fast", "default", "small"])
def test_a_file_shorter_than_the_tail_is_one_read(preset: str, server: Server, remote: Any) -> None:
    data = vqformat.save({name: array[:5] for name, array in model().items()}, preset=preset)
    assert 8_000 < len(data) < TAIL_NBYTES

    with remote(data) as stream, safe_open(stream) as f:
        assert_same(dict(f.items()), vqformat.load(data))

    assert server.sent == [len(data)]


@cache
def of_many_tensors() -> tuple[Arrays, bytes]:
    rng = np.random.default_rng(0)  # names that do not compress
    tensors = {rng.bytes(32).hex(): np.full(3, i, np.int32) for i in range(3000)}
    return tensors, vqformat.save(tensors)


def test_an_index_longer_than_the_tail_is_a_read_more(server: Server, remote: Any) -> None:
    tensors, data = of_many_tensors()
    name = list(tensors)[2000]
    index_offset = chunks(data)[-1][2]
    assert len(data) - index_offset > 1.5 * TAIL_NBYTES

    with remote(data) as stream, safe_open(stream) as f:
        assert np.array_equal(f[name], tensors[name])

    assert len(server.sent) == 4
    assert sum(server.sent) <= len(data) - index_offset + HEADER_NBYTES + max(nbytes(data, b"LAYR"))


def test_an_alias_takes_no_more_than_its_target(server: Server, remote: Any) -> None:
    tensors = of_layer(model(), 0) | of_layer(model(), 1)
    tensors["tied"] = tensors["layers.0.weight"]
    data = vqformat.save(tensors)

    with remote(data) as stream, safe_open(stream) as f:
        assert np.array_equal(f["tied"], vqformat.load(data)["layers.0.weight"])

    assert len(server.sent) == 3


@cache
def embedding(preset: str) -> tuple[bytes, np.ndarray[Any, Any]]:
    """A file of one large table."""
    table = np.random.default_rng(0).standard_normal((40 << 10, 64)).astype(np.float32)
    data = vqformat.save({"embed.weight": table[: 26 << 10] if preset == "small" else table}, preset=preset)
    return data, vqformat.load(data)["embed.weight"]


@pytest.mark.parametrize("preset", ["fast", "default", "small"])
def test_rows_of_an_embedding_take_the_beginning_of_its_layer_and_their_blocks(
    preset: str, server: Server, remote: Any
) -> None:
    data, expected = embedding(preset)
    block_nbytes = 1.1 * len(data) * (1 << 18) / expected.size
    tables = sum(nbytes(data, b"FREQ"))

    with remote(data) as stream, safe_open(stream) as f:
        rows = f.get_slice("embed.weight")
        assert np.array_equal(rows[20_000:20_010], expected[20_000:20_010])

        assert len(server.sent) == 4
        assert sum(server.sent) <= 2 * TAIL_NBYTES + HEADER_NBYTES + tables + block_nbytes
        assert sum(server.sent) < 0.35 * len(data)

        assert np.array_equal(rows[[7]], expected[[7]])

        assert len(server.sent) == 5
        assert server.sent[-1] <= block_nbytes


def test_metadata_too_long_for_the_index_takes_two_reads(server: Server, remote: Any) -> None:
    metadata = {"notes": np.random.default_rng(0).bytes(150_000).hex()}
    data = vqformat.save(of_layer(model(), 0), metadata)

    with remote(data) as stream, safe_open(stream) as f:
        assert f.metadata() == metadata

    assert len(server.sent) <= 4


# Streams, and files of other kinds.


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_that_cannot_seek_is_streamed(kind: str, server: Server) -> None:
    url = server.url(file(kind))

    with urllib.request.urlopen(url) as response, vqformat.stream(response) as layers:
        assert not response.seekable()
        found = [dict(layer) for layer in layers]

    assert [set(arrays) for arrays in found] == [set(of_layer(model(), i)) for i in range(N_LAYERS)]
    assert_same({name: array for arrays in found for name, array in arrays.items()}, local(kind))
    assert server.sent == [len(file(kind))]


def test_a_response_is_loaded_and_verified(server: Server) -> None:
    url = server.url(file("small"))

    with urllib.request.urlopen(url) as response:
        assert_same(vqformat.load_file(response), local("small"))
    with urllib.request.urlopen(url) as response:
        assert vqformat.verify(response) == vqformat.verify(io.BytesIO(file("small")))


def test_a_response_has_no_index_to_go_by(server: Server) -> None:
    url = server.url(file("fast"))

    with urllib.request.urlopen(url) as response, pytest.raises(OSError, match="seek"):
        safe_open(response)


def test_a_server_without_ranges_is_streamed_from(server: Server, http: Any) -> None:
    server.has_ranges = False
    url = server.url(file("fast"))

    with http.open(url, "rb") as stream:
        assert_same(vqformat.load_file(stream), local("fast"))
    with http.open(url, "rb") as stream, pytest.raises((OSError, ValueError), match=r"seek|range"):
        safe_open(stream)


def test_with_the_cache_of_fsspec_a_whole_file_takes_few_reads(server: Server, http: Any) -> None:
    with http.open(server.url(file("default")), "rb") as stream:
        assert_same(vqformat.load_file(stream), local("default"))
    assert len(server.sent) <= 2

    with http.open(server.url(file("default")), "rb") as stream, safe_open(stream) as f:
        assert_same(dict(f.items()), local("default"))
    assert len(server.sent) <= 3


def write_by_layers(stream: Any) -> None:
    with vqformat.writer(stream, {"of": "tests"}) as w:
        for i in range(2):
            w.add_layer(f"layers.{i}", of_layer(model(), i))


@pytest.mark.parametrize("scheme", ["memory://", "file://"])
@pytest.mark.parametrize("write", [
    pytest.param(lambda stream: vqformat.save_file(of_layer(model(), 0) | of_layer(model(), 1), stream,
                                                   {"of": "tests"}), id="save_file"),
    pytest.param(write_by_layers, id="writer"),
])  # fmt: skip
def test_every_verb_takes_a_file_of_fsspec(scheme: str, write: Callable[[Any], Any], tmp_path: Path) -> None:
    url = f"{scheme}{tmp_path}/model.vqm"
    tensors = of_layer(model(), 0) | of_layer(model(), 1)

    with fsspec.open(url, "wb") as stream:
        write(stream)
        assert not stream.closed

    with fsspec.open(url, "rb") as stream:
        data = stream.read()
    expected = vqformat.load(data)
    assert {name: array.shape for name, array in expected.items()} == {n: a.shape for n, a in tensors.items()}
    with fsspec.open(url, "rb") as stream:
        assert_same(vqformat.load_file(stream), expected)
    with fsspec.open(url, "rb") as stream:
        assert vqformat.verify(stream) == vqformat.verify(io.BytesIO(data))
    with fsspec.open(url, "rb") as stream:
        assert_same({name: array for layer in vqformat.stream(stream) for name, array in layer.items()}, expected)
    with fsspec.open(url, "rb") as stream, safe_open(stream) as f:
        assert_same(dict(f.items()), expected)
        assert f.metadata() == {"of": "tests"}
        out = np.empty((300, 900), np.float32)
        f.get_slice("layers.1.weight").decode_into(out)
        assert np.array_equal(out, expected["layers.1.weight"])


def networks(n: int) -> list[Any]:
    from torch import nn

    return [nn.Sequential(nn.Embedding(1100, 100), nn.Linear(100, 300), nn.ReLU(), nn.Linear(300, 100))
            for _ in range(n)]  # fmt: skip


@pytest.mark.parametrize("keep", ["file", "memory"])
def test_models_of_torch_are_loaded_and_streamed_from_afar(keep: Any, server: Server, remote: Any) -> None:
    torch = pytest.importorskip("torch")
    import vqformat.torch as front

    saved, loaded, streamed = networks(3)
    target = io.BytesIO()
    front.save_model(saved, target, bits=4)
    expected = front.load(target.getvalue())
    x = torch.tensor([3, 1000])

    with remote(target.getvalue()) as stream:
        found = front.load_file(stream)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert list(found) == list(expected) == list(saved.state_dict())

    with remote(target.getvalue()) as stream:
        assert front.load_model(loaded, stream) == ([], [])
        assert len(server.sent) <= 4
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())

    with remote(target.getvalue()) as stream, torch.no_grad():
        front.stream_model(streamed, stream, keep=keep, prefetch=0)
        n_before = len(server.sent)
        assert torch.equal(streamed(x), loaded(x))
        assert torch.equal(streamed(x), loaded(x))
        n_reads = len(server.sent) - n_before
        assert n_reads <= (0 if keep == "memory" else 4)


# Threads.


class Interrupted:
    """A file to be read, in which other threads have their turn between a seek and a read."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def seek(self, offset: int, whence: int = 0) -> int:
        at: int = self._stream.seek(offset, whence)
        time.sleep(0.002)
        return at

    def read(self, n: int) -> bytes:
        return self._stream.read(n)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["small", "shared codebook"])
def test_several_threads_read_one_file(kind: str, remote: Any) -> None:
    expected = local(kind)
    names = 2 * list(expected)

    with remote(file(kind)) as stream, ThreadPoolExecutor(4) as pool:
        f = safe_open(Interrupted(stream), threads=2)
        begin = threading.Barrier(4, timeout=300)

        def read(i: int) -> np.ndarray[Any, Any]:
            if i < 4:
                begin.wait()
            if i % 3:
                return f[names[i]]  # type: ignore[no-any-return]
            part = f.get_slice(names[i])
            return np.concatenate([part[:100], part[100:]])

        found = list(pool.map(read, range(len(names))))

    for name, array in zip(names, found, strict=True):
        assert np.array_equal(array, expected[name]), name


# Reads that give less, answers that are wrong.


class Short(io.RawIOBase):
    """A raw file that gives less than it is asked for."""

    def __init__(self, data: bytes, most: int) -> None:
        self._file, self._most = io.BytesIO(data), most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(memoryview(buffer)[: self._most])


@pytest.mark.parametrize("kind", KINDS)
def test_short_reads_are_gone_on_with(kind: str) -> None:
    with safe_open(Short(file(kind), 4093)) as f:
        assert_same(dict(f.items()), local(kind))
        assert np.array_equal(f.get_slice("layers.3.weight")[99], local(kind)["layers.3.weight"][99])
    assert_same(vqformat.load_file(Short(file(kind), 4093)), local(kind))
    with vqformat.stream(Short(file(kind), 4093)) as layers:
        assert_same({name: array for layer in layers for name, array in layer.items()}, local(kind))


def test_answers_shorter_than_the_range_are_gone_on_with(server: Server, remote: Any) -> None:
    def gives_less(number: int, handler: _Handler) -> bool:
        data, start, end = handler.asked()
        handler.answer(data, start, min(end, start + 30_000))
        return True

    with remote(file("fast")) as stream:
        server.fault = gives_less
        with safe_open(stream) as f:
            assert np.array_equal(f["layers.1.weight"], local("fast")["layers.1.weight"])
    assert max(server.sent) == 30_000


def fails(status: int) -> Callable[[_Handler], None]:
    return lambda handler: handler.send_error(status)


def breaks_off(handler: _Handler) -> None:
    data, start, end = handler.asked()
    handler.answer(data, start, end, n_sent=(end - start) // 2)


def says_nothing(handler: _Handler) -> None:
    handler.close_connection = True


def gives_nothing(handler: _Handler) -> None:
    handler.answer(handler.asked()[0], 0, 0)


def gives_more(handler: _Handler) -> None:
    data, start, end = handler.asked()
    handler.answer(data + bytes(10), start, end + 10)


def gives_other_bytes(handler: _Handler) -> None:
    data, start, end = handler.asked()
    handler.answer(data[1:] + data[:1], start, end)


def gives_a_web_page(handler: _Handler) -> None:
    page = b"<!DOCTYPE html><title>Please log in</title>".ljust(30_000)
    handler.answer(page, 0, len(page), status=200)


@pytest.mark.parametrize("at", [0, 1, 2], ids=["tail", "header", "layer"])
@pytest.mark.parametrize(("answer", "error"), [
    (fails(404), aiohttp.ClientResponseError),  # this and the next ones come from fsspec, as they are
    (fails(416), TruncatedError),
    (fails(500), aiohttp.ClientResponseError),
    (breaks_off, aiohttp.ClientPayloadError),
    (says_nothing, aiohttp.ClientError),
    (gives_nothing, TruncatedError),
    (gives_more, TruncatedError),
    (gives_other_bytes, VqmError),
    (gives_a_web_page, (VqmError, ValueError)),
], ids=["404", "416", "500", "breaks off", "says nothing", "gives nothing", "gives more", "gives other bytes",
        "web page"])  # fmt: skip
def test_a_read_that_fails_is_an_error_and_the_next_one_is_not(
    at: int, answer: Callable[[_Handler], None], error: Any, server: Server, remote: Any
) -> None:
    is_at_fault = at < 2

    def fault(number: int, handler: _Handler) -> bool:
        if is_at_fault and number >= at:
            answer(handler)
            return True
        return False

    expected = local("fast")
    with remote(file("fast")) as stream:
        server.fault = fault
        if at < 2:
            with pytest.raises(error):
                safe_open(stream)
            is_at_fault = False
            f = safe_open(stream)
        else:
            f = safe_open(stream)
            rows = f.get_slice("layers.2.weight")
            is_at_fault = True
            for _ in range(2):
                with pytest.raises(error):
                    f["layers.3.weight"]
            with pytest.raises(error):
                rows[299]
            with pytest.raises(error):
                list(rows.blocks())
            is_at_fault = False
            assert np.array_equal(rows[299], expected["layers.2.weight"][299])
            for index, values in rows.blocks():
                assert np.array_equal(values, expected["layers.2.weight"][index])
        with f:
            assert np.array_equal(f["layers.3.weight"], expected["layers.3.weight"])


def test_an_error_says_what_was_asked_for_and_how_much_was_given(server: Server, remote: Any) -> None:
    data = file("fast")
    start, end = next(chunk[1:] for chunk in chunks(data)[4:])

    with remote(data) as stream, safe_open(stream) as f:
        server.files["model.vqm"] = data[: start + 500]
        with pytest.raises(TruncatedError) as caught:
            f["layers.3.weight"]

    assert caught.value.offset == start
    for text in (f"bytes {start} to {end}", f"of {len(data)} bytes when it was opened", "gives 500 of them"):
        assert text in str(caught.value)


def test_a_file_that_is_not_there_is_an_error(server: Server, http: Any) -> None:
    url = server.url(b"") + ".none"

    with pytest.raises(FileNotFoundError):
        safe_open(http.open(url, "rb"))
    with pytest.raises(urllib.error.HTTPError) as caught:
        vqformat.stream(urllib.request.urlopen(url))
    caught.value.close()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 0.9999])
def test_a_response_that_breaks_off_is_an_error(fraction: float, server: Server) -> None:
    data = file("default")
    n_sent = int(fraction * len(data))

    def fault(number: int, handler: _Handler) -> bool:
        handler.answer(data, 0, len(data), status=200, n_sent=n_sent)
        return True

    server.fault = fault
    with urllib.request.urlopen(server.url(data)) as response, pytest.raises(TruncatedError):
        vqformat.load_file(response)
    found: Arrays = {}
    with urllib.request.urlopen(server.url(data)) as response, pytest.raises(TruncatedError):
        for layer in vqformat.stream(response):
            found.update(layer)
    n_whole = sum(end <= n_sent for type, _, end in chunks(data) if type == b"LAYR")
    assert_same(found, dict(list(local("default").items())[: 2 * n_whole]))


# Files that change after they were opened.


def test_a_layer_that_is_damaged_after_opening_is_caught(server: Server, remote: Any) -> None:
    data = file("default")

    with remote(data) as stream, safe_open(stream) as f:
        assert np.array_equal(f["layers.0.weight"], local("default")["layers.0.weight"])
        other = bytearray(data)
        for type, start, end in chunks(data):
            if type == b"LAYR":
                other[(start + end) // 2] ^= 1
        server.files["model.vqm"] = bytes(other)
        with pytest.raises(ChecksumError, match=r"layers\.2\.weight"):
            f["layers.2.weight"]
        with pytest.raises(ChecksumError, match=r"layers\.3\.weight"):
            f.get_slice("layers.3.weight")[:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_replaced_by_another_one_is_caught(kind: str, server: Server, remote: Any) -> None:
    other = file("default" if kind != "default" else "small")

    with remote(file(kind)) as stream, safe_open(stream) as f:
        rows = f.get_slice("layers.1.weight")
        server.files["model.vqm"] = other
        for i in range(1, N_LAYERS):
            with pytest.raises(VqmError):
                f[f"layers.{i}.weight"]
        with pytest.raises(VqmError):
            rows[290:]


def test_a_file_that_is_replaced_by_one_of_the_same_layout_gives_no_mixture_within_a_layer(
    server: Server, remote: Any
) -> None:
    first, second = ({f"layers.{i}.x": np.random.default_rng(10 * seed + i).integers(0, 256, (1100, 1000), np.uint8)
                      for i in range(3)} for seed in range(2))  # fmt: skip
    data, other = vqformat.save(first), vqformat.save(second)
    assert chunks(data) == chunks(other)
    assert len(nbytes(data, b"LAYR")) == 3

    with remote(data) as stream, safe_open(stream) as f:
        rows = f.get_slice("layers.0.x")
        assert np.array_equal(rows[0], first["layers.0.x"][0])
        server.files["model.vqm"] = other
        with pytest.raises(ChecksumError):
            rows[1000]
        assert np.array_equal(f["layers.1.x"], second["layers.1.x"])  # only the digest in the index could tell
