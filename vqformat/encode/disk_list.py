"""A list whose items are stored in a temporary file, for data that several passes read."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from typing import IO, Any, TypeVar, cast, overload

from ..files import temporary_space

_IN_MEMORY_NBYTES = 1 << 20
T = TypeVar("T")


class DiskList(Sequence[T]):
    """A list whose items are stored in an unnamed temporary file. Each is loaded when it is accessed.

    Up to 1 MiB stays in memory.

    Args:
        items: The first items.
        folder: Folder of the file; None for the system's folder for temporary files.
    """

    def __init__(self, items: Iterable[T] = (), *, folder: str | None) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_NBYTES, dir=folder)  # noqa: SIM115
        self._is_in_folder = folder is not None
        self._offsets = [0]
        self.close = weakref.finalize(self, _close, self._file)
        for item in items:
            self.append(item)

    def append(self, item: T) -> None:
        """Add an item at the end.

        Raises:
            OSError: The disk is full. Without a folder of its own, the error names TMPDIR.
        """
        with self._space():
            self._file.seek(self._offsets[-1])
            pickle.dump(item, self._file, protocol=5)
            self._offsets.append(self._file.tell())

    def _space(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._is_in_folder else temporary_space()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        with self._space():  # seek writes what is in the buffer
            self._file.seek(self._offsets[:-1][at])
        return cast(T, pickle.load(self._file))


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # on a full disk the rest of the buffer cannot be written, and nobody needs it
        file.close()
