"""TensorFlow checkpoints and the variables of SavedModels as a source, read without TensorFlow. Graphs are not read.

A checkpoint is an index, a sorted table of names and BundleEntryProto messages, and files of data beside it
(tensorflow/core/protobuf/tensor_bundle.proto).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vqformat.encode.source import SourceTensor, check_name, check_shape
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.dtypes import BY_NAME
from vqformat.format.limits import MAX_RANK, MAX_TENSORS

from . import sstable
from .crc32c import crc32c, mask
from .file_region import Region
from .format_signatures import INDEX
from .model_folder import beside, read_small
from .protobuf import fields, message, signed
from .source import Source
from .tensor_chunks import Box, check_boxes, put_together
from .training_keys import is_training_key, without_state

VARIABLES = Path("variables") / "variables.index"  # of a SavedModel
_MAX_INDEX_NBYTES = 256 << 20
_LONGEST_TEXT = 200
_STRING = 7  # enum DataType
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"  # ends the names of TensorFlow 2's variables
_SLOT = "/.OPTIMIZER_SLOT/"

# enum DataType -> SPEC name
_DTYPES = {
    1: "f32", 2: "f64", 3: "i32", 4: "u8", 5: "i16", 6: "i8", 8: "c64", 9: "i64", 10: "bool", 11: "i8", 12: "u8",
    13: "i32", 14: "bf16", 15: "i16", 16: "u16", 17: "u16", 18: "c128", 19: "f16", 22: "u32", 23: "u64",
    24: "f8_e5m2", 25: "f8_e4m3fn", 26: "f8_e4m3fnuz", 28: "f8_e5m2fnuz",
}  # fmt: skip

# What TensorFlow 1's optimizers add to a variable's name; an exponential moving average is weights
_SLOTS = re.compile(r"(?i)(adam(ax|w)?(_[mv1])?|lamb(_[mv1])?|(momentum|rmsprop|adagrad|adadelta|ftrl)(_[12])?)")
_COUNTERS = re.compile(r"(.*/)?(beta[12]_power(_\d+)?|global_step)")


def open_saved_model(folder: Path, *, include_optimizer: bool = False) -> Source:
    """Open the variables of a SavedModel.

    Raises:
        ConversionError: It has none, or they are damaged.
    """
    index = folder / VARIABLES
    if not index.is_file():
        raise ConversionError(f"{str(folder)!r} is a TensorFlow SavedModel without {VARIABLES.as_posix()}: its weights"
                              " are constants of its graph, or are missing; save the model with tf.saved_model.save,"
                              " or its variables with tf.train.Checkpoint")  # fmt: skip
    what = "the variables of a TensorFlow SavedModel"
    source = _open(index, "savedmodel", what, include_optimizer=include_optimizer)
    source.notes.insert(0, "left out the graph of the SavedModel: its variables alone are kept")
    return source


def open_tensorflow(index: Path, *, include_optimizer: bool = False) -> Source:
    """Open a checkpoint by its index; names are without the ending of TensorFlow 2, in the order of the index.

    Raises:
        ConversionError: It is damaged, or a file of it is missing.
    """
    return _open(index, "tensorflow", "a TensorFlow checkpoint", include_optimizer=include_optimizer)


def _open(index: Path, kind: str, what: str, *, include_optimizer: bool) -> Source:
    tensors, notes = _Bundle(index, what).tensors()
    left_out: list[str] = []
    tensors = without_state(tensors, left_out, include_optimizer=include_optimizer)
    notes.extend(left_out)
    if not tensors:
        raise ConversionError(f"{str(index)!r} is {what} without weights; {'; '.join(notes[:4])}".rstrip("; "))
    return Source(kind, tensors, {}, notes, {"format": kind}, left_out=left_out)


class _Part(NamedTuple):
    """A TensorSliceProto: its place in the tensor, and its stored length on each axis, -1 for a whole axis."""

    box: Box
    lengths: tuple[int, ...]


@dataclass
class _Entry:
    """A BundleEntryProto. A variable may be stored in parts, each of which has an entry and a key of its own."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0
    parts: list[_Part] = field(default_factory=list)


class _Bundle:
    """A checkpoint whose index has been read."""

    def __init__(self, index: Path, what: str) -> None:
        self._index, self._what = index, what
        data = read_small(index, _MAX_INDEX_NBYTES, f"the index of {what}")
        try:
            table = dict(sstable.read_table(data))
            self._n_shards = _n_shards(table.pop(b"", b""))
            if len(table) > MAX_TENSORS:
                raise ValueError(f"it has {len(table)} entries, and a .vqm at most {MAX_TENSORS}")
            self._entries = {key: _entry(value) for key, value in table.items()}
        except ValueError as err:
            raise self._refuse(str(err)) from err
        self._files: dict[int, Region] = {}

    def _refuse(self, why: str) -> ConversionError:
        return ConversionError(f"{str(self._index)!r} is the index of {self._what} and cannot be read: {why}")

    def tensors(self) -> tuple[list[SourceTensor], list[str]]:
        """The variables, those of the state of training marked as exact, and what was left out."""
        notes: list[str] = []
        tensors: dict[str, SourceTensor] = {}
        for key, entry in self._entries.items():
            if key[:1] == b"\0":  # a part of a variable
                continue
            try:
                text = key.decode()
                name = text.removesuffix(_VALUE)
                check_name(name)
                if entry.dtype == _STRING:
                    if name != "_CHECKPOINTABLE_OBJECT_GRAPH":
                        notes.append(f"left out {name[:_LONGEST_TEXT]!r}: text")
                    continue
                if name in tensors:
                    raise ValueError("it is there twice")
                is_exact = self._is_state(text, name, entry)
                tensors[name] = self._tensor(key, name, entry, is_exact=is_exact)
            except (ValueError, EncodeError) as err:
                if isinstance(err, ConversionError):
                    raise
                raise self._refuse(f"variable {key[:_LONGEST_TEXT].decode(errors='replace')!r}: {err}") from err
        return list(tensors.values()), notes

    def _tensor(self, key: bytes, name: str, entry: _Entry, *, is_exact: bool) -> SourceTensor:
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise ValueError(f"it has dtype {entry.dtype} of TensorFlow's DataType, which a .vqm cannot hold")
        check_shape(name, entry.shape)
        if not entry.parts:
            load = self._loader(name, dtype, entry, entry.shape)
        else:
            check_boxes(entry.shape, [part.box for part in entry.parts])
            parts = [(part.box, self._part_loader(key, name, dtype, part)) for part in entry.parts]

            def load() -> npt.NDArray[Any]:
                return put_together(entry.shape, BY_NAME[dtype].numpy, parts)

        return SourceTensor(name, dtype, entry.shape, load, is_exact=is_exact, output_axis=-1)

    def _part_loader(self, key: bytes, name: str, dtype: str, part: _Part) -> Callable[[], npt.NDArray[Any]]:
        entry = self._entries.get(part_key(key, part.box.offsets, part.lengths))
        if entry is None or _DTYPES.get(entry.dtype) != dtype or entry.shape != part.box.sizes or entry.parts:
            raise ValueError(f"its part at {part.box.offsets} is missing, or is no part")
        return self._loader(name, dtype, entry, entry.shape)

    def _loader(self, name: str, dtype: str, entry: _Entry, shape: tuple[int, ...]) -> Callable[[], npt.NDArray[Any]]:
        needed = BY_NAME[dtype].nbytes(prod(shape))
        region = self._file(entry.shard)
        if entry.size != needed or not 0 <= entry.offset <= region.size - needed:
            raise ValueError(f"it has shape {shape} and needs {needed} bytes, but has {entry.size} at {entry.offset} of"
                             f" {region.path.name!r}, which has {region.size}: cut short or damaged")  # fmt: skip

        def load() -> npt.NDArray[Any]:
            data = np.empty(needed, np.uint8)
            try:
                region.fill(data, entry.offset)
            except ValueError as err:
                raise ConversionError(f"{region.label}: variable {name!r} cannot be read: {err}") from err
            if mask(crc32c(data.data)) != entry.crc:
                raise ConversionError(f"{region.label}: variable {name!r} is damaged: its CRC-32C is wrong; fetch or"
                                      " save it again")  # fmt: skip
            if dtype == "bool":
                data = (data != 0).view(np.uint8)
            return data.view(BY_NAME[dtype].numpy).reshape(shape)

        return load

    def _file(self, shard: int) -> Region:
        if not 0 <= shard < self._n_shards:
            raise ValueError(f"it is in file {shard} of {self._n_shards}")
        if shard not in self._files:
            name = f"{self._index.name.removesuffix(INDEX)}.data-{shard:05d}-of-{self._n_shards:05d}"
            self._files[shard] = Region.of_file(beside(self._index, name, f"the index of {self._what}"))
        return self._files[shard]

    def _is_state(self, text: str, name: str, entry: _Entry) -> bool:
        """Whether this belongs to the optimizer or counts steps: TensorFlow 2 marks it, TensorFlow 1 names it so."""
        if text.endswith(_VALUE):
            first = name.split("/", 1)[0]
            return _SLOT in name or name == "save_counter" or is_training_key(first) or name.startswith(
                "keras_api/metrics/")  # fmt: skip
        if _COUNTERS.fullmatch(name) and not entry.shape:
            return True
        *scopes, slot = name.split("/")
        if not _SLOTS.fullmatch(slot):
            return False
        # A slot is named by the scope of the optimizer, if that has one, the variable and the slot
        owners = (self._entries.get("/".join(scopes[i:]).encode()) for i in range(len(scopes)))
        return any(owner is not None and owner.shape == entry.shape for owner in owners)


def _n_shards(header: bytes) -> int:
    """The number of files of data, from a BundleHeaderProto."""
    n_shards, endianness = 0, 0
    for number, value in fields(header):
        if number == 1:
            n_shards = signed(value)
        elif number == 2:
            endianness = signed(value)
    if endianness:
        raise ValueError("it is big-endian; save it again on a little-endian machine")
    if not 0 < n_shards <= 99999:
        raise ValueError(f"it has {n_shards} files of data; a checkpoint of TensorFlow's first format is not read: save"
                         " it again with tf.train.Saver in TensorFlow 1 or later")  # fmt: skip
    return n_shards


def _entry(data: bytes) -> _Entry:
    entry = _Entry()
    parts: list[bytes] = []
    for number, value in fields(data):
        if number == 1:
            entry.dtype = signed(value)
        elif number == 2:
            entry.shape = _shape(message(value))
        elif number == 3:
            entry.shard = signed(value)
        elif number == 4:
            entry.offset = signed(value)
        elif number == 5:
            entry.size = signed(value)
        elif number == 6:
            entry.crc = signed(value)
        elif number == 7:
            parts.append(message(value))
    entry.parts = [_part(part, entry.shape) for part in parts]
    return entry


def _shape(data: bytes) -> tuple[int, ...]:
    """Read a TensorShapeProto."""
    shape = []
    for number, value in fields(data):
        if number == 2:
            sizes = [signed(size) for field_, size in fields(message(value)) if field_ == 1]
            shape.append(sizes[-1] if sizes else 0)
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise ValueError(f"it has the shape {tuple(shape[:MAX_RANK])}")
    return tuple(shape)


def _part(data: bytes, shape: tuple[int, ...]) -> _Part:
    """Read a TensorSliceProto. It has an extent for each axis; without a length the extent is the whole axis."""
    extents = [dict(fields(message(value))) for number, value in fields(data) if number == 1]
    if len(extents) != len(shape):
        raise ValueError(f"a part of it has {len(extents)} axes instead of {len(shape)}")
    offsets = tuple(signed(extent.get(1, 0)) for extent in extents)
    lengths = tuple(signed(extent[2]) if 2 in extent else -1 for extent in extents)
    sizes = tuple(size if length == -1 else length for length, size in zip(lengths, shape, strict=True))
    return _Part(Box(offsets, sizes), lengths)


def part_key(key: bytes, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> bytes:
    """The key of a part of a variable, in TensorFlow's order-preserving code (``EncodeTensorNameSlice``).

    The variable's own key has no byte 0 and, as UTF-8, no byte 255, which would be escaped.
    """
    numbers = b"".join(_ordered_signed(at) + _ordered_signed(length)
                       for at, length in zip(offsets, lengths, strict=True))  # fmt: skip
    return _ordered(0) + key + b"\0\1" + _ordered(len(offsets)) + numbers


def _ordered(number: int) -> bytes:
    """A number that is not negative: its length, then its bytes from the most significant."""
    n = (number.bit_length() + 7) // 8
    return bytes([n]) + number.to_bytes(n, "big")


def _ordered_signed(number: int) -> bytes:
    """A number with a sign: two's complement, 7 bits in a byte. As many leading bits as bytes are inverted."""
    n = (~number if number < 0 else number).bit_length() // 7 + 1
    header = ((1 << n) - 1) << 7 * n
    return (header ^ (number & ((1 << 8 * n) - 1))).to_bytes(n, "big")
