"""The preset ``fast``: codes of fixed width, so that a file loads nearly as fast as memory is copied."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ...decode import tables
from ...decode.tables import Floats
from ...errors import EncodeError
from ...format import bits
from ...format.chunkwriter import EncodedTensor
from ...format.layout import Layout, View, make_view
from ...format.stages import CodebookStage, TableSource
from ..report import as_decoded
from ..sums import Energy, energy
from .assemble import Collect, QuantizedStage, assemble, blocks_of_sum
from .codebook import CodebookOptions, quantize_codebook
from .layout import ShortFloats
from .packing import CodeMatrix, plain_bits
from .quantize import check_bound

QUICK_ENTRIES = (2, 4, 16, 256)  # codes of 1, 2, 4 or 8 bits, of which a byte holds a whole number
ENTRIES = (2, 3, 4, 6, 8, 12, 16, 32, 48, 64, 128, 256)  # the choices with a budget
# The noise that a further bit saves at the quality of a grid with step S, in units of S²: −d(S²/12)/d(bits), where S
# halves with each bit
_PRICE = 2 * math.log(2) / 12
_SAMPLE = 1 << 16  # values
_LARGEST_DIM = 64  # of a second stage
_SPENT = 0.995  # choices that use at least this share of the bytes count as equal


@dataclass(frozen=True)
class Choice:
    """How a tensor is coded.

    Attributes:
        entries: Entries of the codebook.
        further: Entries and dim of a second codebook, for the residual; None without one.
    """

    entries: int
    further: tuple[int, int] | None = None


@dataclass(frozen=True)
class RateDistortionCurve:
    """Rate and distortion of a tensor for different numbers of codebook entries.

    Attributes:
        entries: Numbers of entries, ascending.
        bits: For each the bits of a code.
        noise: For each the mean squared error.
    """

    entries: Sequence[int]
    bits: Sequence[float]
    noise: Sequence[float]

    @classmethod
    def of(cls, values: ShortFloats, entries: Sequence[int], *, seed: int = 0) -> RateDistortionCurve:
        """Measure rate and distortion on a sample of the values."""
        flat = values.reshape(-1)
        sample = flat[:: max(1, flat.size // _SAMPLE) | 1].astype(np.float32).reshape(1, -1)
        view = make_view(sample.shape, False, Layout(n_row_axes=1))

        def noise(n: int) -> float:
            options = CodebookOptions(1, n, iterations=50)
            stage = quantize_codebook(sample, options, seed=[seed, bits.code_width(n)])
            return float(np.square(stage.values(view) - sample, dtype=np.float64).mean())

        return cls(entries, [plain_bits(n) for n in entries], [noise(n) for n in entries])

    def entries_at(self, step: float) -> int:
        """The number of entries with the least cost of rate and distortion at the quality of a grid with this step."""
        costs = [noise / step**2 + _PRICE * width for noise, width in zip(self.noise, self.bits, strict=True)]
        return self.entries[costs.index(min(costs))]

    def nbytes_at(self, step: float, n_codes: int) -> float:
        """Bytes of codes and codebook with the least cost, interpolated between numbers of entries."""
        sizes = [n_codes * width / 8 + 2 * entries for width, entries in zip(self.bits, self.entries, strict=True)]
        nbytes, missing_bits = self._between(step, sizes)
        return nbytes + n_codes * missing_bits / 8

    def any_entries_at(self, step: float) -> int:
        """The number of entries with the least cost, interpolated on a logarithmic scale."""
        return round(math.exp(self._between(step, [math.log(entries) for entries in self.entries])[0]))

    def _between(self, step: float, values: Sequence[float]) -> tuple[float, float]:
        """Interpolate between values that belong to the numbers of entries, by the step at which each number is best.

        Args:
            values: A value for each number of entries.

        Returns:
            The interpolated value, and the bits for each weight that the step requires beyond those of the most
            entries.
        """
        hull = [0]  # numbers of entries that are best at some step: the lower convex hull
        for i in range(1, len(self.bits)):
            while len(hull) > 1 and self._gain(hull[-2], hull[-1]) <= self._gain(hull[-1], i):
                hull.pop()
            if self.noise[i] < self.noise[hull[-1]]:
                hull.append(i)
        # Squares of the steps at which the best number of entries changes
        changes = [self._gain(a, b) / _PRICE for a, b in pairwise(hull)]
        if not changes:
            return values[hull[0]], 0.0
        edges = np.log([4 * changes[0], *changes, changes[-1] / 4])
        middles = (edges[1:] + edges[:-1]) / 2
        wanted = 2 * math.log(step)
        found = float(np.interp(wanted, middles[::-1], [values[i] for i in hull[::-1]]))
        return found, max(0.0, float(middles[-1]) - wanted) / (2 * math.log(2)) if self.noise[hull[-1]] else 0.0

    def _gain(self, a: int, b: int) -> float:
        """Decrease of the noise for each further bit, from one number of entries to another."""
        return (self.noise[a] - self.noise[b]) / (self.bits[b] - self.bits[a])


def choose_within(nbytes: float, shape: tuple[int, int]) -> Choice:
    """Codebooks whose codes and entries take as many bytes as possible, but not more than ``nbytes``.

    Args:
        shape: Rows and columns of the matrix.
    """
    n_rows, n_columns = shape

    def sizes(entries: int, dim: int) -> tuple[float, int]:
        """Bytes of the codes, and of the codebook."""
        return n_rows * -(-n_columns // dim) * plain_bits(entries) / 8, 2 * entries * dim

    fitting = [entries for entries in ENTRIES if sum(sizes(entries, 1)) <= nbytes]
    if not fitting:
        return Choice(ENTRIES[0])
    first = fitting[-1]
    left = nbytes - sum(sizes(first, 1))
    found = [(sizes(entries, dim), (entries, dim)) for entries in ENTRIES
             for dim in range(1, min(_LARGEST_DIM, n_columns) + 1)]  # fmt: skip
    found = [(size, further) for size, further in found if sum(size) <= left]
    if not found:
        return Choice(first)
    most = max(sum(size) for size, _ in found)
    enough = most - (1 - _SPENT) * nbytes
    return Choice(first, max((codes, further) for (codes, table), further in found if codes + table >= enough)[1])


def encode(
    name: str, dtype: str, shape: tuple[int, ...], values: ShortFloats, choice: Choice, *, seed: int = 0,
    collect: Collect = list,
) -> tuple[EncodedTensor, float, float]:  # fmt: skip
    """Encode a tensor by scalar k-means with codes of fixed width.

    Args:
        values: The tensor as reals, see ``layout.short_reals``; at least one axis, finite.
        choice: The codebooks.
        collect: See ``assemble.assemble``.

    Returns:
        The encoded tensor, the sum of squares of its values, and the sum of squares of its errors.

    Raises:
        EncodeError: A limit of SPEC section 14 would be exceeded.
    """
    layout = Layout(n_row_axes=1 if values.ndim > 1 else 0)
    matrix = as_matrix(values)
    view = make_view(matrix.shape, False, Layout(n_row_axes=1))
    stages = [quantize_codebook(matrix, CodebookOptions(1, choice.entries, iterations=300), seed=[seed])]
    if choice.further is not None:
        entries, dim = choice.further
        left = _Residual.of(matrix, stages[0])
        further = quantize_codebook(left, CodebookOptions(dim, entries), seed=[seed, 1])
        with contextlib.suppress(EncodeError):  # no second stage if sums could exceed the range of the dtype
            check_bound([*stages, further], view, dtype)
            stages.append(further)
    noise = _noise(matrix, stages, view, dtype)
    encoded = assemble(name, dtype, shape, layout, stages, compress=False, collect=collect)
    return encoded, energy(matrix), noise


@dataclass(frozen=True)
class _Residual:
    """What a first stage leaves of a matrix. A part of it is made when it is asked for, to save memory.

    Attributes:
        codes: Codes of the matrix, ``(R, C)``.
        levels: The value of each code, as a decoder computes it.
    """

    matrix: ShortFloats
    codes: CodeMatrix
    levels: Floats

    @classmethod
    def of(cls, matrix: ShortFloats, stage: QuantizedStage) -> _Residual:
        """The residual of a stage of scalars with one codebook and no scales."""
        assert isinstance(stage.stage, CodebookStage) and isinstance(stage.stage.source, TableSource)
        return cls(matrix, stage.codes, tables.decode(stage.resident[0], stage.stage.source.dtype, "codebook"))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix.shape

    def __getitem__(self, part: tuple[Any, Any], /) -> Floats:
        found: Floats = self.matrix[part] - np.take(self.levels, self.codes[part])
        return found


def _noise(matrix: ShortFloats, stages: Sequence[QuantizedStage], view: View, dtype: str) -> float:
    """Sum of squares of the errors of all stages together."""
    noise = Energy()
    for block, decoded in blocks_of_sum(stages, view):
        original = matrix[block.row : block.row_end, block.column : block.column_end].astype(np.float32, copy=False)
        noise.add(as_decoded(decoded, dtype) - original)
    return noise.total()


def as_matrix(values: ShortFloats) -> ShortFloats:
    """The matrix that is coded: the first axis as rows."""
    return values.reshape(values.shape[0] if values.ndim > 1 else 1, -1)
