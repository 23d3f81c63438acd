"""Finding the chunks of a damaged file: by its index if that is whole, else from the front, searching after a fault."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..errors import ChecksumError, FormatError, LimitError, TruncatedError
from ..format import container
from ..format.container import CHUNK_HEAD_NBYTES, FOOTER_NBYTES, HEADER_NBYTES, KNOWN_TYPES, ChunkHead
from ..format.index import Index
from ..format.limits import MAX_CHUNKS
from ..native.crc import crc32
from .random_access import PartInput, RandomInput
from .surveyed import kept

_PIECE_NBYTES = 1 << 22  # of the file that are searched at once
# Headers with a right CRC-32 may announce chunks that overlap, without end in sight. What is read of those that are
# refused has this bound: so many times the file, and so many bytes
_VAIN_FACTOR = 4
_FREE_VAIN_NBYTES = 1 << 26
_TYPE = re.compile(b"|".join(KNOWN_TYPES))


@dataclass
class FoundChunks:
    """The chunks of a file in file order, without INDX.

    Attributes:
        header: The header, from the footer if the first bytes of the file are damaged.
        index: The index; None if it cannot be read.
        places: Offsets of the chunks whose heads are whole, and what is wrong with those between them. With an index
            these are all its chunks; without one, a fault may stand for several chunks. The heads are not kept, since
            a few bytes of the file may stand for 16 MiB of metadata.
        faults: What is wrong with header, index and footer.
    """

    header: bytes
    index: Index | None
    places: list[int | FormatError]
    faults: list[FormatError] = field(default_factory=list)


def find_chunks(source: RandomInput) -> FoundChunks:
    """Find the chunks of a file that may be damaged.

    Without an index, bytes after a fault are searched for the header of a chunk whose CRC-32 is right. So a ``.vqm``
    that is stored in a damaged tensor of this file would be taken for a part of it.

    Raises:
        FormatError: It is no ``.vqm`` file: neither header, nor META, nor footer is whole.
        UnsupportedError: It is of another major version.
    """
    faults: list[FormatError] = []
    footer_header, index = _read_end(source, faults)
    header = source.read_at(0, HEADER_NBYTES, "the header")
    try:
        container.check_header(header)
    except FormatError as err:
        if footer_header is None and not _has_meta(source):
            raise
        faults.insert(0, kept(err))
        header = footer_header or container.pack_header(container.MINOR)
        container.check_header(header)
    else:
        if footer_header is not None and footer_header != header:
            faults.append(FormatError("the footer does not repeat the header", clause="FTR-002",
                                      offset=source.nbytes - FOOTER_NBYTES))  # fmt: skip
    if index is None:
        places, index = _walk(source, faults)
        if index is None:
            return FoundChunks(header, None, places, faults)
    return FoundChunks(header, index, _by_index(source, index), faults)


def _read_end(source: RandomInput, faults: list[FormatError]) -> tuple[bytes | None, Index | None]:
    """The header in the footer and the index, each None if it is damaged."""
    header = None
    offset = max(0, source.nbytes - FOOTER_NBYTES)
    try:
        footer = source.read_at(offset, FOOTER_NBYTES, "the footer")
        # A flipped bit leaves one half of the magic
        if not container.begins_like_vqm(footer) and footer[4:8] != container.MAGIC[4:]:
            raise TruncatedError("the file does not end in a footer: it is cut short or something follows it",
                                 clause="FTR-002", offset=offset)  # fmt: skip
        header, index_offset = container.read_footer(footer, offset)
        return header, _read_index(source, index_offset)
    except FormatError as err:
        faults.append(kept(err))
        return header, None


def _read_index(source: RandomInput, offset: int) -> Index:
    return _parse_index(container.read_chunk_head(PartInput(source, offset)), offset)


def _parse_index(chunk: ChunkHead, offset: int) -> Index:
    index = Index(chunk.meta)
    if chunk.type != b"INDX" or index.end != offset:
        raise FormatError(f"the index at byte {offset} does not fit its place", clause="FTR-003", offset=offset)
    return index


def _has_meta(source: RandomInput) -> bool:
    try:
        return container.read_chunk_head(PartInput(source, HEADER_NBYTES)).type == b"META"
    except FormatError:
        return False


def _by_index(source: RandomInput, index: Index) -> list[int | FormatError]:
    places: list[int | FormatError] = []
    for number in range(index.n_chunks):
        start, end = index.span(number)
        try:
            chunk = container.read_chunk_head(_ChunkInput(source, start, end))
            if (chunk.type, chunk.end()) != (index.chunk_type(number), end):
                raise FormatError(f"chunk {number} is not what the index says", clause="IDX-001", offset=start)
            places.append(start)
        except FormatError as err:
            places.append(kept(err))
    return places


class _ChunkInput(PartInput):
    """Reads a chunk whose end the index tells. Else a header may announce the rest of the file for each chunk."""

    def __init__(self, source: RandomInput, offset: int, end: int) -> None:
        super().__init__(source, offset)
        self._end = end

    def read(self, n: int, what: str) -> bytes:
        if n > self._end - self.offset:
            raise FormatError(f"{what} needs {n} bytes; the index leaves {self._end - self.offset} for it",
                              clause="IDX-001", offset=self.offset)  # fmt: skip
        return super().read(n, what)


def _walk(source: RandomInput, faults: list[FormatError]) -> tuple[list[int | FormatError], Index | None]:
    """The chunks from the front up to INDX or the end of the file, and the index if it is met."""
    places: list[int | FormatError] = []
    index_faults = set(map(str, faults))  # the fault of INDX is among them if the footer led to it
    search = _HeaderSearch(source)
    offset = HEADER_NBYTES
    in_vain = 0  # bytes of chunks that are refused. They may overlap
    while offset < source.nbytes:
        if len(places) + len(index_faults) >= MAX_CHUNKS or in_vain > _VAIN_FACTOR * source.nbytes + _FREE_VAIN_NBYTES:
            places.append(LimitError("the rest of the file is not searched: it has too many chunks or headers of"
                                     " damaged ones", offset=offset))  # fmt: skip
            break
        part = PartInput(source, offset)
        try:
            chunk = container.read_chunk_head(part)
            if chunk.type == b"INDX":
                return places, _parse_index(chunk, offset)
        except FormatError as err:
            header = source.read_at(offset, min(CHUNK_HEAD_NBYTES, source.nbytes - offset), "a chunk header")
            in_vain += part.offset - offset
            if part.offset > offset + CHUNK_HEAD_NBYTES and not isinstance(err, ChecksumError):
                in_vain += int.from_bytes(header[12:16], "little")  # meta_plain: it may have been decompressed
            if not header.startswith(b"INDX"):
                places.append(kept(err))
            elif str(err) not in index_faults:
                index_faults.add(str(err))
                faults.append(kept(err))
            offset = search.next(offset + 1)
        else:
            places.append(offset)
            offset = chunk.end()
    return places, None


class _HeaderSearch:
    """Searches a file from the front for chunk headers whose CRC-32 is right. Hardly a byte is read twice."""

    def __init__(self, source: RandomInput) -> None:
        self._source = source
        self._start, self._piece = 0, b""

    def next(self, offset: int) -> int:
        """Offset of the first header that is not before ``offset``; the end of the file if there is none."""
        while offset + CHUNK_HEAD_NBYTES <= self._source.nbytes:
            if not self._start <= offset <= self._start + len(self._piece) - CHUNK_HEAD_NBYTES:
                n = min(_PIECE_NBYTES, self._source.nbytes - offset)
                self._start, self._piece = offset, self._source.read_at(offset, n, "a chunk")
            first_after = len(self._piece) - CHUNK_HEAD_NBYTES + 1  # a header may cross the border of two pieces
            for match in _TYPE.finditer(self._piece, offset - self._start, first_after + 3):
                head = self._piece[match.start() : match.start() + CHUNK_HEAD_NBYTES]
                if crc32(head[:20]) == int.from_bytes(head[20:], "little"):
                    return self._start + match.start()
            offset = self._start + first_after
        return self._source.nbytes
