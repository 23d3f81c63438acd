"""The kernels for byte planes, as Python calls them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _address, _kernels


def split_planes(words: npt.NDArray[Any], *, rotates: bool) -> npt.NDArray[np.uint8]:
    """Split words into byte planes (SPEC RAW-003, RAW-004); ``decode.raw`` has the twin.

    Args:
        words: ``(n,)`` of uint16, uint32 or uint64, contiguous, little-endian.
        rotates: Whether each word is rotated left by one bit before.

    Returns:
        ``(bytes of a word, n)``, the lowest byte first.
    """
    assert _kernels is not None and words.dtype.kind == "u" and words.dtype.itemsize in (2, 4, 8)
    planes = np.empty((words.itemsize, words.size), np.uint8)
    _kernels.planes_split(_address(words), words.size, words.itemsize, rotates, _address(planes))
    return planes


def split_floats(words: npt.NDArray[np.uint16], below: int) -> list[bytes]:
    """Split the codes of bfloat16 into the planes of ``encode.methods.float_codes``, which has the twin.

    Args:
        words: ``(n,)``, contiguous, little-endian.
        below: What is taken from the magnitude of a word to give its code; a smaller one gives 0.
    """
    assert _kernels is not None and words.dtype == np.uint16 and 0 <= below < 1 << 15
    planes = [np.empty(-(-words.size // per_byte), np.uint8) for per_byte in (4, 2, 1)]
    _kernels.planes_split_floats(_address(words), words.size, below, *map(_address, planes))
    return [plane.tobytes() for plane in planes]


def code_lengths(counts: npt.NDArray[np.uint32], longest: int) -> npt.NDArray[np.uint32]:
    """Bits of the Huffman code of each of 256 values; ``encode.methods.huffman`` has the twin.

    Args:
        counts: ``(256,)``, at least two not 0, of fewer than 2^32 values.
        longest: Bits of the longest code, 8 or more.
    """
    assert _kernels is not None and counts.dtype == np.uint32 and counts.shape == (256,) and longest >= 8
    assert np.count_nonzero(counts) > 1
    lengths = np.empty(256, np.uint32)
    _kernels.planes_code_lengths(_address(counts), longest, _address(lengths))
    return lengths


def count_bytes(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """How often each of the 256 values occurs among fewer than 2^32 bytes; ``np.bincount`` is the twin."""
    assert _kernels is not None and data.dtype == np.uint8
    counts = np.empty(256, np.uint32)
    _kernels.planes_count(_address(data), data.size, _address(counts))
    return counts


def huffman_stream(
    symbols: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint32], lengths: npt.NDArray[np.uint32], n_bits: int
) -> bytes:
    """The Huffman stream of some bytes (RFC 8878, 4.2.2); ``encode.methods.huffman`` has the twin.

    Args:
        codes, lengths: ``(256,)``, for each value; lengths are at most 11.
        n_bits: The bits that all codes take together.
    """
    assert _kernels is not None and symbols.dtype == np.uint8 and lengths.max() <= 11
    stream = np.empty(n_bits // 8 + 9, np.uint8)
    packed = codes << 8 | lengths
    nbytes = _kernels.planes_huffman(_address(symbols), symbols.size, _address(packed), _address(stream))
    return stream[:nbytes].tobytes()
