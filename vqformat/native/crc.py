"""CRC-32, as in zlib (SPEC CNV-004): by a kernel where the processor has one, else by zlib."""

from __future__ import annotations

import zlib

import numpy as np

from . import _address, _kernels, is_used

_HAS_KERNEL = _kernels is not None and _kernels.has_crc32()
_FROM_NBYTES = 512  # fewer take zlib less time than a call of the kernel


def crc32(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """The CRC-32 of data.

    Args:
        before: CRC-32 of the bytes that it follows.
    """
    if len(data) < _FROM_NBYTES or not _HAS_KERNEL or not is_used():
        return zlib.crc32(data, before)
    assert _kernels is not None
    n = len(data) // 16 * 16
    whole = data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)
    found: int = _kernels.crc32(_address(whole), n, before)
    return zlib.crc32(memoryview(data)[n:], found) if n < len(data) else found
