"""Reading NumPy archives and arrays. Pickled objects are never loaded; the arrays in them are read."""

from __future__ import annotations

import contextlib
import errno
import io
import zipfile
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from vqformat.encode.source import SourceTensor, check_shape
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.dtypes import of_array
from vqformat.format.limits import MAX_RANK

from .file_region import file_bytes
from .model_folder import open_regular
from .pickled_arrays import open_object_array, tensors_of_objects
from .pytorch_storage import MAX_PICKLE_NBYTES
from .source import Source
from .zip_archive import leads_out

_PIECE = 1 << 20
_MAX_HEADER_NBYTES = 10_000  # of an array of numbers; NumPy has the same limit

# Kinds of NumPy dtypes that cannot be tensors
_NO_TENSORS = {"O": "pickled Python objects, which are never loaded", "S": "bytes", "U": "text", "M": "dates",
               "m": "time spans"}  # fmt: skip
_TEXTS = (_NO_TENSORS["S"], _NO_TENSORS["U"])  # nobody takes them for weights


def open_npz(path: Path) -> Source:
    """Open an archive written by ``numpy.savez``.

    Raises:
        ConversionError: It is damaged, or has arrays that a ``.vqm`` cannot hold.
    """
    archive = zipfile.ZipFile(path)
    try:
        tensors: list[SourceTensor] = []
        notes: list[str] = []
        left_out: list[str] = []
        for member in archive.infolist():
            if leads_out(member.orig_filename):
                raise ConversionError(f"{str(path)!r}: member {member.orig_filename[:100]!r} has a name that leads out"
                                      " of the archive; save the array under another name")  # fmt: skip
            if not member.filename.endswith(".npy"):
                notes.append(f"left out {member.filename!r}: no NumPy array")
                continue
            name = member.filename.removesuffix(".npy")
            opener = _opener(archive, member)
            found = _tensors(path, name, opener, partial(_read_member, opener), size=member.file_size,
                             notes=notes)  # fmt: skip
            tensors.extend(found)
            if not found and not notes[-1].endswith(_TEXTS):
                left_out.append(notes[-1])
        names = [tensor.name for tensor in tensors]
        if not tensors or len(set(names)) < len(names):
            what = "with two arrays of one name" if tensors else f"without numeric arrays ({'; '.join(notes[:4])})"
            raise ConversionError(f"{str(path)!r} is a NumPy archive {what}; save arrays with numpy.savez")
    except BaseException:
        archive.close()
        raise
    return Source("npz", tensors, {}, notes, {"format": "npz"}, archive.close, left_out)


def open_npy(path: Path) -> Source:
    """Open a single array written by ``numpy.save``. Its name is that of the file, without suffix.

    Raises:
        ConversionError: It is damaged, or a ``.vqm`` cannot hold the array.
    """
    notes: list[str] = []
    with open_regular(path) as stream:
        size = stream.seek(0, 2)
    with _complaining(path, path.stem), open_regular(path) as stream:
        _, _, dtype = _header(stream)
        offset = stream.tell()
    if dtype.kind == "O":
        with contextlib.suppress(ConversionError):
            return open_object_array(path, offset)
    tensors = _tensors(path, path.stem, lambda: open_regular(path), partial(file_bytes, path), size=size, notes=notes)
    if not tensors:
        raise ConversionError(f"{str(path)!r} is a NumPy file without a numeric array: {notes[0]}; save arrays of"
                              " numbers with numpy.savez")  # fmt: skip
    return Source("npy", tensors, {}, notes, {"format": "npy"})


def _opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(member)


def _read_member(opener: Callable[[], IO[bytes]], offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """The bytes of a member from an offset to its end, where zipfile checks its CRC."""
    data = np.empty(nbytes, np.uint8)
    with opener() as stream:
        stream.read(offset)
        done = 0
        while piece := stream.read(_PIECE):
            if len(piece) > nbytes - done:
                raise ValueError(f"more than {nbytes} bytes")
            data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
    if done != nbytes:
        raise ValueError(f"{done} bytes instead of {nbytes}")
    return data


def _tensors(
    path: Path, name: str, opener: Callable[[], IO[bytes]], read: Callable[[int, int], npt.NDArray[np.uint8]],
    *, size: int, notes: list[str],
) -> list[SourceTensor]:  # fmt: skip
    """An array as a tensor, after its header has been read; none, and a note, if it is not a tensor.

    The arrays in an array of Python objects are tensors each.

    Args:
        opener: Opens it as a file.
        read: Gives the bytes from an offset to the end; the second argument is how many these are.
        size: Its bytes, with the header.
    """
    with _complaining(path, name), opener() as stream:
        shape, fortran_order, dtype = _header(stream)
        header_nbytes = stream.tell()
        pickled = tensors_of_objects(stream, name) if dtype.kind == "O" and size <= MAX_PICKLE_NBYTES else []
    if pickled:
        notes.append(f"{name!r} has pickled objects: kept the arrays in them, under names that begin with"
                     f" {name!r}, and left out their other values")  # fmt: skip
        return pickled
    if dtype.names is not None:
        return _fields(path, name, read, shape, dtype, offset=header_nbytes, is_fortran=fortran_order, size=size,
                       notes=notes)  # fmt: skip
    if dtype.kind in _NO_TENSORS:
        notes.append(f"left out {name!r}: {_NO_TENSORS[dtype.kind]}")
        return []
    if dtype.kind == "V":
        raise ConversionError(f"{str(path)!r}: array {name!r} has dtype {dtype}, bytes without a meaning (numpy.savez"
                              " writes bfloat16 and the like so); save it as float32, or use safetensors")  # fmt: skip
    try:
        check_shape(name, shape)
        info = of_array(np.empty(0, dtype), name)
    except EncodeError as err:
        raise ConversionError(f"{str(path)!r}: {err}") from err
    nbytes = prod(shape) * dtype.itemsize
    if header_nbytes + nbytes != size:
        raise ConversionError(f"{str(path)!r}: array {name!r} of shape {shape} and dtype {dtype} needs {nbytes} bytes,"
                              f" but {size - header_nbytes} are there; save it again")  # fmt: skip

    def load() -> npt.NDArray[Any]:
        with _complaining(path, name):
            data = read(header_nbytes, nbytes)
        if info.name == "bool":
            flat: npt.NDArray[Any] = data != 0
        else:
            flat = data.view(dtype)
        return flat.reshape(shape[::-1]).T if fortran_order else flat.reshape(shape)

    return [SourceTensor(name, info.name, shape, load)]


def _fields(
    path: Path, name: str, read: Callable[[int, int], npt.NDArray[np.uint8]], shape: tuple[int, ...],
    dtype: np.dtype[Any], *, offset: int, is_fortran: bool, size: int, notes: list[str],
) -> list[SourceTensor]:  # fmt: skip
    """The fields of an array of records, each a tensor; those that are no numbers are left out, with a note."""
    nbytes = prod(shape) * dtype.itemsize
    if dtype.hasobject:
        notes.append(f"left out {name!r}: records with Python objects")
        return []
    if offset + nbytes != size:
        raise ConversionError(f"{str(path)!r}: array {name!r} of shape {shape} and dtype {dtype} needs {nbytes} bytes,"
                              f" but {size - offset} are there; save it again")  # fmt: skip

    def load(field: str) -> npt.NDArray[Any]:
        with _complaining(path, name):
            rows = read(offset, nbytes).view(dtype)
        return (rows.reshape(shape[::-1]).T if is_fortran else rows.reshape(shape))[field]

    tensors = []
    for field in dtype.names or ():
        part = dtype[field]
        try:
            info = of_array(np.empty(0, part.base), f"{name}.{field}")
            check_shape(f"{name}.{field}", (*shape, *part.shape))
        except EncodeError:
            notes.append(f"left out the field {field!r} of {name!r}: {part.base}")
            continue
        tensors.append(SourceTensor(f"{name}.{field}", info.name, (*shape, *part.shape), partial(load, field)))
    if tensors:
        notes.append(f"{name!r} has records of several fields: each field is a tensor, under a name that begins with"
                     f" {name + '.'!r}")  # fmt: skip
    return tensors


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    magic = stream.read(npy.MAGIC_LEN)
    version = npy.read_magic(io.BytesIO(magic))
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of the .npy format")
    length = stream.read(2 if version == (1, 0) else 4)
    nbytes = int.from_bytes(length, "little")
    if nbytes > _MAX_HEADER_NBYTES:
        raise ValueError(f"a header of {nbytes} bytes; at most {_MAX_HEADER_NBYTES} are read")
    text = stream.read(nbytes)
    if len(text) < nbytes:
        raise ValueError(f"a header of {nbytes} bytes is announced, and {len(text)} are there")
    # 3.0 differs from 2.0 only in Unicode names of fields
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, fortran_order, dtype = read(io.BytesIO(length + text))
    except Exception as err:  # ast raises MemoryError and RecursionError for nested text, even if it is short
        raise ValueError(f"its header cannot be read: {text[:100]!r}") from err
    if len(shape) > MAX_RANK or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"shape {str(shape)[:100]}")
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
        if isinstance(err, ConversionError):
            return
        raise ConversionError(f"{self._where} is damaged or cannot be read ({err}); save it again") from err
