"""Quantization with second-order error feedback: later weights compensate the errors of earlier ones.

The output of a layer is the product of its weights and inputs. If two inputs are correlated, the error of one weight
can be compensated by the other weight (Hassibi and Stork 1993, OBS; Frantar et al. 2022, OBQ and GPTQ). Rows are
inputs. Each row is quantized, with the trellis running along the outputs; then later rows are changed to compensate its
errors. Errors of an input that later inputs can compensate cost little, so its row gets a coarser grid (Lifar et al.
2026, WaterSIC).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ...decode.tables import Floats
from ...native import encoding
from ..calibration import TensorStatistics
from ..progress import advance
from . import row_steps, viterbi
from .bands import Rows
from .cholesky import inverse_factor
from .contexts import Contexts
from .trellis import Books, Grid, Indices
from .viterbi import Rates

_DAMPING = 0.05  # added to the diagonal of the moments, relative to its mean
_SMALLEST_MOMENT = 1e-30  # below it inputs are practically 0
_STEPS_PER_OCTAVE = 4  # resolution of relative steps. 2 would cost 0.015 bits a weight, 8 would save 0.003
# From this step on, in deviations of the matrix (less than a bit a weight), inputs have no steps of their own. They are
# chosen for high rates. CREPE, 60 times smaller, lost 4.2 points with them and 0.2 without
_COARSE = 2.0
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
        found = [[_factor(block, statistics.n_observed) for block in group] for group in statistics.moments]
        upper = tuple(tuple(u for u in group if u is not None) for group in found)
        if any(u is None for group in found for u in group):
            return None
        spread: Floats = np.stack([np.concatenate([np.diagonal(u) for u in group]) for group in upper], axis=1)
        if not np.isfinite(spread).all() or not (spread > 0).all():
            return None
        costs = np.exp(-2 * np.log(spread.astype(np.float64)).mean(axis=1))  # of an error, for each input
        share_left = float(np.exp(np.log(costs).mean())) / mean_moment
        steps = row_steps.relative_steps(costs, _STEPS_PER_OCTAVE)
        if not row_steps.are_worth_it(costs, steps, n_outputs):
            return cls(upper, spread, share_left)
        return cls(_divided(upper, steps), spread / steps[:, None], share_left, steps)

    def at(self, step: float) -> Factors:
        """The factors for a step of the matrix, in its deviations: without steps of the inputs if it is coarse."""
        if self.steps is None or step < _COARSE:
            return self
        upper = _divided(self.upper, np.reciprocal(self.steps))
        return replace(self, upper=upper, spread=self.spread * self.steps[:, None], steps=None)

    @property
    def typical_spread(self) -> float:
        """Geometric mean of ``spread``."""
        return float(np.exp(np.log(self.spread.astype(np.float64)).mean()))


def _divided(upper: tuple[tuple[Floats, ...], ...], steps: Floats) -> tuple[tuple[Floats, ...], ...]:
    """Each U with its columns divided by the steps of their inputs."""
    edges = np.cumsum([0, *map(len, upper[0])])
    return tuple(tuple(u / steps[start:end] for u, (start, end) in zip(group, pairwise(edges), strict=True))
                 for group in upper)  # fmt: skip


def _factor(moments: Floats, n_observed: int) -> Floats | None:
    """The matrix U for a block of second moments; None if they are not finite.

    Moments from few input vectors are shrunk towards their diagonal (after Ledoit and Wolf 2004), because correlations
    in a small sample are partly accidental.
    """
    n = len(moments)
    h = moments.astype(np.float64)
    diagonal = np.diagonal(h).copy()
    h *= 1 - n / (n + max(n_observed, 1))
    h[np.diag_indices(n)] = diagonal + max(_DAMPING * float(diagonal.mean()), _SMALLEST_MOMENT)
    # The Cholesky factor of H with reversed rows and columns gives U with Uᵀ U = H⁻¹, without computing H⁻¹
    inverse = inverse_factor(np.ascontiguousarray(h[::-1, ::-1]))
    return None if inverse is None else inverse[::-1, ::-1].astype(np.float32)


def quantize(
    points: Rows, contexts: Contexts, grid: Grid, rates: Rates, factors: Factors
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
    shape = points.shape[0], points.shape[1]
    indices, books = np.empty(shape, np.int16), np.empty(shape, np.uint8)
    weights = np.square(factors.typical_spread / factors.spread).astype(np.float32)  # (inputs, groups)
    coder = _RowCoder(contexts, grid, rates, points.shape[1])
    first = 0
    for runs in zip(*factors.upper, strict=True):  # for a block of inputs: U of each group of outputs
        size = len(runs[0])
        aims = np.array(points[first : first + size], np.float32)
        for start in range(0, size, _LAZY_ROWS):
            end = min(start + _LAZY_ROWS, size)
            rows = slice(first + start, first + end)
            errors = coder.code(rows, aims[start:end], weights=weights[rows], spread=factors.spread[rows],
                                upper=[u[start:end, start:end] for u in runs], indices=indices[rows],
                                books=books[rows])  # fmt: skip
            advance(errors.size)
            _subtract(aims[end:], errors, [u[start:end, end:] for u in runs])
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

    def code(
        self, rows: slice, aims: Floats, *, weights: Floats, spread: Floats, upper: Sequence[Floats],
        indices: Indices, books: Books,
    ) -> Floats:  # fmt: skip
        """Quantize the next rows, with feedback from each to those after it.

        Args:
            rows: Their numbers.
            aims: Their values, in steps of the grid. The errors of earlier rows are subtracted from them.
            weights: Weights of squared errors, ``(rows, groups)``.
            spread: See ``Factors``, of these rows.
            upper: For each group of columns the part of U that belongs to these rows.
            indices, books: Are filled with the index and codebook of each element.

        Returns:
            The errors, divided by the spread.
        """
        if viterbi.has_kernel(self._grid.trellis, self._rates):
            contexts = np.broadcast_to(self._contexts.at(rows, slice(None)), aims.shape)
            path = self._grid.trellis
            return encoding.quantize_with_feedback(
                aims, rows.start, self._grid.tile, contexts=np.ascontiguousarray(contexts),
                costs=np.ascontiguousarray(self._rates.costs), weights=weights, spread=np.ascontiguousarray(spread),
                upper=np.stack(upper), polynomials=viterbi.polynomials(path), n_states=path.n_states,
                states=self._states, indices=indices, books=books,
            )  # fmt: skip
        errors = np.empty(aims.shape, np.float32)
        for i in range(len(aims)):
            indices[i], books[i] = self._code_row(rows.start + i, aims[i], weights[i])
            error = aims[i] - (2 * indices[i].astype(np.float32) + books[i])
            errors[i] = error / _spread_out(spread[i], error.size)
            _subtract(aims[i + 1 :], errors[i : i + 1], [u[i : i + 1, i + 1 :] for u in upper])
        return errors

    def _code_row(self, row: int, aims: Floats, weights: Floats) -> tuple[Indices, Books]:
        if row % self._grid.tile[0] == 0:  # a block has whole tiles
            self._states[:] = 0
        rates, of_columns = self._rates, None
        if weights.size > 1:
            of_columns = _spread_out(weights, aims.size)
        else:  # one weight for the row: divide the costs of bits by it instead
            rates = Rates(rates.costs / weights, rates.reach)
        indices, books, self._states = viterbi.quantize_tiles(
            aims[None], (1, self._grid.tile[1]), self._contexts.at(slice(row, row + 1), slice(None)), rates,
            self._grid.trellis, weights=of_columns, start=self._states,
        )  # fmt: skip
        return indices[0], books[0]
