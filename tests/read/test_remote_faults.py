"""Files that are elsewhere: what goes wrong there is an error."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from remote_files import KINDS, N_LAYERS, Arrays, Handler, Server, assert_same, chunks, file, local, nbytes

import vqformat
from vqformat import ChecksumError, FormatError, TruncatedError, VqmError, safe_open

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'fsspec[http]'")
aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'fsspec[http]'")


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
    def gives_less(number: int, handler: Handler) -> bool:
        data, start, end = handler.asked()
        handler.answer(data, start, min(end, start + 30_000))
        return True

    with remote(file("fast")) as stream:
        server.fault = gives_less
        with safe_open(stream) as f:
            assert np.array_equal(f["layers.1.weight"], local("fast")["layers.1.weight"])
    assert max(server.sent) == 30_000


def fails(status: int) -> Callable[[Handler], None]:
    return lambda handler: handler.send_error(status)


def breaks_off(handler: Handler) -> None:
    data, start, end = handler.asked()
    handler.answer(data, start, end, n_sent=(end - start) // 2)


def says_nothing(handler: Handler) -> None:
    handler.close_connection = True


def gives_nothing(handler: Handler) -> None:
    handler.answer(handler.asked()[0], 0, 0)


def gives_more(handler: Handler) -> None:
    data, start, end = handler.asked()
    handler.answer(data + bytes(10), start, end + 10)


def gives_other_bytes(handler: Handler) -> None:
    data, start, end = handler.asked()
    handler.answer(data[1:] + data[:1], start, end)


def gives_a_web_page(handler: Handler) -> None:
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
    (gives_more, VqmError),
    (gives_other_bytes, VqmError),
    (gives_a_web_page, (VqmError, ValueError)),
], ids=["404", "416", "500", "breaks off", "says nothing", "gives nothing", "gives more", "gives other bytes",
        "web page"])  # fmt: skip
def test_a_read_that_fails_is_an_error_and_the_next_one_is_not(
    at: int, answer: Callable[[Handler], None], error: Any, server: Server, remote: Any
) -> None:
    is_at_fault = at < 2

    def fault(number: int, handler: Handler) -> bool:
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

    def gives_a_part(number: int, handler: Handler) -> bool:
        asked = handler.asked()[1]
        handler.answer(data, asked, min(asked + 500, start + 500))
        return True

    with remote(data) as stream, safe_open(stream) as f:
        server.fault = gives_a_part
        with pytest.raises(TruncatedError) as caught:
            f["layers.3.weight"]

    assert caught.value.offset == start
    for text in (f"bytes {start} to {end}", f"of {len(data)} bytes when it was opened", "gives 500 of them"):
        assert text in str(caught.value)


@pytest.mark.parametrize(("before", "after", "what"), [
    ({"ETag": '"1"'}, {"ETag": '"2"'}, "ETag"),
    ({"ETag": 'W/"1"', "Last-Modified": "Mon"}, {"ETag": 'W/"2"', "Last-Modified": "Mon"}, "ETag"),
    ({"Last-Modified": "Mon"}, {"Last-Modified": "Tue"}, "Last-Modified"),
    ({}, {}, "length"),
], ids=["etag", "weak etag", "modified", "length"])  # fmt: skip
def test_a_file_that_is_replaced_on_its_server_is_refused(
    before: dict[str, str], after: dict[str, str], what: str, server: Server, remote: Any
) -> None:
    server.headers = before
    with remote(file("fast")) as stream, safe_open(stream) as f:
        assert np.array_equal(f["layers.1.weight"], local("fast")["layers.1.weight"])
        server.headers = after
        server.files["model.vqm"] += bytes(what == "length")
        for _ in range(2):
            with pytest.raises(FormatError, match=f"changed on its server while it was open: its {what} was"):
                f["layers.3.weight"]
        with safe_open(fresh(stream, server)) as again:  # another one is open at the same time
            assert np.array_equal(again["layers.3.weight"], local("fast")["layers.3.weight"])


def fresh(stream: Any, server: Server) -> Any:
    return stream.fs.open(server.url(file("fast")))


@pytest.mark.parametrize("headers", [{"ETag": '"1"', "Last-Modified": "Mon"}, {}])
def test_answers_of_servers_that_share_the_work_are_accepted(
    headers: dict[str, str], server: Server, remote: Any
) -> None:
    server.headers = headers
    with remote(file("fast")) as stream, safe_open(stream) as f:
        server.headers = headers and {"ETag": '"1"', "Last-Modified": "Tue"}
        assert_same(dict(f.items()), local("fast"))
    assert not hasattr(stream.session, "release")


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

    def fault(number: int, handler: Handler) -> bool:
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
