"""Quantizing a matrix to the codes of a trellis stage, by the least cost of rate and distortion (SPEC section 12)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ... import native
from ...decode.tables import Floats
from ...format.stages import Trellis
from ...native import encoding
from ..methods.layout import largest_magnitude
from ..methods.sampling import sample_indices
from ..progress import advance
from . import tiles, viterbi
from .contexts import LOWEST, PER_OCTAVE, Contexts
from .error_weights import weights_of
from .principal_components import pieces
from .viterbi import Rates

_SAMPLE = 1 << 16  # elements on which rates are estimated
_SAMPLE_STEPS = 256  # steps of a sequence of the sample
_TOGETHER = 1 << 20  # elements that are quantized together, then progress is told
_ROUNDS = 3  # of quantizing the sample and counting codes
_PRIOR = 4.0  # number of observations for which the initial rates count
_FINE_NOISE = 0.22  # squared error at high rates, in squared steps
_DAMPING = 0.2  # cost of the squared sum of errors, relative to the sum of squared errors

Fit = Literal["points", "gain", "means"]
Indices = npt.NDArray[np.int16]
Books = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Grid:
    """How a matrix is cut into sequences, and their trellis.

    Attributes:
        tile: Rows and columns of a sequence.
        block_rows: Rows of a block, a multiple of the rows of a tile; 0 for one block.
        trellis: The trellis.
    """

    tile: tuple[int, int]
    block_rows: int
    trellis: Trellis


def expected_rates(contexts: Contexts, reach: int) -> Floats:
    """Initial estimate of the bits of each index, for Laplacian weights: ``(n_contexts, 2, 2 · reach + 1)``."""
    logarithms = (contexts.exponent + np.arange(contexts.n_contexts)) / PER_OCTAVE
    deviation = np.exp2(logarithms / 2)[:, None, None]
    points = 2.0 * np.arange(-reach, reach + 1) + np.arange(2)[:, None]
    logarithm = -np.sqrt(2.0) * np.abs(points) / np.maximum(deviation, 2.0 ** (LOWEST / 2))
    shares = np.exp(np.maximum(logarithm - logarithm.max(axis=2, keepdims=True), -80.0))
    bits: Floats = -np.log2(shares / shares.sum(axis=2, keepdims=True))
    return bits


def find_rates(
    points: Floats, contexts: Contexts, grid: Grid, price: float, weights: Floats | None = None
) -> Rates:
    """Find rates that are those of the codes which result from them, on a sample of the matrix.

    Args:
        points: ``(R, C)``, in steps of the grid.
        contexts: Contexts of the elements.
        grid: Tiles, blocks and trellis.
        price: Cost of a bit, in squared steps.
        weights: Weights of the squared errors, of a shape that can be broadcast; None for 1.
    """
    reach = int(largest_magnitude(points) / 2) + 3
    bits = expected_rates(contexts, reach)
    group = next(tiles.groups(points.shape, grid.block_rows, grid.tile))
    sample = _thin(group)
    values = sample.take(points)
    of_sample = sample.take(np.broadcast_to(contexts.at(slice(None), slice(None)), points.shape))
    weight = None if weights is None else sample.take(np.broadcast_to(weights, points.shape))
    bits, _, _ = _adapt(values, of_sample, bits, grid.trellis, price=price, weights=weight)
    return Rates((bits * price).astype(np.float32), reach)


def _adapt(
    values: Floats, contexts: npt.NDArray[np.uint8], bits: Floats, path: Trellis, *, price: float,
    weights: Floats | None = None,
) -> tuple[Floats, npt.NDArray[np.int32], Books]:  # fmt: skip
    """Alternate between quantizing and counting codes.

    Args:
        values, contexts, weights: ``(n_steps, n_sequences)``.
        bits: Initial bits of each index, see ``expected_rates``.
        path: The trellis.
        price: Cost of a bit, in squared steps.

    Returns:
        The resulting bits of each index, and the indices and codebooks from which they were counted.
    """
    prior = np.exp2(-bits) * _PRIOR
    size = bits.shape[2]
    reach = size // 2
    for _ in range(_ROUNDS):
        rates = Rates((bits * price).astype(np.float32), reach)
        indices, books, _ = viterbi.quantize(values, contexts, rates, path, weights=weights)
        at = (contexts.astype(np.intp) * 2 + books) * size + indices + reach
        counts = np.bincount(at.reshape(-1), minlength=bits.size).reshape(bits.shape) + prior
        bits = -np.log2(counts / counts.sum(axis=2, keepdims=True))
    return bits, indices, books


@dataclass(frozen=True)
class Draft:
    """A sample of a matrix that is coded by a trellis of few states.

    Attributes:
        values: ``(n_steps, n_sequences)``, in steps of the grid.
        weights: Weights of their squared errors, of a shape that can be broadcast.
        indices, books: Index and codebook of each value.
        bits: Bits of a code.
    """

    values: Floats
    weights: Floats
    indices: npt.NDArray[np.int32]
    books: Books
    bits: float

    @classmethod
    def of(cls, points: Floats, contexts: Contexts, price: float, power: float = 0.0) -> Draft:
        """Code a sample. Arguments are those of ``expected_bits``."""
        places = sample_indices(points.size, _SAMPLE, 0)
        n_steps = min(places.size, _SAMPLE_STEPS)
        places = places[: places.size // n_steps * n_steps].reshape(-1, n_steps).T
        values, of_sample = points.reshape(-1)[places], contexts.at_places(places, points.shape[1]).astype(np.uint8)
        reach = int(largest_magnitude(values) / 2) + 3
        rates = expected_rates(contexts, reach)
        weights = weights_of(values, values, power) if power else np.ones((1, 1), np.float32)
        _, indices, books = _adapt(values, of_sample, rates, viterbi.TRELLISES[8], price=price, weights=weights)
        size = 2 * reach + 1
        at = ((of_sample.astype(np.intp) * 2 + books) * size + indices + reach).reshape(-1)
        counts = np.bincount(at, minlength=contexts.n_contexts * 2 * size).reshape(-1, size)
        totals = counts.sum(axis=1, keepdims=True)
        used = counts > 0
        bits = -float((counts * np.log2(np.where(used, counts, 1) / np.maximum(totals, 1))).sum())
        # An entropy from counts is too small by half a nat for each code beyond the first (Miller 1955)
        bits += 0.5 / math.log(2) * float(used.sum() - (totals > 0).sum())
        return cls(values, weights, indices, books, bits / values.size)


def expected_bits(points: Floats, contexts: Contexts, price: float, fit: Fit, power: float = 0.0) -> float:
    """Estimated bits of a code for the noise of a fine grid, from a trellis of few states on a sample.

    The bits are corrected by 1 bit for each 6 dB by which the noise differs from that of a fine grid. So of two ways to
    code a matrix with the same step, the one with fewer bits gives a smaller file at the same squared error. At low
    rates, where the noise differs most, the result may be negative.

    Args:
        points: ``(R, C)``, in steps of the grid.
        contexts: Contexts of the elements.
        price: Cost of a bit, in squared steps.
        fit: The values of codes: grid points, these times a gain, or the means of cells.
        power: Power of magnitudes by which squared errors count, see error_weights.py.
    """
    draft = Draft.of(points, contexts, price, power)
    values, indices, books = draft.values, draft.indices, draft.books
    decoded = 2.0 * indices + books
    if fit == "gain":
        decoded *= gain(values, indices, books)
    elif fit == "means":
        reach = int(np.abs(indices).max(initial=0))
        size = 2 * reach + 1
        codes = (books.astype(np.intp) * size + indices + reach).reshape(-1)
        sums = np.bincount(codes, values.reshape(-1), 2 * size)
        decoded = (sums / np.maximum(np.bincount(codes, minlength=2 * size), 1))[codes].reshape(values.shape)
    noise = float((draft.weights * np.square(values - decoded)).mean())
    return draft.bits + 0.5 * math.log2(max(noise, 1e-9) / _FINE_NOISE)


def count_rates(indices: Indices, books: Books, contexts: Contexts, price: float, reach: int) -> Rates:
    """The rates of given codes."""
    size = 2 * reach + 1
    found = contexts.at(slice(None), slice(None)).astype(np.intp)
    at = (found * 2 + books) * size + np.clip(indices, -reach, reach) + reach
    shape = (contexts.n_contexts, 2, size)
    seen = np.bincount(at.reshape(-1), minlength=contexts.n_contexts * 2 * size).reshape(shape)
    counts = seen + np.exp2(-expected_rates(contexts, reach).astype(np.float64)) * _PRIOR
    bits = -np.log2(counts / counts.sum(axis=2, keepdims=True))
    return Rates((bits * price).astype(np.float32), reach)


def _thin(group: tiles.Group) -> tiles.Group:
    """A sample of a group: some of its sequences, and the first steps of each."""
    height = max(1, min(group.rows.shape[0], _SAMPLE_STEPS // group.columns.shape[0]))
    wanted = max(1, _SAMPLE // (height * group.columns.shape[0]))
    n_down, n_across = group.rows.shape[1], group.columns.shape[1]
    n_across_wanted = min(n_across, max(1, wanted // min(n_down, wanted)))
    down = np.linspace(0, n_down - 1, min(n_down, max(1, wanted // n_across_wanted))).astype(int)
    across = np.linspace(0, n_across - 1, n_across_wanted).astype(int)
    return tiles.Group(group.rows[:height, down], group.columns[:, across])


def quantize(
    points: Floats, contexts: Contexts, grid: Grid, rates: Rates, weights: Floats | None = None, *, first_row: int = 0
) -> tuple[Indices, Books]:
    """The codes of a matrix with the least cost, for each sequence by itself.

    Args:
        points: ``(R, C)``, in steps of the grid.
        contexts: Contexts of the whole matrix.
        first_row: Number of the first row of ``points`` in the whole matrix, a multiple of the rows of a tile.

    Returns:
        Index and codebook of each element.
    """
    # A block has whole tiles, so tiles are the same as without blocks
    of_rows = contexts.at(slice(first_row, first_row + points.shape[0]), slice(None))
    indices, books, _ = viterbi.quantize_tiles(points, grid.tile, of_rows, rates, grid.trellis, weights=weights)
    advance(points.size)
    return indices, books


def quantize_keeping_sums(
    points: Floats, contexts: Contexts, grid: Grid, rates: Rates, weights: Floats | None = None, *,
    shares: Floats | None = None,
) -> tuple[Indices, Books]:  # fmt: skip
    """As ``quantize``, but the sum of the errors of each column is kept small.

    A column has the weights of one output. If inputs have a mean other than 0, as after a ReLU, a sum of errors shifts
    the output. So each further part of the rows compensates the sum of the errors before it. This is the feedback of
    Frantar et al. 2022 (GPTQ) for inputs with the second moments I + d s sᵀ, where d is ``_DAMPING``.

    Args:
        shares: s, the factors of the errors of rows in the sum; repeated if there are more rows. None for 1.
    """
    n_rows = points.shape[0]
    indices, books = np.empty(points.shape, np.int16), np.empty(points.shape, np.uint8)
    of_rows = np.resize(np.ones(1, np.float32) if shares is None else shares, n_rows)
    left = np.zeros(points.shape[1], np.float32)  # sum of the errors so far
    for start, end in halves(n_rows, grid.tile[0]):
        part = slice(start, end)
        of_part = None if weights is None else weights[part] if weights.shape[0] > 1 else weights
        aims = points[part]
        if start:  # there are errors before it
            made_up = _DAMPING * of_rows[part] / (1 + _DAMPING * np.square(of_rows[start:]).sum())
            aims = aims + left * made_up[:, None]
        indices[part], books[part] = quantize(aims, contexts, grid, rates, of_part, first_row=start)
        factors = None if shares is None else of_rows[part]
        left += _sum_errors(points[part], indices[part], books[part], factors)
    return indices, books


def _sum_errors(points: Floats, indices: Indices, books: Books, factors: Floats | None) -> Floats:
    """The sums of the errors of columns, each times the factor of its row."""
    if native.is_used() and points.shape[1] > 1:  # NumPy adds the elements of a single column in another order
        return encoding.sum_errors(points, indices, books, factors)
    errors = points - (2 * indices + books)
    if factors is not None:
        errors *= factors[:, None]
    sums: Floats = errors.sum(axis=0)  # not by a matrix product, whose rounding depends on threads and BLAS
    return sums


def halves(n_rows: int, unit: int) -> list[tuple[int, int]]:
    """Ranges of rows, each half of those that remain, in multiples of ``unit``."""
    ranges = []
    start = 0
    while start < n_rows:
        units = -(-(n_rows - start) // unit)
        end = min(n_rows, start + max(1, units // 2) * unit)
        ranges.append((start, end))
        start = end
    return ranges


def gain(points: Floats, indices: npt.NDArray[np.signedinteger[Any]], books: Books) -> float:
    """The factor of grid points that gives the least squared error; 1 if all points are 0."""
    product = energy = 0.0
    for rows, part in pieces(points):
        grid = 2.0 * indices[rows] + books[rows]
        product += float(np.einsum("ij,ij->", part, grid))
        energy += float(np.einsum("ij,ij->", grid, grid))
    return product / energy if energy and product > 0 else 1.0


def centroids(points: Floats, indices: Indices, books: Books, reach: int) -> npt.NDArray[np.float64]:
    """For each code the mean of its values, in steps: ``(2, 2 · reach + 1)``; the grid point if it has none.

    Values of both signs are averaged, so that the table is symmetric.
    """
    size = 2 * reach + 1
    grid = 2 * np.arange(-reach, reach + 1.0) + np.arange(2)[:, None]
    at = (books.astype(np.intp) * size + indices + reach).reshape(-1)
    of_one = np.bincount(at, minlength=2 * size).reshape(2, size).astype(np.float64)
    sum_of_one = np.bincount(at, points.reshape(-1), minlength=2 * size).reshape(2, size).astype(np.float64)
    counts, sums = of_one + mirror(of_one), sum_of_one - mirror(sum_of_one)
    return np.where(counts > 0, (sums + grid) / (counts + 1), grid)


def mirror(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Exchange the values of opposite grid points: k and −k in codebook 0, k and −1 − k in codebook 1."""
    turned = values[:, ::-1].copy()
    turned[1, :-1] = values[1, :-1][::-1]
    turned[1, -1] = 0
    return turned
