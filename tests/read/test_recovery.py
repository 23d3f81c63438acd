"""Damaged files: every tensor whose bytes are right is found whole and can be written to a new file."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vqmbuilder

import vqformat
from vqformat import VqmError
from vqformat.encode.methods.assemble import assemble_raw
from vqformat.format.chunkwriter import ChunkWriter, EncodedTensor
from vqformat.format.records import AliasRecord, TensorRecord
from vqformat.read import chunk_search
from vqformat.read.recovery import write_whole
from vqformat.read.survey import survey
from vqformat.read.surveyed import Survey, SurveyedTable

Array = np.ndarray[Any, Any]
FIXTURES = Path(__file__).parent.parent.parent / "fixtures"


def small_file() -> bytes:
    """A file of two layers: raw sections, one zstd frame, an alias and an empty tensor."""
    rng = np.random.default_rng(1)
    stream = io.BytesIO()
    with ChunkWriter(stream, {"name": "small"}) as writer:
        writer.add_layer("a", [raw("a.w", rng.standard_normal((20, 16))), raw("a.b", rng.standard_normal(20)),
                               AliasRecord("tied", "a.w")])  # fmt: skip
        writer.add_layer("b", [raw("b.w", rng.integers(0, 3, (40, 60)), compress=True), raw("b.mask", np.arange(3)),
                               AliasRecord("b.tied", "a.b"), raw("none", np.zeros((0, 3)))])  # fmt: skip
    return stream.getvalue()


def raw(name: str, array: Array, *, compress: bool = False) -> EncodedTensor:
    return assemble_raw(name, "f32", array.astype(np.float32), 0, compress=compress)


DATA = small_file()
EXPECTED = vqformat.load(DATA)


def recovered(data: bytes, path: Path) -> tuple[Survey, dict[str, Array]]:
    stream = io.BytesIO(data)
    found = survey(stream)
    write_whole([(found, stream)], path, overwrite=True)
    vqformat.verify(path)
    return found, vqformat.load_file(path)


def assert_right(found: dict[str, Array], expected: dict[str, Array]) -> None:
    for name, array in found.items():
        assert (array.dtype, array.shape, array.tobytes()) == (
            expected[name].dtype, expected[name].shape, expected[name].tobytes())  # fmt: skip


def test_an_undamaged_file_is_copied_to_the_byte(tmp_path: Path) -> None:
    found, _ = recovered(DATA, tmp_path / "m.vqm")
    assert (found.faults, found.n_whole, found.metadata) == ([], 7, {"name": "small"})
    assert (tmp_path / "m.vqm").read_bytes() == DATA


def test_one_flipped_bit_takes_one_tensor_and_its_aliases(tmp_path: Path) -> None:
    at = DATA.index(EXPECTED["a.w"].tobytes()[:64]) + 9
    data = DATA[:at] + bytes([DATA[at] ^ 4]) + DATA[at + 1 :]

    found, tensors = recovered(data, tmp_path / "m.vqm")

    faults = {tensor.name: [fault.clause for fault in tensor.faults] for tensor in found.tensors if tensor.faults}
    assert faults == {"a.w": ["SEC-001"], "tied": [""]}
    assert list(tensors) == ["a.b", "b.w", "b.mask", "b.tied", "none"]
    assert_right(tensors, EXPECTED)


@pytest.mark.parametrize("part", range(3))
def test_any_flipped_bit_leaves_all_but_one_layer(tmp_path: Path, part: int) -> None:
    for at in range(part, len(DATA), 3 * 17):
        data = bytearray(DATA)
        data[at] ^= 1 << at % 8
        found, tensors = recovered(bytes(data), tmp_path / "m.vqm")
        assert found.faults or any(tensor.faults for tensor in found.tensors)
        assert_right(tensors, EXPECTED)
        assert len(tensors) >= 3
        assert {tensor.name for tensor in found.tensors} == set(EXPECTED)


@pytest.mark.parametrize("part", range(3))
def test_a_truncated_file_gives_its_complete_tensors(tmp_path: Path, part: int) -> None:
    for n in range(part, len(DATA), 3 * 17):
        expected: dict[str, Array] = {}
        with warnings.catch_warnings(), contextlib.suppress(VqmError):
            warnings.simplefilter("ignore")
            expected = vqformat.load(DATA[:n], allow_partial=True)
        try:
            _, tensors = recovered(DATA[:n], tmp_path / "m.vqm")
        except VqmError:
            assert not expected
            continue
        # What needs no bytes is there as soon as its layer is announced
        assert expected.keys() <= tensors.keys() <= {*expected, "none", "b.tied"}
        assert_right(tensors, EXPECTED)


@pytest.mark.parametrize("at", [0, 8])
def test_a_damaged_header_is_replaced_by_that_of_the_footer(tmp_path: Path, at: int) -> None:
    data = bytearray(DATA)
    data[at] ^= 0x10
    _, tensors = recovered(bytes(data), tmp_path / "m.vqm")
    assert list(tensors) == list(EXPECTED)


def test_lost_metadata_is_taken_from_the_index(tmp_path: Path) -> None:
    at = DATA.index(b"small")
    found, _ = recovered(DATA[:at] + b"S" + DATA[at + 1 :], tmp_path / "m.vqm")
    assert found.metadata == {"name": "small"}
    assert [fault.clause for fault in found.faults] == ["CHK-007"]


def test_without_an_index_chunks_after_the_damage_are_searched(tmp_path: Path) -> None:
    at = DATA.index(b"LAYR")  # the head of the first layer
    end = DATA.rindex(b"INDX")
    data = DATA[:at] + b"LAYS" + DATA[at + 4 : end]

    found, tensors = recovered(data, tmp_path / "m.vqm")

    assert list(tensors) == ["b.w", "b.mask", "none"]
    assert [fault.clause for fault in found.faults] == ["FTR-002", "CHK-001"]
    assert_right(tensors, EXPECTED)


def test_something_else_is_refused() -> None:
    for data in (b"", b"GGUF" + bytes(200), DATA[:10]):
        with pytest.raises(VqmError):
            survey(io.BytesIO(data))


def test_tables_after_a_lost_one_get_new_numbers(tmp_path: Path) -> None:
    """Of three BOOK chunks the first is damaged: its tensor is lost, and that of the third uses number 1."""
    data = bytearray((FIXTURES / "valid/books.vqm").read_bytes())
    first = next(part for part in survey(io.BytesIO(data)).parts if isinstance(part, SurveyedTable))
    data[first.section[1]] ^= 1

    found, tensors = recovered(bytes(data), tmp_path / "m.vqm")

    assert [str(tensor.faults[0]) for tensor in found.tensors if tensor.faults] == [
        "it uses BOOK 0, which is damaged or lost"]  # fmt: skip
    assert list(tensors) == ["b"]
    assert_right(tensors, vqformat.load_file(FIXTURES / "valid/books.vqm"))
    (tensor,) = survey(io.BytesIO((tmp_path / "m.vqm").read_bytes())).tensors
    assert isinstance(tensor.record, TensorRecord)
    assert tensor.record.book_numbers() == [1]


@pytest.mark.parametrize("has_index", [True, False])
def test_a_lost_head_of_a_table_takes_the_layers_that_use_it(has_index: bool) -> None:
    """The places of the sections of a layer follow from the tables that its tensors use."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((64, 64)).astype(np.float32) for name in ("a.w", "a.bias", "b.w")}
    recipe = {"a.w": "kmeans:entries=16,share=all", "*": "raw"}
    stream = io.BytesIO()
    with vqformat.writer(stream, recipe=recipe, bits=32) as writer:
        for layer in "ab":
            writer.add_layer(layer, {name: array for name, array in weights.items() if name.startswith(layer)})
    data = bytearray(stream.getvalue())
    data[data.index(b"BOOK") + 8] ^= 1

    found = survey(io.BytesIO(data if has_index else data[: data.rindex(b"INDX")]))

    lost = "a tensor of its layer uses BOOK 0, whose head is damaged or lost"
    if has_index:
        assert [tensor.name for tensor in found.tensors if not tensor.faults] == ["b.w"]
        assert all(str(tensor.faults[0]).startswith(lost) for tensor in found.tensors[:2])
    else:
        assert [tensor.name for tensor in found.tensors] == ["b.w"]
        assert str(found.faults[-1]).startswith(lost)


@pytest.mark.parametrize("name", ["books", "base-trellis", "aliases", "axes-conv", "freq-of-the-text", "ancillary"])
def test_damage_of_any_part_gives_no_wrong_value(tmp_path: Path, name: str) -> None:
    data = (FIXTURES / f"valid/{name}.vqm").read_bytes()
    expected = vqformat.load(data)
    assert list(recovered(data, tmp_path / "m.vqm")[1]) == list(expected)
    for at in range(0, len(data), 11):
        damaged = bytearray(data)
        damaged[at] ^= 128
        try:
            _, tensors = recovered(bytes(damaged), tmp_path / "m.vqm")
        except VqmError as err:
            assert "no tensor" in str(err)
            continue
        assert_right(tensors, expected)


INVALID = sorted((FIXTURES / "invalid").glob("*.vqm"))
OF_THE_WHOLE_FILE = ("fil-001", "ftr-001", "idx-")  # faults of the index and of what follows it; each tensor is whole


@pytest.mark.parametrize("path", [INVALID[0].with_name("sec-004-freq-long.vqm"), *INVALID[::25]], ids=lambda p: p.stem)
def test_faults_with_right_checksums_are_found(path: Path, tmp_path: Path) -> None:
    """Files with one fault each that no accident makes, such as a table of the wrong size with the right CRC."""
    try:
        found, _ = recovered(path.read_bytes(), tmp_path / "m.vqm")
    except VqmError:
        assert not (tmp_path / "m.vqm").exists()
        return
    has_fault = found.faults or any(tensor.faults for tensor in found.tensors)
    assert has_fault or path.name.startswith(OF_THE_WHOLE_FILE)


def faults_of(found: Survey) -> list[vqformat.FormatError]:
    return [*found.faults, *(fault for tensor in found.tensors for fault in tensor.faults)]


def test_stored_faults_do_not_hold_what_was_read() -> None:
    """An exception holds the frames that it passed, and so their arrays, unless its traceback is removed."""
    damaged = [DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :] for at in range(0, len(DATA), 97)]
    damaged += [DATA[:n] for n in range(100, len(DATA), 997)]
    damaged += [path.read_bytes() for path in INVALID[::10]]
    n_faults = 0
    for data in damaged:
        with contextlib.suppress(VqmError):
            for fault in faults_of(survey(io.BytesIO(data))):
                assert (fault.__traceback__, fault.__context__, fault.__cause__) == (None, None, None)
                n_faults += 1
    assert n_faults > 100


def test_a_malformed_copy_of_lost_metadata_is_a_fault() -> None:
    meta = vqmbuilder.meta(body_crc=0)
    data = vqmbuilder.file(meta, index={1: b"\xc1"}).build()

    found = survey(io.BytesIO(data))

    assert found.metadata is None
    assert [fault.clause for fault in found.faults] == ["CHK-007", "MET-001"]


# Files that no accident makes


class Counted(io.BytesIO):
    """A file that counts the bytes which are read."""

    n_read = 0

    def read(self, n: int | None = -1) -> bytes:
        data = super().read(n)
        self.n_read += len(data)
        return data


def header(type: bytes, nbytes: int, flags: int = 0) -> bytes:
    """A chunk header with the right CRC, which announces metadata of so many bytes."""
    fixed = struct.pack("<4s4I", type, flags, nbytes, nbytes, 0)
    return fixed + struct.pack("<I", zlib.crc32(fixed))


@pytest.mark.parametrize("has_index", [True, False])
def test_metadata_of_many_chunks_is_not_in_memory_together(has_index: bool) -> None:
    """A chunk of 558 bytes may have metadata of 16 MiB."""
    n = 1 << 24
    meta_frame = vqmbuilder.frame(n, blocks=vqmbuilder.rle_blocks(0, n))
    chunks = [vqmbuilder.chunk(b"BOOK", bytes(n), is_compressed=True, meta_frame=meta_frame) for _ in range(12)]
    data = vqmbuilder.file(*chunks).build()
    data = data if has_index else data[: data.index(b"INDX")]
    tracemalloc.start()
    try:
        found = survey(io.BytesIO(data))
        assert tracemalloc.get_traced_memory()[1] < 5 * n
    finally:
        tracemalloc.stop()
    assert len(found.faults) >= 12


@pytest.mark.parametrize("type", [b"LAYR", b"INDX"])
def test_headers_that_announce_the_same_bytes_end_the_search(type: bytes) -> None:
    """Each of 6,000 headers announces metadata as long as half of the file: to read all of it would take 432 MB."""
    headers = header(type, 72_000) * 6000
    stream = Counted(DATA[: DATA.index(b"LAYR")] + headers)

    found = survey(stream)

    assert stream.n_read < 10 * len(headers) + (1 << 26)
    assert found.faults[-1].error_class == "limit"


def test_the_search_for_headers_reads_the_file_once() -> None:
    headers = header(b"LAYR", 0, flags=8) * 6000  # unknown flags: nothing after the header is read
    stream = Counted(DATA[: DATA.index(b"LAYR")] + headers)

    found = survey(stream)

    assert stream.n_read < 10 * len(headers)
    assert len(found.faults) == 6001


def test_headers_that_announce_more_than_the_index_are_not_followed() -> None:
    n = 3000
    chunks = [vqmbuilder.chunk(b"BOOK", b"", meta_stored=40_000, meta_plain=40_000) for _ in range(n)]
    stream = Counted(vqmbuilder.file(*chunks).build())

    found = survey(stream)

    assert stream.n_read < 10 * len(stream.getvalue())
    assert [fault.clause for fault in found.faults] == ["IDX-001"] * n


def test_the_number_of_faults_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_search, "MAX_CHUNKS", 10)
    start = DATA[: DATA.index(b"LAYR")]

    for headers in (header(b"LAYR", 0, flags=8) * 50, header(b"INDX", 0, flags=8) * 50):
        assert len(survey(io.BytesIO(start + headers)).faults) <= 11
