"""One zstd frame of a known content size (SEC-005..010)."""

from __future__ import annotations

import threading

import zstandard

from ..errors import FormatError, LimitError
from . import limits

_MAGIC = b"\x28\xb5\x2f\xfd"
_SHORT_NBYTES = 1 << 16  # a context keeps the memory that it had for longer ones


class _Contexts(threading.local):
    """For each thread one context each: a new one for each frame would cost more than a small frame."""

    def __init__(self) -> None:
        self.decompress = zstandard.ZstdDecompressor().decompress
        self.compress = zstandard.ZstdCompressor(level=19).compress


_of_thread = _Contexts()


def compress(plain: bytes) -> bytes:
    """The smallest frame, soon made of some kB only."""
    is_short = len(plain) <= _SHORT_NBYTES
    stored: bytes = (_of_thread if is_short else _Contexts()).compress(plain)
    return stored


def decompress(stored: bytes, plain_nbytes: int, where: str) -> bytes:
    """Decompress a section or metadata that is one zstd frame (SEC-005..010).

    Args:
        plain_nbytes: The size that the content must have.
        where: Name of the section, for error texts.

    Raises:
        FormatError: It is not one valid frame of this content size.
        LimitError: Its window is too large (SEC-007).
    """
    content_nbytes, window_nbytes = _check_frame_header(stored, where)
    if content_nbytes != plain_nbytes:
        raise FormatError(f"{where}: its zstd frame holds {content_nbytes} bytes, not {plain_nbytes}", clause="SEC-006")
    if window_nbytes > limits.MAX_WINDOW_NBYTES:
        raise LimitError(f"{where}: its zstd window is {window_nbytes} bytes; at most {limits.MAX_WINDOW_NBYTES} are"
                         " allowed", clause="SEC-007")  # fmt: skip
    try:
        # The frame header states the content size, so zstandard allocates a buffer of exactly that size
        plain: bytes = _of_thread.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as err:
        raise FormatError(f"{where}: its zstd frame is damaged, or bytes follow it: {err}", clause="SEC-010") from err
    if len(plain) != plain_nbytes:
        raise FormatError(f"{where}: its zstd frame gives {len(plain)} bytes, not {plain_nbytes}", clause="SEC-010")
    return plain


def _check_frame_header(frame: bytes, where: str) -> tuple[int, int]:
    """Read content size and window size from the header of a zstd frame (RFC 8878, section 3.1.1.1).

    Returns:
        Both in bytes. The window is 0 for a single-segment frame, which has none.
    """
    if frame[:4] == _MAGIC and len(frame) > 6 and frame[4] in (0x20, 0x60):  # as most short frames
        return (frame[5] if frame[4] == 0x20 else (frame[5] | frame[6] << 8) + 256), 0
    if frame[:4] != _MAGIC or len(frame) < 5:
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
