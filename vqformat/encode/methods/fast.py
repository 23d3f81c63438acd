"""The preset ``fast``: codes of fixed width, so that a file opens nearly as fast as memory can be copied."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...decode.tables import Floats
from ...errors import EncodeError
from ...format import bits
from ...format.chunkwriter import EncodedTensor
from ...format.layout import Layout, make_view
from ..report import as_decoded, energy
from .assemble import assemble, sum_of_stages
from .codebook import CodebookOptions, quantize_codebook
from .packing import plain_bits
from .quantize import check_bound

QUICK_ENTRIES = (2, 4, 16, 256)  # whose codes are 1, 2, 4 or 8 bits: a byte holds several of them, or one
ENTRIES = (2, 3, 4, 6, 8, 12, 16, 32, 48, 64, 128, 256)  # with those that a budget needs
# At the step S of a grid, noise falls by so many S**2 for a further bit: what a bit costs at that quality
_PRICE = 2 * math.log(2) / 12
_SAMPLE = 1 << 16
_LARGEST_DIM = 64  # of a second stage
_SPENT = 0.995  # of the bytes that a tensor may have, within which the number of codes counts more than that of bytes


@dataclass(frozen=True)
class Choice:
    """How a tensor is coded.

    Attributes:
        entries: Of the codebook.
        further: Entries and dim of a second one, for what the first leaves; None without.
    """

    entries: int
    further: tuple[int, int] | None = None


@dataclass(frozen=True)
class RateDistortionCurve:
    """What numbers of entries are worth to a tensor.

    Attributes:
        bits: Of a code, ascending.
        noise: Mean squared error.
    """

    entries: Sequence[int]
    bits: Sequence[float]
    noise: Sequence[float]

    @classmethod
    def of(cls, values: Floats, entries: Sequence[int], *, seed: int = 0) -> RateDistortionCurve:
        """By trial, on a sample of the values."""
        flat = values.reshape(-1)
        sample = np.ascontiguousarray(flat[:: max(1, flat.size // _SAMPLE) | 1]).reshape(1, -1)
        view = make_view(sample.shape, False, Layout(n_row_axes=1))

        def noise(n: int) -> float:
            options = CodebookOptions(1, n, iterations=50)
            stage = quantize_codebook(sample, options, seed=[seed, bits.code_width(n)])
            return float(np.square(stage.values(view) - sample, dtype=np.float64).mean())

        return cls(entries, [plain_bits(n) for n in entries], [noise(n) for n in entries])

    def entries_at(self, step: float) -> int:
        """The number of entries whose bits are worth their noise at the quality of a grid of this step."""
        costs = [noise / step**2 + _PRICE * width for noise, width in zip(self.noise, self.bits, strict=True)]
        return self.entries[costs.index(min(costs))]

    def nbytes_at(self, step: float, n_codes: int) -> float:
        """Bytes of codes and table that are worth their noise, if they could be any number."""
        sizes = [n_codes * width / 8 + 2 * entries for width, entries in zip(self.bits, self.entries, strict=True)]
        nbytes, missing_bits = self._between(step, sizes)
        return nbytes + n_codes * missing_bits / 8

    def any_entries_at(self, step: float) -> int:
        """The number of entries that would be worth their noise if each took as many bits as its logarithm."""
        return round(math.exp(self._between(step, [math.log(entries) for entries in self.entries])[0]))

    def _between(self, step: float, values: Sequence[float]) -> tuple[float, float]:
        """Of values for each number of entries, what lies between those for the numbers that are best at near steps.

        Returns:
            The value, and how many bits a weight the step asks for beyond those of the most entries.
        """
        hull = [0]  # entries that are best at some step
        for i in range(1, len(self.bits)):
            while len(hull) > 1 and self._gain(hull[-2], hull[-1]) <= self._gain(hull[-1], i):
                hull.pop()
            if self.noise[i] < self.noise[hull[-1]]:
                hull.append(i)
        changes = [self._gain(a, b) / _PRICE for a, b in pairwise(hull)]  # squares of steps
        if not changes:
            return values[hull[0]], 0.0
        edges = np.log([4 * changes[0], *changes, changes[-1] / 4])
        middles = (edges[1:] + edges[:-1]) / 2
        wanted = 2 * math.log(step)
        found = float(np.interp(wanted, middles[::-1], [values[i] for i in hull[::-1]]))
        return found, max(0.0, float(middles[-1]) - wanted) / (2 * math.log(2)) if self.noise[hull[-1]] else 0.0

    def _gain(self, a: int, b: int) -> float:
        """By how much noise falls for a bit, from one number of entries to another."""
        return (self.noise[a] - self.noise[b]) / (self.bits[b] - self.bits[a])


def choose_within(nbytes: float, shape: tuple[int, int]) -> Choice:
    """Codebooks whose codes and tables fill so many bytes, if they can, and do not take more."""
    n_rows, n_columns = shape

    def sizes(entries: int, dim: int) -> tuple[float, int]:
        """Bytes of codes and of the table."""
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
    name: str, dtype: str, shape: tuple[int, ...], values: Floats, choice: Choice, *, seed: int = 0
) -> tuple[EncodedTensor, float, float]:
    """A tensor by scalar k-means with codes of fixed width.

    Args:
        values: The tensor as reals, see ``orient.reals``; at least one axis, finite.

    Returns:
        The encoded tensor, and the sums of squares of its values and of the errors.

    Raises:
        EncodeError: A limit of SPEC section 14 would be exceeded.
    """
    layout = Layout(n_row_axes=1 if values.ndim > 1 else 0)
    matrix = as_matrix(values)
    view = make_view(matrix.shape, False, Layout(n_row_axes=1))
    stages = [quantize_codebook(matrix, CodebookOptions(1, choice.entries, iterations=300), seed=[seed])]
    if choice.further is not None:
        entries, dim = choice.further
        left = matrix - stages[0].values(view)
        further = quantize_codebook(left, CodebookOptions(dim, entries), seed=[seed, 1])
        with contextlib.suppress(EncodeError):  # values as large as the dtype's largest stay as they are
            check_bound([*stages, further], view, dtype)
            stages.append(further)
    encoded = assemble(name, dtype, shape, layout, stages, compress=False)
    error = as_decoded(sum_of_stages(stages, view), dtype) - matrix
    return encoded, energy(matrix), energy(error)


def as_matrix(values: Floats) -> Floats:
    """The matrix that is coded: rows of the first axis."""
    return values.reshape(values.shape[0] if values.ndim > 1 else 1, -1)
