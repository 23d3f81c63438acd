"""Low-rank stages: a truncated singular value decomposition with integer factors (SPEC section 11)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ...errors import EncodeError
from ...format.limits import MAX_RIGHT_FACTOR
from ...format.stages import AxisScale, LowRankStage
from .assemble import QuantizedStage
from .sampling import Doubles, Seed, approximate_normals
from .scales import encode_scales, group_size

_EXACT_UP_TO = 384  # longest shorter side of a matrix with a full singular value decomposition
_OVERSAMPLING = 16  # further columns of the random subspace
_POWER_ROUNDS = 6  # rounds of subspace iteration
_WHOLE_UP_TO = 16  # longest shorter side of a matrix that keeps its full rank, whatever ``bits`` is


def quantize_low_rank(matrix: Floats, rank: int, factor_bits: int = 8, *, seed: Seed = 0) -> QuantizedStage:
    """The best approximation of a matrix by one of lower rank, its factors rounded to integers (Gong et al. 2014,
    section 3.1).

    The singular value decomposition ``U S V`` is stored as ``(U √S)(√S V)``, so that both factors have the same spread
    and need the same precision. The right factor is fitted again to the rounded left factor.

    The computation in float64 has an error of about 1e-13 of a rounding step. So the integers do not depend on threads
    or BLAS, except for matrices with equal singular values.

    Args:
        matrix: ``(R, C)``, finite.
        rank: At least 1. It is reduced to that of the matrix.
        factor_bits: From 2 to 16. Integers have magnitudes up to ``2^(factor_bits − 1) − 1``.

    Raises:
        EncodeError: The right factor would have more elements than is allowed.
    """
    n_rows, n_columns = matrix.shape
    rank = min(rank, n_rows, n_columns)
    if rank * n_columns > MAX_RIGHT_FACTOR:
        raise EncodeError(f"a rank of {rank} and {n_columns} columns make a right factor of {rank * n_columns}"
                          f" elements; at most {MAX_RIGHT_FACTOR} are allowed: try a lower rank, or axis=columns")
    largest = float(np.abs(matrix).max(initial=0)) or 1.0
    scaled = matrix.astype(np.float64) / largest
    left, right = _factors(scaled, rank, seed)
    half = float(np.sqrt(largest))
    top = (1 << (factor_bits - 1)) - 1
    row_dtype, row_section, left_integers, left_rounded = _round_rows(left * half, top)
    fitted = _fit_right(left_rounded / half, scaled, right)
    column_dtype, column_section, right_integers, _ = _round_rows(fitted.T * half, top)
    entries = 2 * top + 1
    stage = LowRankStage(
        rank=left.shape[1], entries_u=entries, planes_u=(), entries_v=entries, planes_v=(),
        row_scale=AxisScale(row_dtype, group_size(1, n_rows)),
        column_scale=AxisScale(column_dtype, group_size(1, n_columns)),
    )  # fmt: skip
    codes = (left_integers + top).astype(np.uint16)
    return QuantizedStage(stage, [row_section, column_section], codes, (right_integers.T + top).astype(np.uint16))


def rank_for_bits(n_rows: int, n_columns: int, bits: float, factor_bits: int) -> int:
    """The largest rank whose factors take at most ``bits`` bits for each element of the matrix.

    It is at least 1. A matrix of few rows or columns keeps its full rank: the output layers of classifiers take few
    bits, and a rank of 1 or 2 ruins them. The limit of the right factor is kept (LOW-001).
    """
    shorter = min(n_rows, n_columns)
    rank = shorter if shorter <= _WHOLE_UP_TO else int(bits * n_rows * n_columns / (factor_bits * (n_rows + n_columns)))
    return max(1, min(rank, shorter, MAX_RIGHT_FACTOR // n_columns))


def _factors(matrix: Doubles, rank: int, seed: Seed) -> tuple[Doubles, Doubles]:
    """Factors ``(R, rank)`` and ``(rank, C)`` whose product is (nearly) the best approximation of this rank."""
    shorter = min(matrix.shape)
    if shorter <= _EXACT_UP_TO or rank + _OVERSAMPLING > shorter // 3:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
    else:
        left, values, right = _randomized_svd(matrix, rank, seed)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    # The signs of each pair of vectors are arbitrary: make the largest component of the right one positive
    at = np.argmax(np.abs(right), axis=1)
    signs = np.where(right[np.arange(rank), at] < 0, -1.0, 1.0)
    root = np.sqrt(values)
    return left * (signs * root), right * (signs * root)[:, None]


def _randomized_svd(matrix: Doubles, rank: int, seed: Seed) -> tuple[Doubles, Doubles, Doubles]:
    """Singular value decomposition by subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4)."""
    n_columns = matrix.shape[1]
    width = rank + _OVERSAMPLING
    basis = np.linalg.qr(matrix @ approximate_normals(seed, (n_columns, width)))[0]
    for _ in range(_POWER_ROUNDS):
        basis = np.linalg.qr(matrix.T @ basis)[0]
        basis = np.linalg.qr(matrix @ basis)[0]
    left, values, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left, values, right


def _round_rows(factor: Doubles, top: int) -> tuple[str, bytes, npt.NDArray[np.int64], Doubles]:
    """Round the rows of a factor to integers times a scale of each row.

    Returns:
        dtype and section of the scales, integers up to ``top``, and their products with the scales.
    """
    dtype, section, stored = encode_scales(np.abs(factor).max(axis=1) / top)
    scales = stored.astype(np.float64)[:, None]
    quotients = np.divide(factor, scales, out=np.zeros_like(factor), where=scales > 0)
    integers = np.clip(np.rint(quotients), -top, top)
    return dtype, section, integers.astype(np.int64), integers * scales


def _fit_right(left: Doubles, matrix: Doubles, right: Doubles) -> Doubles:
    """The right factor that fits best to the rounded left factor, by ridge regression towards the old one.

    Without the ridge, directions that rounding has made nearly parallel would get large coefficients.
    """
    gram = left.T @ left
    ridge = 1e-4 * np.trace(gram) / gram.shape[0]
    if not ridge > 0:
        return right
    remainder = matrix - left @ right
    update: Doubles = np.linalg.solve(gram + ridge * np.eye(gram.shape[0]), left.T @ remainder)
    return np.asarray(right + update)
