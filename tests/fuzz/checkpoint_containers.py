"""Mutations within containers, lengths and checksums right: headers of safetensors, msgpack, TensorFlow's tables."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np
from test_tensorflow import crc

from fuzz.checkpoint_mutations import mutate_bytes, mutate_value

_FOOTER_NBYTES = 48  # of a table: two handles, padding, the magic number


def mutate_safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    """Another header, whose length is right."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    for _ in range(int(rng.integers(1, 4))):
        header = mutate_value(header, rng)
    text = json.dumps(header, default=repr).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8 if rng.integers(4) else 0)
    return len(text).to_bytes(8, "little") + text + data[end:]


def mutate_msgpack(data: bytes, rng: np.random.Generator) -> bytes:
    """Another tree; the packed arrays in it are changed within, too."""
    tree = msgpack.unpackb(data, strict_map_key=False)
    for _ in range(int(rng.integers(1, 3))):
        tree = mutate_value(_within_arrays(tree, rng), rng) if rng.integers(3) else _within_arrays(tree, rng)
    try:
        return bytes(msgpack.packb(tree))
    except (TypeError, ValueError, OverflowError):
        return mutate_bytes(data, rng, [data])


def _within_arrays(value: Any, rng: np.random.Generator) -> Any:
    """Every other array or number (an extension type) has a changed shape, dtype or data."""
    if isinstance(value, dict):
        return {key: _within_arrays(item, rng) for key, item in value.items()}
    if isinstance(value, list):
        return [_within_arrays(item, rng) for item in value]
    if isinstance(value, msgpack.ExtType) and rng.integers(2):
        fields = mutate_value(msgpack.unpackb(value.data, strict_map_key=False), rng)
        return msgpack.ExtType(value.code, msgpack.packb(fields, default=repr))
    return value


def mutate_table(data: bytes, rng: np.random.Generator) -> bytes:
    """A table of LevelDB, as TensorFlow's index is one: the bytes of some blocks changed, their CRC-32C right."""
    _, index = _handles(data[-_FOOTER_NBYTES:], 2)
    blocks = [index, *_blocks_of(data, index)]
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 3))):
        offset, size = blocks[int(rng.integers(len(blocks)))]
        content = mutate_bytes(data[offset : offset + size], rng, [data])
        found[offset : offset + size] = content[:size].ljust(size, b"\0")
        end = offset + size + 1  # the last byte says how the block is compressed
        found[end : end + 4] = crc(bytes(found[offset:end])).to_bytes(4, "little")
    return bytes(found)


def _blocks_of(data: bytes, index: tuple[int, int]) -> list[tuple[int, int]]:
    """Offset and size of each block of data, from the entries of the block of the index, none of which share a key."""
    offset, size = index
    block = data[offset : offset + size]
    at, end, found = 0, len(block) - 4 - 4 * int.from_bytes(block[-4:], "little"), []
    while at < end:
        (_, n_key, n_value), at = _varints(block, at, 3)
        at += n_key
        found.append(_handles(block[at : at + n_value], 1)[0])
        at += n_value
    return found


def _handles(data: bytes, count: int) -> list[tuple[int, int]]:
    numbers, _ = _varints(data, 0, 2 * count)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _varints(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    numbers = []
    for _ in range(count):
        number = shift = 0
        while True:
            number |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                break
        numbers.append(number)
    return numbers, at
