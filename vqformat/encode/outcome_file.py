"""Outcomes of tasks in files: workers hand them over in these, and a run that was stopped is continued from them.

A file has the pickle of an outcome and its large buffers, each at a multiple of 64 bytes, then the sizes of these
parts, their number, and a checksum of all bytes before it. Only data classes of this package and NumPy arrays are
unpickled, since anyone may have written a file that is found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import mmap
import os
import pickle
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import IO, Any

from ..errors import EncodeError
from ..native.crc import crc32
from .disk_list import ALIGNMENT, aligned, pickle_into

_MAPPED_NBYTES = 1 << 22  # smaller files are read into memory: a mapping takes a file descriptor
_PIECE_NBYTES = 1 << 20
_END = struct.Struct("<I8s")  # CRC-32, magic number
_MAGIC = b"vqm part"
# What arrays and buffers are pickled with, beside data classes of this package
_ALLOWED = {
    ("builtins", "memoryview"), ("builtins", "complex"), ("builtins", "set"), ("builtins", "bytearray"),
    ("numpy", "ndarray"), ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        found: Any = super().find_class(module, name) if module.startswith("vqformat.") and "." not in name else None
        if not (isinstance(found, type) and found.__module__ == module and dataclasses.is_dataclass(found)):
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return found


def packed(outcome: object) -> list[bytes]:
    """An outcome as bytes, to be sent to another machine."""
    stream = io.BytesIO()
    large = pickle_into(stream, outcome)
    return [stream.getvalue(), *map(bytes, large)]


def unpacked(parts: Sequence[bytes | memoryview]) -> Any:
    """What ``packed`` was given."""
    return _Unpickler(io.BytesIO(parts[0]), buffers=parts[1:]).load()


def write(outcome: object, folder: str, name: str) -> None:
    """Write an outcome to a file, which gets its name when it is complete."""
    with _new(folder, name) as file:
        _finish(file, pickle_into(file, outcome))


def write_packed(parts: Sequence[bytes], folder: str, name: str) -> None:
    """Write what ``packed`` has given to a file."""
    with _new(folder, name) as file:
        file.write(parts[0])
        _finish(file, parts[1:])


@contextlib.contextmanager
def _new(folder: str, name: str) -> Iterator[IO[bytes]]:
    path = os.path.join(folder, name)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w+b") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _finish(file: IO[bytes], large: Sequence[bytes | memoryview]) -> None:
    """Write what follows the pickle."""
    sizes = [file.tell(), *map(len, large)]
    file.write(bytes(-sizes[0] % ALIGNMENT))
    for buffer in large:
        file.write(buffer)
        file.write(bytes(-len(buffer) % ALIGNMENT))
    file.write(struct.pack(f"<{len(sizes) + 1}Q", *sizes, len(sizes)))
    file.write(_END.pack(_crc(file), _MAGIC))


def is_whole(folder: str, name: str) -> bool:
    """Whether there is a file with this name, and all its bytes are as they were written."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            file.seek(-_END.size, os.SEEK_END)
            crc, magic = _END.unpack(file.read())
            return bool(magic == _MAGIC and _crc(file, _END.size) == crc)
    except (OSError, struct.error):
        return False


def read(folder: str, name: str, *, is_kept: bool) -> Any:
    """Read an outcome. Large ones are mapped, read-only.

    Args:
        is_kept: Whether the file stays; if not, it is removed.

    Raises:
        EncodeError: It has something that no outcome has.
    """
    path = os.path.join(folder, name)
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < _MAPPED_NBYTES:
            data = memoryview(file.read())
        else:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if not is_kept:
        with contextlib.suppress(OSError):  # Windows removes no mapped file: its folder is removed at the end
            os.unlink(path)
    end = len(data) - _END.size - 8
    try:
        (n_parts,) = struct.unpack("<Q", data[max(end, 0) : end + 8])
        if not 0 < n_parts <= end // 8:
            raise pickle.UnpicklingError(f"it has {n_parts} parts")
        sizes = struct.unpack(f"<{n_parts}Q", data[end - 8 * n_parts : end])
        places = accumulate(map(aligned, sizes), initial=0)
        return unpacked([data[place : place + size] for place, size in zip(places, sizes, strict=False)])
    except (pickle.UnpicklingError, struct.error, EOFError) as err:
        raise EncodeError(f"{path!r} was not written by a conversion: {err}") from err


def _crc(file: IO[bytes], n_end: int = 0) -> int:
    """The CRC-32 of a file but for its last bytes. The file is at its end before and after."""
    left = file.seek(0, os.SEEK_END) - n_end
    file.seek(0)
    crc = 0
    while left:
        piece = file.read(min(left, _PIECE_NBYTES))
        if not piece:
            raise OSError("the file was cut short while it was read")
        crc = crc32(piece, crc)
        left -= len(piece)
    file.seek(0, os.SEEK_END)
    return crc
