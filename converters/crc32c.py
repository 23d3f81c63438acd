"""CRC-32C (Castagnoli, RFC 3720), as TensorFlow masks it; many rows of bytes at a time, for the sake of speed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0x82F63B78  # reflected
_ROW_NBYTES = 1024
_FEW_NBYTES = 4096  # below: bytes one by one
_PIECE_NBYTES = 4 << 20  # whose rows are in memory twice

_Words = npt.NDArray[np.uint32]


def _make_table() -> _Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


_TABLE = _make_table()
_INTS = _TABLE.tolist()


def crc32c(data: bytes | memoryview) -> int:
    """The CRC-32C of bytes."""
    crc = 0xFFFFFFFF
    for start in range(0, len(data), _PIECE_NBYTES):
        crc = _extend(crc, data[start : start + _PIECE_NBYTES])
    return crc ^ 0xFFFFFFFF


def _extend(crc: int, data: bytes | memoryview) -> int:
    """The register after more bytes."""
    n_rows = len(data) // _ROW_NBYTES if len(data) >= _FEW_NBYTES else 0
    if n_rows:
        # The register of all rows but the first begins at 0: CRCs are linear, so that they are joined afterwards
        crcs = np.zeros(n_rows, np.uint32)
        crcs[0] = crc
        rows = np.frombuffer(data, np.uint8, n_rows * _ROW_NBYTES).reshape(n_rows, _ROW_NBYTES)
        for column in np.ascontiguousarray(rows.T):  # (n_rows,)
            crcs = _TABLE[(crcs ^ column) & 0xFF] ^ (crcs >> 8)
        crc = _join(crcs)
    for byte in bytes(data[n_rows * _ROW_NBYTES :]):
        crc = _INTS[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def _join(crcs: _Words) -> int:
    """The register after all rows, from those after each."""
    move = _mover(_ROW_NBYTES)
    while crcs.size > 1:
        if crcs.size % 2:
            crcs = np.concatenate([np.zeros(1, np.uint32), crcs])  # zero bytes leave a register of 0 as it is
        crcs = _apply(move, crcs[::2]) ^ crcs[1::2]
        move = _apply(move, move)
    return int(crcs[0])


def mask(crc: int) -> int:
    """A CRC as TensorFlow and LevelDB store it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _mover(nbytes: int) -> _Words:
    """What becomes of each bit of the register after so many zero bytes."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(nbytes):
        bits = _TABLE[bits & 0xFF] ^ (bits >> 8)
    return bits


def _apply(move: _Words, crcs: _Words) -> _Words:
    """Registers after the zero bytes of a mover."""
    moved = np.zeros_like(crcs)
    for bit in range(32):
        moved ^= np.where(crcs >> np.uint32(bit) & np.uint32(1), move[bit], np.uint32(0))
    return moved
