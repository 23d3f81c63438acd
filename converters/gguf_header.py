"""The header of a GGUF file: its metadata and the list of its tensors, both as they are in the file.

Every length is compared with what remains before it is used: gguf's own reader trusts them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vqformat.errors import ConversionError, missing_package
from vqformat.format.limits import MAX_TENSORS

try:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize
except ImportError as err:
    raise missing_package("GGUF files need", "gguf", err) from err

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_NBYTES = 1 << 27  # a vocabulary takes some 10 million
_MAX_NESTING = 16  # of arrays
_MAX_AXES = 8  # ggml itself has 4
_MAX_ALIGNMENT = 1 << 20
_MAX_GAP_NBYTES = 1 << 24
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # type of most weights -> general.file_type


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of the list.

    Attributes:
        name: As it is in the file.
        shape: The last axis is contiguous; GGUF has it first.
        kind: Type, such as ``"Q4_0"``.
        offset: From the start of the data.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int

    @property
    def nbytes(self) -> int:
        block, nbytes = block_size(self.kind)
        return prod(self.shape) // block * nbytes

    def pack(self) -> bytes:
        """The entry as it is in a file."""
        name = self.name.encode()
        dims = b"".join(struct.pack("<Q", size) for size in reversed(self.shape))
        return (struct.pack("<Q", len(name)) + name + struct.pack("<I", len(self.shape)) + dims
                + struct.pack("<IQ", GGMLQuantizationType[self.kind], self.offset))  # fmt: skip


@dataclass
class Header:
    """A header, parsed and checked.

    Attributes:
        data: Its bytes, from the first to the last of the list of tensors.
        metadata: Strings, integers and truth values. None for other values, whose bytes alone are kept.
        tensors: In the file's order. No two overlap.
        alignment: Of each tensor's data.
        values_end: Offset of the list of tensors.
        places: Type and offset of each value of the metadata, by its key.
    """

    data: bytes
    metadata: dict[str, Any]
    tensors: list[TensorEntry]
    alignment: int
    values_end: int
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def data_start(self) -> int:
        """Offset of the tensors' data."""
        return aligned(len(self.data), self.alignment)

    @property
    def end(self) -> int:
        """Offset of the end of the last tensor."""
        return max([self.data_start, *(self.data_start + entry.offset + entry.nbytes for entry in self.tensors)])

    @property
    def most_gap_nbytes(self) -> int:
        """Bytes between tensors that are taken for padding, at most."""
        return _MAX_GAP_NBYTES + self.alignment * (len(self.tensors) + 1)

    def with_tensors(self, tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> Header:
        """The header of a file with the same metadata and other tensors, one after another.

        Args:
            tensors: Name, shape and type of each.
        """
        entries = []
        offset = 0
        n_weights: dict[str, int] = {}
        for name, shape, kind in tensors:
            entry = TensorEntry(name, shape, kind, offset)
            offset = aligned(offset + entry.nbytes, self.alignment)
            n_weights[kind] = n_weights.get(kind, 0) + prod(shape)
            entries.append(entry)
        values = bytearray(self.data[: self.values_end])
        values[8:16] = struct.pack("<Q", len(entries))
        of_value, at = self.places.get("general.file_type", (0, 0))
        file_type = _FILE_TYPES.get(max(n_weights, key=lambda kind: n_weights[kind], default=""))
        if of_value in (4, 5) and file_type is not None:  # a 32-bit integer
            values[at : at + 4] = struct.pack("<I", file_type)
        data = bytes(values) + b"".join(entry.pack() for entry in entries)
        return Header(data, self.metadata, entries, self.alignment, self.values_end, self.places)


def aligned(offset: int, alignment: int) -> int:
    """The first multiple of the alignment that is not before the offset."""
    return -(-offset // alignment) * alignment


def block_size(kind: str) -> tuple[int, int]:
    """Weights and bytes of a block of a type."""
    weights, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(weights), int(nbytes)


def can_dequantize(kind: str) -> bool:
    """Whether gguf gives the values of a type."""
    try:
        dequantized(kind, (block_size(kind)[0],), np.zeros((1, block_size(kind)[1]), np.uint8))
    except NotImplementedError:
        return False
    return True


def dequantized(kind: str, shape: tuple[int, ...], blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Values of blocks ``(n_blocks, bytes of a block)``."""
    with np.errstate(all="ignore"):  # scales may be anything
        rows = np.ascontiguousarray(blocks).reshape(prod(shape[:-1]), -1)
        return np.asarray(dequantize(rows, GGMLQuantizationType[kind]), np.float32).reshape(shape)


def read_header(stream: BinaryIO, label: str) -> Header:
    """Read the header at the start of a stream.

    Args:
        label: What the stream is, for error texts.

    Raises:
        ConversionError: It is damaged, of another version or byte order, or has a tensor of an unknown type.
    """
    reader = _Reader(stream, label)
    if reader.take(4) != b"GGUF":
        raise reader.error("it does not begin with GGUF")
    version = reader.number("<I")
    if version & 0xFFFF == 0:
        raise reader.error("it is big-endian, which is not supported; convert it with gguf's gguf_convert_endian.py")
    if version not in (2, 3):
        raise reader.error(f"it has version {version}; 2 and 3 are supported")
    n_tensors, n_values = reader.number("<Q"), reader.number("<Q")
    metadata, places = _read_metadata(reader, n_values)
    values_end = reader.position
    alignment = metadata.get("general.alignment", 32)
    is_power = isinstance(alignment, int) and not isinstance(alignment, bool) and 0 < alignment <= _MAX_ALIGNMENT
    if not is_power or alignment & (alignment - 1):
        raise reader.error(f"its alignment is {alignment!r}, no power of two up to {_MAX_ALIGNMENT}")
    entries = _read_entries(reader, n_tensors, alignment)
    end = reader.position
    stream.seek(0)
    data = stream.read(end)
    if len(data) < end:
        raise reader.error("it became shorter while it was read")
    header = Header(data, metadata, entries, alignment, values_end, places)
    _check_places(header, reader)
    return header


class _Reader:
    """Reads a stream from its start; every length is compared with what remains of it."""

    def __init__(self, stream: BinaryIO, label: str) -> None:
        self.label = label
        self._stream = stream
        self._size = min(stream.seek(0, 2), _MAX_NBYTES)
        self.position = stream.seek(0)

    def error(self, what: str) -> ConversionError:
        return ConversionError(f"{self.label} is a GGUF file that cannot be read: {what}")

    def check(self, nbytes: int, what: str) -> None:
        remaining = self._size - self.position
        if nbytes > remaining:
            raise self.error(f"{what} at byte {self.position} needs {nbytes} bytes, and {remaining} remain;"
                             " it is cut short or damaged")  # fmt: skip

    def take(self, nbytes: int) -> bytes:
        self.check(nbytes, "the header")
        self.position += nbytes
        data = self._stream.read(nbytes)
        if len(data) < nbytes:
            raise self.error("it became shorter while it was read")
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self) -> bytes:
        return self.take(self.number("<Q"))

    def value(self, kind: int, depth: int = 0) -> str | int | None:
        """A value of the metadata; None where it is no text, integer or truth value."""
        if kind in _NUMBERS:
            number = self.number(_NUMBERS[kind])
            return None if isinstance(number, float) else number
        if kind == _STRING:
            try:
                return self.text().decode()
            except UnicodeDecodeError:
                return None
        if kind != _ARRAY or depth == _MAX_NESTING:
            raise self.error(f"a value at byte {self.position} has type {kind}: unknown, or nested too deep")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _NUMBERS:
            self.take(count * struct.calcsize(_NUMBERS[inner]))
            return None
        self.check(count * 8, f"an array of {count} values")
        if inner == _STRING:
            self._skip_texts(count)
        else:
            for _ in range(count):
                self.value(inner, depth + 1)
        return None

    def _skip_texts(self, count: int) -> None:
        """Skip texts as ``text`` reads them, in a fast loop: a vocabulary has some 100,000."""
        read, length, position = self._stream.read, struct.Struct("<Q"), self.position
        for _ in range(count):
            if position + 8 > self._size:
                break
            nbytes = length.unpack(read(8))[0]
            position += 8 + nbytes
            if position > self._size:
                break
            read(nbytes)
        if position > self._size or self._stream.tell() != position:
            raise self.error(f"an array of {count} strings at byte {self.position} does not end by byte {self._size};"
                             " it is cut short or damaged")  # fmt: skip
        self.position = position


def _read_metadata(reader: _Reader, n_values: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """Values by their keys, and where they are."""
    reader.check(n_values * 13, f"metadata of {n_values} values")  # length of key, type, a byte
    metadata: dict[str, Any] = {}
    places = {}
    for _ in range(n_values):
        key = reader.text().decode(errors="surrogateescape")
        if key in metadata:
            raise reader.error(f"it has metadata {key!r} twice")
        kind = reader.number("<I")
        places[key] = kind, reader.position
        metadata[key] = reader.value(kind)
    return metadata, places


def _read_entries(reader: _Reader, n_tensors: int, alignment: int) -> list[TensorEntry]:
    reader.check(n_tensors * 24, f"a list of {n_tensors} tensors")  # name, axes, type, offset
    if n_tensors > MAX_TENSORS:
        raise reader.error(f"it has {n_tensors} tensors, and a .vqm at most {MAX_TENSORS}")
    entries: dict[str, TensorEntry] = {}
    for _ in range(n_tensors):
        try:
            name = reader.text().decode()
        except UnicodeDecodeError as err:
            raise reader.error(f"the name before byte {reader.position} is no UTF-8") from err
        n_axes = reader.number("<I")
        if name in entries or n_axes > _MAX_AXES:
            raise reader.error(f"tensor {name!r} is there twice, or has {n_axes} axes")
        shape = tuple(reader.number("<Q") for _ in range(n_axes))[::-1]
        number, offset = reader.number("<I"), reader.number("<Q")
        try:
            kind = GGMLQuantizationType(number)
            block, _ = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as err:
            raise reader.error(f"tensor {name!r} has type {number}, which gguf does not know") from err
        if (shape[-1] if shape else 1) % block:
            raise reader.error(f"tensor {name!r} has shape {shape}, whose last axis is no multiple of {block}, the"
                               f" block of {kind.name}")  # fmt: skip
        if offset % alignment:
            raise reader.error(f"tensor {name!r} lies at {offset}, not aligned to {alignment}")
        entries[name] = TensorEntry(name, shape, kind.name, offset)
    return list(entries.values())


def _check_places(header: Header, reader: _Reader) -> None:
    """Refuse tensors that share bytes: a small file could stand for a large model."""
    end, before = 0, ""
    for entry in sorted((entry for entry in header.tensors if entry.nbytes), key=lambda entry: entry.offset):
        if entry.offset < end:
            raise reader.error(f"tensor {entry.name!r} lies at {entry.offset}, and tensor {before!r} up to {end}:"
                               " they overlap")  # fmt: skip
        end, before = entry.offset + entry.nbytes, entry.name
