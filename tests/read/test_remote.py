"""Files that are elsewhere: few reads, few bytes, through any file of fsspec."""

from __future__ import annotations

import io
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from remote_files import (
    HEADER_NBYTES,
    KINDS,
    N_LAYERS,
    TAIL_NBYTES,
    Arrays,
    Server,
    assert_same,
    chunks,
    file,
    local,
    model,
    nbytes,
    of_layer,
)

import vqformat
from vqformat import safe_open

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'fsspec[http]'")
aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'fsspec[http]'")


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
