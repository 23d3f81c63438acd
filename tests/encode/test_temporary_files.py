"""Data that waits in temporary files: what is kept, and how few files are open for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqformat.encode import section_store
from vqformat.encode.disk_list import DiskList
from vqformat.encode.section_store import SectionStore
from vqformat.format.sections import Section

N = 300  # tensors
NBYTES = 1 << 16  # of each, enough to be mapped


def data(number: int, nbytes: int = NBYTES) -> bytes:
    return number.to_bytes(2, "little") * (nbytes // 2)


@contextmanager
def few_files() -> Iterator[None]:
    """The process may open 64 files, beside those that are open."""
    resource = pytest.importorskip("resource", reason="only Unix limits the number of open files")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(__file__, "rb") as newest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (newest.fileno() + 64, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SectionStore:
    """A store in which nothing stays in memory."""
    monkeypatch.setattr(section_store, "_IN_MEMORY_NBYTES", 0)
    return SectionStore(str(tmp_path))


def test_items_of_a_list_that_are_in_use_take_few_files(tmp_path: Path) -> None:
    with few_files():
        items = DiskList((np.frombuffer(data(i), np.uint8) for i in range(N)), folder=str(tmp_path))

        assert [item.tobytes() for item in list(items)] == [data(i) for i in range(N)]


def test_a_list_that_is_read_while_it_grows_takes_few_files(tmp_path: Path) -> None:
    items: DiskList[Any] = DiskList(folder=str(tmp_path))
    found = []
    with few_files():
        for i in range(N):
            items.append(memoryview(data(i)))
            found.append(items[i])

    assert found == [data(i) for i in range(N)]


def test_sections_of_many_tensors_take_few_files(store: SectionStore) -> None:
    with few_files():
        kept = [store.collect([Section(data(i)), Section(b"", True), Section(data(i + 1), True)]) for i in range(N)]

    assert kept == [[Section(data(i)), Section(b"", True), Section(data(i + 1), True)] for i in range(N)]


def test_the_place_of_freed_sections_is_used_again(store: SectionStore) -> None:
    first = store.collect([Section(data(0))])
    file = store._last_file()
    assert file is not None
    for i in range(1, N):
        store.collect([Section(data(i))])
        gc.collect(0)
    file._file.flush()

    assert file._file.seek(0, 2) <= 4 * NBYTES
    assert first == [Section(data(0))]


def test_a_file_ends_with_the_last_sections_in_it(store: SectionStore) -> None:
    first, second = store.collect([Section(data(0))]), store.collect([Section(data(1))])
    first.clear()
    assert store._last_file() is not None
    assert second == [Section(data(1))]

    second.clear()
    gc.collect(0)

    assert store._last_file() is None


def test_sections_of_a_file_that_cannot_be_longer_are_kept(store: SectionStore) -> None:
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * NBYTES, before[1]))
    try:
        kept = [store.collect([Section(data(i))]) for i in range(3)]
        with pytest.raises(OSError):
            store.collect([Section(data(3))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert kept == [[Section(data(i))] for i in range(3)]
