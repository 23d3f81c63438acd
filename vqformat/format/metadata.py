"""The strict subset of MessagePack that metadata is written in (SPEC section 5)."""

from __future__ import annotations

import re
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from ..errors import EncodeError, FormatError, LimitError
from .limits import MAX_DEPTH, MAX_NODES

_SCALARS = re.compile(rb"[\x00-\x7f\xe0-\xff\xc0\xc2\xc3]+")  # values of one byte that follow each other

# Type byte -> kind of the value, bytes of the big-endian number that follows, least number that needs so many
_HEADS = {
    **{0xC4 + i: ("bin", 1 << i, least) for i, least in enumerate((0, 1 << 8, 1 << 16))},
    **{0xCC + i: ("scalar", 1 << i, least) for i, least in enumerate((0x80, 1 << 8, 1 << 16, 1 << 32))},
    **{0xD9 + i: ("string", 1 << i, least) for i, least in enumerate((32, 1 << 8, 1 << 16))},
    **{0xDC + i: ("array", 2 << i, least) for i, least in enumerate((16, 1 << 16))},
    **{0xDE + i: ("map", 2 << i, least) for i, least in enumerate((16, 1 << 16))},
}
# Integers below 0: type byte -> bytes that follow, largest number that needs so many
_NEGATIVE = {0xD0 + i: (1 << i, most) for i, most in enumerate((-33, -(1 << 7) - 1, -(1 << 15) - 1, -(1 << 31) - 1))}
_SHORT = 1024  # values of an array
_PLAIN = frozenset({type(None), bool, int, str, bytes})


def pack(value: Any) -> bytes:
    """Encode a value as canonical metadata (WRI-001).

    Args:
        value: None, a bool, an integer, a string, bytes, a list, a tuple or a dict with string keys, of any nesting.

    Raises:
        EncodeError: It has something that metadata cannot hold (a float, a key that is not a string, an integer
            beyond 64 bits, a string that is not Unicode), or it is nested too deep, or it has too many values.
    """
    count = 0

    def canonical(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if depth > MAX_DEPTH:
            raise EncodeError(f"metadata is nested deeper than {MAX_DEPTH} levels")
        if value is None or isinstance(value, (bool, str, bytes)):
            return value
        if isinstance(value, int):
            if not -(1 << 63) <= value < 1 << 64:
                raise EncodeError(f"metadata: the integer {value} does not fit 64 bits")
            return value
        if isinstance(value, (list, tuple)):
            return [canonical(item, depth + 1) for item in value]
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise EncodeError(f"metadata: the key {key!r} is a {type(key).__name__}, not a string")
            count += len(value)
            items = sorted(value.items(), key=lambda item: item[0].encode("utf-8", "surrogatepass"))
            return {key: canonical(item, depth + 1) for key, item in items}
        hint = "; write it as a string" if isinstance(value, float) else ""
        raise EncodeError(f"metadata cannot hold {value!r}, a {type(value).__name__}{hint}")

    plain = canonical(value, 1)
    if count > MAX_NODES:
        raise EncodeError(f"metadata has {count} values; at most {MAX_NODES} are allowed")
    try:
        packed: bytes = msgpack.packb(plain, use_bin_type=True)
    except (ValueError, UnicodeError) as err:
        raise EncodeError(f"metadata cannot be written: {err}") from err
    return packed


def unpack(data: bytes) -> Any:
    """Decode canonical metadata.

    Raises:
        FormatError: The bytes are not canonical metadata (MET-001..005).
        LimitError: They are nested too deep, or have too many values (MET-006, MET-007).
    """
    try:
        # Faster than _validate, which is left for all else: maps, long arrays and what breaks a rule. Msgpack takes
        # memory for an array before it has its values, so only short ones are tried
        value = msgpack.unpackb(data, raw=False, strict_map_key=True, max_array_len=_SHORT)
        if len(data) <= MAX_NODES and _is_plain(value) and msgpack.packb(value, use_bin_type=True) == data:
            return value
    except Exception:  # msgpack documents that it may raise any exception; _validate finds the fault
        pass
    _validate(data)
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except Exception as err:
        raise FormatError(f"metadata cannot be read: {err}", clause="MET-003") from err


def _is_plain(value: Any) -> bool:
    """Whether a value has arrays and scalars of metadata only, and is not nested too deep."""
    values = [value]  # all of one depth
    for _ in range(MAX_DEPTH):
        found = set(map(type, values)) - _PLAIN
        if not found:
            return True
        if found != {list}:
            return False
        values = [item for array in values if type(array) is list for item in array]
    return False


def _validate(data: bytes) -> None:
    """Check the bytes in one pass that builds no values (MET-001..007)."""
    position = n_values = 0
    # Of the open array or map: values still to come, whether it is a map, its last key; ``around``: of those around it
    left, is_map = 1, False
    last_key: bytes | None = None
    around: list[tuple[int, bool, bytes | None]] = []
    while True:
        if not is_map:
            run = _SCALARS.match(data, position, position + left)
            if run is not None:
                n_values += run.end() - position
                left -= run.end() - position
                position = run.end()
        while not left and around:
            left, is_map, last_key = around.pop()
        n_values += left > 0
        if n_values > MAX_NODES:
            raise LimitError(f"metadata has more than {MAX_NODES} values", clause="MET-007")
        if not left:
            break
        start = position
        kind, number, position = _head(data, position)
        at_key = is_map and left % 2 == 0
        left -= 1
        if at_key and kind != "string":
            raise FormatError(f"metadata: a map key at byte {start} is no string", clause="MET-004")
        if kind in ("string", "bin"):
            if number > len(data) - position:
                raise FormatError(f"metadata: {kind} of {number} bytes at byte {start} runs past the end",
                                  clause="MET-005")  # fmt: skip
            body = data[position : position + number]
            position += number
            if kind == "string":
                _check_utf8(body, start)
            if at_key:
                if last_key is not None and body <= last_key:
                    raise FormatError(f"metadata: the map key at byte {start} is not above the one before",
                                      clause="MET-004")  # fmt: skip
                last_key = body
        elif kind in ("array", "map"):
            least = number if kind == "array" else 2 * number
            if least > len(data) - position:
                raise FormatError(f"metadata: {kind} of {number} at byte {start} runs past the end", clause="MET-005")
            if number:
                around.append((left, is_map, last_key))
                left, is_map, last_key = least, kind == "map", None
                if len(around) >= MAX_DEPTH:
                    raise LimitError(f"metadata is nested deeper than {MAX_DEPTH} levels", clause="MET-006")
    if position != len(data):
        raise FormatError(f"metadata: {len(data) - position} bytes follow its value", clause="MET-005")


def _head(data: bytes, position: int) -> tuple[str, int, int]:
    """Read the head of the value at ``position`` (MET-001, MET-002, MET-005).

    Returns:
        Kind of the value, its number or length, and the position of the bytes after the head.
    """
    if position >= len(data):
        raise FormatError(f"metadata of {len(data)} bytes ends inside a value", clause="MET-005")
    byte = data[position]
    position += 1
    if 0x80 <= byte <= 0xBF:
        if byte >= 0xA0:
            return "string", byte & 0x1F, position
        return ("array" if byte >= 0x90 else "map"), byte & 0x0F, position
    if byte <= 0x7F or byte >= 0xE0 or byte in (0xC0, 0xC2, 0xC3):
        return "scalar", 0, position
    if byte in _NEGATIVE:
        width, most = _NEGATIVE[byte]
        number = _number(data, position, width, signed=True)
        is_shortest, kind = number <= most, "scalar"
    elif byte in _HEADS:
        kind, width, least = _HEADS[byte]
        number = _number(data, position, width, signed=False)
        is_shortest = number >= least
    else:
        raise FormatError(f"metadata: type {byte:#04x} at byte {position - 1} is not allowed", clause="MET-001")
    if not is_shortest:
        raise FormatError(f"metadata: {number} at byte {position - 1} is not in its shortest form", clause="MET-002")
    return kind, number, position + width


def _number(data: bytes, position: int, width: int, *, signed: bool) -> int:
    if width > len(data) - position:
        raise FormatError(f"metadata of {len(data)} bytes ends inside a value", clause="MET-005")
    return int.from_bytes(data[position : position + width], "big", signed=signed)


def _check_utf8(body: bytes, start: int) -> None:
    if body.isascii():
        return
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as err:
        raise FormatError(f"metadata: the string at byte {start} is not UTF-8: {err.reason}", clause="MET-003") from err


def pack_column(values: npt.ArrayLike) -> bytes:
    """Encode non-negative integers as an integer column (MET-009)."""
    array = np.asarray(values, dtype="<u8")
    if array.size == 0:
        return b""
    largest = int(array.max())
    width = next(w for w in (1, 2, 4, 8) if largest < 1 << (8 * w))
    return array.astype(f"<u{width}").tobytes()


def unpack_column(data: bytes, n: int, what: str) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Decode an integer column.

    Args:
        n: Number of integers.
        what: Name of the column, for error texts.

    Returns:
        Array ``(n,)`` of the stored width: a view of ``data``.

    Raises:
        FormatError: The size does not fit ``n``, or the integers fit a narrower column (MET-009).
    """
    if n == 0 or len(data) % n or len(data) // n not in (1, 2, 4, 8):
        if n == 0 and not data:
            return np.zeros(0, np.uint8)
        raise FormatError(f"{what}: {len(data)} bytes cannot hold {n} integers of 1, 2, 4 or 8 bytes", clause="MET-009")
    width = len(data) // n
    values: npt.NDArray[np.unsignedinteger[Any]] = np.frombuffer(data, f"<u{width}")
    if width > 1 and int(values.max()) < 1 << (4 * width):
        raise FormatError(f"{what}: {width} bytes an integer are more than needed", clause="MET-009")
    return values
