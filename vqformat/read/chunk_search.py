"""Finding the chunks of a damaged file: by its index if that is whole, else from the front, searching after a fault."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..errors import FormatError, TruncatedError
from ..format import container
from ..format.container import CHUNK_HEAD_NBYTES, FOOTER_NBYTES, HEADER_NBYTES, KNOWN_TYPES, ChunkHead
from ..format.index import Index
from ..native.crc import crc32
from .random_access import PartInput, RandomInput

_PIECE_NBYTES = 1 << 22  # of the file that are searched at once
_TYPE = re.compile(b"|".join(KNOWN_TYPES))


@dataclass(frozen=True)
class Gap:
    """Bytes ``start:end`` of a file in which one or more chunks cannot be read.

    Attributes:
        number: Number of the chunk in the chunk list; None without an index: then there may be several.
    """

    start: int
    end: int
    fault: FormatError
    number: int | None


@dataclass
class FoundChunks:
    """The chunks of a file in file order, without INDX.

    Attributes:
        header: The header, from the footer if the first bytes of the file are damaged.
        index: The index; None if it cannot be read.
        places: Chunks whose heads are whole, and gaps.
        faults: What is wrong with header, index and footer.
    """

    header: bytes
    index: Index | None
    places: list[ChunkHead | Gap]
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
        faults.insert(0, err)
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
        if not footer.startswith(container.MAGIC[:4]) and footer[4:8] != container.MAGIC[4:]:
            raise TruncatedError("the file does not end in a footer: it is cut short or something follows it",
                                 clause="FTR-002", offset=offset)  # fmt: skip
        header, index_offset = container.read_footer(footer, offset)
        return header, _read_index(source, index_offset)
    except FormatError as err:
        faults.append(err)
        return header, None


def _read_index(source: RandomInput, offset: int) -> Index:
    chunk = container.read_chunk_head(PartInput(source, offset))
    index = Index.parse(chunk.meta)
    if chunk.type != b"INDX" or index.chunk_offsets[-1] != offset:
        raise FormatError(f"the index at byte {offset} does not fit its place", clause="FTR-003", offset=offset)
    return index


def _has_meta(source: RandomInput) -> bool:
    try:
        return container.read_chunk_head(PartInput(source, HEADER_NBYTES)).type == b"META"
    except FormatError:
        return False


def _by_index(source: RandomInput, index: Index) -> list[ChunkHead | Gap]:
    places: list[ChunkHead | Gap] = []
    offsets = index.chunk_offsets
    for number, type in enumerate(index.chunk_types):
        start, end = offsets[number : number + 2]
        try:
            chunk = container.read_chunk_head(PartInput(source, start))
            if (chunk.type, chunk.end()) != (type, end):
                raise FormatError(f"chunk {number} is not what the index says", clause="IDX-001", offset=start)
            places.append(chunk)
        except FormatError as err:
            places.append(Gap(start, end, err, number))
    return places


def _walk(source: RandomInput, faults: list[FormatError]) -> tuple[list[ChunkHead | Gap], Index | None]:
    """The chunks from the front up to INDX or the end of the file, and the index if it is met."""
    places: list[ChunkHead | Gap] = []
    offset = HEADER_NBYTES
    while offset < source.nbytes:
        try:
            chunk = container.read_chunk_head(PartInput(source, offset))
            if chunk.type == b"INDX":
                return places, _read_index(source, offset)
        except FormatError as err:
            following = _next_chunk(source, offset + 1)
            if source.read_at(offset, min(4, source.nbytes - offset), "a chunk type") == b"INDX":
                if str(err) not in map(str, faults):
                    faults.append(err)
            else:
                places.append(Gap(offset, following, err, None))
            offset = following
        else:
            places.append(chunk)
            offset = chunk.end()
    return places, None


def _next_chunk(source: RandomInput, offset: int) -> int:
    """Offset of the next chunk header whose CRC-32 is right; the end of the file if there is none."""
    while offset + CHUNK_HEAD_NBYTES <= source.nbytes:
        n = min(_PIECE_NBYTES, source.nbytes - offset)
        piece = source.read_at(offset, n, "a chunk")
        for match in _TYPE.finditer(piece, 0, n - CHUNK_HEAD_NBYTES + 4):
            head = piece[match.start() : match.start() + CHUNK_HEAD_NBYTES]
            if crc32(head[:20]) == int.from_bytes(head[20:], "little"):
                return offset + match.start()
        offset += n - CHUNK_HEAD_NBYTES + 1  # a header may cross the border of two pieces
    return source.nbytes
