"""Reading GGUF files: plain tensors exactly, quantized tensors as their float32 values (SPEC section 18).

The header is parsed here, because the reader of the gguf package trusts all lengths. The package is used for block
sizes and for dequantization.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vqformat.encode.source import SourceTensor, check_name, check_shape
from vqformat.errors import ConversionError
from vqformat.format.dtypes import BY_NAME
from vqformat.format.limits import MAX_TENSORS

from .source import Source, take_metadata

try:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize
except ImportError as err:
    raise ImportError("GGUF files need the gguf package; run: pip install 'vqformat[gguf]'") from err

_PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64", "I8": "i8", "I16": "i16", "I32": "i32",
          "I64": "i64"}  # fmt: skip
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_HEADER_NBYTES = 1 << 27  # a vocabulary takes about 10 million bytes
_MAX_TEXT_NBYTES = 1 << 20
_MAX_NESTING = 4  # of arrays
_MAX_AXES = 8  # ggml itself allows 4


def open_gguf(path: Path) -> Source:
    """Open a GGUF file of version 2 or 3, little-endian.

    Raises:
        ConversionError: It is damaged, has another version, or has a tensor of an unknown type.
        EncodeError: A ``.vqm`` cannot hold the name or shape of a tensor.
    """
    notes: list[str] = []
    with path.open("rb") as stream:
        header = _Header(path, stream)
        metadata, n_left_out = _metadata(header)
        tensors, quantized = _tensors(header, metadata)
    if n_left_out:
        notes.append(f"left out {n_left_out} metadata values that are arrays, fractions, or no text")
    if quantized:
        n, types = len(quantized), ", ".join(sorted(set(quantized)))
        notes.append(f"{n} tensor{'s' * (n > 1)} ({types}) {'are' if n > 1 else 'is'} quantized already: stored as the"
                     " float32 values meant, so quantizing again loses more")  # fmt: skip
    n_parts = metadata.get("split.count")
    if isinstance(n_parts, int) and n_parts > 1:
        notes.append(f"this is one of {n_parts} files of a model: each is converted on its own")
    return Source("gguf", tensors, take_metadata(metadata, notes), notes, {"format": "gguf"})


class _Header:
    """Reads the header of a file. Every length is compared with the bytes that remain.

    Attributes:
        size: Bytes of the file.
        position: Bytes read so far.
        n_tensors, n_values: Number of tensors, and of values of the metadata.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self._stream = stream
        self.size = stream.seek(0, 2)
        self.position = stream.seek(0)
        if self.take(4) != b"GGUF":
            raise self.error("it does not begin with GGUF")
        version = self.number("<I")
        if version & 0xFFFF == 0:
            raise self.error("it is big-endian, which is not supported; convert it with gguf's gguf_convert_endian.py")
        if version not in (2, 3):
            raise self.error(f"it has version {version}; 2 and 3 are supported")
        self.n_tensors = self.number("<Q")
        self.n_values = self.number("<Q")

    def error(self, what: str) -> ConversionError:
        return ConversionError(f"{str(self.path)!r} is a GGUF file that cannot be read: {what}")

    def check(self, nbytes: int, what: str) -> None:
        remaining = min(self.size, _MAX_HEADER_NBYTES) - self.position
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

    def name(self) -> str:
        try:
            return self.take(self.number("<Q")).decode()
        except UnicodeDecodeError as err:
            raise self.error(f"the name before byte {self.position} is no UTF-8") from err

    def value(self, kind: int, depth: int = 0) -> str | int | None:
        """Read a value of the metadata. Returns None if the metadata of a ``.vqm`` cannot hold it."""
        if kind in _NUMBERS:
            number = self.number(_NUMBERS[kind])
            return None if isinstance(number, float) else number
        if kind == _STRING:
            text = self.take(self.number("<Q"))
            try:
                return text.decode() if depth == 0 and len(text) <= _MAX_TEXT_NBYTES else None
            except UnicodeDecodeError:
                return None
        if kind != _ARRAY or depth == _MAX_NESTING:
            raise self.error(f"a value at byte {self.position} has type {kind}: unknown, or nested too deep")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _NUMBERS:
            self.take(count * struct.calcsize(_NUMBERS[inner]))
            return None
        self.check(count * 8, f"an array of {count} values")
        for _ in range(count):
            self.value(inner, depth + 1)
        return None


def _metadata(header: _Header) -> tuple[dict[str, Any], int]:
    """The strings, integers and bools of the metadata, and the number of its other values."""
    header.check(header.n_values * 13, f"metadata of {header.n_values} values")  # length of key, type, 1 byte
    metadata: dict[str, Any] = {}
    for _ in range(header.n_values):
        key = header.name()
        if key in metadata:
            raise header.error(f"it has metadata {key!r} twice")
        metadata[key] = header.value(header.number("<I"))
    kept = {key: value for key, value in metadata.items() if value is not None}
    return kept, len(metadata) - len(kept)


def _tensors(header: _Header, metadata: dict[str, Any]) -> tuple[list[SourceTensor], list[str]]:
    """The tensors, and the types of those that are quantized."""
    header.check(header.n_tensors * 24, f"a list of {header.n_tensors} tensors")  # name, axes, type, offset
    if header.n_tensors > MAX_TENSORS:
        raise header.error(f"it has {header.n_tensors} tensors, and a .vqm at most {MAX_TENSORS}")
    entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(header.n_tensors):
        name = header.name()
        n_axes = header.number("<I")
        if name in entries or n_axes > _MAX_AXES:
            raise header.error(f"tensor {name!r} is there twice, or has {n_axes} axes")
        shape = tuple(header.number("<Q") for _ in range(n_axes))[::-1]  # GGUF stores the innermost axis first
        entries[name] = shape, header.number("<I"), header.number("<Q")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise header.error(f"its alignment is {alignment!r}, no power of two")
    start = -(-header.position // alignment) * alignment
    tensors, quantized = [], []
    for name, (shape, number, offset) in entries.items():
        check_name(name)
        check_shape(name, shape)
        kind, block, block_nbytes = _type(header, name, number)
        if (shape[-1] if shape else 1) % block:
            raise header.error(f"tensor {name!r} has shape {shape}, whose last axis is no multiple of {block}, the"
                               f" block of {kind.name}")  # fmt: skip
        nbytes = prod(shape) // block * block_nbytes
        if offset % alignment or start + offset + nbytes > header.size:
            raise header.error(f"tensor {name!r} of {nbytes} bytes lies at {start} + {offset}, not aligned to"
                               f" {alignment} or beyond the end at {header.size}: cut short or damaged")  # fmt: skip
        dtype = _PLAIN.get(kind.name, "f32")
        tensors.append(SourceTensor(name, dtype, shape, _loader(header.path, kind, shape, start + offset, nbytes)))
        if kind.name not in _PLAIN:
            quantized.append(kind.name)
    return tensors, quantized


def _type(header: _Header, name: str, number: int) -> tuple[GGMLQuantizationType, int, int]:
    """The type of a tensor, and the elements and bytes of a block of this type."""
    try:
        kind = GGMLQuantizationType(number)
        block, nbytes = GGML_QUANT_SIZES[kind]
        if kind.name not in _PLAIN:
            dequantize(np.zeros((1, nbytes), np.uint8), kind)  # for some types gguf knows only the size
    except (ValueError, KeyError, NotImplementedError) as err:
        raise header.error(f"tensor {name!r} has type {number}, which gguf cannot dequantize ({err})") from err
    return kind, block, nbytes


def _loader(path: Path, kind: GGMLQuantizationType, shape: tuple[int, ...], offset: int,
            nbytes: int) -> Callable[[], npt.NDArray[Any]]:  # fmt: skip
    def load() -> npt.NDArray[Any]:
        data = np.fromfile(path, np.uint8, nbytes, offset=offset)
        if data.size < nbytes:
            raise ConversionError(f"{str(path)!r} became shorter while it was read")
        if kind.name in _PLAIN:
            return data.view(BY_NAME[_PLAIN[kind.name]].numpy).reshape(shape)
        if not nbytes:
            return np.zeros(shape, np.float32)
        with np.errstate(all="ignore"):  # scales of a damaged file may be NaN
            return np.asarray(dequantize(data.reshape(*shape[:-1], -1), kind), np.float32).reshape(shape)

    return load
