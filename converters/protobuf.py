"""Protocol Buffers on the wire: the fields of a message, every length checked; no schema is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


class Span(NamedTuple):
    """A field on the wire.

    Attributes:
        number, kind: Of the field, and its wire type.
        start, value, end: Offsets of the field, of its value, and of the end of both.
    """

    number: int
    kind: int
    start: int
    value: int
    end: int


def spans(data: bytes | memoryview) -> Iterator[Span]:
    """Where each field is.

    Raises:
        ValueError: The message is damaged, or has groups, which newer ones do not have.
    """
    position = 0
    while position < len(data):
        tag, value = varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, end = varint(data, value)
        elif kind in (BYTES, FIXED32, FIXED64):
            nbytes, value = varint(data, value) if kind == BYTES else ({FIXED32: 4, FIXED64: 8}[kind], value)
            if nbytes > len(data) - value:
                raise ValueError(f"field {number} has {nbytes} bytes, and {len(data) - value} remain")
            end = value + nbytes
        else:
            raise ValueError(f"field {number} has wire type {kind}")
        if not number:
            raise ValueError("a field has the number 0")
        yield Span(number, kind, position, value, end)
        position = end


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: integers as unsigned, fixed ones little-endian.

    Raises:
        ValueError: See ``spans``.
    """
    for span in spans(data):
        if span.kind == VARINT:
            yield span.number, varint(data, span.value)[0]
        else:
            value = data[span.value : span.end]
            yield span.number, value if span.kind == BYTES else int.from_bytes(value, "little")


def varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """An integer of up to 64 bits, and where it ends.

    Raises:
        ValueError: It is cut short, or longer than 64 bits.
    """
    value = 0
    for i in range(10):
        if position + i >= len(data):
            raise ValueError("an integer is cut short")
        byte = data[position + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value & (1 << 64) - 1, position + i + 1
    raise ValueError("an integer is longer than 64 bits")


def signed(value: int | bytes) -> int:
    """A field of type int32 or int64.

    Raises:
        ValueError: It is no integer.
    """
    if not isinstance(value, int):
        raise ValueError("a field that should be an integer is none")
    return value - (1 << 64) if value >> 63 else value


def message(value: int | bytes) -> bytes:
    """A field that is a message, a string or bytes.

    Raises:
        ValueError: It is an integer.
    """
    if not isinstance(value, bytes):
        raise ValueError("a field that should be a message is a number")
    return value
