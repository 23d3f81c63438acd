"""From codes to stored sections: the packing and the zstd parameters that give the fewest bytes (SPEC 4, 10)."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable

import numpy as np
import zstandard

from ...format import bits
from ...format.bits import Codes, Planes
from ...format.sections import TABLE_ENTRY_NBYTES, Section

Parameters = zstandard.ZstdCompressionParameters
# Literals only, nearly: on the packed codes of weights ordinary levels lose 0.2-0.7 bit a weight below 4 bits to
# spurious matches; these parameters stay within 1-2 % of the entropy.
_LITERALS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, chain_log=6, window_log=17, write_content_size=1
)
# What finds the structure that real weights also have: dead rows and columns, runs. Long matches, and prices of the
# second pass: on exponents, where level 16 loses to literals alone, it gains 0.1 to 0.2 %; on grids it never loses,
# at the same speed.
_MATCHES = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_BTULTRA2, search_log=3, hash_log=17, chain_log=17, window_log=20, min_match=6,
    target_length=64, write_content_size=1,
)  # fmt: skip
# What finds the short matches of structured integers.
_SHORT_MATCHES = zstandard.ZstdCompressionParameters.from_level(16, window_log=20, write_content_size=1)
_QUICK = (_LITERALS, _SHORT_MATCHES)
_ALL = (_LITERALS, _MATCHES, _SHORT_MATCHES)
_SAMPLE = 1 << 16  # codes on which packings are compared
_STRETCHES = 8  # that they come from
_PLANES_GAIN = 0.01  # of the bytes, for which a second plane is accepted
_SMALL_NBYTES = 1 << 13  # where matches are tried on every occasion
_TINY_NBYTES = 1 << 10  # where long matches are not: models have thousands of such sections


def sections(payloads: Iterable[bytes]) -> list[Section]:
    """Sections for payloads of the same kind, each as small as it gets.

    Which zstd parameters serve best is found on the first payload that is not tiny, and used for the others.
    """
    best: list[Parameters] | None = None
    result = []
    for plain in payloads:
        if len(plain) < _SMALL_NBYTES:
            candidates = _QUICK if len(plain) < _TINY_NBYTES else _ALL
            stored = min((_compress(plain, parameters) for parameters in candidates), key=len)
        elif best is None:
            frames = [_compress(plain, parameters) for parameters in _ALL]
            stored = min(frames, key=len)
            # Literals cost an encoder next to nothing, so that the others have to earn their time
            pays = len(stored) < 0.999 * len(frames[0])
            best = [_LITERALS, _ALL[frames.index(stored)]] if pays else [_LITERALS]
        else:
            stored = min((_compress(plain, parameters) for parameters in best), key=len)
        # A frame costs a decoder time: it must earn at least one part in 200 (and SEC-004 asks for less than plain).
        is_frame = len(stored) < min(len(plain), 0.995 * len(plain) + 1)
        result.append(Section(stored, is_zstd=True) if is_frame else Section(plain))
    return result


def literal_sections(payloads: Iterable[bytes]) -> list[Section]:
    """Sections for payloads in which hardly anything repeats: many times as fast as ``sections``."""
    result = []
    for plain in payloads:
        stored = _compress(plain, _LITERALS)
        result.append(Section(stored, is_zstd=True) if len(stored) < 0.995 * len(plain) else Section(plain))
    return result


class _Compressors(threading.local):
    """Compressors by parameters, made once for each thread: they are costly to make and not to be shared."""

    def __init__(self) -> None:
        self.by_parameters: dict[int, zstandard.ZstdCompressor] = {}


_compressors = _Compressors()


def _compress(plain: bytes, parameters: Parameters) -> bytes:
    compressor = _compressors.by_parameters.get(id(parameters))
    if compressor is None:
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        _compressors.by_parameters[id(parameters)] = compressor
    stored: bytes = compressor.compress(plain)
    return stored


def quick_nbytes(plain: bytes) -> int:
    """About the bytes that ``sections`` would store, found quickly."""
    nbytes = min(len(plain), len(_compress(plain, _LITERALS)))
    return min(nbytes, len(_compress(plain, _SHORT_MATCHES))) if len(plain) < _SMALL_NBYTES else nbytes


def choose_planes(codes: Codes, entries: int, *, compress: bool = True) -> Planes:
    """The packing of SPEC section 10 that stores these codes in the fewest bytes.

    Two planes must save at least 1 %: one is decoded several times as fast.

    Args:
        codes: ``(n,)``; a sample of them is tried.
        compress: Whether sections may be compressed; if not, packings differ by their plain size only.
    """
    sample = _spread_sample(codes)
    best: Planes = ()
    best_nbytes = math.inf
    for planes in _candidates(entries):
        payloads = bits.pack(sample, entries, planes)
        nbytes: float = TABLE_ENTRY_NBYTES * len(payloads) + sum(
            quick_nbytes(plain) if compress else len(plain) for plain in payloads
        )
        if len(planes) > 1:  # after all the others, in _candidates
            nbytes /= 1 - _PLANES_GAIN
        if nbytes < best_nbytes:
            best, best_nbytes = planes, nbytes
    return best


def plain_bits(entries: int) -> float:
    """Bits of a code in the shortest packing, not compressed."""
    return min(sum(8 / n for _, n in planes) if planes else bits.code_width(entries) for planes in _candidates(entries))


def _spread_sample(codes: Codes) -> Codes:
    """Stretches from all over the codes: where rows are sorted, the first are unlike the others."""
    if codes.size <= _SAMPLE:
        return codes
    length = _SAMPLE // _STRETCHES
    starts = [(codes.size - length) * i // (_STRETCHES - 1) for i in range(_STRETCHES)]
    return np.concatenate([codes[start : start + length] for start in starts])


def _candidates(entries: int) -> list[Planes]:
    """Dense, whole digits in a byte, and at the end a low digit of small base under a high one."""
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
