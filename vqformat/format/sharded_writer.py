"""Writing a model into several files, each a complete ``.vqm``, and an index that tells which tensor is where."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import EncodeError
from ..files import name_full_disk
from ..new_shards import NewShard, NewShards
from . import metadata
from .chunkwriter import ChunkWriter, EncodedTensor, WriterContext
from .limits import ALIGNMENT, MAX_META_COPY_NBYTES
from .records import AliasRecord, BookRecord, FreqRecord, TensorRecord
from .sections import TABLE_ENTRY_NBYTES, Section
from .shard_index import INDEX_SUFFIX, ShardIndex, is_shard_of, shard_name

MAX_SHARDS = 200  # all are open until the end, as later tensors may be aliases of those in the first; macOS allows 256
_CHUNK_NBYTES = 64  # more than the fixed fields of a chunk, and its type and length in the index
_END_NBYTES = 512  # more than header, the fixed fields of the index, and footer

_Tensors = Sequence[EncodedTensor | AliasRecord]


@dataclass
class _Shard:
    """A shard that is being written.

    Attributes:
        numbers: For each table that it has, by its number in the model: its number in the shard.
        index_nbytes: Bytes of its index, at most.
    """

    file: NewShard
    writer: ChunkWriter
    numbers: dict[int, int] = field(default_factory=dict)
    index_nbytes: int = _END_NBYTES
    n_layers: int = 0


class ShardedWriter(WriterContext):
    """Writes a model as ``ChunkWriter`` does, into shards of at most so many bytes and an index of them.

    A layer is never split, so a layer that is larger than a shard may be has one of its own. An alias is put into the
    shard of its target, which may grow by it after it was full. Tables that layers share are repeated in each shard
    that uses them. The first shard has the metadata. If one shard is enough, it is a plain file without an index.

    Args:
        target: The path of the model if it were one file, or of the index.
        max_nbytes: Most bytes of a shard.
        user_metadata, overwrite, minor: As for ``ChunkWriter``.

    Attributes:
        max_nbytes: As given.
        files: Names of the files, when the writer is closed; the last is the index, if there is one.

    Raises:
        FileExistsError: A model of this name exists, in one file or in several, and ``overwrite`` is false.
        EncodeError: The metadata cannot be written.
    """

    def __init__(self, target: str | os.PathLike[str], max_nbytes: int, user_metadata: dict[str, Any] | None = None,
                 *, overwrite: bool = True, minor: int = 1) -> None:  # fmt: skip
        self._asked = os.fspath(target)
        name = Path(self._asked).name.removesuffix(".index.json")
        self._stem = name.removesuffix(".vqm")
        self._single, self._index_name = name, self._stem + INDEX_SUFFIX
        self._new = NewShards(Path(self._asked).with_name(name), self._is_of_model, overwrite=overwrite)
        self.max_nbytes, self._minor = max_nbytes, minor
        self._books: list[int] = []  # for each BOOK its number among all tables
        self._freqs: list[int] = []
        self._tables: list[tuple[BookRecord | FreqRecord, Section]] = []
        self._places: dict[str, int] = {}  # tensor -> shard, in the order of the model
        self._total_nbytes = 0
        self._shards: list[_Shard] = []
        self._is_closed = False
        self.files: list[str] = []
        try:
            self._begin(user_metadata)
        except BaseException:
            self._new.discard()
            raise

    def _is_of_model(self, name: str) -> bool:
        """Whether a file belongs to a model of this name."""
        return name in (self._single, self._index_name) or is_shard_of(self._stem, name)

    @property
    def nbytes(self) -> int:
        """Bytes of all shards, as written so far."""
        return sum(shard.writer.nbytes for shard in self._shards)

    @property
    def section_nbytes(self) -> int:
        """Bytes of all sections written so far, as stored."""
        return sum(shard.writer.section_nbytes for shard in self._shards)

    @property
    def folder(self) -> str | None:
        """The folder of the files, in which temporary files may be made."""
        return self._shards[0].writer.folder

    def name_full_disk(self, err: BaseException | None) -> None:
        """Give an error of a full disk the name of the model."""
        name_full_disk(err, self._asked)

    def add_book(self, record: BookRecord, section: Section) -> int:
        """Add a shared codebook, which is written to the shards that use it. Returns its number."""
        self._books.append(len(self._tables))
        self._tables.append((record, section))
        return len(self._books) - 1

    def add_freq(self, record: FreqRecord, section: Section) -> int:
        """Add tables of code frequencies, which are written to the shards that use them. Returns their number."""
        self._freqs.append(len(self._tables))
        self._tables.append((record, section))
        return len(self._freqs) - 1

    def add_layer(self, name: str, tensors: _Tensors, holders: Mapping[str, str] | None = None) -> None:
        """Write a layer, as ``ChunkWriter.add_layer`` does. Aliases of tensors in other shards are written there.

        Raises:
            EncodeError: As there, or there would be too many shards.
        """
        records = [tensor if isinstance(tensor, AliasRecord) else tensor.record for tensor in tensors]
        for record in records:
            if record.name in self._places:
                raise EncodeError(f"two tensors have the name {record.name!r}")
        current = self._shard_for(name, [t for t in tensors if isinstance(t, EncodedTensor)])
        here = len(self._shards) - 1
        parts: dict[int, list[EncodedTensor | AliasRecord]] = {}
        for tensor in tensors:
            place = self._places.get(tensor.target, here) if isinstance(tensor, AliasRecord) else here
            parts.setdefault(place, []).append(self._renumbered(current, tensor))
        for place, part in sorted(parts.items(), reverse=True):  # the layer itself first: it is checked there
            shard = self._shards[place]
            shard.writer.add_layer(name, part, holders)
            shard.n_layers += 1
            shard.index_nbytes += _CHUNK_NBYTES + sum(map(_index_nbytes, part))
        of_alias = {tensor.name: place for place, part in parts.items() for tensor in part
                    if isinstance(tensor, AliasRecord)}  # fmt: skip
        for record in records:
            self._places[record.name] = of_alias.get(record.name, here)
            if isinstance(record, TensorRecord):
                self._total_nbytes += record.nbytes

    def _shard_for(self, layer: str, tensors: Sequence[EncodedTensor]) -> _Shard:
        """The shard for a layer: the last one, or a new one if that would grow too large."""
        shard = self._shards[-1]
        if not tensors or not shard.n_layers:
            return shard
        tables = [self._tables[at] for at in self._tables_of(tensors) if at not in shard.numbers]
        nbytes = sum(_stored_nbytes([section], record.to_metadata()) for record, section in tables)
        sections = [section for tensor in tensors for section in tensor.sections]
        nbytes += _stored_nbytes(sections, [layer, [tensor.record.to_metadata() for tensor in tensors]])
        nbytes += sum(map(_index_nbytes, tensors))
        if shard.writer.nbytes + shard.index_nbytes + nbytes <= self.max_nbytes:
            return shard
        if len(self._shards) == MAX_SHARDS:
            raise EncodeError(f"the model would need more than {MAX_SHARDS} shards of {self.max_nbytes:,} bytes; larger"
                              " ones are needed")  # fmt: skip
        return self._begin(None)

    def _begin(self, user_metadata: dict[str, Any] | None) -> _Shard:
        file = self._new.open()
        shard = _Shard(file, ChunkWriter(file, user_metadata, minor=self._minor))
        shard.index_nbytes += min(shard.writer.nbytes, MAX_META_COPY_NBYTES)
        self._shards.append(shard)
        return shard

    def _tables_of(self, tensors: Sequence[EncodedTensor]) -> list[int]:
        """Numbers of the tables that tensors use, in the order in which they were added."""
        books = {self._books[n] for tensor in tensors for n in tensor.record.book_numbers()}
        return sorted(books | {self._freqs[n] for tensor in tensors for n in tensor.record.freq_numbers()})

    def _renumbered(self, shard: _Shard, tensor: EncodedTensor | AliasRecord) -> EncodedTensor | AliasRecord:
        """A tensor that uses the tables of its shard. Those that it lacks are written."""
        if isinstance(tensor, AliasRecord):
            return tensor
        for at in self._tables_of([tensor]):
            if at not in shard.numbers:
                table, section = self._tables[at]
                shard.numbers[at] = (shard.writer.add_book(table, section) if isinstance(table, BookRecord) else
                                     shard.writer.add_freq(table, section))  # fmt: skip
                shard.index_nbytes += _CHUNK_NBYTES
        record = tensor.record.renumbered({n: shard.numbers[self._books[n]] for n in tensor.record.book_numbers()},
                                          {n: shard.numbers[self._freqs[n]] for n in tensor.record.freq_numbers()})
        return replace(tensor, record=record)

    def close(self) -> None:
        """Complete all files, and give them their names. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            for shard in self._shards:
                shard.writer.close()
            n = len(self._shards)
            self.files = [self._single] if n == 1 else [shard_name(self._stem, i, n) for i in range(1, n + 1)]
            if n > 1:
                index = ShardIndex(tuple(self.files), tuple(shard.writer.digest for shard in self._shards),
                                   self._places, self._total_nbytes)  # fmt: skip
                file = self._new.open()
                file.stream.write(index.pack())
                file.complete()
                self.files.append(self._index_name)
            self._new.commit(self.files)
        except BaseException:
            self._new.discard()
            raise

    def discard(self) -> None:
        """Remove what has been written."""
        self._is_closed = True
        self._new.discard()


def _stored_nbytes(sections: Sequence[Section], meta: Any) -> int:
    """Bytes of a chunk, at most."""
    return _CHUNK_NBYTES + len(metadata.pack(meta)) + sum(
        len(section.stored) + TABLE_ENTRY_NBYTES + ALIGNMENT for section in sections
    )


def _index_nbytes(tensor: EncodedTensor | AliasRecord) -> int:
    """Bytes of a tensor's entry in an index, at most. The shape of an alias is not known here; few axes are usual."""
    record = tensor if isinstance(tensor, AliasRecord) else tensor.record
    n_axes = len(record.shape) if isinstance(record, TensorRecord) else 4
    return len(record.name.encode()) + 1 + 2 + 8 * (n_axes + 2)
