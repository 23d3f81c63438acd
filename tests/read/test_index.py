"""Reading by index: what the index says is compared with what the chunks say before data is returned (IDX-003)."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import minidecoder
import numpy as np
import pytest
from fixture_cases.bases import base
from index_faults import BY_INDEX, OTHER_DIGEST, index_faults
from vqmbuilder import column, index_fields

import vqformat
from vqformat import ChecksumError, FormatError, VqmError, safe_open
from vqformat.format.container import CHUNK_HEAD_NBYTES
from vqformat.read.contents import read_contents
from vqformat.read.indexed import IndexedReader

BASE = base()


def with_index(**changes: Callable[[Any], Any]) -> bytes:
    """The base file with fields of its index changed; ``f5=…`` changes field 5."""
    lengths = [b - a for a, b in zip(BASE.offsets(), BASE.offsets()[1:], strict=False)]
    fields = index_fields(BASE.chunks, lengths, b"")
    return BASE.build(index={int(key[1:]): change(fields[int(key[1:])]) for key, change in changes.items()})


def read_all(data: bytes) -> dict[str, Any]:
    with safe_open(io.BytesIO(data)) as f:
        return {name: f[name] for name in f}


def test_the_base_file_is_read() -> None:
    assert list(read_all(BASE.build())) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"f4": lambda names: names.replace(b"d", b"e")}, id="name"),
        pytest.param({"f5": lambda dtypes: bytes([2, *dtypes[1:]])}, id="dtype"),
        pytest.param({"f7": lambda dims: column([65, *dims[1:]])}, id="shape"),
        pytest.param({"f8": lambda chunks: column([2, 4, 4, 4])}, id="chunk"),
        pytest.param({"f9": lambda targets: b""}, id="no alias"),
        pytest.param({"f9": lambda targets: column([0, 0, 2, 0])}, id="target"),
        pytest.param({"f9": lambda targets: column([0, 0, 0, 1])}, id="another alias"),
        pytest.param({"f2": lambda types: types.replace(b"note", b"nope")}, id="type"),
    ],
)
def test_an_index_that_differs_from_the_chunks_gives_no_wrong_tensor(changes: dict[str, Any]) -> None:
    data = with_index(**changes)
    expected = vqformat.load(BASE.build())

    try:
        found = read_all(data)
    except FormatError as err:
        assert err.clause in ("IDX-001", "IDX-003", "IDX-004", "TEN-002")
        return
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


@pytest.mark.parametrize("field", [4, 5, 7])
def test_a_tensor_that_the_index_describes_wrongly_is_refused(field: int) -> None:
    changes: dict[str, Any] = {
        "f4": lambda names: names.replace(b"d", b"e"),
        "f5": lambda dtypes: bytes([2, dtypes[1], 2, dtypes[3]]),  # of a and its alias c
        "f7": lambda dims: bytes([65, dims[1], 65, dims[3]]),
    }
    with pytest.raises(VqmError) as caught:
        read_all(with_index(**{f"f{field}": changes[f"f{field}"]}))
    assert getattr(caught.value, "clause", "") == "IDX-003"


class Faulty(io.BytesIO):
    """A stream of which a byte is read wrongly, until ``fault_at`` is set to None."""

    fault_at: int | None = None

    def read(self, n: int | None = -1, /) -> bytes:
        start = self.tell()
        data = bytearray(super().read(n))
        if self.fault_at is not None and start <= self.fault_at < start + len(data):
            data[self.fault_at - start] ^= 1
        return bytes(data)


@pytest.mark.parametrize("ask", [
    IndexedReader.check_metadata, lambda reader: reader.described("w"),
    lambda reader: reader.record("w"), lambda reader: reader.sections("w"), lambda reader: reader.part("w", 0),
], ids=["check_metadata", "described", "record", "sections", "part"])  # fmt: skip
def test_after_a_fault_a_part_is_read_again(ask: Callable[[IndexedReader], Any]) -> None:
    stream = Faulty(vqformat.save({"w": np.ones(3, np.float32)}, metadata={"of": "tests"}))
    index = IndexedReader(stream).index
    stream.fault_at = index.span(0 if ask is IndexedReader.check_metadata else 1)[0] + CHUNK_HEAD_NBYTES
    reader = IndexedReader(stream)
    with pytest.raises(ChecksumError):
        ask(reader)

    stream.fault_at = None

    ask(reader)


def test_the_sequential_reader_compares_the_whole_index() -> None:
    for field in range(1, 9):
        with pytest.raises(FormatError):
            vqformat.load(with_index(**{f"f{field}": lambda value: value[:-1] + bytes([value[-1] ^ 1])}))


FAULTS = dict(index_faults())


def stream_all(data: bytes) -> None:
    for layer in vqformat.stream(io.BytesIO(data)):
        dict(layer)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_field_is_of_the_class_format_and_a_wrong_digest_of_checksum(fault: str) -> None:
    reads: list[Callable[[bytes], Any]] = [lambda data: read_contents(io.BytesIO(data))]
    if fault != OTHER_DIGEST:
        reads += [vqformat.load, stream_all]
    for read in reads:
        with pytest.raises(FormatError) as caught:
            read(FAULTS[fault])
        assert caught.value.error_class == ("checksum" if fault == OTHER_DIGEST else "format")

    with pytest.raises(minidecoder.Refused) as refused:
        minidecoder.decode(io.BytesIO(FAULTS[fault]))
    assert refused.value.error_class == ("checksum" if fault == OTHER_DIGEST else "format")


@pytest.mark.parametrize("fault", FAULTS)
def test_by_the_index_a_wrong_field_gives_no_wrong_tensor(fault: str) -> None:
    expected = BY_INDEX.get(fault, "format")

    def read(data: bytes) -> dict[str, Any]:
        with safe_open(io.BytesIO(data)) as f:
            f.metadata()
            described = {name: f.info(name) for name in f}
            tensors = {name: f[name] for name in f}
        assert {name: info.shape for name, info in described.items()} == {name: a.shape for name, a in tensors.items()}
        return tensors

    if expected is None:
        assert {name: array.tobytes() for name, array in read(FAULTS[fault]).items()} == {
            name: array.tobytes() for name, array in read(BASE.build()).items()}  # fmt: skip
        return
    with pytest.raises(FormatError) as caught:
        read(FAULTS[fault])
    assert caught.value.error_class == expected


@pytest.mark.parametrize("fault", ["dtypes-alias", "dims-alias"])
def test_nothing_is_told_of_an_alias_that_differs_from_its_target(fault: str) -> None:
    with pytest.raises(FormatError, match="differ in dtype or shape"):
        safe_open(io.BytesIO(FAULTS[fault]))
