"""Which aliases of a file are copies, that is arrays of their own (SPEC section 6, ``copy`` chunk)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import FormatError
from . import metadata
from .container import COPY, ChunkHead
from .records import AliasRecord, Record


class Copies:
    """The copies of a file, gathered chunk by chunk in file order.

    Attributes:
        holders: For each alias that is not the same array as its target: the alias whose array it is. That is itself,
            or an earlier alias of the same target.
    """

    def __init__(self) -> None:
        self.holders: dict[str, str] = {}
        self._targets: dict[str, str] = {}  # of the aliases so far
        self._said: dict[str, Any] = {}

    def add_chunk(self, chunk: ChunkHead, records: Iterable[Record] = ()) -> None:
        """Add the next chunk of the file.

        Args:
            records: Those of a LAYR chunk.
        """
        aliases = ((record.name, record.target) for record in records if isinstance(record, AliasRecord))
        self.add_aliases(self._said, aliases)
        self._said = read_copies(chunk) if chunk.type == COPY else {}

    def add_aliases(self, said: dict[str, Any], aliases: Iterable[tuple[str, str]]) -> None:
        """Add the aliases of the next LAYR chunk.

        Args:
            said: What the chunk directly before it says, see ``read_copies``.
            aliases: Names and targets.
        """
        for name, target in aliases:
            if name in said:
                holder = said[name]
                is_shared = isinstance(holder, str) and self._targets.get(holder) == target  # CPY-001
                self.holders[name] = holder if is_shared else name
            self._targets[name] = target


def read_copies(chunk: ChunkHead) -> dict[str, Any]:
    """What a ``copy`` chunk says of each alias; nothing if its metadata is no map of names (CPY-001)."""
    try:
        said = metadata.unpack(chunk.meta)
    except FormatError:
        return {}
    is_map = isinstance(said, dict) and all(value is None or isinstance(value, str) for value in said.values())
    return said if is_map else {}
