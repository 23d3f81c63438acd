"""Scales whose products with the values of a grid are given floats, to the bit: integers, nf4, fp4, fp8.

A float that was rounded from scale · unit tells an interval for the scale. The intervals of all values of a group have
the scale in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ...forks import cached_property
from ...format.dtypes import BY_NAME

Doubles = npt.NDArray[np.float64]
LARGEST_INTEGER = 255
_PASSES = 4  # bf16 integers up to 127 take three to narrow down
_QUICK = 8  # values of a group that a largest unit must fit before all are tried
_FIRST = 16  # values on which all largest units are tried for one group
_PIECE = 1 << 16
_FEW_EDGES = 16
_MOST_TRIALS = 8  # of largest units for the average group
_HEADROOM = 4.0  # how much larger than the likely ones a largest unit may be
_PLACES = (0.5, 0.2, 0.8, 0.05, 0.95, 0.35, 0.65)  # of a guess between bounds: bf16 leaves wide ones
# QLoRA (Dettmers et al. 2023), as in bitsandbytes; its fp4 as there
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = (0.0, 0.0052083334885537624, 0.1666666716337204, 0.25, 0.3333333432674408, 0.5, 0.6666666865348816, 1.0)
_ROUNDING = {"f16": (10, -14), "bf16": (7, -126), "f32": (23, -126), "f64": (23, -126)}  # fraction bits, least exponent


@dataclass(frozen=True)
class Units:
    """The values of a grid for scale 1, as magnitudes.

    Attributes:
        positive, negative: Ascending, from 0 on; None where they are all integers.
        tops: Units that may be the largest of a group.
    """

    tops: tuple[float, ...]
    positive: Doubles | None = None
    negative: Doubles | None = None

    @classmethod
    def table(cls, positive: Sequence[float], negative: Sequence[float], tops: Sequence[float]) -> Units:
        values = np.sort(np.abs(positive))  # no -0
        return cls(tuple(tops), values, values if positive is negative else np.sort(np.abs(negative)))

    def nearest(self, magnitudes: Doubles, is_negative: npt.NDArray[np.bool_]) -> Doubles:
        """The magnitude of the nearest unit of the same sign."""
        if self.positive is None or self.negative is None:
            return np.minimum(np.rint(magnitudes), LARGEST_INTEGER)
        found: Doubles = self.positive[_count_below(self._middles[0], magnitudes, np.greater)]
        if self.positive is not self.negative:
            found = np.where(is_negative, self.negative[_count_below(self._middles[1], magnitudes, np.greater)], found)
        return found

    def below(self, magnitudes: Doubles, is_negative: npt.NDArray[np.bool_]) -> Doubles:
        """The magnitude of the largest unit of the same sign that is not above."""
        if self.positive is None or self.negative is None:
            return np.minimum(np.floor(magnitudes), LARGEST_INTEGER)
        found: Doubles = self.positive[_count_below(self.positive[1:], magnitudes, np.greater_equal)]
        if self.positive is not self.negative:
            of_negative = self.negative[_count_below(self.negative[1:], magnitudes, np.greater_equal)]
            found = np.where(is_negative, of_negative, found)
        return found

    @cached_property
    def _middles(self) -> tuple[Doubles, Doubles]:
        assert self.positive is not None and self.negative is not None
        return (self.positive[1:] + self.positive[:-1]) / 2, (self.negative[1:] + self.negative[:-1]) / 2


def _count_below(edges: Doubles, magnitudes: Doubles, is_above: np.ufunc) -> npt.NDArray[Any]:
    """How many edges, which ascend, each magnitude is above."""
    if edges.size > _FEW_EDGES:
        return np.searchsorted(edges, magnitudes, side="left" if is_above is np.greater else "right")
    n = np.zeros(magnitudes.shape, np.uint8)  # several times as fast as a search
    for edge in edges:
        n += is_above(magnitudes, edge)
    return n


def _float8(dtype: Any) -> Units:
    """Products with scales need the highest octave only: a power of two can go from the unit to the scale."""
    values = np.arange(128, dtype=np.uint8).view(dtype).astype(np.float64)
    finite = values[np.isfinite(values)]
    return Units.table(finite, finite, finite[finite > finite.max() / 2][::-1])


INTEGERS = Units(tuple(map(float, range(1, LARGEST_INTEGER + 1))))
KINDS = (
    Units.table([v for v in _NF4 if v >= 0], [-v for v in _NF4 if v <= 0], [1.0]),
    Units.table(_FP4, _FP4, [1.0]),
    INTEGERS,
    _float8(ml_dtypes.float8_e4m3fn),
    _float8(ml_dtypes.float8_e5m2),
)


def bounds(magnitudes: Doubles, dtype: str) -> tuple[Doubles, Doubles]:
    """What is rounded to each of these values of a dtype: from, to."""
    fraction_bits, least = _ROUNDING[dtype]
    significands, exponents = np.frexp(magnitudes)
    half = np.ldexp(0.5, np.maximum(exponents - 1, least) - fraction_bits)
    is_power = (significands == 0.5) & (exponents - 1 > least)  # values below are twice as dense
    return magnitudes - np.where(is_power, half / 2, half), magnitudes + half


@dataclass
class Groups:
    """Values of groups that have a scale each.

    Attributes:
        values: ``(n_groups, n)`` of the tensor's dtype, finite; short groups are filled up with zeros.
        peaks: ``(n_groups,)``, the largest magnitude of each group.
    """

    values: npt.NDArray[Any]
    peaks: Doubles
    dtype: str

    @classmethod
    def of(cls, values: npt.NDArray[Any], dtype: str) -> Groups:
        peaks = np.empty(values.shape[0])
        step = max(1, _PIECE // values.shape[1])
        for start in range(0, peaks.size, step):
            peaks[start : start + step] = np.abs(values[start : start + step].astype(np.float32)).max(axis=1)
        return cls(values, peaks, dtype)

    def part(self, groups: Any, columns: slice = slice(None)) -> Groups:
        return Groups(self.values[groups, columns], self.peaks[groups], self.dtype)

    def scale_bounds(self, units: Units, tops: Doubles) -> tuple[Doubles, Doubles]:
        """The scales that give each group, if its largest unit is ``tops``: from, to; none if the latter is less."""
        is_one = not self.values.strides[0]  # the same group again and again, see _repeated
        exact = self.values[: 1 if is_one else None].astype(np.float64)
        magnitudes, is_negative = np.abs(exact), np.signbit(exact)
        low, high = bounds(magnitudes, self.dtype)
        least, most = (bound / tops for bound in bounds(self.peaks, self.dtype))
        least = np.maximum(least, most / 4)  # of subnormal peaks the lower bound may be 0
        for _ in range(_PASSES if self.values.size else 0):
            of_low = units.nearest(low / most[:, None], is_negative)
            of_high = units.nearest(high / least[:, None], is_negative)
            is_certain = (of_low == of_high) & (of_high > 0)
            divisors = np.where(is_certain, of_high, 1.0)
            new_least = np.maximum(least, np.where(is_certain, low / divisors, 0.0).max(axis=1))
            new_most = np.minimum(most, np.where(is_certain, high / divisors, np.inf).min(axis=1))
            is_off = units.below(high / least[:, None], is_negative) < low / most[:, None]  # no unit lies between
            new_most[is_off.any(axis=1)] = 0
            is_done = bool((new_least > new_most).all()) or bool((is_certain | (of_high == 0)).all())
            least, most = new_least, new_most
            if is_done:
                break
            is_dead = least > most
            least, most = np.where(is_dead, 1.0, least), np.where(is_dead, 0.5, most)
        return least, most


def largest_unit(group: Groups, units: Units) -> float | None:
    """The largest unit of one group, None if it is not on such a grid."""
    tops = np.array(units.tops)
    for length in (_FIRST, 4 * _FIRST, group.values.shape[1]):
        part = group.values[:, :length]
        if units is INTEGERS and length == _FIRST:
            tops = tops[_may_fit(_repeated(part, group, tops.size), tops)]
        least, most = _repeated(part, group, tops.size).scale_bounds(units, tops)
        tops = tops[least <= most]
        if not tops.size:
            return None
    return float(tops[0])


def _repeated(part: npt.NDArray[Any], group: Groups, n: int) -> Groups:
    """Part of one group ``n`` times, without copies."""
    return Groups(np.broadcast_to(part, (n, part.shape[1])), np.broadcast_to(group.peaks, n), group.dtype)


def estimate_scales(sample: Groups, units: Units, likely: Sequence[float]) -> Doubles | None:
    """Where the scale of each group lies, 0 for groups of zeros; None if some are not on such a grid.

    Args:
        sample: Of the values; the peaks are those of the groups.
        likely: The largest units to try first.

    Returns:
        ``(2, n_groups)``: from, to.
    """
    found = np.zeros((2, sample.peaks.size))
    open_groups = np.flatnonzero(sample.peaks)
    highest = min(units.tops[-1], _HEADROOM * max(likely)) if units is INTEGERS else math.inf
    others = [top for top in units.tops if top not in likely and top <= highest]
    step = max(1, _PIECE // sample.values.shape[1])
    n_trials = _MOST_TRIALS * open_groups.size
    for top in [*likely, *sorted(others, key=lambda top: abs(top - likely[0]))]:
        n_tried = 0
        for start in range(0, open_groups.size, step):
            piece = open_groups[start : start + step]
            if units is INTEGERS and top not in likely:
                piece = piece[_may_fit(sample.part(piece), np.full(piece.size, top))]
            n_tried += piece.size
            if not piece.size:
                continue
            least, most = sample.part(piece).scale_bounds(units, np.full(piece.size, top))
            fits = least <= most
            found[:, piece[fits]] = least[fits], most[fits]
        open_groups = open_groups[found[1, open_groups] == 0]
        n_trials -= n_tried
        if not open_groups.size:
            return found
        if n_trials < 0:
            break
    return None


def _may_fit(sample: Groups, tops: Doubles) -> npt.NDArray[np.bool_]:
    """Whether some values of each group may be integers, if the largest are ``tops``: a quick look."""
    ratios = np.abs(sample.values[:, :_QUICK].astype(np.float64)) * (tops / sample.peaks)[:, None]
    tolerances = ratios * 0.5 ** _ROUNDING[sample.dtype][0] + 1e-6
    off = np.abs(ratios - np.rint(ratios)) - tolerances
    fits: npt.NDArray[np.bool_] = off.max(axis=1) <= 0
    return fits


def exact_scales(groups: Groups, units: Units, about: Doubles) -> tuple[Floats, Floats] | None:
    """Scales and units whose products are these groups, to the bit but for the sign of zeros.

    Args:
        about: Where the scale of each group lies, as ``estimate_scales`` found it.

    Returns:
        ``(n_groups,)`` scales, as short as can be, and ``(n_groups, n)`` units with signs; None if there are none.
    """
    scales = np.zeros(groups.peaks.shape, np.float32)
    signed = np.zeros(groups.values.shape, np.float32)
    open_groups = np.arange(scales.size)
    for place in _PLACES:
        part = groups if open_groups.size == scales.size else groups.part(open_groups)
        guess = about[0, open_groups] + place * (about[1, open_groups] - about[0, open_groups])
        fits, found, of_part = _scales_near(part, units, guess)
        scales[open_groups[fits]], signed[open_groups[fits]] = found[fits], of_part[fits]
        open_groups = open_groups[~fits]
        if not open_groups.size:
            return scales, signed
    return None


def _scales_near(groups: Groups, units: Units, guess: Doubles) -> tuple[npt.NDArray[np.bool_], Floats, Floats]:
    """Whether each group has a scale with the units that a guess of it leads to, the scales and the units."""
    exact = groups.values.astype(np.float64)
    magnitudes, is_negative = np.abs(exact), np.signbit(exact)
    low, high = bounds(magnitudes, groups.dtype)
    found = units.nearest(magnitudes / np.where(guess > 0, guess, 1.0)[:, None], is_negative)
    is_unit = found > 0
    divisors = np.where(is_unit, found, 1.0)
    least = np.where(is_unit, low / divisors, 0.0).max(axis=1)
    most = np.where(is_unit, high / divisors, np.inf).min(axis=1)
    signed = np.where(is_negative, -found, found).astype(np.float32)
    is_zero = ~is_unit.any(axis=1)
    least[is_zero] = most[is_zero] = 0
    scales = shortest(least, most)
    fits = _gives(groups, scales, signed)
    if not fits.all():  # the bounds are included where ties go to them only
        others = np.flatnonzero(~fits)
        middles = ((least + most) / 2)[others].astype(np.float32)
        fits[others] = _gives(groups.part(others), middles, signed[others])
        scales[others] = middles
    return fits, scales, signed


def _gives(groups: Groups, scales: Floats, signed: Floats) -> npt.NDArray[np.bool_]:
    """Whether each group is what a decoder makes of its scale and units (SPEC 9.4, VAL-001)."""
    with np.errstate(all="ignore"):
        values = (scales[:, None] * signed).astype(BY_NAME[groups.dtype].numpy)
    same: npt.NDArray[np.bool_] = (values == groups.values).all(axis=1)
    return same


def shortest(least: Doubles, most: Doubles) -> Floats:
    """The float32 with the most zeros at its end of each interval; the middle where there is none."""
    first = least.astype(np.float32)
    first = np.where(first < least, np.nextafter(first, np.float32(np.inf)), first)
    last = most.astype(np.float32)
    last = np.where(last > most, np.nextafter(last, np.float32(0)), last)
    low, high = first.view(np.uint32).astype(np.int64), last.view(np.uint32).astype(np.int64)
    words = ((least + most) / 2).astype(np.float32).view(np.uint32).astype(np.int64)
    is_open = low <= high
    for zeros in range(23, -1, -1):
        rounded = (low + (1 << zeros) - 1) >> zeros << zeros
        fits = is_open & (rounded <= high)
        words[fits] = rounded[fits]
        is_open &= ~fits
    shortest: Floats = words.astype(np.uint32).view(np.float32)
    return shortest
