"""Writing a file chunk by chunk (SPEC section 16)."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from ..errors import EncodeError, FormatError
from ..files import NewFile, name_full_disk
from ..version import __version__
from . import container, metadata
from .byte_stream import PIECE_NBYTES
from .chunks import SharedRecords
from .container import COPY, pack_header
from .index_builder import IndexBuilder
from .limits import MAX_CHUNKS, MAX_INDEX_NBYTES, MAX_META_NBYTES, MAX_SECTIONS
from .parse_records import parse_tensor
from .records import AliasRecord, BookRecord, FreqRecord, TensorRecord
from .sections import Section

_Writer = TypeVar("_Writer", bound="WriterContext")


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A tensor that is ready to be written: its record, and its sections in the order of SPEC 7.3."""

    record: TensorRecord
    sections: list[Section]

    @property
    def stored_nbytes(self) -> int:
        return sum(len(section.stored) for section in self.sections)


class WriterContext(ABC):
    """Context manager of a writer: it is closed at the end; after an error what has been written is discarded."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def discard(self) -> None: ...

    @abstractmethod
    def name_full_disk(self, err: BaseException | None) -> None: ...

    def __enter__(self: _Writer) -> _Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        self.discard()
        self.name_full_disk(err)


class ChunkWriter(WriterContext):
    """Writes a ``.vqm`` to a path, or to a binary stream, which need not support ``seek``.

    With a path, the bytes go to a temporary file in the same folder. ``close`` renames it when it is complete. If the
    context is left by an exception, the temporary file is removed.

    Args:
        target: Path, or an object with ``write``; or a new file, which is completed and gets its name later.
        user_metadata: Map with string keys. Values are strings, integers, bools, bytes, None, lists and maps.
        overwrite: Whether an existing file may be replaced.
        minor: Minor version of the format: the smallest that has all features that will be written, as far as known
            (EXT-003). If a tensor needs a later one, ``close`` puts it into the header of a file or a BytesIO.

    Attributes:
        section_nbytes: Bytes of all sections written so far, as stored.

    Raises:
        FileExistsError: The file exists and ``overwrite`` is false.
        EncodeError: The metadata cannot be written.
    """

    def __init__(self, target: str | os.PathLike[str] | BinaryIO | NewFile, user_metadata: dict[str, Any] | None = None,
                 *, overwrite: bool = True, minor: int = 1) -> None:  # fmt: skip
        meta = metadata.pack([f"vqformat {__version__}", user_metadata or {}])
        self._output = _Output(target, overwrite)
        self._index = IndexBuilder()
        self._is_closed = False
        self.section_nbytes = 0
        self._shared = SharedRecords()
        self._minor, self._needed = minor, minor
        self._header = pack_header(minor)
        try:
            self._output.write(self._header)
            self._write_chunk(b"META", meta, [], [])
        except BaseException:
            self._output.discard()
            raise

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return self._output.offset

    @property
    def digest(self) -> bytes:
        """SHA-256 of the file before its index. It is known when the writer is closed."""
        return self._index.digest

    @property
    def folder(self) -> str | None:
        """The folder of the file, in which temporary files may be made; None for a stream, a device or a pipe."""
        return self._output.folder

    def name_full_disk(self, err: BaseException | None) -> None:
        """Give an error of a full disk, met in a temporary file of this folder, the name of the output."""
        self._output.name_full_disk(err)

    def add_book(self, record: BookRecord, section: Section) -> int:
        """Write a shared codebook.

        Returns:
            Its number, for ``SharedSource``.
        """
        self._write_chunk(b"BOOK", metadata.pack(record.to_metadata()), [section], [])
        self._shared.books.append(record)
        return self._shared.n_books - 1

    def add_freq(self, record: FreqRecord, section: Section) -> int:
        """Write tables of code frequencies.

        Returns:
            Its number, for ``TrellisStage``.
        """
        self._write_chunk(b"FREQ", metadata.pack(record.to_metadata()), [section], [])
        self._shared.freqs.append(record)
        return self._shared.n_freqs - 1

    def add_layer(self, name: str, tensors: Sequence[EncodedTensor | AliasRecord],
                  holders: Mapping[str, str] | None = None) -> None:  # fmt: skip
        """Write a layer.

        Args:
            holders: For each alias that is not the same array as its target: the alias whose array it is. It may have
                aliases of other layers, too. See ``Copies``.

        Raises:
            EncodeError: Two tensors of the file have the same name, a target is missing, or a name is too long.
        """
        records = [tensor if isinstance(tensor, AliasRecord) else tensor.record for tensor in tensors]
        try:
            for record in records:  # the reader's checks: nothing is written that a reader refuses (LIM-001)
                parse_tensor(record.to_metadata(), self._shared)
            self._index.check_names(records)
        except FormatError as err:
            raise EncodeError(err.message) from err
        sections = [s for tensor in tensors if isinstance(tensor, EncodedTensor) for s in tensor.sections]
        meta = metadata.pack([name, [record.to_metadata() for record in records]])
        copies = {record.name: None if holders[record.name] == record.name else holders[record.name]
                  for record in records if isinstance(record, AliasRecord) and record.name in holders
                  } if holders else {}  # fmt: skip
        if copies:
            self._write_chunk(COPY, metadata.pack(copies), [], [])
        self._write_chunk(b"LAYR", meta, sections, records)
        self._needed = max(self._needed, *(record.minor for record in records if isinstance(record, TensorRecord)), 0)

    def _write_chunk(self, type: bytes, meta: bytes, sections: list[Section], records: list[Any]) -> None:
        if len(meta) > MAX_META_NBYTES:
            raise EncodeError(f"the metadata has {len(meta)} bytes; at most {MAX_META_NBYTES} are allowed")
        if len(sections) > MAX_SECTIONS or self._index.n_chunks >= MAX_CHUNKS - 1:
            raise EncodeError(f"{len(sections)} sections in a chunk, or more than {MAX_CHUNKS} chunks, are too many")
        start = self._output.offset
        entries = [section.entry for section in sections]
        self._output.write(container.pack_chunk_head(type, meta, entries))
        for section, entry in zip(sections, entries, strict=True):
            self._output.write(bytes(entry.start(self._output.offset) - self._output.offset))
            self._output.write(section.stored)
            self.section_nbytes += len(section.stored)
        self._output.flush()  # the reader of a pipe gets each layer as soon as it is complete
        self._index.add_chunk(type, self._output.offset - start, records, meta)

    def close(self) -> None:
        """Write the index and the footer, and rename the temporary file. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        index_offset = self._output.offset
        try:
            if self._needed > self._minor and self._output.replace_start(pack_header(self._needed)):
                self._header = pack_header(self._needed)
            self._index.digest = self._output.digest()
            meta = self._index.pack()
            if len(meta) > MAX_INDEX_NBYTES:
                raise EncodeError(f"the index has {len(meta)} bytes; at most {MAX_INDEX_NBYTES} are allowed")
            self._output.write(container.pack_chunk_head(b"INDX", meta, []))
            self._output.write(container.pack_footer(self._header, index_offset))
            self._output.commit()
        except BaseException:
            self._output.discard()
            raise

    def discard(self) -> None:
        """Remove the temporary file. What has been written to a stream stays there, without index and footer."""
        self._is_closed = True
        self._output.discard()


class _Output:
    """Writes bytes to a stream or to a ``NewFile``, counts them and computes their SHA-256."""

    def __init__(self, target: str | os.PathLike[str] | BinaryIO | NewFile, overwrite: bool) -> None:
        self.offset = 0
        self._digest = hashlib.sha256()
        self._file: NewFile | None = None
        self._is_named_later = isinstance(target, NewFile)
        if isinstance(target, NewFile):
            self._file, self._stream = target, target.stream
        elif isinstance(target, (str, os.PathLike)):
            self._file = NewFile(target, overwrite=overwrite)
            self._stream = self._file.stream
        elif hasattr(target, "write"):
            self._stream = target
        else:
            raise TypeError(f"expected a path or a binary stream, not {type(target).__name__}")

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            n = self._stream.write(rest)
            if n is None and isinstance(self._stream, io.RawIOBase):
                raise BlockingIOError(errno.EAGAIN, "the stream is non-blocking; a blocking one is needed", len(rest))
            rest = rest[n:]  # a raw stream may write a part; where write() returns None, all has been written
        self._digest.update(data)
        self.offset += len(data)

    def replace_start(self, start: bytes) -> bool:
        """Write other bytes over the first ones. Returns whether that is possible: in a new file or a BytesIO."""
        if self.folder is None and not (type(self._stream) is io.BytesIO and self._stream.tell() == self.offset):
            return False
        self._stream.seek(0)
        self._stream.write(start)
        self._stream.seek(0)
        self._digest = hashlib.sha256()
        while piece := self._stream.read(PIECE_NBYTES):
            self._digest.update(piece)
        return True

    @property
    def folder(self) -> str | None:
        return self._file.folder if self._file is not None else None

    def name_full_disk(self, err: BaseException | None) -> None:
        if self._file is not None:
            name_full_disk(err, self._file.asked)

    def flush(self) -> None:
        self._stream.flush()

    def digest(self) -> bytes:
        return self._digest.digest()

    def commit(self) -> None:
        if self._file is not None and self._is_named_later:
            self._file.complete()
        elif self._file is not None:
            self._file.commit()
        else:
            self._stream.flush()

    def discard(self) -> None:
        if self._file is not None:
            self._file.discard()
