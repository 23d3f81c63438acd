"""From byte planes of floats to stored sections, at the speed of a Huffman coder (SPEC 8).

Most planes are noise, which a histogram tells, or exponents, which have hardly more structure than their histogram.
Searches for matches take 50 times as long as Huffman coding: they are made where a trial or the size says they pay.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...format.sections import Section
from . import huffman, packing

_COUNTED = 1 << 13  # bytes of a plane whose values are counted
_NOISE_BITS = 7.96  # of entropy for each byte, from which on a frame would not earn its time, see packing.py
_TRIED = 1 / 128  # of the bytes of a plane that are searched for matches as a trial
_LEAST_TRIED, _MOST_TRIED = 1 << 11, 1 << 14
_LEAST_BITS = 0.9  # of entropy of zeros and ones, from which on a bit each is good enough
_LOCAL_PAYS = 0.998  # of the bytes with a table for each 128 KiB that those with more tables have to stay below
_PAYS = 0.15  # of the bytes of literals that a trial has to save, so that all of a plane is searched
_MAY_PAY = 0.03  # the same so that a moderate search is made of the first block, and of the others if it pays there
_REPEATED = 0.9  # of the bytes of literals, below which matches are worth a thorough search in a small plane
_SHORT = 1 << 16  # bytes of a plane of which zstd's shorter tables are a share that counts
_MORE_EQUAL, _MOST_EQUAL = 1.5, 0.05  # shares of equal neighbours, times and beside that by chance: none are runs
_PAYS_IF_ODD = 0.05  # the same where literals take another number of bytes than their entropy
_AS_COUNTED = (0.97, 1.1)  # sizes of Huffman codes over entropies where there is nothing else to find
_SEARCHED = 1 / 16  # of the bytes of a plane that may be searched because of their size


class PlaneMaker:
    """Makes the sections for the same plane of all blocks, one after another.

    Args:
        nbytes: Plain bytes of all of them.
        is_quick: Whether small planes are quick, too: models of small tensors have hundreds.
    """

    def __init__(self, nbytes: int, *, is_quick: bool = False) -> None:
        self._nbytes = nbytes
        self._n_searched = int(nbytes * _SEARCHED)
        self._gain: float | None = None
        self._literals = [packing.LITERALS, packing.LOCAL_LITERALS]
        self._make_small = _quick_section if is_quick else _thorough_section

    def make(self, plain: bytes) -> Section:
        """The section of the next block, given its plain bytes."""
        if len(plain) < packing.SMALL_NBYTES:
            return self._make_small(plain)
        counts = _count(plain)
        bits = _entropy(counts)
        if bits > _NOISE_BITS:
            return Section(plain)
        coded = huffman.frame(plain)
        if coded is not None and not counts[2:].any() and bits > _LEAST_BITS:
            return packing.as_section(plain, coded)
        frames = [] if coded is None else [coded]
        if coded is None or len(plain) < _SHORT or _has_runs(plain, counts):
            frames = [packing.compress(plain, how) for how in self._literals] + frames
            if len(self._literals) > 1 and len(frames[1]) > _LOCAL_PAYS * len(frames[0]):
                self._literals = self._literals[:1]  # as in most tensors: not tried on their other blocks
        stored = min(frames, key=len)
        expected = bits / 8 * len(plain)
        is_odd = bits > 0 and not _AS_COUNTED[0] * expected <= len(frames[0]) <= _AS_COUNTED[1] * expected
        if self._gain is None:
            self._gain = _trial_gain(plain, self._nbytes)
        if self._gain > _PAYS or (is_odd and (self._gain > _PAYS_IF_ODD or self._n_searched >= len(plain))):
            self._n_searched -= len(plain)
            stored = min(stored, packing.compress(plain, packing.QUICKER_MATCHES), key=len)
        elif self._gain > _MAY_PAY:
            found = packing.compress(plain, packing.MODERATE_MATCHES)
            if len(found) > (1 - _MAY_PAY) * len(stored):
                self._gain = 0  # the other blocks are not searched
            stored = min(stored, found, key=len)
        return packing.as_section(plain, stored)


def _has_runs(plain: bytes, counts: npt.NDArray[np.intp]) -> bool:
    """Whether more neighbours are equal than by chance, as in rows of zeros: zstd finds these at once."""
    values = np.frombuffer(plain, np.uint8)
    by_chance = float(((counts / counts.sum()) ** 2).sum())
    return int(np.count_nonzero(values[1:] == values[:-1])) > (_MORE_EQUAL * by_chance + _MOST_EQUAL) * values.size


def _thorough_section(plain: bytes) -> Section:
    return packing.SectionMaker().make(plain)


def _quick_section(plain: bytes) -> Section:
    """The section of a small plane. A thorough search is made only where a quick one saves bytes."""
    literals, matches = (packing.compress(plain, how) for how in packing.QUICKEST)
    if len(matches) < _REPEATED * len(literals):
        return _thorough_section(plain)
    frames = [literals, matches]
    if min(map(len, frames)) < len(plain):
        frames.append(packing.compress(plain, packing.QUICKER_MATCHES))
    return packing.as_section(plain, min(frames, key=len))


def _trial_gain(plain: bytes, nbytes: int) -> float:
    """What share of its bytes a search for matches saves, by a part.

    Args:
        nbytes: Of all blocks of the plane: more of them earn a larger part.
    """
    part = plain[trial_part(len(plain), nbytes)]
    found, literals = (len(packing.compress(part, how)) for how in (packing.QUICKER_MATCHES, packing.LITERALS))
    return 1 - found / literals


def trial_part(block_nbytes: int, nbytes: int) -> slice:
    """What part of a block is searched for matches as a trial.

    Args:
        nbytes: Of all blocks of the plane.
    """
    length = min(max(int(nbytes * _TRIED), _LEAST_TRIED), _MOST_TRIED)
    start = max(0, block_nbytes - length) // 2
    return slice(start, start + length)


def _count(plain: bytes) -> npt.NDArray[np.intp]:
    """How often each value is among some bytes from all over a plane."""
    step = max(1, len(plain) // _COUNTED) | 1  # odd, so that it goes through all columns of most matrices
    return np.bincount(np.frombuffer(plain, np.uint8)[::step], minlength=256)


def _entropy(counts: npt.NDArray[np.intp]) -> float:
    """Bits of a value; what a sample has too few is added (Miller 1955)."""
    n = int(counts.sum())
    shares = counts[counts > 0] / n
    return float(-(shares * np.log2(shares)).sum() + (shares.size - 1) / (2 * n * np.log(2)))
