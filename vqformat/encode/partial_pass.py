"""Partial passes of a budget search: a file that nearly meets a goal meets it if some of its tensors are coded again.

Their step is a few percent finer or coarser than that of the others. The file is as good as with one step for all,
since the loss by unequal steps rises with the square of their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from .layers import Result
from .methods.sampling import Doubles

_FACTORS = np.array([1.06, 1.12])  # largest ratios of both steps; the second one if the first is not enough
_MOST_CORRECTED = 1.2  # the same when a factor is corrected
_MOST_SHARE = 0.5  # of all weights; to code more of them, all are coded again with one step


@dataclass(frozen=True)
class Part:
    """Tensors that are to be coded again.

    Attributes:
        numbers: Their numbers among those with a step.
        factor: Of their step.
    """

    numbers: list[int]
    factor: float

    def corrected(self, wanted: float, found: float) -> Part:
        """The same part with another factor, once a change has been found that is not the wanted one."""
        power = wanted / found if found else 0.0
        return Part(self.numbers, min(max(self.factor**power, 1 / _MOST_CORRECTED), _MOST_CORRECTED))


def find_part(
    amounts: Callable[[float], Doubles], n_values: Sequence[int], change: float, *, order: Sequence[int]
) -> Part | None:
    """Find few tensors whose sizes, or noise, can change by so much in all.

    Args:
        amounts: The amount of each tensor with its step times a factor.
        n_values: Number of values of each.
        change: The sum of the changes that is wanted.
        order: Numbers of the tensors in the order in which they are taken.

    Returns:
        The first tensors, as many as are needed; None if they are too many.
    """
    now = amounts(1.0)
    gets_coarser = (amounts(_FACTORS[0]).sum() > now.sum()) == (change > 0)
    for most in _FACTORS if gets_coarser else 1 / _FACTORS:
        possible = np.cumsum((amounts(most) - now)[list(order)]) / change
        n = int(np.searchsorted(np.maximum.accumulate(possible), 1.0)) + 1
        numbers = list(order[:n])
        if n <= len(order) and sum(n_values[i] for i in numbers) <= _MOST_SHARE * sum(n_values):
            return Part(numbers, _factor(amounts, numbers, change, most))
    return None


def _factor(amounts: Callable[[float], Doubles], numbers: Sequence[int], change: float, most: float) -> float:
    """The factor from 1 to ``most`` with which the amounts of some tensors have the wanted change."""
    now = amounts(1.0)
    low, high = 0.0, 1.0  # powers of the largest factor
    for _ in range(12):
        middle = (low + high) / 2
        is_enough = (amounts(most**middle) - now)[numbers].sum() / change >= 1
        low, high = (low, middle) if is_enough else (middle, high)
    return float(most**high)


class PartlyReplaced(Sequence[Result]):
    """Results of which some are replaced.

    Args:
        results: All results.
        numbers: Numbers of those that are replaced.
        others: What replaces them, in this order.
    """

    def __init__(self, results: Sequence[Result], numbers: Sequence[int], others: Sequence[Result]) -> None:
        self._results, self._others = results, others
        self._places = {number: place for place, number in enumerate(numbers)}

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, at: int) -> Result: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Result]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        return self._others[self._places[at]] if at in self._places else self._results[at]
