"""Zstd frames of Huffman-coded literals only (RFC 8878, 3.1.1.3.1 and 4.2).

zstd itself cannot be kept from finding matches among bytes of few values. By accident it finds many. They take 1 to 2 %
more bytes than Huffman codes, and half as much again where values take a bit each.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from ... import native
from ...native import planes as kernels

_BLOCK = 1 << 17  # the most that a zstd block holds
_LEAST_CODED = 64  # bytes of a block; decoders refuse four streams of a few
_LARGEST_SYMBOL = 128  # whose code length can be stored without another entropy coder
_MAX_LENGTH = 11  # bits of a code
_FULL, _RUN, _COMPRESSED = 0, 1, 2  # block types

Counts = npt.NDArray[np.uint32]


def frame(plain: bytes) -> bytes | None:
    """A frame that holds these bytes; None if a byte is above 128."""
    symbols = np.frombuffer(plain, np.uint8)
    parts = [struct.pack("<IBI", 0xFD2FB528, 0xA0, symbols.size)]  # one segment, content size of four bytes
    for start in range(0, symbols.size, _BLOCK):
        block = symbols[start : start + _BLOCK]
        counts = count(block)
        if counts[_LARGEST_SYMBOL + 1 :].any():
            return None
        kind, size, content = _FULL, block.size, b""
        if counts.max() == block.size:
            kind, content = _RUN, block[:1].tobytes()
        elif block.size >= _LEAST_CODED:
            content = _compressed(block, counts)
            kind, size = _COMPRESSED, len(content)
        if kind == _FULL or (kind == _COMPRESSED and size >= block.size):
            kind, size, content = _FULL, block.size, block.tobytes()
        is_last = start + _BLOCK >= symbols.size
        parts += [(int(is_last) | kind << 1 | size << 3).to_bytes(3, "little"), content]
    return b"".join(parts)


def count(symbols: npt.NDArray[np.uint8]) -> Counts:
    """How often each value occurs."""
    if native.is_used():
        return kernels.count_bytes(symbols)
    return np.bincount(symbols, minlength=256).astype(np.uint32)


def _compressed(block: npt.NDArray[np.uint8], counts: Counts) -> bytes:
    """The content of a compressed block: literals in four streams, no sequences."""
    lengths = code_lengths(counts)
    n_bits = int(lengths.max())
    weights = np.where(lengths > 0, n_bits + 1 - lengths.astype(np.int64), 0)
    last = int(np.flatnonzero(counts)[-1])  # its weight follows from the others (4.2.1)
    listed = np.append(weights[:last], np.zeros(last % 2, np.int64))
    tree = bytes([127 + last]) + (listed[::2] << 4 | listed[1::2]).astype(np.uint8).tobytes()
    codes = _codes(weights)
    n_each = -(-block.size // 4)
    streams = [_stream(block[i * n_each : (i + 1) * n_each], codes, lengths) for i in range(4)]
    body = tree + struct.pack("<3H", *map(len, streams[:3])) + b"".join(streams)
    header = _COMPRESSED | 3 << 2 | block.size << 4 | len(body) << 22  # four streams, sizes of 18 bits
    content: bytes = header.to_bytes(5, "little") + body + b"\0"
    return content


def code_lengths(counts: Counts) -> Counts:
    """Bits of the code of each value, at most 11, 0 for those that do not occur; at least two do."""
    if native.is_used():
        return kernels.code_lengths(counts, _MAX_LENGTH)
    used = np.flatnonzero(counts)
    used = used[np.argsort(counts[used], kind="stable")]
    found: list[int] = counts[used].tolist()
    depths = _depths(found)
    least = sum(found) >> _MAX_LENGTH
    while depths[0] > _MAX_LENGTH:  # rare values get shorter codes
        depths = _depths([max(n, least) for n in found])
        least += least // 2 + 1
    lengths = np.zeros(256, np.uint32)
    lengths[used] = depths
    return lengths


def _depths(counts: list[int]) -> list[int]:
    """The depths of the leaves of a tree with the least sum of products with these counts, which ascend (Huffman 1952).

    New nodes come in ascending order too, so the two lightest are the first of the leaves or of the nodes left.
    """
    n = len(counts)
    weights = [*counts, *[0] * (n - 1)]
    parents = [0] * (2 * n - 1)
    leaf, node = 0, n
    for new in range(n, 2 * n - 1):
        for _ in range(2):
            if node == new or (leaf < n and weights[leaf] <= weights[node]):
                child, leaf = leaf, leaf + 1
            else:
                child, node = node, node + 1
            weights[new] += weights[child]
            parents[child] = new
    depths = [0] * (2 * n - 1)
    for child in range(2 * n - 3, -1, -1):
        depths[child] = depths[parents[child]] + 1
    return depths[:n]


def _codes(weights: npt.NDArray[np.int64]) -> Counts:
    """The code of each value: those of the longest codes first, in order of the values (4.2.1.3)."""
    codes = np.zeros(256, np.uint32)
    order = np.argsort(weights, kind="stable")
    order = order[weights[order] > 0]
    spans = 1 << (weights[order] - 1)
    codes[order] = (np.cumsum(spans) - spans) >> (weights[order] - 1)
    return codes


def _stream(symbols: npt.NDArray[np.uint8], codes: Counts, lengths: Counts) -> bytes:
    """A stream is read backwards, from the highest bit that is set (4.2.2)."""
    if native.is_used():
        return kernels.huffman_stream(symbols, codes, lengths, _MAX_LENGTH * symbols.size)
    backwards = symbols[::-1]
    n_bits = lengths[backwards].astype(np.int64)
    ends = np.cumsum(n_bits)
    of_code = np.arange(ends[-1]) - np.repeat(ends - n_bits, n_bits)
    bits = np.repeat(codes[backwards], n_bits) >> of_code.astype(np.uint32) & 1
    return np.packbits(np.append(bits.astype(np.uint8), np.uint8(1)), bitorder="little").tobytes()
