"""Principal components of the rows of a matrix, as low-rank stages before its trellis stage.

If the rows of a matrix, as points, vary more along some directions than along others, it takes fewer bits to code their
coordinates along these directions and the residual (Karhunen-Loève transform: Goyal 2001, "Theoretical foundations of
transform coding"; for weights: Young, Wang, Taubman and Girod 2021, "Transform quantization for CNN compression"). Both
factors are coarse integers at any rate, because the residual, which is coded anyway, includes their errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode.lowrank import LowRankDecoder
from ...decode.tables import Floats
from ...format.layout import Block, View
from ...format.limits import MAX_RIGHT_FACTOR, MAX_STAGES
from ...format.stages import AxisScale, LowRankStage
from ..methods import packing
from ..methods.assemble import QuantizedStage
from ..methods.layout import ShortFloats
from ..methods.sampling import Doubles, approximate_normals
from ..methods.scales import encode_scales
from ..sums import energy
from .bands import Rows, bands
from .cholesky import inverse_factor

_MOST_COMPONENTS = 128
_SHARE_OF_SIDE = 3  # at most one third of the shorter side
_LEAST_SIDE = 16  # shortest side of a matrix for which components are searched
_OVERSAMPLING = 8  # further columns of the random subspace
_POWER_ROUNDS = 3  # rounds of subspace iteration
_QUICK_COMPONENTS = 32  # if there may be more, a quick search tells first whether the longest one could pay
_QUICK_WIDTH, _QUICK_ROUNDS = 8, 2  # columns and rounds of the quick search
_QUICK_MARGIN = 1.5  # at most by this factor it underestimates a squared length
_SPAN = 1.7  # components whose lengths differ by at most this factor are one stage, with the same step
_DIRECTION_STEP = 1.5  # step of directions, relative to the step at which their errors equal those of the residual
_DEAD_ZONE = 0.12  # integers are rounded towards 0 by so much more than to nearest
_LARGEST = (1 << 15) - 1  # largest integer of a factor (LOW-001)
_RIDGE = 1e-6
_STAGE_BITS = 8 * 60  # overhead of a stage
_PIECE = 1 << 20  # elements that are converted to float64 together

Integers = npt.NDArray[np.int64]


def find_stages(matrix: ShortFloats, slope: float) -> list[QuantizedStage]:
    """Find the components that should save more bits than they take.

    The computation is in float64, so that the integers do not depend on threads or BLAS, except for components of equal
    length.

    Args:
        matrix: ``(R, C)``, finite.
        slope: Bits by which the code of a weight gets shorter if its variance is divided by 4; about 1 at high rates.

    Returns:
        Low-rank stages, packed, the longest components first; empty if nothing is gained.
    """
    most = min(_MOST_COMPONENTS, min(matrix.shape) // _SHARE_OF_SIDE, MAX_RIGHT_FACTOR // matrix.shape[1])
    if min(matrix.shape) < _LEAST_SIDE or not most:
        return []
    of_all = energy(matrix)
    if most >= _QUICK_COMPONENTS:
        square = min(_QUICK_MARGIN * _longest(matrix), of_all / 2)
        if _gain(square, matrix.shape, of_all, slope)[0] <= 0:
            return []
    lengths, directions = _components(matrix, most)
    rank, left = _choose_rank(np.square(lengths), matrix.shape, of_all, slope)
    if not rank:
        return []
    left_step = math.sqrt(12 * left / matrix.size / slope)  # step²/12 is the energy of the residual, divided by slope
    groups = _groups(lengths[:rank])
    steps = np.concatenate([np.full(end - start, _DIRECTION_STEP * left_step / lengths[start])
                            for start, end in groups])  # fmt: skip
    right_factor = _rounded(directions[:rank] / steps[:, None])
    projections = _project(matrix, right_factor * steps[:, None]) / left_step
    left_factor = _rounded(projections - np.copysign(_DEAD_ZONE, projections))
    return [_stage(left_factor[:, start:end], right_factor[start:end], left_step * steps[start])
            for start, end in groups]  # fmt: skip


def n_bits(stages: Sequence[QuantizedStage], view: View) -> int:
    """Estimated bits of the factors of stages."""
    whole = Block(0, view.n_rows, 0, view.n_columns)
    sections = [plain for q in stages for plain in (*q.resident_sections(), *q.payload(whole))]
    return _STAGE_BITS * len(stages) + 8 * sum(map(packing.quick_nbytes, sections))


def bound(stages: Sequence[QuantizedStage], view: View) -> float:
    """Upper bound of the magnitudes of the sum of stages (SPEC section 11)."""
    return sum(float(LowRankDecoder(q.stage, view, q.resident_sections()).bound) for q in stages
               if isinstance(q.stage, LowRankStage))  # fmt: skip


def _components(matrix: ShortFloats, n: int) -> tuple[Doubles, Doubles]:
    """Lengths, ``(n,)``, and directions, ``(n, C)``, of the n longest components.

    Method: subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4), along the shorter side. The largest
    element of each direction is positive.
    """
    is_wide = matrix.shape[1] > matrix.shape[0]
    tall = matrix.T if is_wide else matrix
    width = min(n + _OVERSAMPLING, tall.shape[1])
    basis = approximate_normals(0, (tall.shape[1], width))
    times = _products(tall, width)
    for _ in range(_POWER_ROUNDS):
        basis = _orthonormal(times(basis))
    gram = basis.T @ times(basis)
    squares, vectors = np.linalg.eigh(gram)
    order = np.argsort(-squares, kind="stable")[:n]
    lengths = np.sqrt(np.maximum(squares[order], 0))
    directions = (basis @ vectors[:, order]).T
    if is_wide:
        across, directions = directions, np.zeros((n, matrix.shape[1]))
        for rows, part in pieces(matrix):
            directions += across[:, rows] @ part
        directions /= np.maximum(lengths, np.finfo(np.float64).tiny)[:, None]
    return lengths, signed(directions)


def _orthonormal(columns: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An orthonormal basis of what the columns span, ``(n, width)``, of their dtype.

    Method: Cholesky QR, twice (Yamamoto and others 2015).
    """
    found = columns.astype(np.float64)
    for _ in range(2):
        inverse = inverse_factor(found.T @ found)
        if inverse is None:  # the columns are nearly dependent
            return np.linalg.qr(columns)[0]
        found = found @ inverse.T
    return found.astype(columns.dtype)


def _products(tall: ShortFloats, width: int) -> Callable[[Doubles], Doubles]:
    """The function that multiplies ``tallᵀ tall`` with ``width`` columns. The product of a short side is kept."""
    side = tall.shape[1]
    n_products = _POWER_ROUNDS + 1
    if tall.size * side + 2 * n_products * side * side * width < 4 * n_products * tall.size * width:
        whole = np.zeros((side, side))
        for _, part in pieces(tall):
            whole += part.T @ part
        return lambda basis: whole @ basis

    def times(basis: Doubles) -> Doubles:
        product = np.zeros_like(basis)
        for _, part in pieces(tall):
            product += part.T @ (part @ basis)
        return product

    return times


def _longest(matrix: ShortFloats) -> float:
    """About the squared length of the longest component, hardly ever too large; infinity where it cannot be found.

    The method is that of ``_components`` with few columns in float32.
    """
    basis = approximate_normals(0, (matrix.shape[1], _QUICK_WIDTH)).astype(np.float32)
    with np.errstate(all="ignore"):
        for _ in range(_QUICK_ROUNDS):
            projections = _times(matrix, basis)
            products = _transposed_times(matrix, projections / np.abs(projections).max())
            if not np.isfinite(products).all():
                return math.inf
            basis = _orthonormal(products)
        projections = _times(matrix, basis)
    if not np.isfinite(projections).all():
        return math.inf
    doubles = projections.astype(np.float64)
    return float(np.linalg.eigvalsh(doubles.T @ doubles)[-1])


def _times(matrix: ShortFloats, columns: Floats) -> Floats:
    """Product of a matrix with few columns. Short floats are widened piece by piece."""
    if matrix.dtype == np.float32:
        return matrix @ columns
    return np.concatenate([matrix[rows].astype(np.float32) @ columns for rows in bands(matrix.shape)])


def _transposed_times(matrix: ShortFloats, columns: Floats) -> Floats:
    """Product of the transposed matrix with few columns."""
    if matrix.dtype == np.float32:
        return matrix.T @ columns
    total = np.zeros((matrix.shape[1], columns.shape[1]), np.float32)
    for rows in bands(matrix.shape):
        total += matrix[rows].astype(np.float32).T @ columns[rows]
    return total


def _choose_rank(squares: Doubles, shape: tuple[int, int], of_all: float, slope: float) -> tuple[int, float]:
    """The number of components with the largest gain in bits, and the energy of their residual.

    A residual of energy E costs ``slope / 2 · log2(E)`` bits for each weight, up to a constant. The residual includes
    the errors of both factors; each such error has the size of the residual of a weight.

    Args:
        squares: Squared lengths of the components, descending.
        of_all: Energy of the matrix.
        slope: See ``find_stages``.
    """
    best_rank, best_left, best_gain = 0, of_all, 0.0
    left, gain = of_all, -float(_STAGE_BITS)
    for rank, square in enumerate(squares, 1):
        further, left = _gain(square, shape, left, slope)
        if not further > -math.inf:
            break
        gain += further
        if gain > best_gain:
            best_rank, best_left, best_gain = rank, left, gain
    return best_rank, best_left


def _gain(square: float, shape: tuple[int, int], before: float, slope: float) -> tuple[float, float]:
    """The gain in bits by one more component, and the energy that is left; see ``_choose_rank``.

    Args:
        square: Squared length of the component.
        before: Energy without the component.
    """
    n_rows, n_columns = shape
    n = n_rows * n_columns
    error = before / n / slope
    left = before - square + (n_rows + n_columns) * error
    if not 0 < left < before:
        return -math.inf, before
    gain = slope / 2 * n * math.log2(before / left)
    gain -= n_rows * _rounded_bits(square / n_rows / error) + n_columns * _rounded_bits(square / n_columns / error)
    return gain, left


def _rounded_bits(ratio: float) -> float:
    """Approximate bits of a rounded normal number, for a ratio of its variance to that of the error."""
    return 0.5 * math.log2(1 + 1.4 * ratio)


def _groups(lengths: Doubles) -> list[tuple[int, int]]:
    """Ranges of components of similar length."""
    starts = [0]
    for i, length in enumerate(lengths):
        if length * _SPAN < lengths[starts[-1]]:
            starts.append(i)
    starts = starts[: MAX_STAGES - 1]
    return list(zip(starts, [*starts[1:], len(lengths)], strict=True))


def _project(matrix: ShortFloats, directions: Doubles) -> Doubles:
    """The left factor that fits best to a right factor, ``(R, rank)``, by least squares."""
    found = np.empty((matrix.shape[0], len(directions)))
    gram = directions @ directions.T
    ridge = _RIDGE * np.trace(gram) / len(gram)  # rounding may have made directions nearly parallel
    inverse = np.linalg.inv(gram + max(ridge, np.finfo(np.float64).tiny) * np.eye(len(gram)))
    for rows, part in pieces(matrix):
        found[rows] = part @ directions.T @ inverse
    return found


def _rounded(values: Doubles) -> Integers:
    return np.clip(np.rint(values), -_LARGEST, _LARGEST).astype(np.int64)


def pieces(matrix: Rows, unit: int = 1) -> Iterator[tuple[slice, Doubles]]:
    """Rows of a matrix as float64, some at a time. In float64, results hardly depend on threads and BLAS.

    Args:
        unit: Each piece has a multiple of so many rows.

    Yields:
        Slice of rows, and their values.
    """
    n = max(1, _PIECE // (unit * matrix.shape[1])) * unit
    for start in range(0, matrix.shape[0], n):
        rows = slice(start, start + n)
        yield rows, matrix[rows].astype(np.float64)


def signed(directions: Doubles) -> Doubles:
    """Directions ``(n, C)`` with signs so that the largest element of each is positive."""
    at = np.abs(directions).argmax(axis=1)[:, None]
    return directions * np.copysign(1.0, np.take_along_axis(directions, at, axis=1))


def _stage(left: Integers, right: Integers, step: float) -> QuantizedStage:
    """The low-rank stage of integer factors, whose product is multiplied by a step."""
    dtype, step_section, _ = encode_scales(np.array([step]))
    one_dtype, one_section, _ = encode_scales(np.ones(1))
    top_u, top_v = (max(1, int(np.abs(factor).max())) for factor in (left, right))
    stage = LowRankStage(
        rank=left.shape[1], entries_u=2 * top_u + 1, planes_u=(), entries_v=2 * top_v + 1, planes_v=(),
        row_scale=AxisScale(dtype, 0), column_scale=AxisScale(one_dtype, 0),
    )  # fmt: skip
    codes = [(factor + top).astype(np.uint16) for factor, top in ((left, top_u), (right, top_v))]
    return QuantizedStage(stage, [step_section, one_section], codes[0], codes[1]).with_planes(compress=True)
