"""MessagePack read from a file. Binary data are not read: their places are told (msgpack/spec, spec.md)."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO, NamedTuple

MAX_DEPTH = 64
_MAX_TEXT_NBYTES = 1 << 20
_MAX_VALUES = 1 << 22


class Binary(NamedTuple):
    """Bytes of a file."""

    start: int
    size: int


class Extension(NamedTuple):
    """A value of a type that its user defines, as bytes of a file."""

    kind: int
    start: int
    size: int


# First byte -> struct layout of a number, or of the length that follows; for maps, arrays, text, bytes, extensions
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h",
            0xD2: ">i", 0xD3: ">q"}  # fmt: skip
_LENGTHS = {0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I"), 0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"),
            0xC9: ("ext", ">I"), 0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I"), 0xDC: ("list", ">H"),
            0xDD: ("list", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I")}  # fmt: skip
_PLAIN = {0xC0: None, 0xC2: False, 0xC3: True}


class Walker:
    """Reads values from bytes ``start`` to ``end`` of a file, one after another.

    Every method raises ValueError where the bytes are no MessagePack.
    """

    def __init__(self, stream: BinaryIO, start: int, end: int) -> None:
        self._stream, self._end = stream, end
        self.position = stream.seek(start)
        self._count = 0

    def value(self, depth: int = 0) -> Any:
        """The next value: a dict, list, text or plain value; ``Binary`` and ``Extension`` tell the place of bytes."""
        self._count += 1
        if depth > MAX_DEPTH or self._count > _MAX_VALUES:
            raise ValueError(f"it has more than {_MAX_VALUES} values, or is nested deeper than {MAX_DEPTH} levels")
        first = self._take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first in _PLAIN:
            return _PLAIN[first]
        if first in _NUMBERS:
            return self._number(_NUMBERS[first])
        if first in _LENGTHS:
            kind, layout = _LENGTHS[first]
            return self._sized(kind, self._number(layout), depth)
        if 0xD4 <= first <= 0xD8:
            return self._sized("ext", 1 << first - 0xD4, depth)
        if first < 0xC0:
            return self._sized("map", first & 15, depth) if first < 0x90 else self._sized(
                *(("list", first & 15) if first < 0xA0 else ("str", first & 31)), depth)  # fmt: skip
        raise ValueError(f"byte {first} at {self.position - 1} begins no value")

    def _sized(self, kind: str, size: int, depth: int) -> Any:
        remaining = self._end - self.position
        if size * (2 if kind == "map" else 1) > remaining:
            raise ValueError(f"a value at {self.position} has {size} items or bytes, and {remaining} bytes remain; it"
                             " is cut short or damaged")  # fmt: skip
        if kind == "list":
            return [self.value(depth + 1) for _ in range(size)]
        if kind == "map":
            return self._map(size, depth + 1)
        if kind == "str":
            if size > _MAX_TEXT_NBYTES:
                raise ValueError(f"a text has {size} bytes; at most {_MAX_TEXT_NBYTES} are allowed")
            return self._take(size).decode()
        code = struct.unpack(">b", self._take(1))[0] if kind == "ext" else 0
        start = self.position
        if size > self._end - start:
            raise ValueError(f"an extension at {start} has {size} bytes; it is cut short or damaged")
        self.position = self._stream.seek(start + size)
        return Extension(code, start, size) if kind == "ext" else Binary(start, size)

    def _map(self, size: int, depth: int) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for _ in range(size):
            key = self.value(depth)
            if not isinstance(key, (str, int)) or key in result:
                raise ValueError(f"the key {str(key)[:80]!r} is there twice, or is neither text nor a number")
            result[key] = self.value(depth)
        return result

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _take(self, nbytes: int) -> bytes:
        if nbytes > self._end - self.position:
            raise ValueError(f"it ends at byte {self._end}, inside a value; it is cut short or damaged")
        data = self._stream.read(nbytes)
        if len(data) < nbytes:
            raise ValueError("it became shorter while it was read")
        self.position += nbytes
        return data
