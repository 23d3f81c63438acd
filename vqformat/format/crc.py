"""CRC-32 of headers, metadata and sections (CRC-32/ISO-HDLC, that of zlib)."""

from __future__ import annotations

from ..errors import ChecksumError
from ..native.crc import crc32


def check_crc(data: bytes, crc: int, what: str, clause: str, offset: int) -> None:
    compare_crc(crc32(data), crc, what, clause, offset)


def compare_crc(found: int, crc: int, what: str, clause: str, offset: int) -> None:
    if found != crc:
        raise ChecksumError(f"{what} is damaged: CRC-32 {found:08x}, not {crc:08x}", clause=clause, offset=offset)
