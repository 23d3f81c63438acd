"""Reading NumPy archives and arrays. Pickled objects are never loaded."""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.dtypes import of_array
from vqformat.format.limits import MAX_RANK

from .source import Source

# Kinds of NumPy dtypes that cannot be tensors
_NO_TENSORS = {"O": "pickled Python objects, which are never loaded", "S": "bytes", "U": "text", "M": "dates",
               "m": "time spans"}  # fmt: skip


def open_npz(path: Path) -> Source:
    """Open an archive written by ``numpy.savez``.

    Raises:
        ConversionError: It is damaged, or has arrays that a ``.vqm`` cannot hold.
    """
    archive = zipfile.ZipFile(path)
    try:
        tensors: list[SourceTensor] = []
        notes: list[str] = []
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                notes.append(f"left out {member.filename!r}: no NumPy array")
                continue
            name = member.filename.removesuffix(".npy")
            tensor = _tensor(path, name, _opener(archive, member), member.file_size, notes)
            if tensor is not None:
                tensors.append(tensor)
        names = [tensor.name for tensor in tensors]
        if not tensors or len(set(names)) < len(names):
            what = "with two arrays of one name" if tensors else f"without numeric arrays ({'; '.join(notes[:4])})"
            raise ConversionError(f"{str(path)!r} is a NumPy archive {what}; save arrays with numpy.savez")
    except BaseException:
        archive.close()
        raise
    return Source("npz", tensors, {}, notes, {"format": "npz"}, archive.close)


def open_npy(path: Path) -> Source:
    """Open a single array written by ``numpy.save``. Its name is that of the file, without suffix.

    Raises:
        ConversionError: It is damaged, or a ``.vqm`` cannot hold the array.
    """
    notes: list[str] = []
    tensor = _tensor(path, path.stem, lambda: path.open("rb"), path.stat().st_size, notes)
    if tensor is None:
        raise ConversionError(f"{str(path)!r} is a NumPy file without a numeric array: {notes[0]}; save arrays of"
                              " numbers with numpy.savez")  # fmt: skip
    return Source("npy", [tensor], {}, notes, {"format": "npy"})


def _opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(member)


def _tensor(path: Path, name: str, opener: Callable[[], IO[bytes]], size: int, notes: list[str]) -> SourceTensor | None:
    """A member as a tensor, after its header has been read; None, and a note, if it is not a tensor."""
    with _complaining(path, name), opener() as stream:
        shape, fortran_order, dtype = _header(stream)
        header_nbytes = stream.tell()
    if dtype.kind in _NO_TENSORS or dtype.names is not None:
        notes.append(f"left out {name!r}: {_NO_TENSORS.get(dtype.kind, 'records of several fields')}")
        return None
    if dtype.kind == "V":
        raise ConversionError(f"{str(path)!r}: array {name!r} has dtype {dtype}, bytes without a meaning (numpy.savez"
                              " writes bfloat16 and the like so); save it as float32, or use safetensors")  # fmt: skip
    try:
        info = of_array(np.empty(0, dtype), name)
    except EncodeError as err:
        raise ConversionError(f"{str(path)!r}: {err}") from err
    nbytes = prod(shape) * dtype.itemsize
    if header_nbytes + nbytes != size:
        raise ConversionError(f"{str(path)!r}: array {name!r} of shape {shape} and dtype {dtype} needs {nbytes} bytes,"
                              f" but {size - header_nbytes} are there; save it again")  # fmt: skip

    def load() -> npt.NDArray[Any]:
        with _complaining(path, name), opener() as stream:
            stream.read(header_nbytes)
            data = stream.read(nbytes + 1)  # 1 more byte, since zipfile checks the CRC of a member at its end
            if len(data) != nbytes:
                raise ValueError(f"{len(data)} bytes instead of {nbytes}")
        if info.name == "bool":
            flat: npt.NDArray[Any] = np.frombuffer(data, np.uint8) != 0
        else:
            flat = np.frombuffer(data, dtype)
        return flat.reshape(shape[::-1]).T if fortran_order else flat.reshape(shape)

    return SourceTensor(name, info.name, shape, load)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = npy.read_array_header_1_0(stream)
    elif version in ((2, 0), (3, 0)):  # 3.0 differs only in Unicode names of fields
        shape, fortran_order, dtype = npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of the .npy format")
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran_order, dtype


class _complaining:
    """Context that turns the exceptions of NumPy and zipfile for damaged files into a ConversionError."""

    def __init__(self, path: Path, name: str) -> None:
        self._where = f"{str(path)!r}: array {name!r}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if not isinstance(err, Exception) or isinstance(err, MemoryError):
            return
        if isinstance(err, OSError) and err.errno != errno.EINVAL:  # EINVAL: an offset before the start
            return
        raise ConversionError(f"{self._where} is damaged or cannot be read ({err}); save it again") from err
