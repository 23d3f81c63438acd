"""From codes to stored sections: the packing and the zstd parameters that give the fewest bytes (SPEC 4, 10)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import zstandard

from .. import bits
from ..bits import Codes, Planes
from ..container import TABLE_ENTRY_NBYTES, Section

# Literals only, nearly: on the packed codes of weights ordinary levels lose 0.2-0.7 bit a weight below 4 bits to
# spurious matches; these parameters stay within 1-2 % of the entropy.
_LITERALS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, chain_log=6, window_log=17, write_content_size=1
)
# What finds the structure that real weights also have: dead rows and columns, runs. Level 16 gains all but 0.2 % of
# what 19 does, at 3 to 5 times its speed; 14 and below gain next to nothing.
_MATCHES = zstandard.ZstdCompressionParameters.from_level(16, window_log=20, write_content_size=1)
_SAMPLE = 1 << 16  # codes on which packings are compared
_SMALL_NBYTES = 1 << 13  # where matches are tried on every occasion


def sections(payloads: Iterable[bytes]) -> list[Section]:
    """Sections for payloads of the same kind, each as small as it gets.

    Which zstd parameters serve best is found on the first payload that is not tiny, and used for the others.
    """
    matches_pay: bool | None = None
    result = []
    for plain in payloads:
        best = Section(plain)
        literals = _compress(plain, _LITERALS)
        if matches_pay is not False or len(plain) < _SMALL_NBYTES:
            matches = _compress(plain, _MATCHES)
            if len(plain) >= _SMALL_NBYTES:
                matches_pay = len(matches) < 0.995 * len(literals)
            literals = min(literals, matches, key=len)
        # A frame costs a decoder time: it must earn at least one part in 200 (and SEC-004 asks for less than plain).
        if len(literals) < min(len(plain), 0.995 * len(plain) + 1):
            best = Section(literals, is_zstd=True)
        result.append(best)
    return result


def _compress(plain: bytes, parameters: zstandard.ZstdCompressionParameters) -> bytes:
    stored: bytes = zstandard.ZstdCompressor(compression_params=parameters).compress(plain)
    return stored


def quick_nbytes(plain: bytes) -> int:
    """About the bytes that ``sections`` would store, found quickly."""
    nbytes = min(len(plain), len(_compress(plain, _LITERALS)))
    return min(nbytes, len(_compress(plain, _MATCHES))) if len(plain) < _SMALL_NBYTES else nbytes


def choose_planes(codes: Codes, entries: int, *, compress: bool = True) -> Planes:
    """The packing of SPEC section 10 that stores these codes in the fewest bytes.

    Args:
        codes: ``(n,)``; a sample of them is tried.
        compress: Whether sections may be compressed; if not, packings differ by their plain size only.
    """
    sample = codes[:_SAMPLE]
    best: Planes = ()
    best_nbytes = None
    for planes in _candidates(entries):
        payloads = bits.pack(sample, entries, planes)
        nbytes = TABLE_ENTRY_NBYTES * len(payloads) + sum(
            quick_nbytes(plain) if compress else len(plain) for plain in payloads
        )
        if best_nbytes is None or nbytes < best_nbytes:
            best, best_nbytes = planes, nbytes
    return best


def _candidates(entries: int) -> list[Planes]:
    """Dense, whole digits in a byte, and a low digit of small base under a high one."""
    if entries == 1:
        return [()]
    candidates: list[Planes] = [()]
    if entries <= 256:
        most = _digits_per_byte(entries)
        candidates += [((entries, n),) for n in range(most, 0, -1) if n in (1, 2, most)]
    for low in (3, 5, 15, 256):
        high = -(-entries // low)
        if 2 <= high <= 256 and low < entries:
            candidates.append(((low, _digits_per_byte(low)), (high, _digits_per_byte(high))))
    return candidates


def _digits_per_byte(base: int) -> int:
    n = 1
    while base ** (n + 1) <= 256:
        n += 1
    return n


def as_codes(codes: np.ndarray, entries: int) -> Codes:
    """Codes in the dtype of bits.py, flat."""
    return np.ascontiguousarray(codes, dtype=bits.code_dtype(entries)).reshape(-1)
