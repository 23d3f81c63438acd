"""The preset ``small``: trellis-coded quantization of a tensor, with contexts by the scales of rows and columns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ...decode.tables import Floats
from ...errors import EncodeError
from ...format.dtypes import BY_NAME
from ...format.layout import Layout
from ...format.stages import Trellis
from ..methods.assemble import BLOCK_ELEMENTS
from ..methods.layout import ShortFloats, by_rows
from ..sums import Energy
from . import error_feedback, error_weights, tiles, trellis, viterbi
from .bands import Source, bands, largest, size_of
from .coded_tensor import CodedTensor
from .coder import Coder
from .contexts import BITS_PER_HALVING, find_contexts
from .decorrelate import FINER, LARGEST_POINT, PRICE, Hysteresis, Plan, find_plan
from .error_weights import ErrorWeights
from .transform import find_kernel

# If values are means of cells, the squared error at low rates is least if the price of a bit rises more than the step:
# more weights become 0, and the others have finer values. (For the outputs of networks this is not best, see
# error_weights.py.) It is done below _LOW_RATE bits a code. For each bit less, the step grows by the share _COARSER of
# what would save a bit, and the price doubles _DEARER times
_LOW_RATE, _COARSER, _DEARER = 1.7, 0.4, 2.5
_N_STATES = 256  # files are smaller than with 32 states: 2 % at 1 bit a weight, 1 % at 2; decoding takes the same time
FEEDBACK_ROUNDS = 2  # of quantizing with feedback: the second has rates from the first
_N_FEEDBACK_STATES = 8  # more states reduce the errors, but not those of the model's answers
_FEWEST_INPUTS = 8  # with fewer inputs, sums of errors are not kept small
_MOST_MEANS = 256  # largest index in a table of means: f16 rounds larger ones by more than their offset from the grid
_MOST_BLOCK_ELEMENTS = BLOCK_ELEMENTS * 3 // 2
_TOGETHER, _FEWEST_WHOLE = 16, 4  # a block has a multiple of so many sequences if it has this many times as many rows
_HELD_NBYTES = 1 << 26  # a larger matrix is not in memory together with its codes; its rows are made when needed


@dataclass(frozen=True)
class Quantized:
    """A tensor that is quantized to the grid of a trellis.

    Attributes:
        coded: The tensor, without tables.
        energy, noise: Sums of squares of its values and of its errors.
        plan: Its plan, for the next step of a search.
    """

    coded: CodedTensor
    energy: float
    noise: float
    plan: Plan


@dataclass(frozen=True)
class Settings:
    """What is known of a tensor, and what is wanted of its codes.

    Attributes:
        output_axis: Axis of the layer's outputs. The other axes are its inputs.
        is_table: Whether its rows are looked up one by one, so that they must stay rows. Ignored with factors.
        least_noise: Whether to maximise the SQNR. Then values are the means of their cells, if these are not too many;
            with a transform they are grid points times the factor that is nearest to such means. If false, values are
            grid points, which have the same energy as the weights: means have less, and activations would shrink.
        factors: Factors for error feedback, if the inputs of the layer are known.
        row_scales: Relative steps of the rows of a table, see table_rows.py; not together with factors.
        hysteresis: The preference for the kind of the previous step.
    """

    output_axis: int = 0
    is_table: bool = False
    least_noise: bool = False
    factors: error_feedback.Factors | None = None
    row_scales: Floats | None = None
    hysteresis: Hysteresis | None = None


@dataclass(frozen=True)
class Planned:
    """A tensor as a matrix, and the plan for it.

    Attributes:
        layout: Layout of the matrix, without blocks.
        source: The matrix.
        plan: Its plan.
        step: Step of the grid.
        unit: The step times the scales of the rows.
        row_scales: These scales; None without.
        is_table: Whether rows are looked up one by one.
        has_factors: Whether there are factors for error feedback.
    """

    layout: Layout
    source: Source
    plan: Plan
    step: float
    unit: Floats | np.float32
    row_scales: Floats | None
    is_table: bool
    has_factors: bool

    @property
    def n_states(self) -> int:
        """States of the trellis."""
        return _N_FEEDBACK_STATES if self.has_factors else _N_STATES


def make_plan(
    name: str, dtype: str, shape: tuple[int, ...], values: ShortFloats, step: float, *, settings: Settings
) -> Planned:
    """Find the plan for a tensor. Arguments and errors are those of ``quantize``."""
    factors, row_scales, hysteresis = settings.factors, settings.row_scales, settings.hysteresis
    least_noise, output_axis = settings.least_noise, settings.output_axis
    is_table = values.ndim < 2 or (factors is None and (row_scales is not None or settings.is_table))
    can_transform = not is_table and factors is None and values.ndim == len(shape)
    kernel = find_kernel(shape, output_axis) if can_transform else None
    if factors is None and not is_table and values.shape[output_axis] < 2:  # a depthwise kernel of Keras, for example
        output_axis = int(np.argmax(values.shape))
    layout = by_rows(values.shape) if is_table else _inputs_as_rows(values.ndim, output_axis)
    source = Source(values, layout)
    known = factors.spread.shape[0] if factors is not None else row_scales.size if row_scales is not None else None
    if known is not None and known != source.shape[0]:
        raise EncodeError(f"tensor {name!r} has {source.shape[0]} {'rows' if is_table else 'inputs'}, its calibration"
                          f" {known}")  # fmt: skip
    n_groups = 1 if factors is None else factors.spread.shape[1]
    if source.shape[1] % n_groups:
        raise EncodeError(f"tensor {name!r} has {source.shape[1]} outputs, its calibration {n_groups} groups of them")
    if factors is not None:
        row_scales = factors.steps
    furthest = source.largest / (1.0 if row_scales is None else float(row_scales.min()))
    tiny = float(np.finfo(np.float32).tiny)
    step = max(step * FINER, furthest / LARGEST_POINT, tiny)
    unit = np.float32(step) if row_scales is None else np.float32(step) * row_scales[:, None]
    limit = BY_NAME[dtype].largest
    kept = hysteresis.plan_for(step) if hysteresis is not None else None
    plan = None
    if kernel is not None and kernel.layout != layout and (kept is None or kept.transform is not None):
        in_order = Source(values, kernel.layout)
        plan = find_plan(in_order, kernel.taps, step, unit, limit, least_noise=least_noise, hysteresis=hysteresis)
        if plan.transform is not None:
            layout, source = kernel.layout, in_order
        del in_order  # to save memory
    if plan is None or (plan.transform is None and kernel is not None and kernel.layout != layout):
        taps: tuple[int, ...] | None = () if kernel is None and can_transform and values.ndim == 2 else None
        if kernel is not None and kernel.layout == layout:
            taps = kernel.taps
        plan = find_plan(source, taps, step, unit, limit, least_noise=least_noise, hysteresis=hysteresis)
    return Planned(layout, source, plan, step, unit, row_scales, is_table, factors is not None)


def quantize(
    name: str, dtype: str, shape: tuple[int, ...], values: ShortFloats, step: float, *, settings: Settings | None = None
) -> Quantized:
    """Quantize a tensor to the grid of a trellis.

    Args:
        name, dtype, shape: Of the tensor.
        values: The tensor as reals, see ``methods.layout.short_reals``; at least one axis, finite.
        step: Step of a scalar grid with about the same noise.
        settings: None for the defaults.

    Raises:
        EncodeError: The number of inputs of the factors, or of rows of the scales, is not that of the tensor.
    """
    settings = settings or Settings()
    planned = make_plan(name, dtype, shape, values, step, settings=settings)
    layout, source, plan, unit = planned.layout, planned.source, planned.plan, planned.unit
    step, row_scales, is_table = planned.step, planned.row_scales, planned.is_table
    least_noise, factors = settings.least_noise, settings.factors
    tiny = float(np.finfo(np.float32).tiny)
    contexts, transform = plan.contexts, plan.transform
    points, price = plan.points(source, unit, is_held=True), PRICE
    if least_noise and factors is None and transform is None and contexts.busy_bits < _LOW_RATE:
        # With a smaller factor of the step there would be too many means for a table
        finest = max(largest(points) / (2 * _MOST_MEANS - 4), tiny / step)
        if finest < 1:
            finer, price = _at_low_rate(contexts.busy_bits)
            finer = max(finer, finest)
            points = replace(points, finer=np.float32(finer))
            step *= finer
            contexts = find_contexts(points)
    width = None if factors is None else tiles.band_width(source.shape[1], error_feedback.TILE_COLUMNS)
    path = viterbi.TRELLISES[_N_STATES if factors is None else _N_FEEDBACK_STATES]
    unit_rows = 1 if transform is None else transform.size
    layout, grid = _cut(layout, source.shape, plan.contexts.expected_bits, width, path, unit=unit_rows)
    weights: Floats | ErrorWeights | None = None
    if factors is not None:
        weights = _weights_of(factors, source.shape[1])
    elif not least_noise and (power := error_weights.power_at(contexts.expected_bits)):
        whole = replace(plan, components=()).points(source, unit, is_held=False) if plan.components else None
        weights = ErrorWeights(whole, points, power)
    rates = trellis.find_rates(points, contexts, grid, price, weights)
    if 4 * size_of(points) > _HELD_NBYTES:  # from here on there are codes, too
        source.release()
        points = replace(points, matrix=plan.points(source, unit, is_held=False).matrix)
    if factors is not None:
        indices, books = error_feedback.quantize(points, contexts, grid, rates, factors)
        rates = trellis.count_rates(indices, books, contexts, price, rates.reach)
        indices, books = error_feedback.quantize(points, contexts, grid, rates, factors)
    else:
        coder = Coder(points, contexts, grid, rates, weights)
        if layout.n_row_axes > 0 and not is_table and source.shape[0] >= _FEWEST_INPUTS:
            indices, books = coder.quantize_keeping_sums(None if transform is None else transform.sums)
        else:
            indices, books = coder.quantize()
    table = None
    reach = max(int(indices.max(initial=0)), -int(indices.min(initial=0))) + 1
    if least_noise and transform is not None:
        step *= trellis.gain(points, indices, books)
    elif least_noise and reach <= _MOST_MEANS:
        table = (trellis.centroids(points, indices, books, reach) * step).astype(np.float32)
    coded = CodedTensor(name, dtype, shape, layout, grid.tile, grid.trellis, contexts, indices, books, step, table,
                        row_scales, plan.components, transform)  # fmt: skip
    signal, noise = Energy(), Energy()
    for rows in bands(source.shape, unit_rows):
        original = source[rows]
        signal.add(original)
        noise.add(coded.errors(rows, original))
    return Quantized(coded, signal.total(), noise.total(), plan)


def _at_low_rate(bits: float) -> tuple[float, float]:
    """For the least squared error at a low rate: the factor of the step, and the price of a bit.

    Args:
        bits: Bits of a code with the step as it is.
    """
    below = _LOW_RATE - bits
    return 2.0 ** (-(1 - _COARSER) * below / BITS_PER_HALVING), PRICE * 2.0 ** (_DEARER * below)


def _weights_of(factors: error_feedback.Factors, n_columns: int) -> Floats:
    """Weights of squared errors, ``(R, 1)`` or ``(R, C)``."""
    weights = np.square(factors.typical_spread / factors.spread).astype(np.float32)
    return np.repeat(weights, n_columns // weights.shape[1], axis=1) if weights.shape[1] > 1 else weights


def _inputs_as_rows(rank: int, output_axis: int) -> Layout:
    """The layout with inputs as rows, for feedback from row to row."""
    axis = output_axis % rank
    axes = (*(i for i in range(rank) if i != axis), axis)
    return Layout(None if axes == tuple(range(rank)) else axes, rank - 1)


def _cut(
    layout: Layout, shape: tuple[int, int], bits: float, width: int | None, path: Trellis, *, unit: int
) -> tuple[Layout, trellis.Grid]:
    """Cut a matrix into blocks, and blocks into sequences.

    Args:
        bits: Expected bits of a code.
        width: Columns of a sequence; None to choose.
        path: The trellis.
        unit: Rows that a block must not separate.

    Returns:
        The layout with blocks, and the grid.
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
        # A block has whole tiles, so that tiles are the same as without blocks
        n_across = max(1, columns // tile[1])
        whole = math.lcm(unit, tile[0] * (_TOGETHER // math.gcd(_TOGETHER, n_across)))
        rows -= rows % (whole if rows >= _FEWEST_WHOLE * whole else tile[0])
    if columns < n_columns:
        columns -= columns % tile[1]
    block_columns = columns if columns < n_columns else 0
    block_rows = rows if rows < n_rows or block_columns else 0
    grid = trellis.Grid(tile, 0 if block_columns else block_rows, path)
    return replace(layout, block_rows=block_rows, block_columns=block_columns), grid


def _in_units(height: int, unit: int) -> int:
    """The largest tile height up to ``height`` that is a multiple or a divisor of ``unit``."""
    if height >= unit:
        return height - height % unit
    return max(n for n in range(1, height + 1) if unit % n == 0)
