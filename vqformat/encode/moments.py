"""Second moments of the vectors that layers meet, and how many of these vectors are taken.

Vectors are arrays of NumPy or tensors of PyTorch, on any device; what is done with them is the same.
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

_MOMENTS_NBYTES = 1 << 24  # of a layer
_FEWEST_BLOCK_INPUTS = 256
_PANELS = 4  # into which a block is cut, so that most of its products are computed once, not twice
_FEWEST_PANEL_INPUTS = 128
_COST = 0.75  # of all moments, in multiplications of the model's layers
_CREDIT = 1 << 31  # products at the beginning that take no time that matters, about 0.05 s: of small models all vectors
_PLENTY = 16  # vectors for each input of a layer, over some calls
_FIRST_CALLS = 8  # that may take as many vectors each; later ones take fewer
_CHUNK_ELEMENTS = 1 << 22  # of vectors that are in memory together


class Moments:
    """Second moments of vectors, in blocks on the diagonal where they are long.

    Args:
        n_groups: Of vectors that are kept apart.
        n_inputs: Of a vector.
        unit: Inputs that belong together, such as the taps of a channel.
    """

    def __init__(self, n_groups: int, n_inputs: int, unit: int = 1) -> None:
        most = max(_FEWEST_BLOCK_INPUTS, _MOMENTS_NBYTES // (4 * n_inputs * n_groups))
        most = max(unit, most // unit * unit) if unit <= most else most
        edges = [*range(0, n_inputs, most), n_inputs]
        self._blocks = list(pairwise(edges))
        self._sums: list[Any] = []  # of each block (groups, inputs, inputs), its upper triangle at least
        self.n_groups, self.n_inputs = n_groups, n_inputs
        self.n_observed = self.n_calls = 0
        self._weight = 0.0

    @property
    def n_products(self) -> int:
        """Multiplications for a vector of all groups."""
        return self.n_groups * sum(int((end - start) ** 2) for start, end in self._blocks)

    def add(self, vectors: Vectors, weight: float = 1.0) -> None:
        """Further vectors, each of which stands for so many."""
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
        """Of the products: each block's, ``(groups, inputs, inputs)``; nothing if none was seen.

        It is of the kind that the vectors had. Nothing can be added any more.
        """
        for sums in self._sums:
            sums /= self._weight
            for a, b in _panels(sums.shape[1]):
                sums[:, b:, a:b] = sums[:, a:b, b:].swapaxes(1, 2)
        return self._sums


def by_group(blocks: list[npt.NDArray[np.float32]]) -> tuple[tuple[npt.NDArray[np.float32], ...], ...] | None:
    """Mean products as a calibration has them."""
    return tuple(tuple(of_group) for of_group in zip(*blocks, strict=True)) or None


def _panels(n: int) -> list[tuple[int, int]]:
    """The rows of a block of so many inputs, cut into some."""
    size = max(_FEWEST_PANEL_INPUTS, -(-n // _PANELS))
    return [(start, min(start + size, n)) for start in range(0, n, size)]


class VectorSampler:
    """How many of the vectors that layers meet are taken, so that all moments cost about as much as running the model.

    Where their cost is given, errors of all moments together are least if a layer's number of vectors goes with the
    inverse root of the inputs of a block.
    """

    def __init__(self) -> None:
        self._credit = _CREDIT
        self._allowed = 0.0  # products of all calls
        self._wanted = 0.0  # products of all calls, if a vector were taken of blocks of one input
        self._random = np.random.default_rng(0)

    def note(self, moments: Moments, n: int, take: Callable[[Chosen], Vectors], n_outputs: int) -> None:
        """Add to the moments some of the n vectors of a call.

        Args:
            take: Gives those that are chosen, ``(chosen, groups, inputs)``.
            n_outputs: That a group of the layer makes of a vector.
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
        """So many of so many in their order, evenly spread: each at random in its stretch, lest they have a period."""
        if n == n_all:
            return np.arange(n)
        return ((np.arange(n) + self._random.random(n)) * (n_all / n)).astype(np.int64)
