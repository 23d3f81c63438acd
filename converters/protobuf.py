"""Protocol Buffers on the wire: the fields of a message, every length checked; no schema is needed."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: integers as unsigned, fixed ones little-endian.

    Raises:
        ValueError: The message is damaged, or has groups, which newer ones do not have.
    """
    position = 0
    while position < len(data):
        tag, position = varint(data, position)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == VARINT:
            value, position = varint(data, position)
        elif kind in (BYTES, FIXED32, FIXED64):
            nbytes, position = varint(data, position) if kind == BYTES else ({FIXED32: 4, FIXED64: 8}[kind], position)
            if nbytes > len(data) - position:
                raise ValueError(f"field {number} has {nbytes} bytes, and {len(data) - position} remain")
            value = data[position : position + nbytes]
            position += nbytes
            if kind != BYTES:
                value = int.from_bytes(value, "little")
        else:
            raise ValueError(f"field {number} has wire type {kind}")
        if not number:
            raise ValueError("a field has the number 0")
        yield number, value


def varint(data: bytes, position: int) -> tuple[int, int]:
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
