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
from . import tiles, viterbi
from .bands import Rows, bands, largest, size_of
from .contexts import LOWEST, PER_OCTAVE, Contexts
from .error_weights import ErrorWeights, weights_of
from .principal_components import pieces
from .viterbi import Rates

_SAMPLE = 1 << 16  # elements on which rates are estimated
_SAMPLE_STEPS = 256  # steps of a sequence of the sample
_FEW_STATES = 8  # of the trellis by which ways to code a matrix are compared
_ROUNDS = 3  # of quantizing the sample and counting codes
_PRIOR = 4.0  # number of observations for which the initial rates count
_FINE_NOISE = 0.22  # squared error at high rates, in squared steps

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
    points: Rows, contexts: Contexts, grid: Grid, price: float, weights: ErrorWeights | Floats | None = None
) -> Rates:
    """Find rates that are those of the codes which result from them, on a sample of the matrix.

    Args:
        points: ``(R, C)``, in steps of the grid.
        contexts: Contexts of the elements.
        grid: Tiles, blocks and trellis.
        price: Cost of a bit, in squared steps.
        weights: Weights of the squared errors; an array of a shape that can be broadcast; None for 1.
    """
    reach = int(largest(points) / 2) + 3
    bits = expected_rates(contexts, reach)
    group = next(tiles.groups((points.shape[0], points.shape[1]), grid.block_rows, grid.tile))
    sample = _thin(group)
    values = sample.take(points)
    of_sample = sample.in_steps(contexts.of(*sample.places))
    weight: Floats | None = None
    if isinstance(weights, ErrorWeights):
        weight = sample.in_steps(weights.of_elements(*sample.places, points[sample.places]))
    elif weights is not None:
        weight = sample.take(np.broadcast_to(weights, points.shape))
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
    reach = bits.shape[2] // 2
    for _ in range(_ROUNDS):
        rates = Rates((bits * price).astype(np.float32), reach)
        indices, books, _ = viterbi.quantize(values, contexts, rates, path, weights=weights)
        counts = _counts(contexts, books, indices, bits.shape[0], reach) + prior
        bits = -np.log2(counts / counts.sum(axis=2, keepdims=True))
    return bits, indices, books


def _counts(
    contexts: npt.NDArray[np.uint8], books: Books, indices: npt.NDArray[np.int32], n_contexts: int, reach: int
) -> npt.NDArray[np.integer[Any]]:
    """How often each index of each codebook occurs in each context, ``(n_contexts, 2, 2 · reach + 1)``."""
    if native.is_used():
        return encoding.count_indices(np.ascontiguousarray(contexts), np.ascontiguousarray(books),
                                      np.ascontiguousarray(indices), n_contexts, reach)  # fmt: skip
    size = 2 * reach + 1
    at = (contexts.astype(np.intp) * 2 + books) * size + indices + reach
    return np.bincount(at.reshape(-1), minlength=n_contexts * 2 * size).reshape(n_contexts, 2, size)


@dataclass(frozen=True)
class Sample:
    """Values that were coded with rates that are those of their codes.

    Attributes:
        values: ``(n_steps, n_sequences)``, in steps of the grid.
        contexts: The context of each value.
        weights: Weights of their squared errors, of a shape that can be broadcast.
        indices, books: Index and codebook of each value.
        n_contexts: Number of all contexts.
        reach: No index has a larger magnitude.
    """

    values: Floats
    contexts: npt.NDArray[np.uint8]
    weights: Floats
    indices: npt.NDArray[np.int32]
    books: Books
    n_contexts: int
    reach: int

    @classmethod
    def coded(
        cls, values: Floats, contexts: npt.NDArray[np.uint8], weights: Floats, of_all: Contexts, *,
        price: float, n_states: int,
    ) -> Sample:  # fmt: skip
        """Code values.

        Args:
            of_all: All contexts.
            price: Cost of a bit, in squared steps.
            n_states: Of the trellis.
        """
        reach = int(largest_magnitude(values) / 2) + 3
        _, indices, books = _adapt(values, contexts, expected_rates(of_all, reach), viterbi.TRELLISES[n_states],
                                   price=price, weights=weights)  # fmt: skip
        return cls(values, contexts, weights, indices, books, of_all.n_contexts, reach)

    def counts(self, sequences: slice = slice(None)) -> npt.NDArray[np.integer[Any]]:
        """How often each index of each codebook occurs in some sequences: ``(2 · n_contexts, 2 · reach + 1)``."""
        found = _counts(self.contexts[:, sequences], self.books[:, sequences], self.indices[:, sequences],
                        self.n_contexts, self.reach)  # fmt: skip
        return found.reshape(2 * self.n_contexts, -1)


def expected_bits(points: Rows, contexts: Contexts, price: float, fit: Fit, power: float = 0.0) -> float:
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
    places = sample_indices(size_of(points), _SAMPLE, 0)
    n_steps = min(places.size, _SAMPLE_STEPS)
    places = places[: places.size // n_steps * n_steps].reshape(-1, n_steps).T
    values = points[np.divmod(places, points.shape[1])]
    of_sample = contexts.at_places(places, points.shape[1]).astype(np.uint8)
    weights = weights_of(values, power) if power else np.ones((1, 1), np.float32)
    sample = Sample.coded(values, of_sample, weights, contexts, price=price, n_states=_FEW_STATES)
    indices, books = sample.indices, sample.books
    decoded = 2.0 * indices + books
    if fit == "gain":
        decoded *= gain(values, indices, books)
    elif fit == "means":
        reach = int(np.abs(indices).max(initial=0))
        size = 2 * reach + 1
        codes = (books.astype(np.intp) * size + indices + reach).reshape(-1)
        sums = np.bincount(codes, values.reshape(-1), 2 * size)
        decoded = (sums / np.maximum(np.bincount(codes, minlength=2 * size), 1))[codes].reshape(values.shape)
    noise = float((weights * np.square(values - decoded)).mean())
    return _bits_of(sample.counts()) / size_of(values) + 0.5 * math.log2(max(noise, 1e-9) / _FINE_NOISE)


def _bits_of(counts: npt.NDArray[np.integer[Any]]) -> float:
    """The entropy of all codes of tables, in bits, from how often each occurs: ``(n_tables, n_codes)``."""
    totals = counts.sum(axis=1, keepdims=True)
    used = counts > 0
    bits = -float((counts * np.log2(np.where(used, counts, 1) / np.maximum(totals, 1))).sum())
    # An entropy from counts is too small by half a nat for each code beyond the first (Miller 1955)
    return bits + 0.5 / math.log(2) * float(used.sum() - (totals > 0).sum())


def count_rates(indices: Indices, books: Books, contexts: Contexts, price: float, reach: int) -> Rates:
    """The rates of given codes."""
    size = 2 * reach + 1
    shape = (contexts.n_contexts, 2, size)
    seen = np.zeros(contexts.n_contexts * 2 * size, np.intp)
    for rows in bands(indices.shape):
        at = contexts.at(rows, slice(None)).astype(np.intp) * 2 + books[rows]
        at = at * size + np.clip(indices[rows], -reach, reach) + reach
        seen += np.bincount(at.reshape(-1), minlength=seen.size)
    counts = seen.reshape(shape) + np.exp2(-expected_rates(contexts, reach).astype(np.float64)) * _PRIOR
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


def gain(points: Rows, indices: npt.NDArray[np.signedinteger[Any]], books: Books) -> float:
    """The factor of grid points that gives the least squared error; 1 if all points are 0."""
    product = energy = 0.0
    for rows, part in pieces(points):
        grid = 2.0 * indices[rows] + books[rows]
        product += float(np.einsum("ij,ij->", part, grid))
        energy += float(np.einsum("ij,ij->", grid, grid))
    return product / energy if energy and product > 0 else 1.0


def centroids(points: Rows, indices: Indices, books: Books, reach: int) -> npt.NDArray[np.float64]:
    """For each code the mean of its values, in steps: ``(2, 2 · reach + 1)``; the grid point if it has none.

    Values of both signs are averaged, so that the table is symmetric.
    """
    size = 2 * reach + 1
    grid = 2 * np.arange(-reach, reach + 1.0) + np.arange(2)[:, None]
    of_one: npt.NDArray[np.float64] = np.zeros(2 * size)
    sum_of_one: npt.NDArray[np.float64] = np.zeros(2 * size)
    for rows in bands(points.shape):
        at = (books[rows].astype(np.intp) * size + indices[rows] + reach).reshape(-1)
        of_one += np.bincount(at, minlength=2 * size)
        # The sums so far come first, so that all are added in the order of the elements
        values = np.concatenate((sum_of_one, points[rows].reshape(-1)))
        sum_of_one = np.bincount(np.concatenate((np.arange(2 * size), at)), values, 2 * size).astype(np.float64)
    counts, sums = of_one.reshape(2, size), sum_of_one.reshape(2, size)
    counts, sums = counts + mirror(counts), sums - mirror(sums)
    return np.where(counts > 0, (sums + grid) / (counts + 1), grid)


def mirror(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Exchange the values of opposite grid points: k and −k in codebook 0, k and −1 − k in codebook 1."""
    turned = values[:, ::-1].copy()
    turned[1, :-1] = values[1, :-1][::-1]
    turned[1, -1] = 0
    return turned
