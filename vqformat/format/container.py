"""Header, chunk heads and footer as bytes (SPEC sections 2 and 3)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import FormatError, LimitError, UnsupportedError
from ..native.crc import crc32
from . import limits
from .byte_stream import Readable
from .crc import check_crc
from .sections import SECTION_IS_ZSTD, TABLE_ENTRY_NBYTES, SectionEntry
from .zstd_frame import compress, decompress

MAGIC = b"\x89VQM\r\n\x1a\n"
MAJOR, MINOR = 1, 2  # format version
HEADER_NBYTES = 16
FOOTER_NBYTES = 28
CHUNK_HEAD_NBYTES = 24
META_IS_ZSTD = 1  # bit of flags
KNOWN_TYPES = (b"META", b"BOOK", b"FREQ", b"LAYR", b"INDX")
COPY = b"copy"  # the only ancillary type whose metadata is read

_CHUNK_HEAD = struct.Struct("<4sIIIII")
_FOOTER = struct.Struct("<16sQI")


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """All of a chunk that comes before its sections.

    Attributes:
        meta: Plain metadata. Empty for an ancillary chunk, whose metadata is not read; but for a ``copy`` chunk, unless
            it cannot be decompressed.
        sections: Its section table.
        offset: Offset of the chunk in the file.
        data_offset: Offset of the first byte after the section table and its CRC.
    """

    type: bytes
    meta: bytes
    sections: tuple[SectionEntry, ...]
    offset: int
    data_offset: int

    @property
    def label(self) -> str:
        return f"{self.type.decode()} chunk at byte {self.offset}"

    def spans(self) -> Iterator[tuple[int, int]]:
        """Offsets of the start and the end of each section, in order."""
        end = self.data_offset
        for entry in self.sections:
            start = entry.start(end)
            end = start + entry.nbytes
            yield start, end

    def end(self) -> int:
        """Offset of the first byte after the chunk."""
        return max((end for _, end in self.spans()), default=self.data_offset)


def pack_header(minor: int) -> bytes:
    """The first 16 bytes of a file."""
    return MAGIC + struct.pack("<HHI", MAJOR, minor, 0)


def begins_like_vqm(start: bytes) -> bool:
    """Whether the first bytes of a file, four or more, are those of a ``.vqm``, whose magic may be damaged behind them.

    A transfer in text mode changes the line ends in the magic: ``check_header`` says so.
    """
    return start.startswith(MAGIC[:4])


def check_header(header: bytes) -> None:
    """Raise unless these 16 bytes are a header that this reader supports (HDR-001..003)."""
    if header[:8] != MAGIC:
        raise FormatError(f"this is no .vqm file: {_describe(header)}", clause="HDR-001", offset=0)
    major, minor, zero = struct.unpack_from("<HHI", header, 8)
    if major != MAJOR:
        raise UnsupportedError(f"format version {major}.{minor}; this reader knows version {MAJOR}", clause="HDR-002",
                               offset=8)  # fmt: skip
    if zero:
        raise FormatError(f"the header's last field is {zero:#x}, not 0", clause="HDR-003", offset=12)


def _describe(start: bytes) -> str:
    """A guess at the format of a file that does not begin with the magic."""
    kinds = {b"PK\x03\x04": "a zip archive (PyTorch, Keras or NumPy?)", b"GGUF": "a GGUF file",
             b"\x89HDF\r\n\x1a\n": "an HDF5 file", b"\x80\x02": "a pickle", b"\x93NUMPY": "a NumPy array",
             b"\x1f\x8b": "gzip data", b"\x28\xb5\x2f\xfd": "zstd data"}  # fmt: skip
    for magic, kind in kinds.items():
        if start.startswith(magic):
            return f"it begins like {kind}"
    if start[1:4] == b"VQM" or begins_like_vqm(start):
        return f"its first bytes {start[:8].hex(' ')} are a damaged magic, as after a transfer in text mode"
    if start[8:9] == b"{":
        return "it begins like a safetensors file"
    return f"it begins with {start[:8].hex(' ')}"


def pack_chunk_head(type: bytes, meta: bytes, sections: list[SectionEntry]) -> bytes:
    """The bytes of a chunk that come before its sections. Metadata is compressed if that makes it smaller."""
    stored = compress(meta) if len(meta) > 64 else meta
    flags = META_IS_ZSTD
    if len(stored) >= len(meta):
        stored, flags = meta, 0
    fixed = struct.pack("<4sIIII", type, flags, len(stored), len(meta), len(sections))
    table = b"".join(
        struct.pack("<II", s.nbytes | (SECTION_IS_ZSTD if s.is_zstd else 0), s.crc) for s in sections
    )
    body = stored + table
    return fixed + struct.pack("<I", crc32(fixed)) + body + struct.pack("<I", crc32(body))


def read_chunk_head(
    source: Readable, n_before: int | None = None, check_meta: Callable[[int], None] | None = None
) -> ChunkHead:
    """Read a chunk up to its sections, at the current offset of a source (FIL-002, CHK-001..008).

    Args:
        n_before: Number of the chunks before it in the file, for FIL-001 and LIM-001; None if it is not known.
        check_meta: Called with the plain bytes of its metadata before these are read.

    Raises:
        FormatError: It breaks a rule.
        UnsupportedError: It is of an unknown critical type, or has unknown flags.
    """
    offset = source.offset
    fixed = source.read(CHUNK_HEAD_NBYTES, "a chunk header")
    type, flags, meta_stored, meta_plain, n_sections, crc = _CHUNK_HEAD.unpack(fixed)
    check_crc(fixed[:20], crc, "the chunk header", "CHK-001", offset)
    if not (type.isascii() and type.isalpha()):
        raise FormatError(f"chunk type {type!r} is not four letters", clause="CHK-002", offset=offset)
    is_ancillary = type[:1].islower()
    if type not in KNOWN_TYPES and not is_ancillary:
        raise UnsupportedError(f"unknown critical chunk type {type.decode()!r}", clause="CHK-003", offset=offset)
    where = f"{type.decode()} chunk"
    if flags & ~META_IS_ZSTD:
        raise UnsupportedError(f"{where}: unknown flags {flags:#x}", clause="CHK-004", offset=offset)
    limit = limits.MAX_INDEX_NBYTES if type == b"INDX" else limits.MAX_META_NBYTES
    if max(meta_stored, meta_plain) > limit:
        raise LimitError(f"{where}: metadata of {max(meta_stored, meta_plain)} bytes; at most {limit} are allowed",
                         clause="CHK-006", offset=offset)  # fmt: skip
    if n_sections > limits.MAX_SECTIONS:
        raise LimitError(f"{where}: {n_sections} sections; at most {limits.MAX_SECTIONS} are allowed",
                         clause="CHK-006", offset=offset)  # fmt: skip
    if n_before is not None and n_before >= limits.MAX_CHUNKS:
        raise LimitError(f"more than {limits.MAX_CHUNKS} chunks", clause="LIM-001", offset=offset)
    if check_meta is not None:
        check_meta(meta_plain)
    body_nbytes = meta_stored + TABLE_ENTRY_NBYTES * n_sections
    body = source.read(body_nbytes + 4, f"the metadata of the {where}")
    check_crc(body[:-4], int.from_bytes(body[-4:], "little"), f"metadata and section table of the {where}", "CHK-007",
               offset)  # fmt: skip
    if n_before is not None and (type == b"META") != (n_before == 0):
        which = "a second META chunk" if n_before else f"the first chunk is {type.decode()}, not META"
        raise FormatError(which, clause="FIL-001", offset=offset)
    if n_sections and type in (b"META", b"INDX"):
        raise FormatError(f"{where} has {n_sections} sections, not 0", clause="CHK-008", offset=offset)
    try:
        meta = b""
        if not is_ancillary or type == COPY:
            meta = _plain_meta(body[:meta_stored], meta_plain, flags, where, offset)
    except FormatError:
        if type != COPY:  # CPY-001
            raise
    words = struct.unpack_from(f"<{2 * n_sections}I", body, meta_stored)
    sections = tuple([SectionEntry(length & ~SECTION_IS_ZSTD, length >= SECTION_IS_ZSTD, crc)
                      for length, crc in zip(words[::2], words[1::2], strict=True)])  # fmt: skip
    return ChunkHead(type, meta, sections, offset, offset + CHUNK_HEAD_NBYTES + len(body))


def _plain_meta(stored: bytes, plain_nbytes: int, flags: int, where: str, offset: int) -> bytes:
    """The metadata of a chunk, decompressed if its flags say so (CHK-005)."""
    is_zstd = bool(flags & META_IS_ZSTD)
    if len(stored) >= plain_nbytes if is_zstd else len(stored) != plain_nbytes:
        raise FormatError(f"{where}: meta_stored is {len(stored)} and meta_plain {plain_nbytes}, which does not fit"
                          f" flags {flags}", clause="CHK-005", offset=offset)  # fmt: skip
    return decompress(stored, plain_nbytes, f"metadata of the {where}") if is_zstd else stored


def pack_footer(header: bytes, index_offset: int) -> bytes:
    """The last 28 bytes of a file."""
    fixed = header + struct.pack("<Q", index_offset)
    return fixed + struct.pack("<I", crc32(fixed))


def read_footer(footer: bytes, offset: int) -> tuple[bytes, int]:
    """Read the last 28 bytes of a file (FTR-002).

    Args:
        offset: Offset of the footer, for error texts.

    Returns:
        The copy of the header, and ``index_offset``.
    """
    header, index_offset, crc = _FOOTER.unpack(footer)
    check_crc(footer[:-4], crc, "the footer", "FTR-002", offset)
    return header, index_offset
