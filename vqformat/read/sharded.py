"""Reading parts of a model in several files: what ``IndexedReader`` does for one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

import numpy.typing as npt

from ..errors import TensorNotFoundError
from ..forks import ForkSafeLock
from ..format.index import Entry
from ..format.records import TensorRecord
from .budget import Budget
from .indexed import IndexedReader
from .random_access import RandomInput
from .shards import Shards
from .stored_tensor import StoredTensor

Array = npt.NDArray[Any]
Found = TypeVar("Found")

_MOST_OPEN = 16  # shards


def indexed_reader(source: BinaryIO | Shards, budget: Budget | None = None) -> IndexedReader | ShardedReader:
    """A reader of a model in one file or in several."""
    return ShardedReader(source, budget) if isinstance(source, Shards) else IndexedReader(source, budget)


class ShardedReader:
    """Reads the tensors of a model in several files, as ``IndexedReader`` does from one.

    A shard is opened when one of its tensors is needed, and compared with the index. At most 16 stay open.

    Args:
        shards: The shards.
        budget: Limits on decoded bytes, which count over all shards; None for the defaults.
    """

    def __init__(self, shards: Shards, budget: Budget | None = None) -> None:
        self._shards = shards
        self._places = shards.index.places
        self._budget = budget or Budget()
        self._lock = ForkSafeLock()  # guards _readers, and in them what their own locks would
        self._readers: dict[int, tuple[IndexedReader, weakref.finalize[Any, Any]]] = {}  # least recently used first
        self._is_closed = False

    @property
    def names(self) -> list[str]:
        """The names of all tensors, in the order of the index."""
        return list(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def close(self) -> None:
        """Close all shards. Tensors cannot be decoded any more."""
        with self._lock:
            self._is_closed = True
            for reader, close in self._readers.values():
                reader.close()
                close()
            self._readers.clear()

    def check_open(self) -> None:
        """Raise ValueError if ``close`` has been called."""
        if self._is_closed:
            raise ValueError("the file is closed")

    def of_shard(self, at: int) -> IndexedReader:
        """The reader of a shard by its position."""
        with self._lock:
            self.check_open()
            found = self._readers.pop(at, None) or self._open(at)
            self._readers[at] = found
            if len(self._readers) > _MOST_OPEN:
                # Others may still read it. Its file is closed when nobody does any more
                self._readers.pop(next(iter(self._readers)))[0].release_budget()
            return found[0]

    def _open(self, at: int) -> tuple[IndexedReader, weakref.finalize[Any, Any]]:
        file = self._shards.open(at)
        try:
            source = RandomInput(file.__enter__())
        except BaseException:
            file.__exit__(None, None, None)
            raise
        close = weakref.finalize(source, file.__exit__, None, None, None)
        try:
            with self._shards.naming(at):
                reader = IndexedReader(source, self._budget, self._lock)
            self._shards.check_digest(at, reader.index.digest)
            self._shards.check_names(at, reader.names)
        except BaseException:
            source.close()
            close()
            raise
        return reader, close

    def _of(self, name: str, work: Callable[[IndexedReader], Found]) -> Found:
        """What work with the reader of a tensor's shard gives.

        Raises:
            TensorNotFoundError: There is no tensor of this name.
            VqmError: Its shard is refused.
        """
        self.check_open()
        if name not in self._places:
            raise TensorNotFoundError(name, self._places)
        reader = self.of_shard(self._places[name])
        with self._shards.naming(self._places[name]):
            return work(reader)

    def metadata(self) -> dict[str, Any]:
        """The user's metadata, which the first shard has."""
        with self._shards.naming(0):
            return self.of_shard(0).metadata()

    def check_metadata(self) -> None:
        """See ``IndexedReader.check_metadata``."""
        with self._shards.naming(0):
            self.of_shard(0).check_metadata()

    def entry(self, name: str) -> Entry:
        """The entry of a tensor in the index of its shard. Raises TensorNotFoundError."""
        return self._of(name, lambda reader: reader.entry(name))

    def record(self, name: str) -> TensorRecord:
        """The record of a tensor; for an alias that of its target."""
        return self._of(name, lambda reader: reader.record(name))

    def holder(self, name: str) -> str | None:
        """See ``IndexedReader.holder``."""
        return self._of(name, lambda reader: reader.holder(name))

    def described(self, name: str) -> tuple[Entry, TensorRecord | None, str, int]:
        """See ``IndexedReader.described``."""
        return self._of(name, lambda reader: reader.described(name))

    def tensor(self, name: str, threads: int = 1) -> Array:
        """See ``IndexedReader.tensor``."""
        return self._of(name, lambda reader: reader.tensor(name, threads))

    def sections(self, name: str) -> tuple[TensorRecord, list[bytes]]:
        """See ``IndexedReader.sections``."""
        return self._of(name, lambda reader: reader.sections(name))

    def decode_into(self, name: str, out: Array, threads: int = 1) -> None:
        """See ``IndexedReader.decode_into``."""
        self._of(name, lambda reader: reader.decode_into(name, out, threads))

    def stored(self, name: str) -> StoredTensor | None:
        """See ``IndexedReader.stored``."""
        return self._of(name, lambda reader: reader.stored(name))

    def part(self, name: str, index: Any) -> Array:
        """See ``IndexedReader.part``."""
        return self._of(name, lambda reader: reader.part(name, index))

    def parts(self, name: str, threads: int = 1) -> Iterator[tuple[tuple[Any, ...], Array]]:
        """See ``IndexedReader.parts``."""
        parts = self._of(name, lambda reader: reader.parts(name, threads))
        with self._shards.naming(self._places[name]):
            yield from parts
