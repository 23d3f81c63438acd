"""The file of a PyTorch checkpoint: its pickle, and where the bytes of each storage are; zip and legacy, no PyTorch."""

from __future__ import annotations

import io
import mmap
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from vqformat.errors import ConversionError
from vqformat.format.dtypes import BY_NAME
from vqformat.format.limits import MAX_RANK

from .file_region import file_bytes
from .inert_pickle import Call, HostileError, Persistent, PickleError, unpickle
from .pickled_tensors import Tensor, itemsize_of, storage_of
from .strided_storage import are_sizes, array_of, brief, most_nbytes, n_spanned
from .zip_archive import Archive

MAX_PICKLE_NBYTES = 1 << 30  # arrays of NumPy lie in it
_MAX_EXPANSION = 4  # bytes of a tensor that repeats elements of its storage, over those of the storage


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a storage are."""

    start: int
    nbytes: int
    member: str | None = None  # of a zip archive, compressed


class CheckpointFile:
    """A checkpoint whose pickle has been read; the file itself is opened again for each tensor.

    Attributes:
        root: What the pickle holds.

    Raises:
        ConversionError: It is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, _Place] = {}
        self._memory: dict[str, bytes] = {}
        self._is_big_endian = False
        self._inflated: tuple[str, bytes] | None = None  # the compressed member that was read last
        try:
            self.root = self._open()
        except HostileError as err:
            raise ConversionError(f"{str(path)!r} is a PyTorch checkpoint that cannot be read: {err}; in the program"
                                  " that wrote it save a state dict: torch.save(model.state_dict(), …)"
                                  ) from err  # fmt: skip
        except PickleError as err:
            raise self.refuse(str(err)) from err

    def _open(self) -> Any:
        with open(self.path, "rb") as stream:
            is_zip = stream.read(2) == b"PK"
        return self._open_zip() if is_zip else self._open_legacy()

    def refuse(self, why: str) -> ConversionError:
        """The error for a checkpoint that is damaged; foreign names in it have any length and any characters."""
        why = "".join(c if c.isprintable() else "?" for c in why[:500]) + "…" * (len(why) > 500)
        return ConversionError(f"{str(self.path)!r} is a PyTorch checkpoint that is damaged or cut short ({why}); fetch"
                               " or save it again")  # fmt: skip

    # Zip files

    def _open_zip(self) -> Any:
        with Archive(self.path) as archive:
            pickles = [name for name in archive.names() if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise self.refuse(f"it has {len(pickles)} members data.pkl")
            top = pickles[0].removesuffix("data.pkl")
            if archive.nbytes(pickles[0]) > MAX_PICKLE_NBYTES:
                raise self.refuse(f"its pickle has {archive.nbytes(pickles[0])} bytes; at most {MAX_PICKLE_NBYTES} are"
                                  " allowed")  # fmt: skip
            if f"{top}byteorder" in archive.names() and archive.nbytes(f"{top}byteorder") < 16:
                self._is_big_endian = self._member(archive, f"{top}byteorder").strip() == b"big"
            for name in archive.names():
                if name.startswith(f"{top}data/"):
                    self._places[name.removeprefix(f"{top}data/")] = self._zip_place(archive, name)
            pickled = self._member(archive, pickles[0])
        return unpickle(io.BytesIO(pickled))

    def _member(self, archive: Archive, name: str) -> bytes:
        """A whole member, of which the CRC may be 0."""
        start = archive.stored_at(name)
        if start is None:
            return archive.read(name)
        with open(self.path, "rb") as stream:
            stream.seek(start)
            return stream.read(archive.nbytes(name))

    def _zip_place(self, archive: Archive, name: str) -> _Place:
        try:
            start = archive.stored_at(name)
        except ConversionError as err:
            raise ConversionError(f"{str(self.path)!r} is a PyTorch checkpoint whose part {name!r} is damaged"
                                  f" ({err}); fetch or save it again") from err  # fmt: skip
        return _Place(start or 0, archive.nbytes(name), name if start is None else None)

    # Legacy files: pickles of a magic number, a version, facts of the machine, the checkpoint and the keys of the
    # storages; then the storages, each after the number of its elements

    def _open_legacy(self) -> Any:
        with open(self.path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for _ in range(2):
                unpickle(mapped)
            facts = unpickle(mapped)
            self._is_big_endian = isinstance(facts, dict) and facts.get("little_endian") is False
            root = unpickle(mapped)
            keys = unpickle(mapped)
            position = mapped.tell()
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                raise self.refuse("it does not list its storages")
            dtypes = _dtypes_of_storages(root)
            for key in keys:
                size = itemsize_of(dtypes.get(key))
                count = int.from_bytes(mapped[position : position + 8], "big" if self._is_big_endian else "little")
                position += 8
                if count * size > len(mapped) - position:
                    raise self.refuse(f"storage {key!r} has {count} elements of {size} bytes, and"
                                      f" {max(0, len(mapped) - position)} bytes are left")  # fmt: skip
                self._places[key] = _Place(position, count * size)
                position += count * size
            if position < len(mapped) and zipfile.is_zipfile(self.path):
                raise self.refuse("a zip archive follows its last storage: it is not told which of both is meant")
        return root

    def add(self, key: str, data: bytes) -> None:
        """Take a storage that lies in the pickle, as the arrays of NumPy do."""
        self._memory[key] = data

    # Tensors

    def check(self, name: str, tensor: Tensor) -> None:
        """Raise ConversionError unless a tensor has a dtype of a ``.vqm`` and lies within its storage."""
        shape, stride, offset = tensor.shape, tensor.stride, tensor.offset
        if tensor.dtype not in BY_NAME:
            raise ConversionError(f"{str(self.path)!r}: tensor {name!r} has dtype {tensor.dtype}, which a .vqm cannot"
                                  " hold; convert it with tensor.to(…), or tensor.dequantize(), first")  # fmt: skip
        if isinstance(shape, tuple) and len(shape) > MAX_RANK:
            raise ConversionError(f"{str(self.path)!r}: tensor {name!r} has {len(shape)} axes, and a .vqm holds at most"
                                  f" {MAX_RANK}; reshape it first")  # fmt: skip
        if not (isinstance(shape, tuple) and isinstance(stride, tuple) and are_sizes(offset, shape, stride)):
            raise self.refuse(f"tensor {name!r} has the offset {brief(offset)}, shape {brief(shape)} and strides"
                              f" {brief(stride)}")  # fmt: skip
        key = tensor.storage.key
        if key not in self._places and key not in self._memory:
            raise self.refuse(f"tensor {name!r} is in the storage {key[:80]!r}, which is not there")
        have = len(self._memory[key]) if key in self._memory else self._places[key].nbytes
        have = max(0, have - tensor.storage.offset)
        needed = self._span(tensor)
        if needed > have:
            raise self.refuse(f"tensor {name!r} of shape {brief(shape)} needs {needed} bytes of its storage, which has"
                              f" {have}")  # fmt: skip
        nbytes = prod(shape) * itemsize_of(tensor.dtype)
        most = most_nbytes(have, _MAX_EXPANSION)
        if nbytes > most:
            raise ConversionError(f"{str(self.path)!r}: tensor {name!r} of shape {brief(shape)} is {nbytes} bytes that"
                                  f" repeat {have}, and at most {most} are allowed; save tensor.contiguous() in its"
                                  " place")  # fmt: skip

    def extent(self, tensor: Tensor) -> tuple[str, int, int]:
        """The storage's key, and offsets in it of a tensor's first byte and of the byte after its last."""
        start = tensor.storage.offset + tensor.offset * itemsize_of(tensor.dtype)
        return tensor.storage.key, start, tensor.storage.offset + self._span(tensor)

    def _span(self, tensor: Tensor) -> int:
        n = n_spanned(tensor.shape, tensor.stride)
        return cast(int, tensor.offset + n) * itemsize_of(tensor.dtype) if n else 0

    def loader(self, name: str, tensor: Tensor) -> Callable[[], npt.NDArray[Any]]:
        """A function that loads a tensor that has been checked."""
        return lambda: self.load(name, tensor)

    def load(self, name: str, tensor: Tensor) -> npt.NDArray[Any]:
        """The values of a tensor that has been checked."""
        info = BY_NAME[tensor.dtype]
        if not prod(tensor.shape):
            return np.empty(tensor.logical_shape, info.numpy)
        _, start, end = self.extent(tensor)
        try:
            data = self._read(tensor.storage.key, start, end - start)
        except ValueError as err:
            raise ConversionError(f"{str(self.path)!r} became shorter while {name!r} was read") from err
        itemsize = itemsize_of(tensor.dtype)
        if self._is_big_endian and itemsize > 1 and tensor.storage.key not in self._memory:
            size = itemsize // 2 if info.is_complex else itemsize
            data = np.frombuffer(data, f">u{size}").astype(f"<u{size}").tobytes()
        if tensor.dtype == "f4_e2m1fn":
            pairs = array_of(data, "u8", tensor.shape, tensor.stride, is_conj=False, is_neg=False)
            halves = np.stack([pairs & 15, pairs >> 4], axis=-1)
            return halves.reshape(tensor.logical_shape).view(info.numpy)
        return array_of(data, tensor.dtype, tensor.shape, tensor.stride, is_conj=tensor.is_conj, is_neg=tensor.is_neg)

    def _read(self, key: str, start: int, nbytes: int) -> bytes | npt.NDArray[np.uint8]:
        if key in self._memory:
            return self._memory[key][start : start + nbytes]
        place = self._places[key]
        if place.member is None:
            return file_bytes(self.path, place.start + start, nbytes)
        if self._inflated is None or self._inflated[0] != key:
            self._inflated = None
            with Archive(self.path) as archive:
                self._inflated = key, archive.read(place.member)
        return self._inflated[1][start : start + nbytes]


def _dtypes_of_storages(root: Any) -> dict[str, str | None]:
    """Dtypes of all storages of a legacy pickle by key; they say how large the elements are."""
    found: dict[str, str | None] = {}
    seen: set[int] = set()
    pending = [root]
    while pending:
        value = pending.pop()
        if isinstance(value, Persistent):
            storage = storage_of(value)
            if storage is not None:
                found[storage.key] = storage.dtype
            continue
        if id(value) in seen:
            continue
        parts = _parts(value)
        if parts:
            seen.add(id(value))
            pending.extend(parts)
    return found


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Call):
        items = [part for pair in value.items.items() for part in pair] if value.items else []
        return [value.function, value.arguments, value.state, *items, *value.elements]
    if isinstance(value, Mapping):
        return [part for pair in value.items() for part in pair]
    return list(value) if isinstance(value, (list, tuple)) else []
