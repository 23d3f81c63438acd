"""Choosing the packing of codes and the zstd parameters of sections that give the fewest bytes (SPEC 4, 10)."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import zstandard

from ...format import bits
from ...format.bits import Codes, Planes
from ...format.sections import TABLE_ENTRY_NBYTES, Section

Parameters = zstandard.ZstdCompressionParameters
# Almost only literals. On packed codes of weights, ordinary zstd levels lose 0.2 to 0.7 bits a weight below 4 bits,
# because of accidental matches. These parameters are within 1 to 2 % of the entropy
LITERALS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, chain_log=6, window_log=17, write_content_size=1
)
# The same with a table for each 16 KiB: tensors of rows that differ, such as embeddings of positions or rare words
LOCAL_LITERALS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, chain_log=6, window_log=14, write_content_size=1
)
# For the structure that weights also have: rows and columns of zeros, runs. Only long matches are searched, and their
# cost is estimated in a second pass. On exponents, where level 16 is worse than literals, it gains 0.1 to 0.2 %; on
# grids it is never worse, at the same speed
_MATCHES = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_BTULTRA2, search_log=3, hash_log=17, chain_log=17, window_log=20, min_match=6,
    target_length=64, write_content_size=1,
)  # fmt: skip
# Most of this gain in half the time
QUICKER_MATCHES = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_BTOPT, search_log=1, hash_log=15, chain_log=15, window_log=18, min_match=6,
    target_length=32, write_content_size=1,
)  # fmt: skip
# Half of it in a quarter of that
MODERATE_MATCHES = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_LAZY2, search_log=1, hash_log=17, chain_log=17, window_log=18, min_match=6,
    write_content_size=1,
)  # fmt: skip
# To tell what is worth a search
QUICKEST = (LITERALS, MODERATE_MATCHES)
# For the short matches of structured integers
_SHORT_MATCHES = zstandard.ZstdCompressionParameters.from_level(16, window_log=20, write_content_size=1)
# The same sooner, for comparisons of ways to split
_TRIAL = zstandard.ZstdCompressionParameters.from_level(5, window_log=18, write_content_size=1)
_QUICK = (LITERALS, _SHORT_MATCHES)
_ALL = (LITERALS, _MATCHES, _SHORT_MATCHES)
_SAMPLE = 1 << 16  # codes on which packings are compared
_STRETCHES = 8  # places from which this sample is taken
_PLANES_GAIN = 0.01  # least share of bytes that a second plane must save
SMALL_NBYTES = 1 << 13  # for a smaller section all parameters are tried
_TINY_NBYTES = 1 << 10  # for a smaller section long matches are not tried: models have thousands of these


class CodeMatrix(Protocol):
    """Codes ``(R, C)``: an array, or something that makes a part of one when it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: tuple[slice, slice], /) -> npt.NDArray[Any]: ...


class SectionMaker:
    """Makes sections of payloads of the same kind, one after another, each as small as possible.

    The best zstd parameters are determined with the first payload that is not small, and used for the others.
    """

    def __init__(self) -> None:
        self._best: list[Parameters] | None = None

    def make(self, plain: bytes) -> Section:
        """The section of the next payload, given its plain bytes."""
        if len(plain) < SMALL_NBYTES:
            candidates = _QUICK if len(plain) < _TINY_NBYTES else _ALL
            stored = min((compress(plain, parameters) for parameters in candidates), key=len)
        elif self._best is None:
            frames = [compress(plain, parameters) for parameters in _ALL]
            stored = min(frames, key=len)
            # Searching matches takes much more time than literals, so it must save at least 0.1 %
            pays = len(stored) < 0.999 * len(frames[0])
            self._best = [LITERALS, _ALL[frames.index(stored)]] if pays else [LITERALS]
        else:
            stored = min((compress(plain, parameters) for parameters in self._best), key=len)
        return as_section(plain, stored)


def sections(payloads: Iterable[bytes]) -> list[Section]:
    """The sections that a ``SectionMaker`` makes of payloads of the same kind."""
    maker = SectionMaker()
    return [maker.make(plain) for plain in payloads]


def as_section(plain: bytes, stored: bytes) -> Section:
    """A section that holds the frame ``stored``, or the plain bytes if the frame saves too little."""
    # Decompression takes time, so a frame must save at least 0.5 % (SEC-004 requires at least one byte)
    is_frame = len(stored) < min(len(plain), 0.995 * len(plain) + 1)
    return Section(stored, is_zstd=True) if is_frame else Section(plain)


def literal_sections(payloads: Iterable[bytes]) -> list[Section]:
    """Make sections of payloads in which hardly anything repeats: many times as fast as ``sections``."""
    return [as_section(plain, compress(plain, LITERALS)) for plain in payloads]


class _Compressors(threading.local):
    """Compressors by parameters. Each thread has its own, because they cannot be shared and are costly to make."""

    def __init__(self) -> None:
        self.by_parameters: dict[int, zstandard.ZstdCompressor] = {}


_compressors = _Compressors()


def compress(plain: bytes, parameters: Parameters) -> bytes:
    """A zstd frame."""
    compressor = _compressors.by_parameters.get(id(parameters))
    if compressor is None:
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        _compressors.by_parameters[id(parameters)] = compressor
    stored: bytes = compressor.compress(plain)
    return stored


def quick_nbytes(plain: bytes) -> int:
    """A quick estimate of the bytes that ``sections`` would store."""
    nbytes = min(len(plain), len(compress(plain, LITERALS)))
    return min(nbytes, len(compress(plain, _SHORT_MATCHES))) if len(plain) < SMALL_NBYTES else nbytes


def trial_nbytes(plain: bytes) -> int:
    """An estimate of the bytes that the best of all zstd parameters gives, for comparisons."""
    return min(len(plain), len(compress(plain, LITERALS)), len(compress(plain, _TRIAL)))


def choose_planes(codes: Codes, entries: int, *, compress: bool = True) -> Planes:
    """The packing of SPEC section 10 that stores codes in the fewest bytes.

    Two planes must save at least 1 %, because one plane is decoded several times as fast.

    Args:
        codes: A sample; see ``sample_of``.
        compress: Whether sections may be compressed. If not, plain sizes are compared.
    """
    best: Planes = ()
    best_nbytes = math.inf
    for planes in _candidates(entries):
        payloads = bits.pack(codes, entries, planes)
        nbytes: float = TABLE_ENTRY_NBYTES * len(payloads) + sum(
            quick_nbytes(plain) if compress else len(plain) for plain in payloads
        )
        if len(planes) > 1:  # after all the others, in _candidates
            nbytes /= 1 - _PLANES_GAIN
        if nbytes < best_nbytes:
            best, best_nbytes = planes, nbytes
    return best


def plain_bits(entries: int) -> float:
    """Bits of a code in the shortest packing, without compression."""
    return min(sum(8 / n for _, n in planes) if planes else bits.code_width(entries) for planes in _candidates(entries))


def sample_of(codes: CodeMatrix, entries: int) -> Codes:
    """Codes from several places of a matrix, because the first rows differ from the others if rows are sorted.

    Args:
        codes: ``(R, C)``.
        entries: Entries of the codebook.
    """
    n_rows, n_columns = codes.shape
    size = n_rows * n_columns
    if size <= _SAMPLE:
        return as_codes(codes[:, :], entries)
    length = _SAMPLE // _STRETCHES
    stretches = []
    for i in range(_STRETCHES):
        row, column = divmod((size - length) * i // (_STRETCHES - 1), n_columns)
        rows = as_codes(codes[row : row - (-(column + length) // n_columns), :], entries)
        stretches.append(rows[column : column + length])
    return np.concatenate(stretches)


def _candidates(entries: int) -> list[Planes]:
    """The packings to compare: dense; one plane; at the end two planes, a low digit of small base and a high one."""
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
    """Codes as a one-dimensional array of the dtype that ``format.bits`` uses."""
    return np.ascontiguousarray(codes, dtype=bits.code_dtype(entries)).reshape(-1)
