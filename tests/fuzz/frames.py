"""Valid zstd frames of odd shapes (SEC-005..010; RFC 8878): header fields of any width, blocks of all kinds."""

from __future__ import annotations

import numpy as np
import zstandard
from vqmbuilder import ZSTD_MAGIC, Section, frame, libzstd, raw_block, rle_block, section

MOST_OF_A_BLOCK = 131_072
LARGEST_WINDOW = 104  # its descriptor: 8 MiB (SEC-007)


class Unsealed(bytes):
    """Bytes of a section that must be stored plain: the payload of a trellis stage (ANS-001)."""


def odd_section(data: bytes, rng: np.random.Generator) -> Section:
    """A section of these plain bytes; a frame where that is smaller (SEC-004)."""
    if not isinstance(data, Unsealed) and len(data) > 12 and rng.integers(3):
        stored = odd_frame(data, rng)
        if len(stored) < len(data):
            return Section(stored, is_zstd=True)
    return section(data)


def odd_frame(data: bytes, rng: np.random.Generator) -> bytes:
    """A frame with this content."""
    has_checksum = bool(rng.integers(2))
    if rng.integers(2):
        blocks, least_window = _plain_blocks(data, rng)
    else:
        blocks, least_window = _coded_blocks(data, rng)
    window = _window(least_window, rng) if rng.integers(2) else None
    widths = [width for width in (1, 2, 4, 8) if _fits(len(data), width) and (width > 1 or window is None)]
    out = frame(
        data, blocks=b"".join(blocks), size_bytes=int(rng.choice(widths)), window=window,
        dictionary=bytes(int(rng.choice([0, 0, 1, 2, 4]))),  # the id 0 is none (SEC-008)
        bits=4 * has_checksum | 16 * int(rng.integers(2)),
    )  # fmt: skip
    return out + (libzstd(data, level=1, checksum=True)[-4:] if has_checksum else b"")


def _fits(size: int, width: int) -> bool:
    return 256 <= size < 65_792 if width == 2 else size < 1 << 8 * width


def _window(least: int, rng: np.random.Generator) -> int:
    """A descriptor of a window of at least so many bytes."""
    sizes = {w: (8 + (w & 7)) << (7 + (w >> 3)) for w in range(LARGEST_WINDOW + 1)}
    enough = [w for w, size in sizes.items() if size >= least]
    return int(rng.choice(enough[:12] + enough[-1:]))


def _plain_blocks(data: bytes, rng: np.random.Generator) -> tuple[list[bytes], int]:
    """Raw and RLE blocks, some of no bytes, and the least window: that of the largest block."""
    parts, at = [], 0
    while at < len(data):
        run = len(data) - at - len(data[at:].lstrip(data[at : at + 1]))
        count = int(rng.integers(1, min(len(data) - at, MOST_OF_A_BLOCK) + 1))
        parts.append(data[at : at + (min(run, MOST_OF_A_BLOCK) if run > 4 else count)])
        if rng.integers(6) == 0:
            parts.append(b"")
        at += len(parts[-1] or parts[-2])
    parts = parts or [b""]
    blocks = []
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        is_run = len(part) > 0 and part == part[:1] * len(part) and (len(part) > 4 or rng.integers(2))
        blocks.append(rle_block(part[0], len(part), last=last) if is_run else raw_block(part, last=last))
    return blocks, max(map(len, parts))


def _coded_blocks(data: bytes, rng: np.random.Generator) -> tuple[list[bytes], int]:
    """Blocks of libzstd at any level, flushed at odd places, empty raw blocks among them; and the least window."""
    level = int(rng.choice([-50, -5, 1, 3, 6, 10, 13, 16, 19, 22]))
    if len(data) > 200_000:
        level = min(level, 3)
    options = {"min_match": 3, "strategy": int(rng.integers(1, 10))} if rng.integers(3) == 0 else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(data), write_content_size=True, write_checksum=False, **options
    )
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(data))
    out, at = b"", 0
    while at < len(data):
        count = int(rng.integers(1, len(data) - at + 1)) if rng.integers(2) else len(data) - at
        out += stream.compress(data[at : at + count])
        at += count
        if rng.integers(2):
            out += stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    out += stream.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)
    blocks = blocks_of(out)
    if rng.integers(3) == 0:
        blocks.insert(int(rng.integers(len(blocks))), raw_block(b"", last=False))
    return blocks, max(len(data), zstandard.get_frame_parameters(out).window_size)


def blocks_of(data: bytes) -> list[bytes]:
    """The blocks of a frame of libzstd without a checksum."""
    assert data[:4] == ZSTD_MAGIC
    at, blocks, is_last = zstandard.frame_header_size(data), [], 0
    while not is_last:
        head = int.from_bytes(data[at : at + 3], "little")
        is_last, kind, size = head & 1, head >> 1 & 3, head >> 3
        end = at + 3 + (1 if kind == 1 else size)
        blocks.append(data[at:end])
        at = end
    assert at == len(data)
    return blocks
