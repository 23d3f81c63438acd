"""Sections: entries of the section table, padding, and stored bytes (SPEC section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..errors import FormatError
from ..native.crc import crc32
from . import limits
from .byte_stream import PIECE_NBYTES, Readable
from .crc import check_crc, compare_crc
from .stages import Size, Sizes
from .zstd_frame import decompress

TABLE_ENTRY_NBYTES = 8
SECTION_IS_ZSTD = 1 << 31  # bit of length


class SectionEntry(NamedTuple):  # of which a file may have millions: a dataclass would take longer to make
    """One entry of a section table."""

    nbytes: int  # as stored
    is_zstd: bool
    crc: int

    def start(self, offset: int) -> int:
        """Offset at which the section starts if the section before it ends at ``offset`` (SEC-002)."""
        if not self.is_zstd and self.nbytes >= limits.ALIGNED_FROM_NBYTES:
            return -(-offset // limits.ALIGNMENT) * limits.ALIGNMENT
        return offset


@dataclass(frozen=True, slots=True)
class Section:
    """The stored bytes of a section that is to be written."""

    stored: bytes | memoryview
    is_zstd: bool = False

    @property
    def entry(self) -> SectionEntry:
        return SectionEntry(len(self.stored), self.is_zstd, crc32(self.stored))


class StoredSection(NamedTuple):
    """A section that has been read from a file.

    Its size has been checked. CRC and zstd frame are checked by ``plain``.

    Attributes:
        plain_nbytes: Size of its plain bytes.
        where: Name of the section, for error texts.
        offset: Offset of its first byte in the file.
    """

    stored: bytes
    entry: SectionEntry
    plain_nbytes: Size
    where: str
    offset: int

    def plain(self) -> bytes:
        """Check the section and return its plain bytes (SEC-001, SEC-005..010)."""
        check_crc(self.stored, self.entry.crc, self.where, "SEC-001", self.offset)
        if not self.entry.is_zstd:
            return self.stored
        assert isinstance(self.plain_nbytes, int)
        return decompress(self.stored, self.plain_nbytes, self.where)


def read_section(source: Readable, entry: SectionEntry, plain_nbytes: Size, where: str) -> StoredSection:
    """Read the next section of a sequential source.

    Args:
        plain_nbytes: The plain size that it must have.
        where: Name of the section, for error texts.
    """
    check_size(entry, plain_nbytes, where, source.offset)
    if not entry.is_zstd and entry.nbytes >= limits.ALIGNED_FROM_NBYTES:
        _skip_padding(source, entry, where)
    offset = source.offset
    return StoredSection(source.read(entry.nbytes, where), entry, plain_nbytes, where, offset)


def skip_section(source: Readable, entry: SectionEntry, where: str) -> None:
    """Read the next section of a sequential source and check its CRC only: its plain size is unknown (CHK-003)."""
    _skip_padding(source, entry, where)
    offset, left, crc = source.offset, entry.nbytes, 0
    while left:
        piece = source.read(min(left, PIECE_NBYTES), where)
        crc = crc32(piece, crc)
        left -= len(piece)
    compare_crc(crc, entry.crc, where, "SEC-001", offset)


def _skip_padding(source: Readable, entry: SectionEntry, where: str) -> None:
    n_padding = entry.start(source.offset) - source.offset
    if n_padding:
        check_padding(source.read(n_padding, f"padding before {where}"), source.offset - n_padding)


def check_padding(padding: bytes, offset: int) -> None:
    """Raise FormatError unless all bytes are zero (SEC-003)."""
    if padding.strip(b"\0"):
        raise FormatError("padding before a section is not zero", clause="SEC-003", offset=offset)


def check_size(entry: SectionEntry, plain_nbytes: Size, where: str, offset: int) -> None:
    """Raise FormatError unless the stored size of a section fits its plain size (SEC-004, ANS-001)."""
    if isinstance(plain_nbytes, Sizes):
        least, most = plain_nbytes.least, plain_nbytes.most
        if entry.is_zstd or not least <= entry.nbytes <= most or entry.nbytes % 2:
            kind = "zstd" if entry.is_zstd else "plain"
            raise FormatError(f"{where} has {entry.nbytes} bytes stored {kind}; {least} to {most} stored plain, an even"
                              " number, are allowed", clause="ANS-001", offset=offset)  # fmt: skip
        return
    if entry.nbytes >= plain_nbytes if entry.is_zstd else entry.nbytes != plain_nbytes:
        how = f"a zstd frame of {entry.nbytes} bytes, not less than" if entry.is_zstd else f"{entry.nbytes} bytes, not"
        raise FormatError(f"{where} has {how} {plain_nbytes}", clause="SEC-004", offset=offset)
