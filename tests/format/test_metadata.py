"""The strict subset of MessagePack (SPEC section 5)."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import metadata_values

from vqformat import FormatError, LimitError
from vqformat.format import metadata
from vqformat.format.limits import MAX_NODES
from vqformat.format.metadata import pack, pack_column, unpack, unpack_column


@given(metadata_values())
def test_values_come_back(value: Any) -> None:
    assert unpack(pack(value)) == value


@given(st.binary(max_size=60))
def test_whatever_is_accepted_is_canonical(data: bytes) -> None:
    try:
        value = unpack(data)
    except FormatError:
        return
    assert pack(value) == data


@pytest.mark.parametrize(
    ("hexadecimal", "clause"),
    [
        ("c1", "MET-001"), ("ca00000000", "MET-001"), ("d40000", "MET-001"), ("c70000", "MET-001"),
        ("cc7f", "MET-002"), ("cd00ff", "MET-002"), ("ce0000ffff", "MET-002"), ("cf00000000ffffffff", "MET-002"),
        ("d0e0", "MET-002"), ("d1ff80", "MET-002"), ("d07f", "MET-002"), ("d2ffff8000", "MET-002"),
        ("d91f" + "61" * 31, "MET-002"), ("da0020" + "61" * 32, "MET-002"), ("c50001aa", "MET-002"),
        ("dc000f" + "c0" * 15, "MET-002"), ("de0001a161c0", "MET-002"),
        ("a1ff", "MET-003"), ("a3eda080", "MET-003"), ("a2c080", "MET-003"),
        ("8101c0", "MET-004"), ("82a162c0a161c0", "MET-004"), ("82a161c0a161c0", "MET-004"),
        ("", "MET-005"), ("c0c0", "MET-005"), ("92c0", "MET-005"), ("cc", "MET-005"), ("a2", "MET-005"),
        ("c403aa", "MET-005"), ("ddffffffff", "MET-005"), ("dfffffffff", "MET-005"),
    ],
)  # fmt: skip
def test_each_other_way_of_writing_is_refused(hexadecimal: str, clause: str) -> None:
    with pytest.raises(FormatError) as caught:
        unpack(bytes.fromhex(hexadecimal))
    assert caught.value.clause == clause


def test_sixteen_levels_are_allowed_and_seventeen_are_not() -> None:
    assert unpack(b"\x91" * 15 + b"\xc0") is not None
    for deepest in (b"\xc0", b"\x90", b"\x80"):
        with pytest.raises(LimitError):
            unpack(b"\x91" * 16 + deepest)


def test_a_flood_of_empty_maps_is_refused_before_it_fills_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    n_heads = 0
    head = metadata._head

    def counting(data: bytes, position: int) -> tuple[str, int, int]:
        nonlocal n_heads
        n_heads += 1
        return head(data, position)

    monkeypatch.setattr(metadata, "_head", counting)
    monkeypatch.setattr(metadata, "MAX_NODES", 1 << 16)
    flood = b"\xdd\x00\xff\xff\xff" + b"\x80" * 0xFFFFFF
    tracemalloc.start()
    with pytest.raises(LimitError, match="more than 65536 values"):
        unpack(flood)
    peak_nbytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak_nbytes < 1 << 20
    assert n_heads == 1 << 16  # the rest is not looked at


def test_as_many_values_as_allowed_are_read_and_one_more_is_refused() -> None:
    most = b"\xdd" + (MAX_NODES - 1).to_bytes(4, "big") + b"\x80" * (MAX_NODES - 1)  # the array is a value, too
    assert len(unpack(most)) == MAX_NODES - 1
    with pytest.raises(LimitError):
        unpack(b"\xdd" + MAX_NODES.to_bytes(4, "big") + b"\x80" * MAX_NODES)


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=20))
def test_integer_columns_come_back_in_the_least_width(values: list[int]) -> None:
    packed = pack_column(values)

    assert unpack_column(packed, len(values), "x").tolist() == values
    largest = max(values, default=0)
    assert len(packed) == len(values) * next(w for w in (1, 2, 4, 8) if largest < 256**w)


@pytest.mark.parametrize(("data", "n"), [(b"\1\0", 1), (b"\1\0\0", 2), (b"", 3), (b"\1", 0), (b"\1\2\3", 1)])
def test_wide_or_crooked_columns_are_refused(data: bytes, n: int) -> None:
    with pytest.raises(FormatError):
        unpack_column(data, n, "x")
