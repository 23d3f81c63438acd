"""Packing of codes (SPEC section 10)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqformat import FormatError
from vqformat.format.bits import pack, pack_nibbles, payload_nbytes, unpack, unpack_nibbles


def u8(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)


def test_the_worked_examples_of_the_spec() -> None:
    assert pack(u8(5, 1, 7, 2), 8, ()) == [b"\xcd\x05"]
    assert pack(u8(2, 0, 1, 1, 2, 1), 3, ((3, 5),)) == [b"\xc8\x01"]
    assert pack(np.array([299, 7], np.uint16), 300, ((256, 1), (2, 8))) == [b"\x2b\x07", b"\x01"]


@given(st.integers(1, 65536), st.data())
def test_dense_codes_come_back(entries: int, data: st.DataObject) -> None:
    codes = np.array(data.draw(st.lists(st.integers(0, entries - 1), max_size=40)), np.uint16)

    payloads = pack(codes, entries, ())

    assert [len(p) for p in payloads] == payload_nbytes(codes.size, entries, ())
    assert unpack([np.frombuffer(p, np.uint8) for p in payloads], codes.size, entries, ()).tolist() == codes.tolist()


@given(st.sampled_from([(3, ((3, 5),)), (15, ((15, 2),)), (16, ((16, 2),)), (300, ((256, 1), (2, 8))), (7, ((7, 1),)),
                        (40, ((3, 5), (14, 2))), (1000, ((15, 2), (15, 2), (5, 3))), (65536, ((256, 1), (256, 1)))]),
       st.data())  # fmt: skip
def test_planes_come_back(case: tuple[int, tuple[tuple[int, int], ...]], data: st.DataObject) -> None:
    entries, planes = case
    codes = np.array(data.draw(st.lists(st.integers(0, entries - 1), max_size=40)), np.uint16)

    payloads = pack(codes, entries, planes)

    assert [len(p) for p in payloads] == payload_nbytes(codes.size, entries, planes)
    arrays = [np.frombuffer(p, np.uint8) for p in payloads]
    assert unpack(arrays, codes.size, entries, planes).tolist() == codes.tolist()


@pytest.mark.parametrize(
    ("payloads", "n", "entries", "planes", "clause"),
    [
        ([u8(0b111)], 1, 7, (), "COD-001"),
        ([u8(0b1000)], 1, 8, (), "COD-002"),
        ([u8(243)], 5, 3, ((3, 5),), "COD-005"),
        ([u8(9)], 2, 3, ((3, 5),), "COD-005"),
        ([u8(50)], 1, 50, ((64, 1),), "COD-001"),
        ([u8(44), u8(1)], 1, 300, ((256, 1), (2, 8)), "COD-001"),
    ],
)
def test_wrong_codes_and_padding_are_refused(payloads, n, entries, planes, clause) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FormatError) as caught:
        unpack(payloads, n, entries, planes)
    assert caught.value.clause == clause


@given(st.lists(st.integers(0, 15), max_size=9))
def test_nibbles_come_back(values: list[int]) -> None:
    packed = pack_nibbles(np.array(values, np.uint8))

    assert len(packed) == (len(values) + 1) // 2
    assert unpack_nibbles(np.frombuffer(packed, np.uint8), len(values)).tolist() == values
