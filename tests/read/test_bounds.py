"""Bounds on memory and work hold however a file is read, and whatever it asks for (LIM-002)."""

from __future__ import annotations

import difflib
import io
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import vqm_attacks
from conftest import FIXTURES

import vqformat
from vqformat import FormatError, LimitError, native, safe_open, stream
from vqformat.decode import tables, trellis
from vqformat.format import limits
from vqformat.format.chunks import LayerInfo
from vqformat.format.index import Index
from vqformat.format.index_builder import IndexBuilder
from vqformat.format.records import TensorRecord
from vqformat.read import work
from vqformat.read.budget import Budget
from vqformat.read.contents import read_contents
from vqformat.read.indexed import IndexedReader

MB = 1_000_000
Read = Callable[..., object]


def load(data: bytes, **bounds: Any) -> None:
    vqformat.load(data, **bounds)


def verify(data: bytes, **bounds: Any) -> None:
    vqformat.verify(io.BytesIO(data), **bounds)


def open_all(data: bytes, **bounds: Any) -> None:
    with safe_open(io.BytesIO(data), **bounds) as f:
        for name in f:
            f[name]


def slices(data: bytes, **bounds: Any) -> None:
    with safe_open(io.BytesIO(data), **bounds) as f:
        for name in f:
            f.get_slice(name)[0]


def open_blocks(data: bytes, **bounds: Any) -> None:
    with safe_open(io.BytesIO(data), **bounds) as f:
        for name in f:
            for _ in f.get_slice(name).blocks():
                pass


def open_into(data: bytes, **bounds: Any) -> None:
    with safe_open(io.BytesIO(data), **bounds) as f:
        for name in f:
            part = f.get_slice(name)
            part.decode_into(np.empty(part.get_shape(), np.float32))


def stream_layers(data: bytes, **bounds: Any) -> None:
    for layer in stream(io.BytesIO(data), **bounds):
        dict(layer)


def stream_blocks(data: bytes, **bounds: Any) -> None:
    for layer in stream(io.BytesIO(data), **bounds):
        for tensor in layer.tensors():
            for _ in tensor.blocks():
                pass


def stream_into(data: bytes, **bounds: Any) -> None:
    for layer in stream(io.BytesIO(data), **bounds):
        for tensor in layer.tensors():
            tensor.decode_into(np.empty(tensor.shape, np.float32))


def contents(data: bytes, *, max_total_bytes: int, max_tensor_bytes: int | None = None) -> None:
    """What ``vqm verify`` does; its bound is one of the process."""
    with limits.limit_memory(max_total_bytes):
        read_contents(io.BytesIO(data))


READS = [load, verify, open_all, slices, open_blocks, open_into, stream_layers, stream_blocks, stream_into,
         contents]  # fmt: skip
ATTACKS = {"tables": vqm_attacks.large_tables, "books": vqm_attacks.large_books}


def peak_of(read: Read, data: bytes, **bounds: Any) -> int:
    """Peak memory of a read that is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(LimitError):
            read(data, **bounds)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("read", READS)
def test_tables_count_however_a_file_is_read(read: Read, attack: str) -> None:
    data = ATTACKS[attack]()
    assert len(data) < 100_000

    assert peak_of(read, data, max_total_bytes=100 * MB) < 4 * MB


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("read", [load, verify, open_all, stream_layers])
def test_without_bounds_tables_take_a_section_and_no_more(read: Read, attack: str) -> None:
    assert peak_of(read, ATTACKS[attack](), max_tensor_bytes=MB) < vqm_attacks.LARGEST_NBYTES + 16 * MB


@pytest.mark.parametrize("read", READS)
def test_a_bound_of_what_is_held_is_enough(read: Read) -> None:
    tensor = np.arange(1 << 16, dtype=np.float32)
    data = vqformat.save({"w": tensor, "v": tensor + 1}, recipe="kmeans:entries=16,share=all")

    read(data, max_tensor_bytes=tensor.nbytes, max_total_bytes=2 * tensor.nbytes + 64)


@pytest.mark.parametrize("read", [load, verify, open_all, stream_layers])
def test_each_read_has_both_bounds(read: Read) -> None:
    data = vqformat.save({"w": np.arange(1000, dtype=np.float32)})

    with pytest.raises(LimitError, match="max_tensor_bytes is 3999"):
        read(data, max_tensor_bytes=3999)
    with pytest.raises(LimitError, match="max_total_bytes is 3999"):
        read(data, max_total_bytes=3999)


@pytest.mark.parametrize("read", [load, verify, open_all, stream_layers])
def test_without_a_bound_on_the_total_an_error_names_the_memory_that_is_available(read: Read) -> None:
    data = vqformat.save({"w": np.arange(1000, dtype=np.float32)})

    with limits.limit_memory(3999), pytest.raises(LimitError, match="are 4000 bytes; 3999 are available"):
        read(data)


def test_a_limit_on_memory_ends_with_its_context() -> None:
    with limits.limit_memory(10):
        with limits.limit_memory(5), pytest.raises(ZeroDivisionError):
            assert limits.available_memory() == 5
            raise ZeroDivisionError
        with limits.limit_memory(None):
            assert limits.available_memory() == 10
    assert limits.available_memory() > 10


def test_the_system_is_asked_for_memory_once_for_many_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(limits, "available_memory", lambda: asked.append(1) or 30 * MB)
    data = vqformat.save({f"{i}": np.full(25_000, i, np.float32) for i in range(310)})  # 31 MB

    with pytest.raises(LimitError, match="30000000 are available"):
        vqformat.load(data)

    assert len(asked) == 2


def test_a_slice_counts_together_with_the_tables_of_its_tensor() -> None:
    data = vqm_attacks.large_tables(1)
    with safe_open(io.BytesIO(data), max_total_bytes=vqm_attacks.LARGEST_NBYTES) as f:
        (name,) = f.keys()
        with pytest.raises(LimitError, match="max_total_bytes"):
            f.get_slice(name)[0]


def test_a_refused_book_does_not_count() -> None:
    data = vqm_attacks.large_books(1)

    with safe_open(io.BytesIO(data), max_total_bytes=100 * MB) as f:
        for _ in range(3):
            with pytest.raises(LimitError, match=f"there are {vqm_attacks.LARGEST_NBYTES} bytes"):
                f["w0"]


@pytest.mark.parametrize(("fixture", "kind"), [("bok-002-nan", "book"), ("frq-003-zero", "freq")])
def test_a_table_of_refused_values_does_not_count(fixture: str, kind: str) -> None:
    budget = Budget()
    reader = IndexedReader(io.BytesIO((FIXTURES / f"invalid/{fixture}.vqm").read_bytes()), budget)

    with pytest.raises(FormatError):
        getattr(reader._tables, kind)(0)

    assert budget.shared_nbytes == 0


def test_frequencies_are_computed_for_the_tables_that_are_used() -> None:
    data = vqm_attacks.large_freqs()
    with safe_open(io.BytesIO(data)) as f:
        tracemalloc.start()
        try:
            assert all(f[name] == 1 for name in f)
            assert tracemalloc.get_traced_memory()[1] < 12 * 3 * (1 << 20) + 4 * MB
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("read", [load, open_all, stream_layers])
def test_a_book_is_passed_over_once_for_all_tensors(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"w{i}": rng.standard_normal((64, 128)).astype(np.float32) for i in range(5)}
    data = vqformat.save(tensors, recipe="kmeans:entries=16,share=all")
    passes = []
    largest = tables.largest
    monkeypatch.setattr(tables, "largest", lambda values: passes.append(values.size) or largest(values))

    read(data)

    assert passes.count(16) == 2  # whether all are finite, and the bound


def test_no_layer_is_parsed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    data = vqm_attacks.far_aliases(n_layers=70, n_tensors=1, n_aliases=140)
    parsed = []
    parse = LayerInfo.parse
    monkeypatch.setattr(LayerInfo, "parse", lambda chunk, shared: parsed.append(chunk.offset) or parse(chunk, shared))

    with safe_open(io.BytesIO(data)) as f:
        assert len([f[name] for name in f]) == 70 + 70 + 140
        assert [f.info(name).layer for name in f] == [""] * 280

    assert len(parsed) == len(set(parsed)) == 71


@pytest.mark.parametrize("has_classes", [True, False])
def test_blocks_beside_each_other_are_decoded_together(has_classes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "is_used", lambda: False)
    calls = []
    together = trellis.decode_together
    monkeypatch.setattr(trellis, "decode_together", lambda jobs: calls.append(len(jobs)) or together(jobs))

    array = vqformat.load(vqm_attacks.many_lanes(200, has_classes=has_classes))["w"]

    assert (array == 1).all()
    assert len(calls) < 5


def large_index(n: int, rank: int) -> bytes:
    index = IndexBuilder()
    index.add_chunk(b"META", 31, [])
    index.add_chunk(b"LAYR", 100, [TensorRecord(f"{i:07}", "u8", (0,) * rank) for i in range(n)])
    return index.pack()


def test_an_index_stays_in_columns() -> None:
    meta = large_index(100_000, 32)
    tracemalloc.start()
    try:
        index = Index(meta)
        after, peak = tracemalloc.get_traced_memory()
        assert after < len(meta) + 32 * 100_000
        assert peak < len(meta) + 120 * 100_000  # shapes as tuples would have 300 bytes each
        assert index.entry(77_777).shape == (0,) * 32 and index.position("0077777") == 77_777
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [open_all, slices, open_blocks])
def test_an_index_counts_unless_it_is_small(read: Read) -> None:
    data = vqm_attacks.long_names(1200)

    if read is not slices:  # of no elements there are none
        read(vqm_attacks.long_names(800), max_total_bytes=1)
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match=r"with the index there are 1\d+ bytes; max_total_bytes is 1000000"):
            read(data, max_total_bytes=MB)
        assert tracemalloc.get_traced_memory()[1] < MB
    finally:
        tracemalloc.stop()


def calls_of(read: Read, data: bytes) -> int:
    """Calls of functions, in Python and C, during a read."""
    n_calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal n_calls
        n_calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        read(data)
    finally:
        sys.setprofile(None)
    return n_calls


def infos(data: bytes) -> None:
    with safe_open(io.BytesIO(data)) as f:
        for name in f:
            f.info(name)


@pytest.mark.parametrize(("read", "most"), [(load, 120), (verify, 115), (open_all, 160), (infos, 150),
                                             (stream_layers, 140)])  # fmt: skip
def test_a_tensor_without_elements_takes_few_calls(read: Read, most: int) -> None:
    few, many = (calls_of(read, vqm_attacks.many_tensors(n, 1, in_layer=500)) for n in (1000, 2000))

    assert (many - few) / 1000 < most


def test_few_names_are_searched_for_similar_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []
    monkeypatch.setattr(difflib, "get_close_matches", lambda name, names, **_: searched.extend(names) or [])
    names = ["x" * 1000, *(f"layer{i}" for i in range(20_000))]

    assert str(vqformat.TensorNotFoundError("layerx", names)).startswith("no tensor 'layerx'")
    assert set(searched) == set(names[1:5000])
    searched.clear()
    str(vqformat.TensorNotFoundError("x" * 1000, names))
    assert searched == []


WORK = {
    "sums": vqm_attacks.many_sums, "products": vqm_attacks.many_products, "steps": vqm_attacks.many_steps,
    "slots": vqm_attacks.many_slots, "orders": vqm_attacks.many_orders, "words": vqm_attacks.many_words,
}  # fmt: skip


@pytest.mark.parametrize("attack", WORK)
@pytest.mark.parametrize("read", [*READS[:-1], lambda data: read_contents(io.BytesIO(data))])
def test_work_is_bounded_by_the_bytes_of_a_file(read: Read, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_PER_BYTE", 100)  # so that the test does not take long
    data = WORK[attack](2)
    assert len(data) < 10_000

    with pytest.raises(LimitError, match=r"units of work; at \d+ bytes 10000000 are allowed"):
        read(data)


def test_a_larger_bound_of_the_caller_allows_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_PER_BYTE", 10)
    data = vqm_attacks.large_tensor(1 << 23)

    with pytest.raises(LimitError, match="and more by a larger max_total_bytes"):
        load(data)
    load(data, max_total_bytes=1 << 23)


def test_aliases_that_are_decoded_each_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_PER_BYTE", 1000)
    data = vqm_attacks.large_aliases(5)

    load(data)
    with pytest.raises(LimitError, match="units of work"):
        open_all(data)


def test_a_tensor_that_is_decoded_again_and_again_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_PER_BYTE", 1000)
    data = vqm_attacks.large_aliases(1)
    with safe_open(io.BytesIO(data)) as f:
        for _ in range(5):
            f["w"]
            f.get_slice("w")[:, :3]


def test_tensors_without_elements_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_PER_BYTE", 100)
    data = vqm_attacks.many_tensors(300, 1)

    for read in (load, verify, infos, stream_layers):
        with pytest.raises(LimitError, match="units of work"):
            read(data)


def test_a_stream_of_unknown_size_may_ask_for_work_as_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_PER_BYTE", 4)
    array = np.random.default_rng(0).integers(0, 255, 1 << 20, np.uint8)
    data = vqformat.save({"a": array, "b": array[::-1]})

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    monkeypatch.setattr(work, "size_of", lambda stream: 0)
    vqformat.load_file(Pipe(data))
