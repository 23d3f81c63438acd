"""Layers from a stream: the same values as load_file."""

from __future__ import annotations

import io
import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from arrays import Arrays, put_together, same, weights
from conftest import FIXTURES
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import models
from streamed_files import layers, written

import vqformat
from vqformat import ChecksumError, LimitError, TruncatedError, safe_open, stream
from vqformat.files import opened

PRESETS = ("fast", "default", "small")
VALID = [case["file"] for case in json.loads((FIXTURES / "manifest.json").read_text()) if "error" not in case]


class Trickle(io.RawIOBase):
    """A stream that cannot seek, and gives a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = min(len(buffer), 777, len(self._rest))
        buffer[:n], self._rest = self._rest[:n], self._rest[n:]
        return n


@contextmanager
def as_path(data: bytes, folder: Path) -> Iterator[Path]:
    path = folder / "model.vqm"
    path.write_bytes(data)
    yield path


@contextmanager
def as_bytes(data: bytes, folder: Path) -> Iterator[BinaryIO]:
    yield io.BytesIO(data)


@contextmanager
def as_trickle(data: bytes, folder: Path) -> Iterator[Any]:
    yield Trickle(data)


@contextmanager
def as_pipe(data: bytes, folder: Path) -> Iterator[BinaryIO]:
    inlet, outlet = os.pipe()

    def write() -> None:
        with open(outlet, "wb") as sink:
            sink.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    with open(inlet, "rb") as source:
        yield source
    thread.join()


SOURCES = [as_path, as_bytes, as_trickle, as_pipe]


# Layer after layer


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("source", SOURCES)
def test_layers_come_in_file_order_with_the_values_of_load_file(
    source: Callable[..., Any], preset: str, tmp_path: Path
) -> None:
    data = written(layers(), preset=preset)
    expected = vqformat.load(data)
    found: Arrays = {}
    names = []

    with source(data, tmp_path) as opened, stream(opened) as given_layers:
        assert given_layers.metadata == {"of": "tests"}
        for layer in given_layers:
            names.append(layer.name)
            assert len(layer) == len(list(layer))
            found.update(layer)
            found.update({name: found[target] for name, target in layer.aliases.items()})

    assert names == ["embed", "body.0", "body.0", "body.1", "body.1", "head", "head"]
    assert list(found) == list(expected)
    assert all(same(found[name], expected[name]) for name in expected)
    assert found["head.weight"] is found["embed.weight"]


@given(models(), st.sampled_from(PRESETS))
@examples(40)
def test_any_model_streams(model: Arrays, preset: str) -> None:
    data = vqformat.save(model, preset=preset)
    expected = vqformat.load(data)

    found = {name: layer[name] for layer in stream(io.BytesIO(data)) for name in layer}

    assert list(found) == list(expected)
    assert all(same(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("file", VALID)
def test_every_fixture_streams_whole_and_by_blocks(file: str) -> None:
    data = (FIXTURES / file).read_bytes()
    expected = vqformat.load(data)

    whole = {name: array for layer in stream(io.BytesIO(data)) for name, array in layer.items()}
    by_blocks = {t.name: put_together(t.shape, expected[t.name].dtype, t.blocks())
                 for layer in stream(io.BytesIO(data)) for t in layer.tensors()}  # fmt: skip
    into = {}
    for layer in stream(io.BytesIO(data)):
        for tensor in layer.tensors():
            into[tensor.name] = np.empty(tensor.shape, expected[tensor.name].dtype)
            tensor.decode_into(into[tensor.name])

    for found in (whole, by_blocks, into):
        assert all(same(array, expected[name]) for name, array in found.items())
        assert found.keys() | aliases(data) == expected.keys()


@contextmanager
def fed(path: Path, data: bytes) -> Iterator[None]:
    """A thread writes to a named pipe as soon as it is read."""
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(path.write_bytes, data)
        yield
        assert writing.result() == len(data)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_the_path_of_a_pipe_is_streamed(tmp_path: Path) -> None:
    data = written(layers())
    os.mkfifo(tmp_path / "pipe")

    with fed(tmp_path / "pipe", data):
        found = {name: array for layer in stream(tmp_path / "pipe") for name, array in layer.items()}

    assert found.keys() | aliases(data) == layers().keys()


READ_STDIN = """
from vqformat import stream
print(*(name for layer in stream("/dev/stdin") for name in layer))
"""


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="this system has no /dev/stdin")
def test_a_pipe_is_streamed_by_the_path_of_stdin() -> None:
    model = {"w": weights(8, 4), "v": weights(4, 8)}

    done = subprocess.run([sys.executable, "-c", READ_STDIN], input=written(model), capture_output=True, check=False)

    assert (done.stdout.split(), done.stderr) == ([b"w", b"v"], b"")


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="this system has no position of its own to test")
def test_a_file_with_its_own_position_is_read_whole_from_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(200)))

    with opened(tmp_path / "a", has_own_position=True) as file:
        first = file.read(10)
        os.lseek(file.fileno(), 0, os.SEEK_SET)  # as another process that has the descriptor may do

        assert first + file.read() == bytes(range(200))


def aliases(data: bytes) -> set[str]:
    return {name for layer in stream(io.BytesIO(data)) for name in layer.aliases}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_layer_that_is_not_looked_into_is_checked(preset: str) -> None:
    data = bytearray(written(layers(), preset=preset))
    with safe_open(io.BytesIO(bytes(data))) as file:
        (_, layer, first) = file._reader._locate(file._reader.entry("body.1.weight"))
        data[layer.spans[first][0] + 1] ^= 1
    given_layers = stream(io.BytesIO(bytes(data)))
    next(given_layers)

    with pytest.raises(ChecksumError, match=r"body\.1\.weight"):
        for _ in given_layers:
            pass


def test_what_has_passed_is_gone() -> None:
    data = written(layers())
    given_layers = stream(io.BytesIO(data))
    first = next(given_layers)
    tensor = next(first.tensors())
    second = next(given_layers)

    with pytest.raises(ValueError, match=r"tensor 'embed\.weight' can no longer be decoded"):
        tensor.decode()
    with pytest.raises(ValueError, match="layer 'embed' can no longer be read"):
        first["embed.weight"]
    kept = second["body.0.weight"]
    with pytest.raises(ValueError, match="is decoded already"):
        second.tensors()
    next(given_layers)
    assert second["body.0.weight"] is kept  # what was decoded stays
    with pytest.raises(KeyError):
        second["body.0.bias"]


@pytest.mark.parametrize("again", ["decode", "blocks", "decode_into"])
def test_a_tensor_is_decoded_once(again: str) -> None:
    tensor = next(next(stream(io.BytesIO(written(layers())))).tensors())
    tensor.decode()

    with pytest.raises(ValueError, match="can no longer be decoded: decode it once, before"):
        match again:
            case "decode":
                tensor.decode()
            case "blocks":
                next(tensor.blocks())
            case _:
                tensor.decode_into(np.empty(tensor.shape, np.float32))


def test_tensors_that_are_skipped_or_half_decoded_do_no_harm() -> None:
    data = vqformat.save({f"a.{i}": weights(600, 500, seed=i) for i in range(4)})
    expected = vqformat.load(data)
    found = {}

    for layer in stream(io.BytesIO(data)):
        for i, tensor in enumerate(layer.tensors()):
            if i % 2:
                found[tensor.name] = tensor.decode()
            else:
                next(tensor.blocks())

    assert list(found) == ["a.1", "a.3"]
    assert all(same(found[name], expected[name]) for name in found)


def test_max_tensor_bytes_is_for_what_is_decoded_whole() -> None:
    tensor = next(next(stream(io.BytesIO(written(layers())), max_tensor_bytes=1000)).tensors())
    with pytest.raises(LimitError, match="max_tensor_bytes is 1000"):
        tensor.decode()

    tensor = next(next(stream(io.BytesIO(written(layers())), max_tensor_bytes=1000)).tensors())
    tensor.decode_into(np.empty(tensor.shape, np.float32))


def test_an_iterator_that_outlives_its_layer_says_so() -> None:
    data = vqformat.save({f"{i}.{name}": weights(900, 900) for i in range(2) for name in "ab"})
    given_layers = stream(io.BytesIO(data))
    first = next(given_layers)
    tensors = first.tensors()
    blocks = next(tensors).blocks()
    next(blocks)
    next(given_layers)

    with pytest.raises(ValueError, match="can no longer be decoded"):
        next(blocks)
    with pytest.raises(ValueError, match="can no longer be read"):
        next(tensors)
    assert "0.a" in first  # which does not decode it
    assert "1.a" not in first


def test_tensors_of_a_layer_are_no_more_together_than_the_caller_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqformat.format.limits.available_memory", lambda: 1_000_000)
    data = vqformat.save({f"a.{i}": weights(300, 300, seed=i) for i in range(5)})  # 1.8 MB

    for layer in stream(io.BytesIO(data)):
        for tensor in layer.tensors():
            tensor.decode()
    with pytest.raises(LimitError):
        for layer in stream(io.BytesIO(data)):
            layer["a.0"]


def test_after_an_error_a_stream_does_not_end_as_if_it_were_complete() -> None:
    given_layers = stream(io.BytesIO(written(layers())[:-100]))
    with pytest.raises(TruncatedError):
        for _ in given_layers:
            pass

    with pytest.raises(ValueError, match="was ended by an error"):
        next(given_layers)


def test_a_source_that_does_not_wait_is_refused() -> None:
    class Empty(io.RawIOBase):
        def read(self, n: int = -1) -> Any:
            return None

    for read in (vqformat.load_file, stream):
        with pytest.raises(BlockingIOError, match="a blocking one is needed"):
            read(Empty())  # type: ignore[operator]


def test_streams_of_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    data = written(layers())

    found = {name: layer[name] for layer in stream(io.BytesIO(data), framework="pt") for name in layer}

    assert all(torch.equal(found[name], torch.from_numpy(vqformat.load(data)[name])) for name in found)
    partial = stream(io.BytesIO(data), framework="pt", allow_partial=True)
    assert isinstance(next(partial)["embed.weight"], torch.Tensor)


def test_a_file_that_is_closed_gives_nothing() -> None:
    data = vqformat.save({"a": weights(3), "b": weights(3)})
    with safe_open(io.BytesIO(data)) as file:
        file["a"]

    with pytest.raises(ValueError, match="the file is closed"):
        file["b"]


def test_a_mapped_file_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.vqm"
    vqformat.save_file({"a": weights(3)}, path)

    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with safe_open(mapped) as file:  # type: ignore[arg-type]
            assert file["a"].shape == (3,)
        mapped.seek(0)
        assert list(vqformat.load_file(mapped)) == ["a"]  # type: ignore[arg-type]
