"""Header, chunks, sections and footer as bytes (SPEC sections 2–4)."""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import zstandard

from ..errors import ChecksumError, FormatError, LimitError, TruncatedError, UnsupportedError
from . import limits
from .records import Size, Sizes

MAGIC = b"\x89VQM\r\n\x1a\n"
MAJOR, MINOR = 1, 1  # the highest minor that is written
HEADER_NBYTES = 16
FOOTER_NBYTES = 28
CHUNK_HEAD_NBYTES = 24
TABLE_ENTRY_NBYTES = 8
META_IS_ZSTD = 1  # bit of flags
SECTION_IS_ZSTD = 1 << 31  # bit of length
KNOWN_TYPES = (b"META", b"BOOK", b"FREQ", b"LAYR", b"INDX")

_CHUNK_HEAD = struct.Struct("<4sIIIII")
_FOOTER = struct.Struct("<16sQI")
_PIECE_NBYTES = 1 << 22


class Readable(Protocol):
    """Where bytes come from: ``read`` takes the next ones and knows at which byte of the file it is."""

    offset: int

    def read(self, n: int, what: str) -> bytes: ...


class StreamInput:
    """Reads a binary stream front to back, never asking for more than a piece ahead (REA-002).

    Args:
        stream: Anything with ``read``; it need not seek.
        on_bytes: Called with all bytes read, for a digest.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.offset = 0
        self.end: int | None = None  # of the stream, once it has been met
        self.hasher: _Hasher | None = None

    def read(self, n: int, what: str) -> bytes:
        """The next ``n`` bytes.

        Raises:
            TruncatedError: There are fewer (REA-001).
        """
        pieces = []
        left = n
        while left:
            piece = self._stream.read(min(left, _PIECE_NBYTES))
            if piece is None:
                raise BlockingIOError(errno.EAGAIN, "a stream is wanted that blocks until it has bytes")
            if not piece:
                self.end = self.offset + n - left
                raise TruncatedError(f"{what} needs {n} bytes, but the file ends after {n - left}", clause="REA-001",
                                     offset=self.offset)  # fmt: skip
            pieces.append(piece)
            left -= len(piece)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.offset += n
        if self.hasher is not None:
            self.hasher.update(data)
        return data

    def at_end(self) -> bool:
        return not self._stream.read(1)


class _Hasher(Protocol):
    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True, slots=True)
class SectionEntry:
    """A line of a section table."""

    nbytes: int  # as stored
    is_zstd: bool
    crc: int

    def start(self, offset: int) -> int:
        """Where the section starts if the one before it ends at ``offset`` (SEC-002)."""
        if not self.is_zstd and self.nbytes >= limits.ALIGNED_FROM_NBYTES:
            return -(-offset // limits.ALIGNMENT) * limits.ALIGNMENT
        return offset


@dataclass(frozen=True, slots=True)
class Section:
    """Bytes as they are stored."""

    stored: bytes
    is_zstd: bool = False

    @property
    def entry(self) -> SectionEntry:
        return SectionEntry(len(self.stored), self.is_zstd, zlib.crc32(self.stored))


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """A chunk without its data.

    Attributes:
        meta: Plain metadata; empty for an ancillary chunk, whose metadata is not read.
        offset: Where the chunk starts.
        data_offset: Where its data starts.
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
        """Start and end of each section in the file."""
        end = self.data_offset
        for entry in self.sections:
            start = entry.start(end)
            end = start + entry.nbytes
            yield start, end

    def end(self) -> int:
        """Where the chunk ends."""
        return max((end for _, end in self.spans()), default=self.data_offset)


def pack_header(minor: int) -> bytes:
    """The first 16 bytes of a file."""
    return MAGIC + struct.pack("<HHI", MAJOR, minor, 0)


def check_header(header: bytes) -> None:
    """Raise unless these 16 bytes begin a file that this version reads (HDR-001..003)."""
    if header[:8] != MAGIC:
        raise FormatError(f"this is no .vqm file: {_describe(header)}", clause="HDR-001", offset=0)
    major, minor, zero = struct.unpack_from("<HHI", header, 8)
    if major != MAJOR:
        raise UnsupportedError(f"format version {major}.{minor}; this reader knows version {MAJOR}", clause="HDR-002",
                               offset=8)  # fmt: skip
    if zero:
        raise FormatError(f"the header's last field is {zero:#x}, not 0", clause="HDR-003", offset=12)


def _describe(start: bytes) -> str:
    """What a file seems to be that does not begin with the magic."""
    kinds = {b"PK\x03\x04": "a zip archive (PyTorch, Keras or NumPy?)", b"GGUF": "a GGUF file",
             b"\x89HDF\r\n\x1a\n": "an HDF5 file", b"\x80\x02": "a pickle", b"\x93NUMPY": "a NumPy array",
             b"\x1f\x8b": "gzip data", b"\x28\xb5\x2f\xfd": "zstd data"}  # fmt: skip
    for magic, kind in kinds.items():
        if start.startswith(magic):
            return f"it begins like {kind}"
    if start[1:4] == b"VQM" or start.startswith(MAGIC[:4]):
        return f"its first bytes {start[:8].hex(' ')} are a damaged magic, as after a transfer in text mode"
    if start[8:9] == b"{":
        return "it begins like a safetensors file"
    return f"it begins with {start[:8].hex(' ')}"


def pack_chunk_head(type: bytes, meta: bytes, sections: list[SectionEntry]) -> bytes:
    """All of a chunk before its data; metadata is compressed where that is smaller."""
    stored = zstandard.ZstdCompressor(level=19).compress(meta) if len(meta) > 64 else meta
    flags = META_IS_ZSTD
    if len(stored) >= len(meta):
        stored, flags = meta, 0
    fixed = struct.pack("<4sIIII", type, flags, len(stored), len(meta), len(sections))
    table = b"".join(
        struct.pack("<II", s.nbytes | (SECTION_IS_ZSTD if s.is_zstd else 0), s.crc) for s in sections
    )
    body = stored + table
    return fixed + struct.pack("<I", zlib.crc32(fixed)) + body + struct.pack("<I", zlib.crc32(body))


def read_chunk_head(source: Readable) -> ChunkHead:
    """The chunk at the source's offset, where the one before ends (FIL-002), up to its data (CHK-001..008)."""
    offset = source.offset
    fixed = source.read(CHUNK_HEAD_NBYTES, "a chunk header")
    type, flags, meta_stored, meta_plain, n_sections, crc = _CHUNK_HEAD.unpack(fixed)
    _check_crc(fixed[:20], crc, "the chunk header", "CHK-001", offset)
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
    body_nbytes = meta_stored + TABLE_ENTRY_NBYTES * n_sections
    body = source.read(body_nbytes + 4, f"the metadata of the {where}")
    _check_crc(body[:-4], int.from_bytes(body[-4:], "little"), f"metadata and section table of the {where}", "CHK-007",
               offset)  # fmt: skip
    if n_sections and type in (b"META", b"INDX"):
        raise FormatError(f"{where} has {n_sections} sections, not 0", clause="CHK-008", offset=offset)
    meta = body[:meta_stored]
    is_zstd = bool(flags & META_IS_ZSTD)
    if not is_ancillary:
        if meta_stored >= meta_plain if is_zstd else meta_stored != meta_plain:
            raise FormatError(f"{where}: meta_stored is {meta_stored} and meta_plain {meta_plain}, which does not fit"
                              f" flags {flags}", clause="CHK-005", offset=offset)  # fmt: skip
        if is_zstd:
            meta = decompress(meta, meta_plain, f"metadata of the {where}")
    words = struct.unpack_from(f"<{2 * n_sections}I", body, meta_stored)
    sections = tuple(
        SectionEntry(length & ~SECTION_IS_ZSTD, bool(length & SECTION_IS_ZSTD), crc)
        for length, crc in zip(words[::2], words[1::2], strict=True)
    )
    return ChunkHead(type, b"" if is_ancillary else meta, sections, offset, offset + CHUNK_HEAD_NBYTES + len(body))


def skip_section(source: Readable, entry: SectionEntry, where: str) -> None:
    """Check the next section of a sequential source, whose plain size is not known, and forget it (CHK-003)."""
    _skip_padding(source, entry, where)
    offset, left, crc = source.offset, entry.nbytes, 0
    while left:
        piece = source.read(min(left, _PIECE_NBYTES), where)
        crc = zlib.crc32(piece, crc)
        left -= len(piece)
    _compare_crc(crc, entry.crc, where, "SEC-001", offset)


def _skip_padding(source: Readable, entry: SectionEntry, where: str) -> None:
    n_padding = entry.start(source.offset) - source.offset
    if n_padding:
        check_padding(source.read(n_padding, f"padding before {where}"), source.offset - n_padding)


def read_section(source: Readable, entry: SectionEntry, plain_nbytes: Size, where: str) -> StoredSection:
    """The next section of a sequential source, which must have so many plain bytes."""
    check_size(entry, plain_nbytes, where, source.offset)
    _skip_padding(source, entry, where)
    offset = source.offset
    return StoredSection(source.read(entry.nbytes, where), entry, plain_nbytes, where, offset)


def check_padding(padding: bytes, offset: int) -> None:
    """Raise unless all bytes are zero (SEC-003)."""
    if padding.strip(b"\0"):
        raise FormatError("padding before a section is not zero", clause="SEC-003", offset=offset)


def check_size(entry: SectionEntry, plain_nbytes: Size, where: str, offset: int) -> None:
    """Raise unless the table gives a section a size that it can have (SEC-004, ANS-001)."""
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


@dataclass(frozen=True, slots=True)
class StoredSection:
    """A section as it was read, whose size was checked; the rest is checked when its plain bytes are asked for."""

    stored: bytes
    entry: SectionEntry
    plain_nbytes: Size
    where: str
    offset: int

    def plain(self) -> bytes:
        """Its plain bytes (SEC-001, SEC-005..010)."""
        _check_crc(self.stored, self.entry.crc, self.where, "SEC-001", self.offset)
        if not self.entry.is_zstd:
            return self.stored
        assert isinstance(self.plain_nbytes, int)
        return decompress(self.stored, self.plain_nbytes, self.where)


def _check_crc(data: bytes, crc: int, what: str, clause: str, offset: int) -> None:
    _compare_crc(zlib.crc32(data), crc, what, clause, offset)


def _compare_crc(found: int, crc: int, what: str, clause: str, offset: int) -> None:
    if found != crc:
        raise ChecksumError(f"{what} is damaged: CRC-32 {found:08x}, not {crc:08x}", clause=clause, offset=offset)


def decompress(stored: bytes, plain_nbytes: int, where: str) -> bytes:
    """The content of exactly one zstd frame of exactly this size (SEC-005..010)."""
    content_nbytes, window_nbytes = _check_frame_header(stored, where)
    if content_nbytes != plain_nbytes:
        raise FormatError(f"{where}: its zstd frame holds {content_nbytes} bytes, not {plain_nbytes}", clause="SEC-006")
    if window_nbytes > limits.MAX_WINDOW_NBYTES:
        raise LimitError(f"{where}: its zstd window is {window_nbytes} bytes; at most {limits.MAX_WINDOW_NBYTES} are"
                         " allowed", clause="SEC-007")  # fmt: skip
    try:
        # With the content size in its header a frame is decompressed into a buffer of just that size
        plain: bytes = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as err:
        raise FormatError(f"{where}: its zstd frame is damaged, or bytes follow it: {err}", clause="SEC-010") from err
    if len(plain) != plain_nbytes:
        raise FormatError(f"{where}: its zstd frame gives {len(plain)} bytes, not {plain_nbytes}", clause="SEC-010")
    return plain


def _check_frame_header(frame: bytes, where: str) -> tuple[int, int]:
    """Content size and window size of a zstd frame (RFC 8878, section 3.1.1.1).

    Returns:
        Both in bytes; the window is 0 for a single segment, which needs none.
    """
    if frame[:4] != b"\x28\xb5\x2f\xfd" or len(frame) < 5:
        raise FormatError(f"{where}: it begins with {frame[:4].hex(' ')}, not like a zstd frame", clause="SEC-005")
    descriptor = frame[4]
    if descriptor & 0x08:
        raise FormatError(f"{where}: the reserved bit of its zstd frame is set", clause="SEC-009")
    is_single_segment = bool(descriptor & 0x20)
    dictionary_nbytes = (0, 1, 2, 4)[descriptor & 3]
    content_nbytes = (1 if is_single_segment else 0, 2, 4, 8)[descriptor >> 6]
    dictionary_at = 5 + (not is_single_segment)
    content_at = dictionary_at + dictionary_nbytes
    if len(frame) < content_at + content_nbytes:
        raise FormatError(f"{where}: the header of its zstd frame is cut short", clause="SEC-005")
    if any(frame[dictionary_at:content_at]):
        raise FormatError(f"{where}: its zstd frame needs a dictionary", clause="SEC-008")
    if not content_nbytes:
        raise FormatError(f"{where}: its zstd frame does not state its content size", clause="SEC-006")
    content_size = int.from_bytes(frame[content_at : content_at + content_nbytes], "little")
    if content_nbytes == 2:
        content_size += 256
    window_size = 0
    if not is_single_segment:
        exponent, mantissa = frame[5] >> 3, frame[5] & 7
        window_size = (1 << (10 + exponent)) * (8 + mantissa) // 8
    return content_size, window_size


def pack_footer(header: bytes, index_offset: int) -> bytes:
    """The last 28 bytes of a file."""
    fixed = header + struct.pack("<Q", index_offset)
    return fixed + struct.pack("<I", zlib.crc32(fixed))


def read_footer(footer: bytes, offset: int) -> tuple[bytes, int]:
    """The copy of the header, and ``index_offset`` (FTR-002)."""
    header, index_offset, crc = _FOOTER.unpack(footer)
    _check_crc(footer[:-4], crc, "the footer", "FTR-002", offset)
    return header, index_offset
