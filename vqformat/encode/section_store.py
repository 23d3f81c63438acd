"""Sections of large tensors, kept in a temporary file until they are written."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ..files import temporary_space
from ..format.sections import Section
from .growing_map import GrowingMap

_IN_MEMORY_NBYTES = 1 << 22  # of a tensor's sections, stored. The allocator takes up to twice as much for them


class SectionStore:
    """Collects the sections of one tensor after another.

    Those of large tensors are written to an unnamed file, which is mapped: the system writes its pages to the disk
    where memory is short. The file is freed together with the last sections in it.

    Args:
        folder: Folder of the file; None for the system's folder for temporary files.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._last_file: Callable[[], _SectionFile | None] = lambda: None

    def collect(self, sections: Iterable[Section]) -> list[Section]:
        """The sections as a list. They may be made while they are collected.

        Raises:
            OSError: The disk is full. Without a folder of its own, the error names TMPDIR.
        """
        waiting = iter(sections)
        found = []
        nbytes = 0
        for section in waiting:
            found.append(section)
            nbytes += len(section.stored)
            if nbytes > _IN_MEMORY_NBYTES:
                break
        else:
            return found
        with self._space():
            file = self._last_file() or _SectionFile(self._folder)
            self._last_file = weakref.ref(file)
            return file.store(_joined(found, waiting))

    def _space(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._folder is not None else temporary_space()


def _joined(found: list[Section], waiting: Iterator[Section]) -> Iterator[Section]:
    """All sections. Those that have been found are freed one by one."""
    found.reverse()
    while found:
        yield found.pop()
    yield from waiting


class _SectionFile:
    """A file of the sections of several tensors. Each tensor that is in use keeps it alive."""

    def __init__(self, folder: str | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._map = GrowingMap(self._file)
        weakref.finalize(self, self._map.close)
        self._ends: dict[int, int] = {}  # of the tensors in use: where each begins -> where it ends

    def store(self, sections: Iterable[Section]) -> list[Section]:
        """Store the sections of a tensor behind those that are in use."""
        start = end = max(self._ends.values(), default=0)
        self._file.seek(start)
        kinds = []
        for section in sections:
            self._file.write(section.stored)
            kinds.append((len(section.stored), section.is_zstd))
            end += len(section.stored)
        array = np.frombuffer(self._map.first(end), np.uint8)[start:]
        self._ends[start] = end
        weakref.finalize(array, self._free, start)  # the sections keep the array alive
        return list(_parts(array.data, kinds))

    def _free(self, start: int) -> None:
        del self._ends[start]


def _parts(stored: memoryview, kinds: list[tuple[int, bool]]) -> Iterator[Section]:
    start = 0
    for nbytes, is_zstd in kinds:
        yield Section(stored[start : start + nbytes], is_zstd)
        start += nbytes
