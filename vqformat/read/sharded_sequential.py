"""Reading a model in several files shard by shard: what ``SequentialReader`` does for one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import numpy.typing as npt

from ..format.chunks import LayerInfo
from ..format.copies import Copies
from .budget import Budget
from .sequential import SequentialReader, SequentialTensor
from .shards import Shards

Array = npt.NDArray[Any]


def sequential_reader(
    source: BinaryIO | Shards, budget: Budget, **options: Any
) -> SequentialReader | ShardedSequentialReader:
    """A reader of a model in one file or in several, with the options of ``SequentialReader``."""
    if isinstance(source, Shards):
        return ShardedSequentialReader(source, budget, **options)
    return SequentialReader(source, budget, **options)


class ShardedSequentialReader:
    """Reads the shards of a model one after another, each as ``SequentialReader`` does.

    They are compared with the index. One shard is open at a time.

    Args:
        shards: The shards.
        budget: Limits on decoded bytes, which count over all shards.
        options: As for ``SequentialReader``. With ``allow_partial`` each shard may be truncated.

    Attributes:
        metadata: The user's metadata, which the first shard has.
        digest: SHA-256 of the index. It is set when all shards have been read.
        cut_at: Length of the last shard that was truncated; else None.
        copies: The copies among the aliases of the layers so far.

    Raises:
        VqmError: A file is refused.
    """

    def __init__(self, shards: Shards, budget: Budget, **options: Any) -> None:
        self._shards, self._budget, self._options = shards, budget, options
        self.copies = Copies()
        self.digest = b""
        self.cut_at: int | None = None
        self._at = 0
        self._reader = self._begin(0)
        self.metadata = self._reader.metadata

    def naming(self) -> AbstractContextManager[None]:
        """Context in which errors of the current shard name it, for those who decode what ``open_layers`` gives."""
        return self._shards.naming(self._at)

    @property
    def names(self) -> list[str]:
        """The names of all tensors, in the order of the index."""
        return list(self._shards.index.places)

    def _begin(self, at: int) -> SequentialReader:
        with self._shards.naming(at):
            return SequentialReader(self._shards.begin(at), self._budget, copies=self.copies, **self._options)

    def layers(self) -> Iterator[tuple[LayerInfo, dict[str, Array]]]:
        """See ``SequentialReader.layers``."""
        for at in self._each():
            yield from self._checked(at, self._reader.layers())

    def open_layers(self) -> Iterator[tuple[LayerInfo, Iterator[SequentialTensor]]]:
        """See ``SequentialReader.open_layers``."""
        for at in self._each():
            yield from self._checked(at, self._reader.open_layers())

    def _each(self) -> Iterator[int]:
        """The positions of the shards, each when it is the current one."""
        for at in range(len(self._shards)):
            if at:
                self._budget.shared_nbytes = 0  # the tables of the shard before are no more needed
                self._at, self._reader = at, self._begin(at)
            yield at
        self._shards.end()
        self.digest = hashlib.sha256(self._shards.text).digest()

    def _checked(self, at: int, layers: Iterator[tuple[LayerInfo, Any]]) -> Iterator[tuple[LayerInfo, Any]]:
        names: list[str] = []
        with self._shards.naming(at):
            for info, tensors in layers:
                for record in info.records:
                    self._shards.check_place(at, record.name)
                    names.append(record.name)
                yield info, tensors
        if self._reader.cut_at is not None:
            self.cut_at = self._reader.cut_at
            return
        self._shards.check_digest(at, self._reader.digest)
        self._shards.check_names(at, names)
