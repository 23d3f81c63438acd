"""Second moments of the input vectors of layers, and the choice of the vectors that are used.

Vectors are NumPy arrays, or PyTorch tensors on any device. The code uses only operations that both have.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = Any  # (n, groups, inputs), float32
Chosen = npt.NDArray[np.int64]

_MOMENTS_NBYTES = 1 << 24  # memory of the moments of a layer
_FEWEST_BLOCK_INPUTS = 256
_PANELS = 4  # of a symmetric block; only panels right of the diagonal are computed
_FEWEST_PANEL_INPUTS = 128
_COST = 0.75  # multiplications for all moments, relative to those of the model's layers
_CREDIT = 1 << 31  # multiplications (about 0.05 s) that are free: small models use all vectors
_PLENTY = 16  # vectors for each input of a layer are enough, in all calls together
_FIRST_CALLS = 8  # calls that may use the same number of vectors; later calls use fewer
_CHUNK_ELEMENTS = 1 << 22  # elements of the vectors that are in memory together


class Moments:
    """Second moments of vectors. For long vectors only blocks on the diagonal are kept.

    Args:
        n_groups: Groups of vectors, each with moments of its own.
        n_inputs: Length of a vector.
        unit: Number of inputs that belong together, such as the taps of a channel; a block does not separate them.

    Attributes:
        n_observed: Number of vectors added.
        n_calls: Number of calls of the layer, counted by ``VectorSampler``.
    """

    def __init__(self, n_groups: int, n_inputs: int, unit: int = 1) -> None:
        most = max(_FEWEST_BLOCK_INPUTS, _MOMENTS_NBYTES // (4 * n_inputs * n_groups))
        most = max(unit, most // unit * unit) if unit <= most else most
        edges = [*range(0, n_inputs, most), n_inputs]
        self._blocks = list(pairwise(edges))
        self._sums: list[Any] = []  # for each block (groups, inputs, inputs); only the upper triangle is complete
        self.n_groups, self.n_inputs = n_groups, n_inputs
        self.n_observed = self.n_calls = 0
        self._weight = 0.0

    @property
    def n_products(self) -> int:
        """Multiplications for one vector in all groups."""
        return self.n_groups * sum(int((end - start) ** 2) for start, end in self._blocks)

    def add(self, vectors: Vectors, weight: float = 1.0) -> None:
        """Add vectors.

        Args:
            vectors: ``(n, groups, inputs)`` float32.
            weight: Number of vectors for which each of these stands.
        """
        vectors = vectors.swapaxes(0, 1) * sqrt(weight)  # (groups, n, inputs)
        n = vectors.shape[1]
        is_first = not self._sums
        for i, (start, end) in enumerate(self._blocks):
            block = vectors[..., start:end]
            if is_first:
                self._sums.append(block.swapaxes(1, 2) @ block)
                continue
            for a, b in _panels(end - start):
                self._sums[i][:, a:b, a:] += block[..., a:b].swapaxes(1, 2) @ block[..., a:]
        self.n_observed += n
        self._weight += weight * n

    def mean(self) -> list[Any]:
        """The second moments: for each block ``(groups, inputs, inputs)``; empty if no vector was added.

        They are arrays or tensors, as the vectors were. After this call nothing can be added.
        """
        for sums in self._sums:
            sums /= self._weight
            for a, b in _panels(sums.shape[1]):
                sums[:, b:, a:b] = sums[:, a:b, b:].swapaxes(1, 2)
        return self._sums


def by_group(blocks: list[npt.NDArray[np.float32]]) -> tuple[tuple[npt.NDArray[np.float32], ...], ...] | None:
    """Rearrange moments, which are by block, into those of ``TensorStatistics``, which are by group."""
    return tuple(tuple(of_group) for of_group in zip(*blocks, strict=True)) or None


def _panels(n: int) -> list[tuple[int, int]]:
    """Ranges of rows into which a block of n inputs is cut."""
    size = max(_FEWEST_PANEL_INPUTS, -(-n // _PANELS))
    return [(start, min(start + size, n)) for start in range(0, n, size)]


class VectorSampler:
    """Chooses which input vectors are used, so that computing moments costs about as much as running the model.

    For a given cost, the errors of all moments together are least if the number of vectors of a layer is proportional
    to the inverse square root of the number of inputs of a block.
    """

    def __init__(self) -> None:
        self._credit = _CREDIT
        self._allowed = 0.0  # multiplications that all calls so far may cost
        self._wanted = 0.0  # multiplications of all calls so far, with 1 / root(inputs of a block) vectors each
        self._random = np.random.default_rng(0)

    def note(self, moments: Moments, n: int, take: Callable[[Chosen], Vectors], n_outputs: int) -> None:
        """Add some of the n vectors of a call to the moments.

        Args:
            take: Returns the vectors with given numbers, ``(chosen, groups, inputs)``.
            n_outputs: Outputs of a group of the layer.
        """
        n_taken = self._n_taken(moments, n, n_outputs)
        chosen = self._spread(n_taken, n)
        n_together = max(1, _CHUNK_ELEMENTS // (moments.n_groups * moments.n_inputs))
        for start in range(0, n_taken, n_together):
            moments.add(take(chosen[start : start + n_together]), n / n_taken)
        moments.n_calls += 1

    def _n_taken(self, moments: Moments, n: int, n_outputs: int) -> int:
        n_elements = moments.n_groups * moments.n_inputs
        root = sqrt(moments.n_products / n_elements)
        self._allowed += _COST * n * n_elements * n_outputs
        self._wanted += moments.n_products / root
        if n * moments.n_products <= self._credit:
            self._credit -= n * moments.n_products
            return n
        plenty = _PLENTY * moments.n_inputs // (_FIRST_CALLS + moments.n_calls)
        return max(1, min(n, plenty, int(self._allowed / self._wanted / root)))

    def _spread(self, n: int, n_all: int) -> Chosen:
        """``n`` ascending numbers below ``n_all``, one at random in each of n equal intervals.

        They are random because vectors may repeat with a period.
        """
        if n == n_all:
            return np.arange(n)
        return ((np.arange(n) + self._random.random(n)) * (n_all / n)).astype(np.int64)
