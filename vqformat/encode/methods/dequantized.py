"""Lossless coding of floats that were integers or small floats: their codes, their grid and its scales are stored.

Such are weights that were dequantized, or trained for quantization. Every value that a decoder makes of the stage is
compared with the tensor's; where one differs the tensor is none of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode import tables
from ...decode.tables import Floats
from ...format.bits import Codes, code_dtype
from ...format.chunkwriter import EncodedTensor
from ...format.dtypes import BY_NAME
from ...format.layout import Layout, View, make_view
from ...format.stages import CodebookStage, ProgressionSource, Scale, TableSource
from . import affine, group_tables, packing
from .assemble import Collect, QuantizedStage, assemble, blocks_of_sum
from .grids import INTEGERS, KINDS, LARGEST_INTEGER, Groups, Units, estimate_scales, exact_scales, largest_unit
from .groupings import SAMPLE, Grouping, groupings
from .scales import group_size, narrowest

DTYPES = ("f16", "bf16", "f32", "f64")
_RUN, _RUNS = 32, 64  # elements of a run whose values are compared, and runs along an axis
# Of the values of a run that another one has too. Groups of 32 integers up to 127 have a sixth, up to 255 a twelfth;
# ordinary bf16 weights, of which there are 128 in an octave, have 3 to 6 %, other floats fewer.
_REPEATED = {"f16": 0.03, "bf16": 0.08, "f32": 0.03, "f64": 0.03}
_SAMPLE_OF_FLOATS = 32  # fewer do on a grid of floats: the largest value and some others tell the scale
_TRIED_GROUPS = 64  # whose scales are sought before those of all
_MOST_FAILED = 3  # grids that fit samples and not the tensor, until it is left as it is
_PIECE = 1 << 20
_SOLVED = 1 << 16  # elements whose scales are sought together: their float64 numbers fit a cache
_FEW_KEYS = 256  # points around zero whose numbers are kept in a byte: integers up to 127 have no others
_FEW_VALUES = 4096
_SHORT_TABLE_NBYTES = 1024  # of 256 values; where there are more a grid takes fewer bits
_FEW_ELEMENTS = 1 << 16  # of a tensor for which the bytes of a table matter


def encode(name: str, dtype: str, array: npt.NDArray[Any], *, collect: Collect = list) -> EncodedTensor | None:
    """A tensor as codes of a grid, every bit kept; None if it is on no grid.

    Args:
        array: C-contiguous, of the dtype.
        collect: See ``assemble.assemble``.
    """
    if dtype not in DTYPES or not looks_dequantized(array, _REPEATED[dtype]):
        return None
    values = array
    if dtype == "f64":
        with np.errstate(over="ignore"):
            values = array.astype(np.float32)
        if not np.array_equal(values.astype(np.float64), array):
            return None
    if not all(np.isfinite(piece).all() for piece in _pieces(values)):
        return None
    few, grids = _few_values(values, dtype), _on_grid(values, dtype)
    if grids:
        few = [(layout, stages) for layout, stages in few if len(stages[0].resident[0]) <= _SHORT_TABLE_NBYTES]
    else:
        grids = group_tables.stages(values)
    found = [assemble(name, dtype, array.shape, layout, stages, is_quick=True, collect=collect)
             for layout, stages in [*few, *grids]
             if _gives_back(stages, make_view(values.shape, False, layout), values)]  # fmt: skip
    return min(found, key=lambda encoded: encoded.stored_nbytes, default=None)


def looks_dequantized(array: npt.NDArray[Any], least: float) -> bool:
    """Whether values repeat within short runs, along rows or along columns: a look at some thousand elements.

    Args:
        least: Share of the values of a run that another one has too.
    """
    flat = array.reshape(-1)
    runs = [_spread_runs(flat)]
    if not runs[0].any():
        return True
    if array.ndim > 1:
        matrix = array.reshape(-1, array.shape[-1])
        every = max(1, matrix.shape[1] // _RUNS) | 1  # odd: columns of zeros may come at even distances
        start = matrix.shape[0] // 2 // _RUN * _RUN
        runs.append(matrix[start : start + _RUN, ::every].T)
    return any(_share_repeated(run) > least for run in runs)


def _spread_runs(flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
    n_runs = flat.size // _RUN
    if not n_runs:
        return flat[None]
    return flat[: n_runs * _RUN].reshape(n_runs, _RUN)[:: max(1, n_runs // _RUNS)]


def _share_repeated(runs: npt.NDArray[Any]) -> float:
    """The share of values, zeros apart, whose magnitude came before in their run."""
    magnitudes = np.sort(np.abs(runs.astype(np.float32)), axis=1)
    counted = magnitudes > 0
    repeated = (magnitudes[:, 1:] == magnitudes[:, :-1]) & counted[:, 1:]
    return float(repeated.sum() / max(1, counted.sum()))


def _pieces(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    flat = values.reshape(-1)
    return (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))


def _gives_back(stages: list[QuantizedStage], view: View, values: npt.NDArray[Any]) -> bool:
    """Whether a decoder makes of stages the very bits of a tensor."""
    words = f"<u{values.itemsize}"
    matrix = values.reshape(view.n_rows, view.n_columns).view(words)
    for block, decoded in blocks_of_sum(stages, view):
        with np.errstate(all="ignore"):
            given = decoded.astype(values.dtype).view(words)
        if not np.array_equal(given, matrix[block.row : block.row_end, block.column : block.column_end]):
            return False
    return True


Stages = list[tuple[Layout, list[QuantizedStage]]]  # what would do


def _few_values(values: npt.NDArray[Any], dtype: str) -> Stages:
    """A table of the values where there are few."""
    words = values.reshape(-1).view(f"<u{values.itemsize}")
    known = np.unique(words[:: max(1, words.size // _FEW_VALUES)])
    if known.size > min(_FEW_VALUES // 4, words.size // 2 + 1):
        return []
    for piece in _pieces(words):
        codes = np.minimum(np.searchsorted(known, piece), known.size - 1)
        if (known[codes] != piece).any():
            return _few_values_at_length(values, dtype)
    return _table_of(known, values, dtype)


def _few_values_at_length(values: npt.NDArray[Any], dtype: str) -> Stages:
    """The same where a sample does not have all values."""
    words = values.reshape(-1).view(f"<u{values.itemsize}")
    known = np.unique(words[:_PIECE])
    for start in range(_PIECE, words.size, _PIECE):
        known = np.union1d(known, words[start : start + _PIECE])
        if known.size > _FEW_VALUES:
            return []
    return _table_of(known, values, dtype)


def _table_of(known: npt.NDArray[Any], values: npt.NDArray[Any], dtype: str) -> Stages:
    """The stage of a table.

    Args:
        known: The words of all values, ascending.
    """
    if known.size > _FEW_VALUES:
        return []
    entries = known.view(values.dtype).astype(np.float32)
    order = np.lexsort((~np.signbit(entries), entries))  # -0 before 0
    ranks = np.empty(order.size, code_dtype(order.size))
    ranks[order] = np.arange(order.size)
    words = values.reshape(-1).view(known.dtype)
    codes = np.empty(words.size, ranks.dtype)
    for start, piece in zip(range(0, words.size, _PIECE), _pieces(words), strict=True):
        codes[start : start + _PIECE] = ranks[np.searchsorted(known, piece)]
    layout = Layout(n_row_axes=min(1, max(0, values.ndim - 1)))
    return [(layout, [_stage_of_table(entries[order], codes, make_view(values.shape, False, layout))])]


def _stage_of_table(
    entries: Floats, codes: npt.NDArray[Any], view: View, scale: Scale | None = None, of_scales: Sequence[bytes] = ()
) -> QuantizedStage:
    dtype = narrowest(entries)
    stage = CodebookStage(dim=1, entries=entries.size, source=TableSource(dtype), scale=scale)
    matrix = packing.as_codes(codes, entries.size).reshape(view.n_rows, view.n_columns)
    return QuantizedStage(stage, [tables.encode(entries, dtype), *of_scales], matrix)


def _on_grid(values: npt.NDArray[Any], dtype: str) -> Stages:
    """Grids: the one with the fewest scales, and if that has one scale only the next one too."""
    found: Stages = []
    n_failed = 0
    for grouping in groupings(values.shape) if values.ndim else ():
        is_one = not grouping.rows and not grouping.columns
        if is_one and values.size > _FEW_ELEMENTS:
            continue  # a table of the values serves as well
        if dtype == "bf16" and values.ndim == 1:
            continue  # all bf16 of an octave are on a grid; a table of the values does for a vector
        layout = Layout(n_row_axes=grouping.n_row_axes)
        matrix = grouping.matrix(values)
        samples = grouping.samples(matrix, dtype)
        for units in KINDS if samples else ():
            tops = [top for sample in samples for top in [largest_unit(sample, units)] if top is not None]
            if len(tops) < len(samples):
                continue
            likely = sorted(set(tops), key=tops.count, reverse=True)
            stage = _solve(matrix, dtype, grouping, units, likely=likely)
            if stage is not None:
                found.append((layout, [stage]))
                break
            n_failed += 1
        else:
            stages = [] if is_one else affine.stages(matrix, dtype, grouping)
            if stages:
                found.append((layout, stages))
        if (found and not is_one) or n_failed >= _MOST_FAILED:
            break
    return found


def _solve(
    matrix: npt.NDArray[Any], dtype: str, grouping: Grouping, units: Units, *, likely: list[float]
) -> QuantizedStage | None:
    """The stage that gives all values, if there is one.

    Args:
        likely: The largest units to try first.
    """
    groups = Groups.of(grouping.split(matrix), dtype)
    n = groups.values.shape[1]
    every = max(1, n // (SAMPLE if units is INTEGERS else _SAMPLE_OF_FLOATS))
    sample = groups.part(slice(None), slice(None, None, every))
    few = sample.part(slice(None, None, max(1, groups.peaks.size // _TRIED_GROUPS)))
    about = None if estimate_scales(few, units, likely) is None else estimate_scales(sample, units, likely)
    if about is None:
        return None
    scales = np.empty(about.shape[1], np.float32)
    keys, first_key = np.empty(groups.values.shape, np.uint8), 0  # numbers of points, from the first one
    for start in range(0, scales.size, max(1, _SOLVED // n)):
        piece = slice(start, start + max(1, _SOLVED // n))
        found = exact_scales(groups.part(piece), units, about[:, piece])
        if found is None:
            return None
        scales[piece] = found[0]
        points, of_piece = _points(found[1], units)
        if not start:
            first_key = max(0, points.size // 2 - _FEW_KEYS // 2)
        last_key = first_key + _FEW_KEYS - 1
        if keys.dtype == np.uint8 and (of_piece.min() < first_key or of_piece.max() > last_key):
            keys, first_key = np.add(keys, first_key, dtype=np.uint16), 0
        keys[piece] = of_piece - first_key
    codes = grouping.join(keys, (matrix.shape[0], matrix.shape[1]))
    counts = np.zeros(points.size, np.int64)
    for some in _pieces(codes):
        counts[first_key:] += np.bincount(some, minlength=points.size - first_key)
    first, last = np.flatnonzero(counts)[[0, -1]]
    largest = float(np.abs(points[counts > 0]).max())
    with np.errstate(over="ignore"):
        if not float(np.float32(largest) * scales.max()) <= BY_NAME[dtype].largest:  # VAL-002
            return None
    view = make_view(matrix.shape, False, Layout(n_row_axes=1))
    zero = int(np.flatnonzero((points == 0) & ~np.signbit(points))[0])
    scale = None
    if scales.size > 1:
        scale = Scale(narrowest(scales), group_size(grouping.rows, view.n_rows),
                      group_size(grouping.columns, view.n_columns))  # fmt: skip
    of_scales = [] if scale is None else [tables.encode(scales, scale.dtype)]
    has_negative_zero = counts[zero - 1] > 0
    if units is INTEGERS and not has_negative_zero and np.count_nonzero(counts) > (last - first) * 0.8:
        shifted = np.arange(points.size) - first
        if first < zero:  # no code for -0
            shifted[zero:] -= 1
            zero, last = zero - 1, last - 1
        step = np.float32(1) if scale is not None else scales[0]
        stage = CodebookStage(dim=1, entries=int(last - first + 1), source=ProgressionSource(int(zero - first)),
                              scale=scale)  # fmt: skip
        packed = _looked_up(shifted[first_key:], codes, stage.entries).reshape(view.n_rows, view.n_columns)
        return QuantizedStage(stage, [tables.encode(np.array([step]), "f32"), *of_scales], packed)
    used = np.flatnonzero(counts)
    ranks = np.zeros(points.size, np.intp)
    ranks[used] = np.arange(used.size)
    entries = points[used] if scale is not None else points[used] * scales[0]
    return _stage_of_table(entries, _looked_up(ranks[first_key:], codes, entries.size), view, scale, of_scales)


def _looked_up(table: npt.NDArray[np.intp], keys: Codes, entries: int) -> Codes:
    """The codes of keys, ``(n,)``."""
    of_keys = table.astype(code_dtype(entries))
    codes = np.empty(keys.size, of_keys.dtype)
    for start, piece in zip(range(0, keys.size, _PIECE), _pieces(keys), strict=True):
        codes[start : start + _PIECE] = of_keys[piece]
    return codes


def _points(signed: Floats, units: Units) -> tuple[Floats, npt.NDArray[np.int16]]:
    """All units with signs, ascending, -0 before 0, and which each of these is."""
    is_negative = np.signbit(signed)
    if units.positive is None or units.negative is None:
        magnitudes = np.arange(LARGEST_INTEGER + 1, dtype=np.float32)
        positive = negative = magnitudes
        found = np.abs(signed).astype(np.int16)
        of_negative = found
    else:
        positive, negative = units.positive.astype(np.float32), units.negative.astype(np.float32)
        found = np.searchsorted(positive, np.abs(signed)).astype(np.int16)
        of_negative = np.searchsorted(negative, np.abs(signed)).astype(np.int16)
    points = np.concatenate([-negative[::-1], positive])
    zero = negative.size
    keys: npt.NDArray[np.int16] = np.where(is_negative, np.int16(zero - 1) - of_negative, found + np.int16(zero))
    return points, keys
