"""The preset ``small``: every weight on a trellis's grid, entropy-coded by the scales of its row and column."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...decode.tables import Floats
from ...errors import EncodeError
from ...format.dtypes import BY_NAME
from ...format.layout import Layout
from ...format.stages import Trellis
from ..methods.assemble import BLOCK_ELEMENTS
from ..methods.layout import by_rows, view_matrix
from ..report import as_decoded, energy
from . import error_feedback, error_weights, tiles, trellis, viterbi
from .contexts import BITS_PER_HALVING, Contexts, find_contexts
from .decorrelate import FINER, LARGEST_POINT, PRICE, Hysteresis, find_plan
from .entropy_coding import CodedTensor
from .transform import find_kernel

# At low rates squared errors of means of cells are least where the price of a bit rises instead of the step: more
# weights are 0, the others have finer values. (To answers of networks these matter less, see ``magnitudes``.) This
# begins below _LOW_RATE bits of a code: for each bit less the step grows by _COARSER of what would save a bit, and the
# price doubles _DEARER times
_LOW_RATE, _COARSER, _DEARER = 1.7, 0.4, 2.5
_N_STATES = 256  # 2 % smaller than 32 states at one bit a weight, 1 % at two; decoding is the same
_N_FEEDBACK_STATES = 8  # with more the errors are smaller, but no more answers are right
_FEWEST_INPUTS = 8  # of which sums of errors are kept small
_MOST_MEANS = 256  # in a table: f16 rounds larger ones by more than they are from the grid's points
_MOST_BLOCK_ELEMENTS = BLOCK_ELEMENTS * 3 // 2


@dataclass(frozen=True)
class Quantized:
    """A tensor on a trellis's grid.

    Attributes:
        energy, noise: Sums of squares of its values and of the errors.
        kind: Of its plan, see ``decorrelate.Hysteresis``.
    """

    coded: CodedTensor
    energy: float
    noise: float
    kind: tuple[int, bool]


def quantize(
    name: str, dtype: str, shape: tuple[int, ...], values: Floats, step: float, *, output_axis: int = 0,
    is_table: bool = False, least_noise: bool = False, factors: error_feedback.Factors | None = None,
    row_scales: Floats | None = None, hysteresis: Hysteresis | None = None,
) -> Quantized:  # fmt: skip
    """Put a tensor on a trellis's grid.

    Args:
        values: The tensor as reals, see ``orient.reals``; at least one axis, finite.
        step: Of a scalar grid of about the same noise.
        output_axis: Axis of the layer's outputs; the others are its inputs.
        is_table: Whether its rows are looked up one by one, so that they stay rows; goes without factors.
        least_noise: Whether the best SQNR is wanted: values are the means of their cells, unless they are too many, or
            with a transform the grid's points times what comes nearest to such means. Else they are the grid's points,
            of the same energy as the weights: means are smaller, and so would be all activations.
        factors: Of the layer's inputs, if they are known.
        row_scales: Of a table whose rows are looked up, see ``lookups``; goes without factors.
        hysteresis: How it was coded at the step before.

    Raises:
        EncodeError: The factors are of another number of inputs, or the scales of another number of rows.
    """
    is_table = values.ndim < 2 or (factors is None and (row_scales is not None or is_table))
    can_transform = not is_table and factors is None and values.ndim == len(shape)
    kernel = find_kernel(shape, output_axis) if can_transform else None
    if factors is None and not is_table and values.shape[output_axis] < 2:  # such as a depthwise kernel of Keras
        output_axis = int(np.argmax(values.shape))
    layout = by_rows(values.shape) if is_table else _inputs_as_rows(values.ndim, output_axis)
    matrix = np.ascontiguousarray(view_matrix(values, layout))
    known = factors.spread.shape[0] if factors is not None else row_scales.size if row_scales is not None else None
    if known is not None and known != matrix.shape[0]:
        raise EncodeError(f"tensor {name!r} has {matrix.shape[0]} {'rows' if is_table else 'inputs'}, its calibration"
                          f" {known}")  # fmt: skip
    n_groups = 1 if factors is None else factors.spread.shape[1]
    if matrix.shape[1] % n_groups:
        raise EncodeError(f"tensor {name!r} has {matrix.shape[1]} outputs, its calibration {n_groups} groups of them")
    if factors is not None:
        row_scales = factors.steps
    furthest = float(np.abs(matrix).max(initial=0)) / (1.0 if row_scales is None else float(row_scales.min()))
    tiny = float(np.finfo(np.float32).tiny)
    step = max(step * FINER, furthest / LARGEST_POINT, tiny)
    unit = np.float32(step) if row_scales is None else np.float32(step) * row_scales[:, None]
    largest = BY_NAME[dtype].largest
    if kernel is not None and kernel.layout != layout:
        in_order = np.ascontiguousarray(view_matrix(values, kernel.layout))
        plan = find_plan(in_order, kernel.taps, step, unit, largest, least_noise=least_noise, hysteresis=hysteresis)
        if plan.transform is not None:
            layout, matrix = kernel.layout, in_order
        del in_order  # not held beside the matrix while paths are searched
        if plan.transform is None:
            plan = find_plan(matrix, None, step, unit, largest, least_noise=least_noise, hysteresis=hysteresis)
    else:
        taps = kernel.taps if kernel is not None else () if can_transform and values.ndim == 2 else None
        plan = find_plan(matrix, taps, step, unit, largest, least_noise=least_noise, hysteresis=hysteresis)
    contexts, transform = plan.contexts, plan.transform
    points, price = plan.points(matrix, unit), PRICE
    if least_noise and factors is None and transform is None and contexts.busy_bits < _LOW_RATE:
        finest = max(float(np.abs(points).max(initial=0)) / (2 * _MOST_MEANS - 4), tiny / step)  # that leaves a table
        if finest < 1:
            finer, price = _at_low_rate(contexts.busy_bits)
            finer = max(finer, finest)
            points /= np.float32(finer)
            step *= finer
            contexts = find_contexts(points)
    width = None if factors is None else tiles.band_width(matrix.shape[1], error_feedback.TILE_COLUMNS)
    path = viterbi.TRELLISES[_N_STATES if factors is None else _N_FEEDBACK_STATES]
    unit_rows = 1 if transform is None else transform.size
    layout, grid = _cut(layout, matrix.shape, plan.contexts.expected_bits, width, path, unit=unit_rows)
    if factors is not None:
        indices, books = _quantize_with_feedback(points, contexts, grid, factors)
    else:
        weights = None
        if not least_noise and (power := error_weights.power_at(contexts.expected_bits)):
            whole = replace(plan, components=()).points(matrix, unit) if plan.components else points
            weights = error_weights.weights_of(whole, points, power)
            del whole
        rates = trellis.find_rates(points, contexts, grid, price, weights)
        keeps_sums = layout.n_row_axes > 0 and not is_table and matrix.shape[0] >= _FEWEST_INPUTS
        if keeps_sums:
            shares = None if transform is None else transform.sums
            indices, books = trellis.quantize_keeping_sums(points, contexts, grid, rates, weights, shares=shares)
        else:
            indices, books = trellis.quantize(points, contexts, grid, rates, weights)
    table = None
    reach = int(np.abs(indices).max(initial=0)) + 1
    if least_noise and transform is not None:
        step *= trellis.gain(points, indices, books)
    elif least_noise and reach <= _MOST_MEANS:
        table = (trellis.centroids(points, indices, books, reach) * step).astype(np.float32)
    coded = CodedTensor(name, dtype, shape, layout, grid.tile, grid.trellis, contexts, indices, books, step, table,
                        row_scales, plan.components, transform)  # fmt: skip
    error = as_decoded(coded.values_as_coded(), dtype) - matrix
    return Quantized(coded, energy(matrix), energy(error), plan.kind)


def _at_low_rate(bits: float) -> tuple[float, float]:
    """What the step is multiplied by for the least squared error at the rate that it leads to, and the price of a bit.

    Args:
        bits: That codes would have at the step as it is.
    """
    below = _LOW_RATE - bits
    return 2.0 ** (-(1 - _COARSER) * below / BITS_PER_HALVING), PRICE * 2.0 ** (_DEARER * below)


def _quantize_with_feedback(
    points: Floats, contexts: Contexts, grid: trellis.Grid, factors: error_feedback.Factors
) -> tuple[trellis.Indices, trellis.Books]:
    """Twice: at rates found without feedback, then at those that it led to."""
    weights = np.square(factors.typical_spread / factors.spread).astype(np.float32)
    of_columns = np.repeat(weights, points.shape[1] // weights.shape[1], axis=1) if weights.shape[1] > 1 else weights
    rates = trellis.find_rates(points, contexts, grid, PRICE, of_columns)
    indices, books = error_feedback.quantize(points, contexts, grid, rates, factors)
    rates = trellis.count_rates(indices, books, contexts, PRICE, rates.reach)
    return error_feedback.quantize(points, contexts, grid, rates, factors)


def _inputs_as_rows(rank: int, output_axis: int) -> Layout:
    """So that errors can be made up for from row to row."""
    axis = output_axis % rank
    axes = (*(i for i in range(rank) if i != axis), axis)
    return Layout(None if axes == tuple(range(rank)) else axes, rank - 1)


def _cut(
    layout: Layout, shape: tuple[int, int], bits: float, width: int | None, path: Trellis, *, unit: int
) -> tuple[Layout, trellis.Grid]:
    """How a matrix is cut into blocks, of whole units of rows, and these into sequences.

    Args:
        width: Columns of a sequence, if that is said.
    """
    n_rows, n_columns = shape
    rows, columns = n_rows, n_columns
    if tiles.cuts_rows(n_columns):
        rows, columns = 1, BLOCK_ELEMENTS
    elif n_rows * n_columns > _MOST_BLOCK_ELEMENTS:
        rows = max(unit, BLOCK_ELEMENTS // n_columns // unit * unit)
    tile = tiles.choose_tile(rows, columns, bits, width, in_whole=(rows, columns) != shape)
    if rows < n_rows:
        tile = _in_units(tile[0], unit), tile[1]
        rows -= rows % tile[0]  # whole tiles, which then are the same as without blocks
    if columns < n_columns:
        columns -= columns % tile[1]
    block_columns = columns if columns < n_columns else 0
    block_rows = rows if rows < n_rows or block_columns else 0
    grid = trellis.Grid(tile, 0 if block_columns else block_rows, path)
    return replace(layout, block_rows=block_rows, block_columns=block_columns), grid


def _in_units(height: int, unit: int) -> int:
    """The largest height, of at most this, of which whole ones make whole units, or whole units make one."""
    if height >= unit:
        return height - height % unit
    return max(n for n in range(1, height + 1) if unit % n == 0)
