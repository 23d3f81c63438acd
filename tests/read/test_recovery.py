"""Damaged files: every tensor whose bytes are right is found whole and can be written to a new file."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqformat
from vqformat import VqmError
from vqformat.encode.methods.assemble import assemble_raw
from vqformat.format.chunkwriter import ChunkWriter, EncodedTensor
from vqformat.format.records import AliasRecord
from vqformat.read.recovery import write_whole
from vqformat.read.survey import Survey, survey

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
    write_whole(found, stream, path, overwrite=True)
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


@pytest.mark.parametrize("name", ["books", "base-trellis", "aliases", "axes-conv", "freq-of-the-text", "ancillary"])
def test_tables_keep_their_users(tmp_path: Path, name: str) -> None:
    """Where one of several tables is lost, the tensors that use the others are written with new numbers."""
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
