"""Sections of large tensors, kept in temporary files until they are written."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

from ..files import temporary_space
from ..format.sections import Section

_IN_MEMORY_NBYTES = 1 << 22  # of a tensor's sections, stored. The allocator takes up to twice as much for them


class SectionStore:
    """Collects the sections of one tensor after another.

    Those of a large tensor are written to an unnamed file, which is mapped: the system writes its pages to the disk
    where memory is short. The file is freed together with the sections.

    Args:
        folder: Folder of the files; None for the system's folder for temporary files.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder

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
        with self._space(), tempfile.TemporaryFile(dir=self._folder) as file:
            kinds = [_write(section, file) for section in found]
            found.clear()
            kinds += [_write(section, file) for section in waiting]
            file.flush()
            stored = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return list(_sections(stored, kinds))

    def _space(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._folder is not None else temporary_space()


def _write(section: Section, file: IO[bytes]) -> tuple[int, bool]:
    """Write a section. Returns its stored bytes, and whether they are a frame."""
    file.write(section.stored)
    return len(section.stored), section.is_zstd


def _sections(stored: memoryview, kinds: list[tuple[int, bool]]) -> Iterator[Section]:
    start = 0
    for nbytes, is_zstd in kinds:
        yield Section(stored[start : start + nbytes], is_zstd)
        start += nbytes
