"""Sorted tables of keys and values as LevelDB and TensorFlow write them, read whole (LevelDB, doc/table_format.md)."""

from __future__ import annotations

from collections.abc import Iterator

from .crc32c import crc32c, mask
from .format_signatures import TABLE_END
from .protobuf import varint

_FOOTER_NBYTES = 48
_TRAILER_NBYTES = 5  # of a block: type, CRC-32C
_PLAIN, _SNAPPY = 0, 1
_MAX_KEY_NBYTES = 1 << 14  # keys are stored as differences, so that few bytes could stand for many
_MAX_BLOCK_NBYTES = 64 << 20
_MAX_ENTRIES = 1 << 22


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values in order of the keys.

    Raises:
        ValueError: The table is damaged, or its keys are not in order.
    """
    if len(data) < _FOOTER_NBYTES or not data.endswith(TABLE_END):
        raise ValueError("its end is missing")
    footer = data[-_FOOTER_NBYTES:-8]
    _, position = _handle(footer, 0)  # skips the handle of the block of metadata, which is empty
    index, _ = _handle(footer, position)
    last: bytes | None = None
    count = 0
    for _, value in _entries(_block(data, index)):
        place, _ = _handle(value, 0)
        for key, content in _entries(_block(data, place)):
            if last is not None and key <= last:
                raise ValueError(f"its key {key[:80]!r} is there twice or out of order")
            count += 1
            if count > _MAX_ENTRIES:
                raise ValueError(f"it has more than {_MAX_ENTRIES} entries")
            last = key
            yield key, content


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Where a block lies: offset and size."""
    offset, position = varint(data, position)
    size, position = varint(data, position)
    return (offset, size), position


def _block(data: bytes, place: tuple[int, int]) -> bytes:
    offset, size = place
    end = offset + size
    if end + _TRAILER_NBYTES > len(data):
        raise ValueError(f"a block of {size} bytes at {offset} is beyond the end at {len(data)}")
    if mask(crc32c(data[offset : end + 1])) != int.from_bytes(data[end + 1 : end + _TRAILER_NBYTES], "little"):
        raise ValueError(f"the block at {offset} is damaged: its CRC-32C is wrong")
    if data[end] not in (_PLAIN, _SNAPPY):
        raise ValueError(f"the block at {offset} is of type {data[end]}; 0 (plain) and 1 (snappy) are known")
    return data[offset:end] if data[end] == _PLAIN else unsnap(data[offset:end])


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block. A key is stored as the number of bytes it shares with the one before, and the rest."""
    n_restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * n_restarts
    if end < 0:
        raise ValueError(f"a block of {len(block)} bytes counts {n_restarts} restarts")
    position, key = 0, b""
    while position < end:
        shared, position = varint(block, position)
        n_key, position = varint(block, position)
        n_value, position = varint(block, position)
        if shared > len(key) or n_key + n_value > end - position or shared + n_key > _MAX_KEY_NBYTES:
            raise ValueError("an entry of a block is longer than the block or the limit")
        key = key[:shared] + block[position : position + n_key]
        position += n_key + n_value
        yield key, block[position - n_value : position]


def unsnap(data: bytes) -> bytes:
    """Decompress Snappy's block format (google/snappy, format_description.txt).

    Raises:
        ValueError: It is damaged.
    """
    size, position = varint(data, 0)
    if size > _MAX_BLOCK_NBYTES:
        raise ValueError(f"a compressed block has {size} bytes; at most {_MAX_BLOCK_NBYTES} are allowed")
    result = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        if tag & 3 == 0:  # literal bytes
            length = (tag >> 2) + 1
            if length > 60:
                n = length - 60
                length = int.from_bytes(data[position : position + n], "little") + 1
                position += n
            literal = data[position : position + length]
            if len(literal) < length or len(result) + length > size:
                raise ValueError("a compressed block is damaged")
            result += literal
            position += length
            continue
        n = (0, 1, 2, 4)[tag & 3]  # bytes of the distance
        if position + n > len(data):
            raise ValueError("a compressed block is cut short")
        distance = int.from_bytes(data[position : position + n], "little")
        position += n
        length = (tag >> 2) + 1
        if tag & 3 == 1:
            length, distance = (tag >> 2 & 7) + 4, distance | tag >> 5 << 8
        if not 0 < distance <= len(result) or len(result) + length > size:
            raise ValueError("a compressed block is damaged")
        for _ in range(length):  # one by one: a copy may overlap what it writes
            result.append(result[-distance])
    if len(result) != size:
        raise ValueError(f"a compressed block has {len(result)} bytes instead of {size}")
    return bytes(result)
