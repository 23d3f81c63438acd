"""From byte planes of floats to stored sections, at the speed of a Huffman coder (SPEC 8).

Most planes are noise, which a histogram tells, or exponents, which have hardly more structure than their histogram.
Searches for matches take 50 times as long as Huffman coding: they are made where a trial or the size says they pay.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...format.sections import Section
from . import packing

_COUNTED = 1 << 13  # bytes of a plane whose values are counted
_NOISE_BITS = 7.96  # of entropy for each byte, from which on a frame would not earn its time, see packing.py
_TRIED = 1 / 128  # of the bytes of a plane that are searched for matches as a trial
_LEAST_TRIED, _MOST_TRIED = 1 << 11, 1 << 14
_LEAST_BITS = 0.9  # of entropy of zeros and ones, from which on a bit each is good enough
_LOCAL_PAYS = 0.998  # of the bytes with a table for each 128 KiB that those with more tables have to stay below
_PAYS = 0.15  # of the bytes of literals that a trial has to save, so that all of a plane is searched
_PAYS_IF_ODD = 0.05  # the same where literals take another number of bytes than their entropy
_AS_COUNTED = (0.97, 1.1)  # sizes of Huffman codes over entropies where there is nothing else to find
_SEARCHED = 1 / 16  # of the bytes of a plane that may be searched because of their size
_BLOCK = 1 << 17  # the most that a zstd block holds
_LEAST_CODED = 64  # bytes of a block; decoders refuse four streams of a few


def sections(payloads: Sequence[bytes]) -> list[Section]:
    """Sections for the same plane of all blocks."""
    if max(map(len, payloads)) < packing.SMALL_NBYTES:
        return packing.sections(payloads)
    nbytes = sum(map(len, payloads))
    n_searched = int(nbytes * _SEARCHED)
    gain: float | None = None
    literals = [packing.LITERALS, packing.LOCAL_LITERALS]
    result = []
    for plain in payloads:
        if len(plain) < packing.SMALL_NBYTES:
            result += packing.sections([plain])
            continue
        counts = _count(plain)
        bits = _entropy(counts)
        if bits > _NOISE_BITS:
            result.append(Section(plain))
            continue
        if _is_binary(plain, counts) and bits > _LEAST_BITS:
            result.append(Section(one_bit_frame(plain), is_zstd=True))
            continue
        frames = [packing.compress(plain, how) for how in literals]
        stored = min(frames, key=len)
        if len(frames[-1]) > _LOCAL_PAYS * len(frames[0]):  # as in most tensors: not tried on their other blocks
            literals = literals[:1]
        expected = bits / 8 * len(plain)
        is_odd = bits > 0 and not _AS_COUNTED[0] * expected <= len(stored) <= _AS_COUNTED[1] * expected
        if gain is None:
            gain = _trial_gain(plain, nbytes)
        if gain > _PAYS or (is_odd and (gain > _PAYS_IF_ODD or n_searched >= len(plain))):
            n_searched -= len(plain)
            stored = min(stored, packing.compress(plain, packing.QUICKER_MATCHES), key=len)
        result.append(packing.as_section(plain, stored))
    return result


def _is_binary(plain: bytes, counts: npt.NDArray[np.intp]) -> bool:
    return not counts[2:].any() and np.frombuffer(plain, np.uint8).max() == 1


def _trial_gain(plain: bytes, nbytes: int) -> float:
    """What share of its bytes a search for matches saves, by a part.

    Args:
        nbytes: Of all blocks of the plane: more of them earn a larger part.
    """
    length = min(max(int(nbytes * _TRIED), _LEAST_TRIED), _MOST_TRIED)
    start = (len(plain) - length) // 2
    part = plain[start : start + length]
    found, literals = (len(packing.compress(part, how)) for how in (packing.QUICKER_MATCHES, packing.LITERALS))
    return 1 - found / literals


def _count(plain: bytes) -> npt.NDArray[np.intp]:
    """How often each value is among some bytes from all over a plane."""
    step = max(1, len(plain) // _COUNTED) | 1  # odd, so that it goes through all columns of most matrices
    return np.bincount(np.frombuffer(plain, np.uint8)[::step], minlength=256)


def _entropy(counts: npt.NDArray[np.intp]) -> float:
    """Bits of a value; what a sample has too few is added (Miller 1955)."""
    n = int(counts.sum())
    shares = counts[counts > 0] / n
    return float(-(shares * np.log2(shares)).sum() + (shares.size - 1) / (2 * n * np.log(2)))


def one_bit_frame(plain: bytes) -> bytes:
    """A zstd frame of bytes 0 and 1 in which each takes a bit: for planes that hold the signs of shorter floats.

    zstd itself takes half as much again: it cannot be kept from finding matches among bytes of one bit.
    """
    values = np.frombuffer(plain, np.uint8)
    frame = [struct.pack("<IBI", 0xFD2FB528, 0xA0, len(plain))]  # one segment, content size of four bytes
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        is_last = start + _BLOCK >= values.size
        if block.size < _LEAST_CODED:
            frame.append((int(is_last) | block.size << 3).to_bytes(3, "little") + block.tobytes())
            continue
        n_each = -(-block.size // 4)
        streams = [_one_bit_stream(block[i * n_each : (i + 1) * n_each]) for i in range(4)]
        # Weights of two symbols of one bit each: that of 1 follows from that of 0 (RFC 8878, 4.2.1.1)
        body = b"\x80\x10" + struct.pack("<3H", *map(len, streams[:3])) + b"".join(streams)
        header = 2 | 3 << 2 | block.size << 4 | len(body) << 22  # Huffman-coded, four streams, sizes of 18 bits
        content = header.to_bytes(5, "little") + body + b"\0"  # no sequences
        frame.append((int(is_last) | 2 << 1 | len(content) << 3).to_bytes(3, "little") + content)
    return b"".join(frame)


def _one_bit_stream(symbols: npt.NDArray[np.uint8]) -> bytes:
    """A Huffman stream is read backwards, from the highest bit that is set."""
    return np.packbits(np.append(symbols[::-1], np.uint8(1)), bitorder="little").tobytes()
