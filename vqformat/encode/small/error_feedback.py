"""Quantization with second-order error feedback: later weights compensate the errors of earlier ones.

The output of a layer is the product of its weights and inputs. If two inputs are correlated, the error of one weight
can be compensated by the other weight (Hassibi and Stork 1993, OBS; Frantar et al. 2022, OBQ and GPTQ). Rows are
inputs. Each row is quantized, with the trellis running along the outputs; then later rows are changed to compensate its
errors. Errors of an input that later inputs can compensate cost little, so its row gets a coarser grid (Lifar et al.
2026, WaterSIC).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ..calibration import TensorStatistics
from ..progress import advance
from . import row_steps, viterbi
from .contexts import Contexts
from .trellis import Books, Grid, Indices
from .viterbi import Rates

_DAMPING = 0.05  # added to the diagonal of the moments, relative to its mean
_SMALLEST_MOMENT = 1e-30  # below it inputs are practically 0
_STEPS_PER_OCTAVE = 4  # resolution of relative steps. 2 would cost 0.015 bits a weight, 8 would save 0.003
_LAZY_ROWS = 64  # rows whose errors are subtracted from distant rows in one product
TILE_COLUMNS = 32  # of a sequence, about; the path of a sequence is decided at the end of each row


@dataclass(frozen=True)
class Factors:
    """What feedback needs to know about the inputs of a layer.

    Attributes:
        upper: For each group of outputs, for each block of inputs an upper triangular matrix U, ``(n, n)``, with
            ``UᵀU = H⁻¹``. H is the damped second moments of the inputs, each times its step.
        spread: Diagonals of all U, ``(inputs, groups)``. The squared error of an element, in squared steps, costs
            1 / spread².
        share_left: Loss by an error with feedback, relative to the loss without.
        steps: Steps of the inputs, ``(inputs,)``, relative to the step of the matrix; None if all are equal.
    """

    upper: tuple[tuple[Floats, ...], ...]
    spread: Floats
    share_left: float
    steps: Floats | None = None

    @classmethod
    def of(cls, statistics: TensorStatistics, n_outputs: int) -> Factors | None:
        """The factors from the statistics of a weight; None if its inputs are unknown, or 0, or not finite.

        Args:
            n_outputs: Outputs of the layer.
        """
        if statistics.moments is None:
            return None
        moments = np.concatenate([np.diagonal(block) for group in statistics.moments for block in group])
        mean_moment = float(moments.mean(dtype=np.float64))
        if not _SMALLEST_MOMENT < mean_moment < np.inf:
            return None
        upper = tuple(tuple(_factor(block, statistics.n_observed) for block in group) for group in statistics.moments)
        spread: Floats = np.stack([np.concatenate([np.diagonal(u) for u in group]) for group in upper], axis=1)
        if not np.isfinite(spread).all() or not (spread > 0).all():
            return None
        costs = np.exp(-2 * np.log(spread.astype(np.float64)).mean(axis=1))  # of an error, for each input
        share_left = float(np.exp(np.log(costs).mean())) / mean_moment
        steps = row_steps.relative_steps(costs, _STEPS_PER_OCTAVE)
        if not row_steps.are_worth_it(costs, steps, n_outputs):
            return cls(upper, spread, share_left)
        edges = np.cumsum([0, *map(len, upper[0])])
        upper = tuple(tuple(u / steps[start:end] for u, (start, end) in zip(group, pairwise(edges), strict=True))
                      for group in upper)  # fmt: skip
        return cls(upper, spread / steps[:, None], share_left, steps)

    @property
    def typical_spread(self) -> float:
        """Geometric mean of ``spread``."""
        return float(np.exp(np.log(self.spread.astype(np.float64)).mean()))


def _factor(moments: Floats, n_observed: int) -> Floats:
    """The matrix U for a block of second moments.

    Moments from few input vectors are shrunk towards their diagonal (after Ledoit and Wolf 2004), because correlations
    in a small sample are partly accidental.
    """
    n = len(moments)
    h = moments.astype(np.float64)
    diagonal = np.diagonal(h).copy()
    h *= 1 - n / (n + max(n_observed, 1))
    h[np.diag_indices(n)] = diagonal + max(_DAMPING * float(diagonal.mean()), _SMALLEST_MOMENT)
    # The Cholesky factor of H with reversed rows and columns gives U with Uᵀ U = H⁻¹, without computing H⁻¹
    lower = np.linalg.cholesky(h[::-1, ::-1])
    factor: Floats = np.linalg.inv(lower)[::-1, ::-1].astype(np.float32)
    return factor


def quantize(
    points: Floats, contexts: Contexts, grid: Grid, rates: Rates, factors: Factors
) -> tuple[Indices, Books]:
    """Quantize a matrix with feedback.

    Args:
        points: ``(inputs, outputs)``, in steps of the grid.
        contexts: Contexts of the elements.
        grid: Tiles, blocks and trellis.
        rates: Costs of the indices.
        factors: Of the inputs.

    Returns:
        Index and codebook of each element.
    """
    aims = points.astype(np.float32, copy=True)
    indices, books = np.empty(points.shape, np.int16), np.empty(points.shape, np.uint8)
    weights = np.square(factors.typical_spread / factors.spread).astype(np.float32)  # (inputs, groups)
    coder = _RowCoder(contexts, grid, rates, points.shape[1])
    first = 0
    for runs in zip(*factors.upper, strict=True):  # for a block of inputs: U of each group of outputs
        size = len(runs[0])
        for start in range(0, size, _LAZY_ROWS):
            end = min(start + _LAZY_ROWS, size)
            errors = np.empty((end - start, points.shape[1]), np.float32)
            for i in range(start, end):
                row = first + i
                indices[row], books[row] = coder.code(row, aims[row], weights[row])
                advance(points.shape[1])
                error = aims[row] - (2 * indices[row].astype(np.float32) + books[row])
                errors[i - start] = error / _spread_out(factors.spread[row], error.size)
                _subtract(aims[row + 1 : first + end], errors[i - start : i - start + 1],
                          [u[i : i + 1, i + 1 : end] for u in runs])  # fmt: skip
            _subtract(aims[first + end : first + size], errors, [u[start:end, end:] for u in runs])
        first += size
    return indices, books


def _spread_out(of_groups: Floats, n_outputs: int) -> Floats:
    """Repeat the value of each group for all its outputs."""
    return np.repeat(of_groups, n_outputs // of_groups.size)


def _subtract(aims: Floats, errors: Floats, upper: Sequence[Floats]) -> None:
    """Compensate errors in later rows: ``aims −= Uᵀ errors``, for each group of columns with its own U."""
    if not aims.size:
        return
    if len(upper) == 1:
        aims -= upper[0].T @ errors
        return
    width = aims.shape[1] // len(upper)
    of_groups = errors.reshape(len(errors), len(upper), width)
    aims -= np.einsum("gij,igw->jgw", np.stack(upper), of_groups).reshape(aims.shape)


class _RowCoder:
    """Quantizes rows one after another. A sequence continues from one row of a tile to the next."""

    def __init__(self, contexts: Contexts, grid: Grid, rates: Rates, n_columns: int) -> None:
        self._contexts, self._grid, self._rates = contexts, grid, rates
        self._states = np.zeros(-(-n_columns // grid.tile[1]), np.uint8)
        self._n_columns = n_columns

    def code(self, row: int, aims: Floats, weights: Floats) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
        """Quantize the next row.

        Args:
            aims: Its values, in steps of the grid.
            weights: Weights of its squared errors, one for each group of columns.

        Returns:
            Index and codebook of each element.
        """
        if row % self._grid.tile[0] == 0:  # a block has whole tiles
            self._states[:] = 0
        rates, of_columns = self._rates, None
        if weights.size > 1:
            of_columns = _spread_out(weights, self._n_columns)
        else:  # one weight for the row: divide the costs of bits by it instead
            rates = Rates(rates.costs / weights, rates.reach)
        indices, books, self._states = viterbi.quantize_tiles(
            aims[None], (1, self._grid.tile[1]), self._contexts.at(slice(row, row + 1), slice(None)), rates,
            self._grid.trellis, weights=of_columns, start=self._states,
        )  # fmt: skip
        return indices[0], books[0]
