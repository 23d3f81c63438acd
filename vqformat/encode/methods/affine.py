"""Groups of floats that are scale · integer + offset, to the bit: weights dequantized from codes with a zero point.

Two codebook stages say this (SPEC 7.4): a progression with scales, and a progression of one entry, 1, with the offsets
as scales. Each float tells an interval for the sum. All intervals of a group have a scale and an offset in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode import tables
from ...decode.tables import Floats
from ...format.dtypes import BY_NAME
from ...format.layout import Layout, make_view
from ...format.stages import CodebookStage, ProgressionSource, Scale
from .assemble import QuantizedStage
from .grids import Doubles, bounds, shortest
from .groupings import Grouping
from .scales import group_size, narrowest

LARGEST_SPAN = 255  # of the integers of a group
_MOST_OFF = 0.35  # steps that a value may be off an integer; where rounding leaves more, nothing tells integers
# Units in the last place of the largest value: two values were rounded, in float32 products that may be larger, too
_ERRORS = {"f16": 1.5, "bf16": 1.5, "f32": 8.0, "f64": 8.0}
_BISECTIONS = 18
_NEAR = (0, 1, -1, 2, -2, 3, -3)  # floats counted from the middle of what is possible that may be the scale
_OF_SCALES = ("f16", "bf16", "f32")  # dtypes, the first that does is taken
_MOST_SHIFTED = 2  # added to integers whose products are rounded: a group may not have its least one
_TRIED_GROUPS = 6  # whose integers are sought at first
_PIECE = 1 << 16  # elements that are solved together


def stages(matrix: npt.NDArray[Any], dtype: str, grouping: Grouping) -> list[QuantizedStage]:
    """The stages of scale · integer + offset that give all values; none if there are none."""
    view = make_view(matrix.shape, False, Layout(n_row_axes=1))
    rows, columns = grouping.sizes(matrix)
    if view.n_rows % rows or view.n_columns % columns:
        return []
    groups = grouping.split(matrix)
    every = max(1, len(groups) // _TRIED_GROUPS)
    likely = _likely_spans(list(groups[every // 2 :: every]), dtype)
    solved = None if likely is None else _solve(groups, dtype, likely)
    if solved is None:
        return []
    entries = int(solved.codes.max()) + 1
    with np.errstate(over="ignore"):
        most = np.float32(entries - 1) * solved.scales.max() + np.abs(solved.offsets).max()
        if not float(most) <= BY_NAME[dtype].largest:  # VAL-002
            return []
    sizes = group_size(grouping.rows, view.n_rows), group_size(grouping.columns, view.n_columns)
    codes = grouping.join(solved.codes, matrix.shape)
    parts = (entries, 0, solved.scales, codes), (1, -1, solved.offsets, np.broadcast_to(np.uint8(0), codes.shape))
    of_all = []
    for n, zero, of_groups, of_stage in parts:
        scale = Scale(narrowest(of_groups), *sizes)
        stage = CodebookStage(dim=1, entries=n, source=ProgressionSource(zero), scale=scale)
        one = tables.encode(np.ones(1, np.float32), "f32")
        of_all.append(QuantizedStage(stage, [one, tables.encode(of_groups, scale.dtype)], of_stage))
    return of_all


@dataclass(frozen=True)
class _Solved:
    """The parameters of all groups.

    Attributes:
        scales, offsets: ``(n_groups,)``.
        codes: ``(n_groups, n)``.
    """

    scales: Floats
    offsets: Floats
    codes: npt.NDArray[np.uint8]


def _likely_spans(samples: list[npt.NDArray[Any]], dtype: str) -> list[int] | None:
    """How far the largest integer of a group is from the smallest, the most usual first; None if groups are not so.

    Args:
        samples: Groups ``(n,)``, whole.
    """
    found = []
    for sample in samples:
        spans = np.arange(1, LARGEST_SPAN + 1)
        repeated = np.broadcast_to(sample, (spans.size, sample.size))
        fits = _codes(repeated, spans, dtype)[1]
        if not fits.any():
            return None
        found.append(int(spans[fits][0]))
    return sorted(set(found), key=lambda span: (-found.count(span), -span))


def _solve(groups: npt.NDArray[Any], dtype: str, likely: list[int]) -> _Solved | None:
    """Scales, offsets and integers that give all groups; None if there are none.

    Args:
        groups: ``(n_groups, n)``, finite.
        likely: As ``_likely_spans`` found it.
    """
    n_groups, n = groups.shape
    codes = np.empty(groups.shape, np.uint8)
    found = {of_scales: (np.empty(n_groups, np.float32), np.empty(n_groups, np.float32), np.empty(n_groups, np.uint8))
             for of_scales in _OF_SCALES}  # fmt: skip
    spans = [*likely, *(span for span in range(max(likely), 0, -1) if span not in likely)]
    for piece in _pieces(n_groups, n):
        of_piece = _spanned(groups[piece], dtype, spans)
        if of_piece is None:
            return None
        codes[piece] = of_piece
        intervals = _Intervals.of(groups[piece], of_piece, dtype)
        if intervals is None:
            return None
        best = intervals.best_scales()
        for of_scales, (scales, offsets, shifts) in list(found.items()):
            given = intervals.solution(best, of_scales)
            if given is None:
                del found[of_scales]
                continue
            scales[piece], offsets[piece], shifts[piece] = given
        if not found:
            return None
    scales, offsets, shifts = next(iter(found.values()))
    if shifts.any():
        if int(codes.max()) + int(shifts.max()) > LARGEST_SPAN:
            return None
        codes += shifts[:, None]
    return _Solved(scales, offsets, codes)


def _pieces(n_groups: int, n: int) -> Iterator[slice]:
    step = max(1, _PIECE // n)
    return (slice(start, min(start + step, n_groups)) for start in range(0, n_groups, step))


def _codes(groups: npt.NDArray[Any], spans: npt.NDArray[Any], dtype: str) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """The nearest integers of groups, if the largest of each is its span, and whether they are near enough."""
    values = groups.astype(np.float64)
    least, most = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    width = np.where(most > least, most - least, 1.0)
    per_step = spans[:, None] / width
    places = (values - least) * per_step
    codes = np.rint(places)
    low, high = bounds(np.maximum(np.abs(least), np.abs(most)), dtype)
    tolerance = _ERRORS[dtype] * (high - low) * per_step
    fits = (np.abs(places - codes).max(axis=1) <= tolerance[:, 0]) & (tolerance[:, 0] <= _MOST_OFF)
    return codes, fits


def _spanned(groups: npt.NDArray[Any], dtype: str, spans: list[int]) -> npt.NDArray[np.uint8] | None:
    """The integers of groups by the first span that fits each; None if some have none."""
    codes = np.zeros(groups.shape, np.uint8)
    is_open = groups.min(axis=1) < groups.max(axis=1)
    for span in spans:
        open_groups = np.flatnonzero(is_open)
        if not open_groups.size:
            break
        found, fits = _codes(groups[open_groups], np.full(open_groups.size, span), dtype)
        codes[open_groups[fits]] = found[fits]
        is_open[open_groups[fits]] = False
    return None if is_open.any() else codes


@dataclass(frozen=True)
class _Intervals:
    """What each integer of each group may stand for.

    Attributes:
        values: ``(n_groups, n_integers)`` of the tensor's dtype.
        is_used: Whether the group has this integer.
        low, high: From, to; infinite where it has not.
    """

    values: npt.NDArray[Any]
    is_used: npt.NDArray[np.bool_]
    low: Doubles
    high: Doubles
    dtype: str

    @classmethod
    def of(cls, groups: npt.NDArray[Any], codes: npt.NDArray[np.uint8], dtype: str) -> _Intervals | None:
        """None if an integer of a group stands for two values."""
        rows = np.arange(len(groups))[:, None]
        values = np.zeros((len(groups), int(codes.max()) + 1), groups.dtype)
        is_used = np.zeros(values.shape, np.bool_)
        values[rows, codes], is_used[rows, codes] = groups, True
        word = f"<u{groups.itemsize}"
        if not np.array_equal(values[rows, codes].view(word), np.ascontiguousarray(groups).view(word)):
            return None
        exact = values.astype(np.float64)
        near, far = bounds(np.abs(exact), dtype)
        is_negative = exact < 0
        low, high = np.where(is_negative, -far, near), np.where(is_negative, -near, far)
        return cls(values, is_used, np.where(is_used, low, -np.inf), np.where(is_used, high, np.inf), dtype)

    def best_scales(self) -> Doubles:
        """The scales that leave the offsets the most room. That room is a concave function of the scale."""
        numbers = np.arange(self.low.shape[1])
        rows = np.arange(len(self.low))
        exact = self.values.astype(np.float64)
        last = (self.low.shape[1] - 1) - np.argmax(self.is_used[:, ::-1], axis=1)
        width = np.maximum(last, 1)
        least = np.where(last > 0, (self.low[rows, last] - self.high[:, 0]) / width, 0.0)
        most = np.where(last > 0, (self.high[rows, last] - self.low[:, 0]) / width, 0.0)
        best = np.where(last > 0, (exact[rows, last] - exact[:, 0]) / width, 0.0)
        for _ in range(_BISECTIONS):
            products = numbers * best[:, None]
            ceiling, floor = (self.high - products).argmin(axis=1), (self.low - products).argmax(axis=1)
            least, most = np.where(floor > ceiling, best, least), np.where(floor < ceiling, best, most)
            best = np.where(floor == ceiling, best, (least + most) / 2)
        return best

    def solution(self, best: Doubles, dtype: str) -> tuple[Floats, Floats, npt.NDArray[np.uint8]] | None:
        """Scales of a dtype near the best, offsets, and what is added to the integers; None if a group has none."""
        scales, offsets = np.zeros(best.size, np.float32), np.zeros(best.size, np.float32)
        shifts = np.zeros(best.size, np.uint8)
        is_rounded = dtype == "f32" and self.dtype in ("f32", "f64")  # products are, as finely as the values
        open_groups = np.arange(best.size)
        for shift in range(_MOST_SHIFTED + 1) if is_rounded else (0,):
            for steps in _NEAR:
                part = self._part(open_groups)
                guess = _beside(best[open_groups], dtype, steps)
                is_open = np.ones(open_groups.size, np.bool_)
                for of_offsets in part._offsets(guess, shift, is_rounded=is_rounded):
                    fits = is_open & part._gives(guess, of_offsets, shift)
                    where = open_groups[fits]
                    scales[where], offsets[where], shifts[where] = guess[fits], of_offsets[fits], shift
                    is_open &= ~fits
                open_groups = open_groups[is_open]
                if not open_groups.size:
                    return scales, offsets, shifts
        return None

    def _part(self, groups: npt.NDArray[np.intp]) -> _Intervals:
        return _Intervals(self.values[groups], self.is_used[groups], self.low[groups], self.high[groups], self.dtype)

    def _offsets(self, scales: Floats, shift: int, *, is_rounded: bool) -> Iterator[Floats]:
        """What the offsets may be."""
        with np.errstate(invalid="ignore"):  # a scale that is too large for its dtype is infinite, and fits no group
            products = (np.arange(self.low.shape[1]) + shift) * scales[:, None].astype(np.float64)
        low, high = (self.low - products).max(axis=1), (self.high - products).min(axis=1)
        yield _shortest_of(low, np.maximum(low, high))
        middle = (low + high) / 2
        for steps in _NEAR if is_rounded else _NEAR[:1]:
            yield np.sign(middle).astype(np.float32) * _beside(np.abs(middle), "f32", steps)

    def _gives(self, scales: Floats, offsets: Floats, shift: int) -> npt.NDArray[np.bool_]:
        """Whether a decoder makes the values of each group of these (SPEC 7.4, 9.4, VAL-001)."""
        with np.errstate(all="ignore"):
            sums = np.arange(shift, shift + self.low.shape[1], dtype=np.float32) * scales[:, None]
            sums += offsets[:, None]
            given = sums.astype(self.values.dtype)
        word = f"<u{given.itemsize}"
        same: npt.NDArray[np.bool_] = ((given.view(word) == self.values.view(word)) | ~self.is_used).all(axis=1)
        return same


def _shortest_of(low: Doubles, high: Doubles) -> Floats:
    """The float32 with the most zeros at its end of each interval, of any sign."""
    is_negative = high < 0
    least, most = np.where(is_negative, -high, low), np.where(is_negative, -low, high)
    found = shortest(np.maximum(least, 0), np.maximum(most, 0))
    return np.where(least <= 0, np.float32(0), np.where(is_negative, -found, found))


def _beside(values: Doubles, dtype: str, steps: int) -> Floats:
    """The nearest floats of a dtype, or those some steps beside them."""
    to = BY_NAME[dtype].numpy
    with np.errstate(all="ignore"):
        rounded = values.astype(np.float32).astype(to)
    words = rounded.view(f"<u{to.itemsize}").astype(np.int64) + steps
    return tables.widen(np.maximum(words, 0).astype(f"<u{to.itemsize}").tobytes(), dtype)
