"""Trellis-coded quantization: the codes with the least cost of distortion and rate, by dynamic programming.

The codebooks are the even and the odd points of a grid (SPEC 12.4). The path through the states of SPEC 12.2 with the
least cost is found for many sequences together (Viterbi 1967; entropy-constrained: Fischer and Wang 1992; Joshi, Crump
and Fischer 1995).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import native
from ...decode.tables import Floats
from ...format.stages import Trellis
from ...native import encoding
from . import tiles

# Parity-check polynomials by the number of states (Ungerboeck 1982, table I, one-dimensional)
TRELLISES = {4: Trellis(0o5, 0o2), 8: Trellis(0o13, 0o4), 16: Trellis(0o23, 0o4), 32: Trellis(0o45, 0o10),
             64: Trellis(0o103, 0o24), 128: Trellis(0o235, 0o126), 256: Trellis(0o515, 0o362)}  # fmt: skip
_PATHS = 1 << 15  # paths that are searched together, one for each state of each sequence
_PIECE = 1 << 16  # elements whose branch costs are in memory together
# Costs of paths are int16, in units of 1 / _RESOLUTION of a squared step. Finer ones would save less than 0.01 % of the
# costs. A step of a sequence adds 0 to _MOST_COST. A path leads from each of up to 2**8 states to each other one in 8
# steps, so the costs of states differ by at most 8 * _MOST_COST, or by that of a state in which no sequence starts,
# _FORBIDDEN, and of 7 steps. Thus nothing overflows
_RESOLUTION, _MOST_COST = np.float32(64), 2047
_FORBIDDEN = 8 * _MOST_COST + 1

Indices = npt.NDArray[np.int32]
States = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Rates:
    """The cost of each index in each context: its bits times the price of a bit.

    Attributes:
        costs: ``(n_contexts, 2, 2 · reach + 1)`` float32. That of codebook q and index k is at ``[q, k + reach]``.
        reach: Largest magnitude of an index, at least 2. Values up to ``2 · (reach - 2)`` can get their best point.
    """

    costs: Floats
    reach: int


@dataclass(frozen=True)
class _Moves:
    """The transitions into each state of a trellis. Each state has two predecessors.

    Attributes:
        before: ``(2 · n_states,)`` intp: for each state its first predecessor; then for each its second.
        subsets, subsets8: ``(2 · n_states,)`` intp and uint8: the subset of points of each transition, 2 · parity + q.
    """

    before: npt.NDArray[np.intp]
    subsets: npt.NDArray[np.intp]
    subsets8: States


@lru_cache(maxsize=8)
def _moves(trellis: Trellis) -> _Moves:
    n = trellis.n_states
    ways: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for state in range(n):
        for parity in (0, 1):
            ways[trellis.next_state(state, parity)].append((state, 2 * parity + (state & 1)))
    pairs = [ways[state][i] for i in (0, 1) for state in range(n)]
    subsets = np.array([subset for _, subset in pairs])
    return _Moves(np.array([state for state, _ in pairs]), subsets, subsets.astype(np.uint8))


def quantize(
    points: Floats,
    contexts: npt.NDArray[np.uint8] | None,
    rates: Rates,
    trellis: Trellis,
    *,
    weights: Floats | None = None,
    start: States | None = None,
) -> tuple[Indices, States, States]:
    """Quantize sequences of values to grid points, with the least cost.

    Args:
        points: Values in steps of the grid, ``(n_steps, n_sequences)``. The point of index k of codebook q is 2 k + q.
        contexts: Context of each value; None for context 0.
        rates: Costs of the indices.
        trellis: The trellis.
        weights: Weights of the squared errors, of a shape that can be broadcast; None for 1.
        start: Initial states of the sequences; None for 0.

    Returns:
        Index and codebook of each value, ``(n_steps, n_sequences)``, and the final states of the sequences.
    """
    if has_kernel(trellis, rates):
        n_steps = max(1, points.shape[0])
        indices, books, end = _search_natively(points, (n_steps, 1), contexts, rates, trellis,
                                                weights=weights, start=start)  # fmt: skip
        return indices.astype(np.int32), books, end
    n_sequences = points.shape[1]
    chosen, books = np.empty(points.shape, np.int32), np.empty(points.shape, np.uint8)
    end = np.empty(n_sequences, np.uint8)
    size = max(1, _PATHS // trellis.n_states)
    for first in range(0, n_sequences, size):
        piece = slice(first, first + size)
        search = _Search(
            points[:, piece], None if contexts is None else contexts[:, piece], rates,
            None if weights is None else np.broadcast_to(weights, points.shape)[:, piece],
        )  # fmt: skip
        subsets, end[piece] = search.find_path(trellis, None if start is None else start[piece])
        np.bitwise_and(subsets, 1, out=books[:, piece])
        chosen[:, piece] = search.choices(subsets)
    return chosen, books, end


def quantize_tiles(
    points: Floats,
    tile: tuple[int, int],
    contexts: npt.NDArray[np.uint8] | None,
    rates: Rates,
    trellis: Trellis,
    *,
    weights: Floats | None = None,
    start: States | None = None,
    out: tuple[npt.NDArray[np.int16], States] | None = None,
) -> tuple[npt.NDArray[np.int16], States, States]:
    """Quantize the tiles of a matrix. Each tile is a sequence, row after row.

    Args:
        points: ``(R, C)``, in steps of the grid.
        tile: Rows and columns of a tile.
        contexts, weights: Of a shape that can be broadcast.
        start: The initial state of each tile, those of the first row of tiles first; None for 0.
        out: Where indices and codebooks are to be, ``(R, C)``, C-contiguous; None for new arrays.

    Returns:
        Index and codebook of each value, ``(R, C)``, and the final states of the tiles.
    """
    if has_kernel(trellis, rates):
        return _search_natively(points, tile, contexts, rates, trellis, weights=weights, start=start, out=out)
    shape = points.shape
    indices, books = (np.empty(shape, np.int16), np.empty(shape, np.uint8)) if out is None else out
    n_across = -(-shape[1] // tile[1])
    end = np.zeros(-(-shape[0] // tile[0]) * n_across, np.uint8)
    for group in tiles.groups(shape, 0, tile):
        numbers = (group.rows[0, :, None] // tile[0] * n_across + group.columns[0] // tile[1]).reshape(-1)
        found, of_book, end[numbers] = quantize(
            group.take(points), None if contexts is None else group.take(np.broadcast_to(contexts, shape)), rates,
            trellis, weights=None if weights is None else group.take(np.broadcast_to(weights, shape)),
            start=None if start is None else start[numbers],
        )  # fmt: skip
        group.put(indices, found)
        group.put(books, of_book)
    return indices, books, end


def has_kernel(trellis: Trellis, rates: Rates) -> bool:
    """Whether the kernel in C is used. It gives the same results."""
    return native.is_used() and encoding.can_search(*polynomials(trellis), trellis.n_states, rates.reach)


def polynomials(trellis: Trellis) -> tuple[int, int]:
    """Feedback and forward polynomials as kernels take them, shifted right by one."""
    return trellis.feedback >> 1, trellis.forward >> 1


def _search_natively(
    points: Floats, tile: tuple[int, int], contexts: npt.NDArray[np.uint8] | None, rates: Rates, trellis: Trellis, *,
    weights: Floats | None, start: States | None, out: tuple[npt.NDArray[np.int16], States] | None = None,
) -> tuple[npt.NDArray[np.int16], States, States]:  # fmt: skip
    shape = points.shape
    if contexts is not None and contexts.shape == (1, 1) and not contexts[0, 0]:  # there is one context
        contexts = None
    return encoding.search_trellis(
        np.ascontiguousarray(points, np.float32),
        tile,
        contexts=None if contexts is None else _whole(contexts, shape),
        weights=None if weights is None else _whole(weights.astype(np.float32, copy=False), shape),
        costs=np.ascontiguousarray(rates.costs),
        polynomials=polynomials(trellis),
        n_states=trellis.n_states,
        start=start,
        out=out,
    )


def _whole(array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array of this shape, C-contiguous, from one of a shape that can be broadcast."""
    return np.ascontiguousarray(array if array.shape == shape else np.broadcast_to(array, shape))


class _Search:
    """The search for some sequences together. Arguments are those of ``quantize``."""

    def __init__(
        self, points: Floats, contexts: npt.NDArray[np.uint8] | None, rates: Rates, weights: Floats | None
    ) -> None:
        self._points, self._contexts, self._weights = points, contexts, weights
        self._costs = np.ascontiguousarray(rates.costs).reshape(-1)
        self._reach = rates.reach
        self._steps = max(1, _PIECE // points.shape[1])  # steps whose branch costs are computed together

    def find_path(self, trellis: Trellis, start: States | None) -> tuple[States, States]:
        """The path with the least cost.

        Returns:
            The subset of points of each value, 2 · parity + q, and the final states.
        """
        n_steps, n = self._points.shape
        n_states = trellis.n_states
        moves = _moves(trellis)
        cost = np.full((n_states, n), _FORBIDDEN, np.int16)
        if start is None:
            cost[0] = 0
        else:
            cost[start, np.arange(n)] = 0
        takes_second = np.empty((n_steps, n_states, n), np.bool_)
        sums, branch = np.empty((2 * n_states, n), np.int16), np.empty((2 * n_states, n), np.int16)
        for first in range(0, n_steps, self._steps):
            part = slice(first, min(first + self._steps, n_steps))
            metrics = np.stack([self._cheapest(part, np.int32(subset))[0] for subset in range(4)], axis=1)
            metrics -= metrics.min(axis=1, keepdims=True)
            metrics *= _RESOLUTION
            rounded = np.rint(np.minimum(metrics, np.float32(_MOST_COST))).astype(np.int16)
            for step, metric in enumerate(rounded, first):
                metric -= cost[0]  # costs stay small: only their differences matter
                cost.take(moves.before, axis=0, out=sums, mode="clip")
                metric.take(moves.subsets, axis=0, out=branch, mode="clip")
                np.add(sums, branch, out=sums)
                np.less(sums[n_states:], sums[:n_states], out=takes_second[step])
                np.minimum(sums[n_states:], sums[:n_states], out=cost)
        state = cost.argmin(axis=0)
        end = state.astype(np.uint8)
        subsets = np.empty((n_steps, n), np.uint8)
        sequence = np.arange(n)
        for step in range(n_steps - 1, -1, -1):  # trace the path back from its end
            way = takes_second[step].reshape(-1).take(state * n + sequence) * n_states + state
            moves.subsets8.take(way, out=subsets[step], mode="clip")
            state = moves.before.take(way)
        return subsets, end

    def choices(self, subsets: States) -> Indices:
        """The best index of each value in a given subset of points."""
        indices = np.empty(subsets.shape, np.int32)
        for first in range(0, len(subsets), self._steps):
            part = slice(first, first + self._steps)
            indices[part] = self._cheapest(part, subsets[part].astype(np.int32))[1]
        return indices

    def _cheapest(self, steps: slice, subset: Any) -> tuple[Floats, Indices]:
        """For each value the point of a subset with the least cost. Returns its cost and its index.

        Subset d has the points that are d modulo 4. The candidates are the nearest of them, and the next one towards 0.

        Args:
            subset: A subset, or one for each value.
        """
        points = self._points[steps]
        q = subset & 1
        size = 2 * self._reach + 1
        base = q * size + self._reach
        if self._contexts is not None:
            base = self._contexts[steps].astype(np.intp) * (2 * size) + base
        furthest = np.float32(2 * (self._reach - 2))  # feedback may move values beyond the range of indices
        aims = np.clip(points, -furthest, furthest)
        aims -= subset.astype(np.float32)
        nearest = np.rint(aims * np.float32(0.25)).astype(np.int32)
        nearest *= 4
        nearest += subset
        nearer = nearest - np.where(nearest > 0, np.int32(4), np.int32(-4))  # nearer to 0
        best: Floats | None = None
        chosen: Indices | None = None
        for point in (nearest, nearer):
            index = point - q
            index >>= 1
            cost = points - (2 * index + q).astype(np.float32)
            cost *= cost
            if self._weights is not None:
                cost *= self._weights[steps]
            cost += np.take(self._costs, base + index, mode="clip")
            if best is None or chosen is None:
                best, chosen = cost, index
            else:
                np.copyto(chosen, index, where=cost < best)
                np.minimum(best, cost, out=best)
        assert best is not None and chosen is not None
        return best, chosen
