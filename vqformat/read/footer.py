"""Finding the index of a seekable file by its footer (SPEC 15.2)."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ChecksumError, FormatError, TruncatedError
from ..format import container
from ..format.container import FOOTER_NBYTES, HEADER_NBYTES
from ..format.index import Index
from .random_access import PartInput, RandomInput


def read_index(
    source: RandomInput, tail_nbytes: int, most_held_nbytes: int, check_nbytes: Callable[[int], None]
) -> Index:
    """Read header, footer and index of a file, and check them (FTR-001..003, IDX-001).

    Args:
        tail_nbytes: Bytes at the end of the file that are read at once; often the index is among them.
        most_held_nbytes: An index that is longer by at most so many bytes is read by one further read.
        check_nbytes: Called with the plain bytes of the index before they are in memory.

    Raises:
        VqmError: The file is refused.
    """
    size = source.nbytes
    if size < HEADER_NBYTES + FOOTER_NBYTES:
        start = source.read_at(0, min(size, HEADER_NBYTES), "the header")
        if len(start) == HEADER_NBYTES:
            container.check_header(start)
        raise TruncatedError(f"a file of {size} bytes is too short for a .vqm", clause="REA-001", offset=size)
    tail_offset = max(0, size - tail_nbytes)
    source.hold(b"tail", tail_offset, size)
    tail = source.read_at(tail_offset, size - tail_offset, "the end of the file")
    footer_offset = size - FOOTER_NBYTES
    try:
        header, index_offset = container.read_footer(tail[-FOOTER_NBYTES:], footer_offset)
    except ChecksumError as err:
        container.check_header(source.read_at(0, HEADER_NBYTES, "the header"))
        if tail[-FOOTER_NBYTES:].startswith(container.MAGIC):
            raise
        raise TruncatedError("the file does not end in a footer: it is cut short or something follows it",
                             clause="FTR-002", offset=footer_offset) from err  # fmt: skip
    container.check_header(header)
    if source.read_at(0, HEADER_NBYTES, "the header") != header:
        raise FormatError("the footer does not repeat the header", clause="FTR-002", offset=footer_offset)
    if index_offset >= footer_offset:
        raise FormatError(f"index_offset is {index_offset}, not below {footer_offset}", clause="FTR-003",
                          offset=footer_offset)  # fmt: skip
    if index_offset < tail_offset <= index_offset + most_held_nbytes:
        tail = source.read_at(index_offset, tail_offset - index_offset, "the index") + tail
        tail_offset = index_offset
    part = PartInput(source, index_offset, tail_offset, tail)
    chunk = container.read_chunk_head(part, check_meta=check_nbytes)
    if chunk.type != b"INDX" or part.offset != footer_offset:
        raise FormatError(f"index_offset {index_offset} is not that of an INDX chunk before the footer",
                          clause="FTR-003", offset=footer_offset)  # fmt: skip
    index = Index(chunk.meta)
    index.check_types()
    if index.end != index_offset:
        raise FormatError(f"the chunks of the index end at {index.end}, not at {index_offset}",
                          clause="IDX-001", offset=index_offset)  # fmt: skip
    return index
