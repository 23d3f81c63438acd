"""Assembles .vqm files byte by byte (SPEC 2 to 6 and 13), faults included.

Written from SPEC.md alone; it shares no code with the package, so that neither hides the errors of the other.
Every length, CRC, padding and index field is computed from what is there, unless a fault is asked for by name:
``replace(chunk, header_crc=0)``, ``section(data, crc=0)``, ``file.build(index_offset=0)``. A fault thus stays
the only one.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack
import zstandard

MAGIC = b"\x89VQM\r\n\x1a\n"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
META_COPY_LIMIT = 65_536  # IDX field 1


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def crc(data: bytes) -> int:
    """CRC-32 of CNV-004."""
    return zlib.crc32(data)


def pack(value: object) -> bytes:
    """The one way to write a value (SPEC 5)."""
    return msgpack.packb(_sorted(value), use_bin_type=True)


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value, key=lambda key: key.encode())}
    if isinstance(value, (list, tuple)):
        return [_sorted(item) for item in value]
    return value


def column(values: Sequence[int]) -> bytes:
    """Integer column (MET-009)."""
    if not values:
        return b""
    width = next(width for width in (1, 2, 4, 8) if max(values) < 256**width)
    return b"".join(value.to_bytes(width, "little") for value in values)


# Zstandard frames (RFC 8878), by hand: the same bytes whatever libzstd is installed.


def raw_block(data: bytes, *, last: bool = True) -> bytes:
    return _block(0, len(data), last) + data


def rle_block(byte: int, count: int, *, last: bool = True) -> bytes:
    return _block(1, count, last) + bytes([byte])


def _block(kind: int, size: int, last: bool) -> bytes:
    return (last | kind << 1 | size << 3).to_bytes(3, "little")


def rle_blocks(byte: int, count: int) -> bytes:
    """Blocks that hold ``count`` times ``byte``, 128 KiB to a block."""
    sizes = [131_072] * (count // 131_072) + ([count % 131_072] if count % 131_072 else [])
    return b"".join(rle_block(byte, size, last=i == len(sizes) - 1) for i, size in enumerate(sizes))


def run_blocks(data: bytes) -> bytes:
    """Blocks that hold ``data``: RLE blocks for runs of 8 bytes and more, raw blocks for the rest."""
    parts, rest = [], b""
    for run in re.findall(rb"(?s)(.)(\1*)", data):
        text = run[0] + run[1]
        if len(text) < 8:
            rest += text
            continue
        parts += [("raw", rest)] if rest else []
        parts += [("rle", text[i : i + 131_072]) for i in range(0, len(text), 131_072)]
        rest = b""
    parts += [("raw", rest)] if rest or not parts else []
    out = b""
    for i, (kind, text) in enumerate(parts):
        last = i == len(parts) - 1
        out += raw_block(text, last=last) if kind == "raw" else rle_block(text[0], len(text), last=last)
    return out


def frame(
    content: bytes | int,
    *,
    blocks: bytes | None = None,
    size_bytes: int | None = None,
    window: int | None = None,
    dictionary: bytes = b"",
    bits: int = 0,
    magic: bytes = ZSTD_MAGIC,
) -> bytes:
    """One zstd frame.

    Args:
        content: The content, or the content size to claim (then ``blocks`` are needed).
        blocks: Data blocks in place of those of ``run_blocks``.
        size_bytes: Width of the content size: 0, 1, 2, 4 or 8; the smallest if None.
        window: Window descriptor byte; None for a frame with the single-segment flag.
        dictionary: ``Dictionary_ID`` of 0, 1, 2 or 4 bytes.
        bits: Further bits of the frame header descriptor: 4 checksum, 8 reserved, 16 unused.
        magic: The magic number.
    """
    size = content if isinstance(content, int) else len(content)
    if size_bytes is None:
        size_bytes = 1 if size < 256 and window is None else 2 if 256 <= size < 65_792 else 4 if size < 2**32 else 8
    flag = {0: 0, 1: 0, 2: 1, 4: 2, 8: 3}[size_bytes]
    descriptor = flag << 6 | (window is None) << 5 | {0: 0, 1: 1, 2: 2, 4: 3}[len(dictionary)] | bits
    stored_size = size - 256 if size_bytes == 2 else size
    head = magic + bytes([descriptor]) + (b"" if window is None else bytes([window])) + dictionary
    head += stored_size.to_bytes(size_bytes, "little") if size_bytes else b""
    return head + (run_blocks(content) if blocks is None else blocks)


def libzstd(content: bytes, *, level: int = 19, checksum: bool = False, window_log: int | None = None) -> bytes:
    """One zstd frame with entropy-coded blocks. Its bytes may differ with another libzstd."""
    options = {} if window_log is None else {"window_log": window_log}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(content), write_checksum=checksum, write_content_size=True, **options
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(content)


@dataclass(frozen=True)
class Section:
    """A section as stored (SPEC 4). ``length`` and ``crc`` are faults: the value to put into the table."""

    stored: bytes
    is_zstd: bool = False
    length: int | None = None
    crc: int | None = None

    def table_entry(self) -> bytes:
        length = len(self.stored) | self.is_zstd << 31 if self.length is None else self.length
        return u32(length) + u32(crc(self.stored) if self.crc is None else self.crc)

    @property
    def is_aligned(self) -> bool:
        return not self.is_zstd and len(self.stored) >= 4_096


def section(data: bytes, **faults: Any) -> Section:
    """A section stored plain."""
    return Section(bytes(data), **faults)


def zstd_section(data: bytes, **options: Any) -> Section:
    """A section stored as a handmade frame; ``options`` as for ``frame``."""
    return Section(frame(bytes(data), **options), is_zstd=True)


def libzstd_section(data: bytes, **options: Any) -> Section:
    """A section compressed by libzstd; ``options`` as for ``libzstd``."""
    return Section(libzstd(bytes(data), **options), is_zstd=True)


@dataclass(frozen=True)
class Entry:
    """What INDX says about a tensor."""

    name: bytes
    dtype: int
    shape: tuple[int, ...]
    target: bytes | None = None


@dataclass(frozen=True)
class Chunk:
    """A chunk (SPEC 3). The fields after ``tensors`` are faults: the value to write, whatever is true.

    ``tensors`` (``vqmtensors.Tensor``) are for INDX and for the manifest; ``meta`` and ``sections`` hold them already.
    """

    type: bytes
    meta: bytes
    sections: tuple[Section, ...] = ()
    is_compressed: bool = False
    meta_frame: bytes | Callable[[bytes], bytes] | None = None  # the frame of ``meta``, or what makes it
    tensors: tuple[Any, ...] = ()

    flags: int | None = None
    meta_stored: int | None = None
    meta_plain: int | None = None
    n_sections: int | None = None
    header_crc: int | None = None
    body_crc: int | None = None
    padding: bytes = b"\0"
    gap: bytes = b""

    def encode(self, offset: int) -> bytes:
        """The bytes of the chunk if it starts at ``offset`` of the file."""
        stored = self.meta
        if self.is_compressed:
            made = frame if self.meta_frame is None else self.meta_frame
            stored = made(self.meta) if callable(made) else made
        header = self.type
        header += u32(self.is_compressed if self.flags is None else self.flags)
        header += u32(len(stored) if self.meta_stored is None else self.meta_stored)
        header += u32(len(self.meta) if self.meta_plain is None else self.meta_plain)
        header += u32(len(self.sections) if self.n_sections is None else self.n_sections)
        header += u32(crc(header) if self.header_crc is None else self.header_crc)
        body = stored + b"".join(section.table_entry() for section in self.sections)
        body += u32(crc(body) if self.body_crc is None else self.body_crc)
        out = header + body
        for item in self.sections:
            if item.is_aligned:
                out += self.padding * (-(offset + len(out)) % 64)
            out += item.stored
        return out


def chunk(type: bytes, meta: object, sections: Iterable[Section] = (), **changes: Any) -> Chunk:
    """A chunk from the value of its meta, or from the bytes of its meta."""
    return Chunk(type, meta if isinstance(meta, bytes) else pack(meta), tuple(sections), **changes)


def meta(metadata: object | None = None, *, generator: str = "", **changes: Any) -> Chunk:
    """The META chunk."""
    return chunk(b"META", [generator, {} if metadata is None else metadata], **changes)


def layr(name: str, *tensors: Any, **changes: Any) -> Chunk:
    """A LAYR chunk of tensors that have ``record``, ``sections`` and ``entry`` (``vqmtensors.Tensor``)."""
    sections = [section for tensor in tensors for section in tensor.sections]
    return chunk(b"LAYR", [name, [tensor.record for tensor in tensors]], sections, tensors=tensors, **changes)


def index_fields(chunks: Sequence[Chunk], lengths: Sequence[int], before: bytes) -> list[object]:
    """The ten fields of INDX (SPEC 13)."""
    entries = [(tensor.entry, i) for i, chunk in enumerate(chunks) for tensor in chunk.tensors]
    names = [entry.name for entry, _ in entries]
    positions = {name: i for i, name in reversed(list(enumerate(names, 1)))}  # the first of each name
    targets = [0 if entry.target is None else positions.get(entry.target, 0) for entry, _ in entries]
    metadata = chunks[0].meta if chunks else b""
    return [
        hashlib.sha256(before).digest(),
        metadata if len(metadata) <= META_COPY_LIMIT else b"",
        b"".join(chunk.type for chunk in chunks),
        column(lengths),
        b"".join(name + b"\0" for name in names),
        bytes(entry.dtype for entry, _ in entries),
        bytes(len(entry.shape) for entry, _ in entries),
        column([size for entry, _ in entries for size in entry.shape]),
        column([i for _, i in entries]),
        column(targets) if any(targets) else b"",
    ]


@dataclass(frozen=True)
class File:
    """A whole file (SPEC 2), META first. The fields after ``chunks`` are faults or rarities."""

    chunks: tuple[Chunk, ...]
    header: bytes = MAGIC + u16(1) + u16(0) + u32(0)
    index: Mapping[int, object] = field(default_factory=dict)
    index_changes: Mapping[str, Any] = field(default_factory=dict)
    footer_header: bytes | None = None
    index_offset: int | None = None
    footer_crc: int | None = None
    tail: bytes = b""

    def build(self, **faults: Any) -> bytes:
        """The bytes of the file; ``faults`` are fields of this class."""
        if faults:
            return replace(self, **faults).build()
        out, lengths = self.header, []
        for item in self.chunks:
            encoded = item.encode(len(out))
            lengths.append(len(encoded))
            out += encoded + item.gap
        fields = index_fields(self.chunks, lengths, out)
        for position, value in self.index.items():
            fields[position] = value
        indx = replace(chunk(b"INDX", fields), **self.index_changes)
        footer = self.header if self.footer_header is None else self.footer_header
        footer += u64(len(out) if self.index_offset is None else self.index_offset)
        footer += u32(crc(footer) if self.footer_crc is None else self.footer_crc)
        return out + indx.encode(len(out)) + indx.gap + footer + self.tail

    def offsets(self) -> list[int]:
        """Where each chunk starts, INDX included."""
        offset, offsets = len(self.header), []
        for item in self.chunks:
            offsets.append(offset)
            offset += len(item.encode(offset)) + len(item.gap)
        return [*offsets, offset]


def file(*chunks: Chunk, **changes: Any) -> File:
    """A file of these chunks after an empty META, unless they begin with a META of their own."""
    if not chunks or chunks[0].type != b"META":
        chunks = (meta(), *chunks)
    return File(chunks, **changes)
