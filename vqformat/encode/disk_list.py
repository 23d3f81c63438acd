"""A list whose items are stored in a temporary file, for data that several passes read."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import IO, Any, TypeVar, cast, overload

from ..files import temporary_space
from .growing_map import GrowingMap

_IN_MEMORY_NBYTES = 1 << 20
_LARGE_NBYTES = 1 << 16  # of a buffer that is stored beside the pickle, and mapped when its item is loaded
ALIGNMENT = 64  # of these buffers
T = TypeVar("T")


class DiskList(Sequence[T]):
    """A list whose items are stored in an unnamed temporary file. Each is loaded when it is accessed.

    Up to 1 MiB stays in memory. Large arrays and memoryviews of an item are mapped when it is loaded, and are
    read-only.

    Args:
        items: The first items.
        folder: Folder of the file; None for the system's folder for temporary files.
    """

    def __init__(self, items: Iterable[T] = (), *, folder: str | None) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_NBYTES, dir=folder)  # noqa: SIM115
        self._map = GrowingMap(self._file)
        self._is_in_folder = folder is not None
        self._items: list[tuple[int, list[int]]] = []  # where the parts of each begin, and the sizes of these
        self._end = 0
        self.close = weakref.finalize(self, self._map.close)
        for item in items:
            self.append(item)

    def append(self, item: T) -> None:
        """Add an item at the end.

        Raises:
            OSError: The disk is full. Without a folder of its own, the error names TMPDIR.
        """
        with self._space():
            self._file.seek(self._end)
            large = pickle_into(self._file, item)
            sizes = [self._file.tell() - self._end, *map(len, large)]
            self._file.write(bytes(-sizes[0] % ALIGNMENT))
            for buffer in large:
                self._file.write(buffer)
                self._file.write(bytes(-len(buffer) % ALIGNMENT))
            self._items.append((self._end, sizes))
            self._end = self._file.tell()

    def _space(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._is_in_folder else temporary_space()

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        offset, sizes = self._items[at]
        with self._space():  # seek writes what is in the buffer
            self._file.seek(offset)
            pickled = self._file.read(sizes[0])
            buffers = self._mapped(offset, sizes)[1:] if len(sizes) > 1 else []
        return cast(T, pickle.loads(pickled, buffers=buffers))

    def _mapped(self, offset: int, sizes: list[int]) -> list[memoryview]:
        """The parts of an item, mapped."""
        places = accumulate(map(aligned, sizes), initial=offset)
        view = self._map.first(self._end)
        return [view[place : place + size] for place, size in zip(places, sizes, strict=False)]


def pickle_into(file: IO[bytes], item: object) -> list[memoryview]:
    """Write the pickle of an item to a file, but for its large buffers, and return these.

    The pickle goes to the file piece by piece: as a whole in memory it would be a copy of all sections of a tensor.
    """
    large: list[pickle.PickleBuffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        is_small = buffer.raw().nbytes < _LARGE_NBYTES
        if not is_small:
            large.append(buffer)
        return is_small

    pickler = pickle.Pickler(file, protocol=5, buffer_callback=keep)
    pickler.dispatch_table = {memoryview: lambda view: (memoryview, (pickle.PickleBuffer(view),))}
    pickler.dump(item)
    return [buffer.raw() for buffer in large]


def aligned(nbytes: int) -> int:
    return nbytes + -nbytes % ALIGNMENT
