"""Inverse Cholesky factors without LAPACK, whose threads wait for each other: on a busy machine up to 50 times as long.

Most of the work is in products of matrices.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
_SMALL = 24  # largest matrix that is factored column by column


def inverse_factor(gram: Doubles) -> Doubles | None:
    """The inverse of the lower Cholesky factor of a symmetric matrix, ``(n, n)``.

    Returns:
        Lower triangular; None if the matrix is not positive definite.
    """
    n = len(gram)
    if n <= _SMALL:
        return _by_columns(gram)
    half = n // 2
    above = inverse_factor(gram[:half, :half])
    if above is None:
        return None
    left = gram[half:, :half] @ above.T  # the lower left part of the factor itself
    below = inverse_factor(gram[half:, half:] - left @ left.T)
    if below is None:
        return None
    inverse = np.zeros((n, n))
    inverse[:half, :half], inverse[half:, half:] = above, below
    inverse[half:, :half] = below @ -left @ above
    return inverse


def _by_columns(gram: Doubles) -> Doubles | None:
    """As ``inverse_factor``: the elimination that turns the matrix into its upper factor turns I into the inverse."""
    n = len(gram)
    rows = np.hstack([gram, np.eye(n)])
    for k in range(n):
        square = float(rows[k, k])
        if not 0 < square < math.inf:
            return None
        row = rows[k]
        row /= math.sqrt(square)
        rows[k + 1 :] -= row[k + 1 : n, None] * row
    return rows[:, n:]
