"""Layers from a stream, parts of tensors from a file: the same values as load_file, and no more decoded than asked."""

from __future__ import annotations

import io
import json
import mmap
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from conftest import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import models

import vqformat
from vqformat import ChecksumError, LimitError, TruncatedError, VqmError, safe_open, stream
from vqformat.encode import assemble, small
from vqformat.indexed import IndexedReader
from vqformat.tensor import TensorDecoder
from vqformat.workers import Workers

Arrays = dict[str, np.ndarray[Any, Any]]
PRESETS = ("fast", "default", "small")
VALID = [case["file"] for case in json.loads((FIXTURES / "manifest.json").read_text()) if "error" not in case]


def weights(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def layers() -> Arrays:
    tied = weights(90, 64)
    return {"embed.weight": tied, "body.0.weight": weights(64, 90, seed=1), "body.0.bias": weights(64),
            "body.1.weight": weights(8, 4, 3, 3, seed=2), "body.1.steps": np.array(7),
            "head.weight": tied, "head.none": np.zeros((0, 3))}  # fmt: skip


def written(model: Arrays, **options: Any) -> bytes:
    """A file with a layer for each tensor of more than one axis."""
    target = io.BytesIO()
    seen: dict[int, str] = {}
    with vqformat.writer(target, {"of": "tests"}, **options) as w:
        for name, array in model.items():
            if id(array) in seen:
                w.add_alias(name, seen[id(array)])
            else:
                w.add_layer(name.rpartition(".")[0], {name: array})
            seen.setdefault(id(array), name)
    return target.getvalue()


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


def same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    """Whether arrays agree in dtype, shape and every bit."""
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and (
        np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()
    )


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
@settings(max_examples=40, deadline=None)
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


def aliases(data: bytes) -> set[str]:
    return {name for layer in stream(io.BytesIO(data)) for name in layer.aliases}


def put_together(shape: tuple[int, ...], dtype: Any, blocks: Iterator[tuple[Any, Any]]) -> np.ndarray[Any, Any]:
    whole = np.zeros(shape, dtype)
    n_elements = 0
    for index, values in blocks:
        whole[index] = values
        n_elements += values.size
    assert n_elements == whole.size  # each element once
    return whole


@pytest.mark.parametrize("preset", PRESETS)
def test_a_layer_that_is_not_looked_into_is_checked(preset: str) -> None:
    data = bytearray(written(layers(), preset=preset))
    with safe_open(io.BytesIO(bytes(data))) as file:
        (_, chunk, first) = file._reader._locate("body.1.weight")
        data[list(chunk.spans())[first][0] + 1] ^= 1
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

    with pytest.raises(ValueError, match=r"tensor 'embed\.weight' has passed"):
        tensor.decode()
    with pytest.raises(ValueError, match="layer 'embed' has passed"):
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

    with pytest.raises(ValueError, match="has passed: decode it before the stream goes on, and once"):
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

    with pytest.raises(ValueError, match="has passed"):
        next(blocks)
    with pytest.raises(ValueError, match="has passed"):
        next(tensors)
    assert "0.a" in first  # which does not decode it
    assert "1.a" not in first


def test_tensors_of_a_layer_are_no_more_together_than_the_caller_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqformat.limits.available_memory", lambda: 1_000_000)
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
        with pytest.raises(BlockingIOError, match="a stream is wanted that blocks"):
            read(Empty())  # type: ignore[operator]


def test_streams_of_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    data = written(layers())

    found = {name: layer[name] for layer in stream(io.BytesIO(data), framework="pt") for name in layer}

    assert all(torch.equal(found[name], torch.from_numpy(vqformat.load(data)[name])) for name in found)
    partial = stream(io.BytesIO(data), framework="pt", allow_partial=True)
    assert isinstance(next(partial)["embed.weight"], torch.Tensor)


# Parts of tensors

CODED = {
    "fast": ({"preset": "fast"}, np.float32), "default": ({}, np.float32), "small": ({"preset": "small"}, np.float32),
    "lossless": ({"lossless": True}, np.float32), "pq": ({"recipe": "pq:dim=4,entries=16"}, np.float32),
    "by columns": ({"recipe": "pq:dim=2,entries=16,axis=columns"}, np.float32),
    "rq": ({"recipe": "rq:dim=4,entries=16,stages=2"}, np.float32),
    "svd": ({"recipe": "svd:rank=3+kmeans:entries=4"}, np.float32), "binary": ({"recipe": "binary"}, np.float32),
    "float16": ({"preset": "small"}, np.float16), "float64": ({}, np.float64), "int32": ({}, np.int32),
    "complex": ({}, np.complex64), "complex raw": ({"lossless": True}, np.complex64),
    "complex small": ({"preset": "small"}, np.complex64), "bool": ({}, np.bool_),
}  # fmt: skip
SHAPES = [(40, 64), (64, 40), (12, 6, 4, 4), (7, 300), (300, 7), (5000,), (3, 1, 50)]


def coded(case: str, shape: tuple[int, ...]) -> bytes:
    options, dtype = CODED[case]
    array = weights(*shape) * 10
    if np.dtype(dtype).kind == "c":
        array = array + 1j * weights(*shape, seed=1)  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:  # blocks so small that the tensor has several
        patch.setattr(assemble, "BLOCK_ELEMENTS", 1 << 9)
        patch.setattr(small, "BLOCK_ELEMENTS", 1 << 9)
        patch.setattr(small, "_MOST_BLOCK_ELEMENTS", 1 << 10)
        return vqformat.save({"x": array.astype(dtype)}, **options)


@pytest.mark.parametrize("case", CODED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_and_decode_into_give_the_whole(case: str, shape: tuple[int, ...]) -> None:
    data = coded(case, shape)
    expected = vqformat.load(data)["x"]

    with safe_open(io.BytesIO(data)) as file:
        part = file.get_slice("x")
        assert same(put_together(shape, expected.dtype, part.blocks()), expected)
        out = np.empty(shape, expected.dtype)
        part.decode_into(out)
    assert same(out, expected)
    tensor = next(next(stream(io.BytesIO(data))).tensors())
    assert same(put_together(shape, expected.dtype, tensor.blocks()), expected)


FILES = {(case, shape): (data := coded(case, shape), vqformat.load(data)["x"]) for shape in SHAPES
         for case in ("fast", "default", "small", "by columns", "svd", "complex small", "lossless")}  # fmt: skip


def indices(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Whatever NumPy takes as an index of an array of a shape."""
    mixed = st.tuples(*(st.slices(size) | st.integers(-size, size - 1) | st.just(slice(None)) for size in shape))
    some = st.integers(-shape[0], shape[0] - 1)
    return (
        hnp.basic_indices(shape, allow_newaxis=True)
        | mixed
        | hnp.integer_array_indices(shape)
        | hnp.arrays(np.bool_, shape[:1])
        | hnp.arrays(np.bool_, shape)
        | st.lists(some, max_size=5)
        | st.tuples(st.lists(some, max_size=5), st.just(...))
    )


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_any_index_gives_what_numpy_gives(data: st.DataObject) -> None:
    file, expected = FILES[data.draw(st.sampled_from(list(FILES)))]
    index = data.draw(indices(expected.shape))
    if isinstance(index, tuple) and not any(item is ... for item in index):
        at = data.draw(st.integers(0, len(index)))
        index = data.draw(st.sampled_from([index, (*index[:at], ..., *index[at:])]))

    with safe_open(io.BytesIO(file)) as f:
        found = f.get_slice("x")[index]

    assert same(np.asarray(found), np.asarray(expected[index]))


def test_an_ellipsis_for_no_axis_keeps_arrays_apart() -> None:
    file, expected = FILES["default", (3, 1, 50)]
    index = (slice(None), [0, 0], ..., [1, 2])

    with safe_open(io.BytesIO(file)) as f:
        assert same(f.get_slice("x")[index], expected[index])


@pytest.mark.parametrize("index", [40, -41, (0, 64), (0, 0, 0), (..., ...), [0, 40], np.ones((41,), bool),
                                   np.ones((40, 63), bool)], ids=str)  # fmt: skip
def test_positions_that_are_not_there_are_index_errors(index: Any) -> None:
    file, expected = FILES["default", (40, 64)]
    with pytest.raises(IndexError):
        expected[index]

    with safe_open(io.BytesIO(file)) as f, pytest.raises(IndexError):
        f.get_slice("x")[index]


@pytest.mark.parametrize("index", ["x", 1.5, {}, [1.5]], ids=str)
def test_what_is_no_index_is_refused(index: Any) -> None:
    with safe_open(io.BytesIO(FILES["default", (40, 64)][0])) as f, pytest.raises((TypeError, IndexError)):
        f.get_slice("x")[index]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each block that is decoded."""
    rows: list[int] = []
    fill = TensorDecoder._fill

    def counted(self: TensorDecoder, block: Any, of_stages: Any, out: Any) -> None:
        rows.append(block.n_rows)
        fill(self, block, of_stages, out)

    monkeypatch.setattr(TensorDecoder, "_fill", counted)
    return rows


@pytest.fixture(scope="module")
def tables() -> dict[str, bytes]:
    """Files of a large embedding."""
    table = weights(40_000, 64)
    return {preset: vqformat.save({"embed.weight": table}, preset=preset) for preset in PRESETS}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("rows", [(0, 1), (39_999, 40_000), (5000, 5100), (100, 20_000)], ids=str)
def test_rows_of_an_embedding_decode_two_blocks_more_than_they_fill(
    tables: dict[str, bytes], preset: str, rows: tuple[int, int], decoded: list[int]
) -> None:
    with safe_open(io.BytesIO(tables[preset])) as file:
        found = file.get_slice("embed.weight")[slice(*rows)]
        n_decoded = len(decoded)
        block_rows = max(decoded)
        expected = file["embed.weight"][slice(*rows)]
    n_blocks = len(decoded) - n_decoded

    assert same(found, expected)
    assert n_blocks >= 8
    assert n_decoded <= -(-(rows[1] - rows[0]) // block_rows) + 2


@pytest.mark.parametrize("preset", PRESETS)
def test_single_rows_anywhere_decode_a_block_each(
    tables: dict[str, bytes], preset: str, decoded: list[int]
) -> None:
    with safe_open(io.BytesIO(tables[preset])) as file:
        file.get_slice("embed.weight")[[39_000, 3, 4]]

    assert len(decoded) == 2


def test_max_tensor_bytes_is_for_the_part(tables: dict[str, bytes]) -> None:
    with safe_open(io.BytesIO(tables["default"]), max_tensor_bytes=100 * 64 * 4) as file:
        part = file.get_slice("embed.weight")
        assert part[:100].shape == (100, 64)
        with pytest.raises(LimitError, match="max_tensor_bytes"):
            part[:101]


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((64, 40), np.float32), ValueError, r"shape \(40, 64\) and dtype float32, the array has \(64, 40\)"),
        (np.empty((40, 64), np.float64), ValueError, "dtype float32, the array has .* float64"),
        (np.empty((64, 40), np.float32).T, ValueError, "C-contiguous"),
        (np.frombuffer(bytes(40 * 64 * 4), np.float32).reshape(40, 64), ValueError, "can be written"),
        ([0.0], TypeError, "an array is wanted, not a list"),
    ],
)
def test_decode_into_says_what_it_wants(out: Any, error: type[Exception], message: str) -> None:
    with safe_open(io.BytesIO(FILES["default", (40, 64)][0])) as file, pytest.raises(error, match=message):
        file.get_slice("x").decode_into(out)


def test_decode_into_a_torch_tensor() -> None:
    torch = pytest.importorskip("torch")
    data, expected = FILES["default", (40, 64)]
    out = torch.empty(40, 64)

    with safe_open(io.BytesIO(data)) as file:
        file.get_slice("x").decode_into(out)
        with pytest.raises(ValueError, match="a contiguous tensor on the CPU"):
            file.get_slice("x").decode_into(torch.empty(40, 64, device="meta"))

    assert same(out.numpy(), expected)


def test_decode_into_is_seen_in_the_torch_tensor_or_refused() -> None:
    torch = pytest.importorskip("torch")
    data = vqformat.save({"mask": np.ones((4, 4), bool), "pairs": np.ones(3, np.complex64)}, lossless=True)
    mask, pairs = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(3, dtype=torch.complex64)

    with safe_open(io.BytesIO(data)) as file:
        file.get_slice("mask").decode_into(mask)
        file.get_slice("pairs").decode_into(pairs)
        with pytest.raises(ValueError, match="packed, conjugate or negative"):
            file.get_slice("pairs").decode_into(pairs.conj())

    assert mask.all()
    assert (pairs == 1).all()


def test_max_tensor_bytes_is_for_blocks_that_are_a_whole_tensor() -> None:
    data = vqformat.save({"x": np.ones((50, 50), np.complex64)})

    with safe_open(io.BytesIO(data), max_tensor_bytes=1000) as file, pytest.raises(LimitError):
        list(file.get_slice("x").blocks())


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


# Threads


class Slow(io.BytesIO):
    """A file that others may use between seek and read."""

    def seek(self, *args: int) -> int:
        at = super().seek(*args)
        time.sleep(0.001)
        return at


def test_threads_that_read_one_file_get_what_they_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IndexedReader, "HELD_NBYTES", 1000)  # nothing of a layer is held
    data = written({f"{i}.weight": weights(200, 300, seed=i) for i in range(6)}, preset="fast")
    expected = vqformat.load(data)

    with safe_open(Slow(data)) as file, ThreadPoolExecutor(6) as pool:
        names = list(file) * 5
        assert all(same(found, expected[name]) for name, found in zip(names, pool.map(file.get_tensor, names),
                                                                      strict=True))  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_the_number_of_threads_changes_nothing(preset: str) -> None:
    data = vqformat.save({"a": weights(1200, 900), "b": weights(300, 2000, seed=1)}, preset=preset)
    expected = vqformat.load(data, threads=1)

    for threads in (2, 5, None):
        assert all(same(array, expected[name]) for name, array in vqformat.load(data, threads=threads).items())
        with safe_open(io.BytesIO(data), threads=threads) as file:
            assert all(same(file[name], expected[name]) for name in expected)
        for layer in stream(io.BytesIO(data), threads=threads):
            assert all(same(layer[name], expected[name]) for name in layer)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "two"])
def test_a_number_of_threads_is_a_whole_number(threads: Any) -> None:
    data = vqformat.save({})
    for read in (vqformat.load_file, safe_open, stream):
        with pytest.raises(ValueError, match=r"threads is .*; None and whole numbers from 1 are allowed"):
            read(io.BytesIO(data), threads=threads)  # type: ignore[operator]


@pytest.mark.parametrize("preset", PRESETS)
def test_of_two_faults_the_first_is_told_whatever_the_threads(preset: str) -> None:
    data = bytearray(vqformat.save({"a": weights(1200, 900), "b": weights(900, 900, seed=1)}, preset=preset))
    with safe_open(io.BytesIO(bytes(data))) as file:
        for name, block in (("a", 3), ("b", 0)):
            record, chunk, first = file._reader._locate(name)
            n_resident = sum(map(len, record.resident_nbytes()))
            start, end = list(chunk.spans())[first + n_resident + block]
            data[(start + end) // 2] ^= 1

    def error(read: Callable[[], Any]) -> str:
        with pytest.raises(VqmError) as caught:
            read()
        return str(caught.value)

    errors = {error(lambda threads=threads: vqformat.load(bytes(data), threads=threads)) for threads in (1, 2, 5)}
    assert len(errors) == 1
    assert "block 3 of tensor 'a'" in errors.pop()


# Files that end early


def tiny() -> bytes:
    model = {"a.weight": weights(12, 10), "a.bias": weights(12), "b.weight": weights(20, 16), "b.tied": weights(4),
             "c.weight": weights(30, 9)}  # fmt: skip
    return written(model, preset="small")


def test_a_file_cut_anywhere_gives_the_tensors_that_are_whole() -> None:
    """And says that it is cut (REA-005)."""
    data = tiny()
    expected = vqformat.load(data)
    ends = {}  # of the tensors, in the file
    with safe_open(io.BytesIO(data)) as file:
        for name in expected:
            record, chunk, first = file._reader._locate(name)
            ends[name] = list(chunk.spans())[first + record.n_sections() - 1][1]
    for n in range(0, len(data), 3):
        whole = [name for name, end in ends.items() if end <= n]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = vqformat.load(data[:n], allow_partial=True)
            except TruncatedError:  # not even the metadata
                assert n < data.index(b"LAYR")
                continue
        assert [str(w.message) for w in caught] == [
            f"the file ends early, at byte {n}: {len(whole)} tensors of it are whole"
        ]
        assert list(found) == whole
        assert all(same(found[name], expected[name]) for name in whole)


def test_a_stream_cut_anywhere_gives_the_tensors_that_are_whole() -> None:
    data = tiny()
    expected = vqformat.load(data)
    for n in range(len(data) // 4, len(data), 7):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = {name: layer[name] for layer in stream(io.BytesIO(data[:n]), allow_partial=True)
                     for name in layer}  # fmt: skip
        assert [str(w.message) for w in caught] == [f"the file ends early, at byte {n}"]
        assert list(found) == list(expected)[: len(found)]
        assert all(same(found[name], expected[name]) for name in found)
        with pytest.raises(TruncatedError):
            for _ in stream(io.BytesIO(data[:n])):
                pass


def test_aliases_of_what_is_whole_are_there() -> None:
    data = written(layers())
    with safe_open(io.BytesIO(data)) as file:
        cut = data[: file._reader.index.chunk_offsets[-2]]  # without head.none

    with pytest.warns(UserWarning, match="6 tensors of it are whole"):
        found = vqformat.load(cut, allow_partial=True)

    assert found["head.weight"] is found["embed.weight"]


def test_a_file_that_is_damaged_is_refused_though_it_may_be_cut() -> None:
    data = tiny()
    whole = vqformat.load(data)
    for n in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[n] ^= 0x10
        with pytest.raises(VqmError):
            vqformat.load(bytes(damaged), allow_partial=True)
    assert list(vqformat.load(data, allow_partial=True)) == list(whole)  # without a warning


def test_errors_of_workers_come_in_the_order_of_their_jobs() -> None:
    second_failed = threading.Event()

    def first() -> None:
        second_failed.wait(10)
        raise ValueError("first")

    def second() -> None:
        second_failed.set()
        raise ValueError("second")

    with pytest.raises(ValueError, match="first"), Workers(2) as workers:
        workers.run(first)
        workers.run(second)
        raise ValueError("third")


def test_no_more_jobs_wait_than_two_for_each_thread() -> None:
    going_on = threading.Event()
    begun = []
    timer = threading.Timer(0.2, going_on.set)
    timer.start()
    with Workers(2) as workers:
        for i in range(5):
            workers.run(going_on.wait, 10)
            begun.append((i, going_on.is_set()))
    timer.join()

    assert begun == [(0, False), (1, False), (2, False), (3, False), (4, True)]


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_of_a_tensor_whose_rows_are_sorted(preset: str) -> None:
    scales = np.exp(weights(64))
    data = vqformat.save({"x": weights(64, 90) * scales[:, None]}, preset=preset)
    expected = vqformat.load(data)["x"]

    with safe_open(io.BytesIO(data)) as file:
        part = file.get_slice("x")
        for index in (slice(0, 0), [], (slice(None), []), np.zeros(64, bool), False):
            assert same(part[index], expected[index])
        assert same(part[True], expected[True])
