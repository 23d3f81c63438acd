"""Search for a file that just meets a goal.

First one relative step for all tensors is searched. If sizes jump past the goal there, tensors of two files are mixed,
and the step of a single tensor makes up the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, overload

from .layers import Result
from .sensitivity import Steps
from .step_search import COARSEST_STEP, SMALLEST_STEP, Goal, Outcome, meet

EXACT = 0.0  # in place of a step: every tensor without a method is stored exactly
_MAX_ADJUSTMENTS = 12  # steps that are tried for the single tensor
_MAX_ADJUSTED = 3  # tensors that are tried as the single tensor
_MOST_FACTOR = 1.5  # largest ratio of its step to that of the others, if it is not the tensor at which files differ
_FIRST_FACTOR = 1.03  # first change of its step; squared at each further try
_SPENT = 0.996  # a file of at least this share of the allowed size ends the search
_OVER_DB = 0.08  # a file at most so many dB above the SQNR ends the search


@dataclass(frozen=True)
class Attempt:
    """A file that was tried.

    Attributes:
        step: Relative step of all tensors, except a single tensor; or ``EXACT``.
        results: The encoded tensors, in order.
        outcome: Size and quality of the file.
    """

    step: float
    results: Sequence[Result]
    outcome: Outcome


@dataclass(frozen=True)
class Trials:
    """The functions with which a search makes and measures files.

    Attributes:
        encode: Encodes all tensors with a relative step.
        encode_one: Ways to encode one tensor, given its number and a relative step. Sizes change more gradually with
            the step than with ``encode``.
        measure: Size and quality of a file of given results.
    """

    encode: Callable[[float], Sequence[Result]]
    encode_one: Sequence[Callable[[int, float], Result]]
    measure: Callable[[Iterable[Result]], Outcome]


class BudgetSearch:
    """The search for a file that just meets a goal.

    Attributes:
        within: The attempt nearest to the goal of those that meet it; None if there is none.
        beyond: The attempt nearest to the goal of those that do not meet it: too large, or not good enough.
    """

    def __init__(self, goal: Goal, trials: Trials) -> None:
        self._goal, self._trials = goal, trials
        self.within: Attempt | None = None
        self.beyond: Attempt | None = None

    def try_step(self, step: float) -> Outcome:
        """Encode all tensors with a step, and keep the attempt if it is the nearest so far."""
        return self._try(step, self._trials.encode(step))

    def run(self, steps: Steps, first_step: float | None = None) -> None:
        """Try files until one is near the goal, or there is nothing more to try.

        Args:
            first_step: See ``step_search.meet``.
        """
        meet(steps, self._goal, self.try_step, first_step)
        if self.within is None or self.within.outcome.is_near(self._goal):
            return
        if self.beyond is None and self._goal.nbytes is not None:
            self.try_step(EXACT)
        if self.beyond is not None and not self.within.outcome.is_near(self._goal):
            self._mix(self.within, self.beyond)

    def _try(self, step: float, results: Sequence[Result]) -> Outcome:
        attempt = Attempt(step, results, self._trials.measure(results))
        if attempt.outcome.meets(self._goal):
            if self.within is None or attempt.outcome.is_nearer(self.within.outcome, self._goal):
                self.within = attempt
        elif self.beyond is None or attempt.outcome.is_nearer(self.beyond.outcome, self._goal):
            self.beyond = attempt
        return attempt.outcome

    def _mix(self, within: Attempt, beyond: Attempt) -> None:
        """Take as many of the first tensors from the file beyond the goal as meet it; then adjust a single tensor."""
        n_beyond, too_many = 0, len(within.results)
        while too_many - n_beyond > 1:
            n = (n_beyond + too_many) // 2
            if self._try(within.step, SplicedResults(beyond.results, within.results, n)).meets(self._goal):
                n_beyond = n
            else:
                too_many = n
        mixed = SplicedResults(beyond.results, within.results, n_beyond)
        by_size = sorted(range(len(mixed)), key=lambda i: -within.results[i].report.n_elements)
        numbers = [n_beyond, *(i for i in by_size if i != n_beyond)][:_MAX_ADJUSTED]
        for number, encode in product(numbers, self._trials.encode_one):
            assert self.within is not None
            if not self.within.outcome.is_near(self._goal):
                most = math.inf if number == n_beyond else _MOST_FACTOR
                self._adjust(within, mixed, number, partial(encode, number), most)

    def _adjust(
        self, within: Attempt, mixed: SplicedResults, number: int, encode: Callable[[float], Result], most: float
    ) -> None:
        """Try steps of a single tensor of a file.

        Args:
            number: Number of the tensor.
            encode: Encodes the tensor with a step.
            most: Largest ratio between its step and the step of the others.
        """
        step, factor = within.step, _FIRST_FACTOR
        inside = outside = 0.0
        for _ in range(_MAX_ADJUSTMENTS):
            outcome = self._try(within.step, mixed.with_one(number, encode(step)))
            is_met = outcome.meets(self._goal)
            if is_met and self._is_spent(outcome):
                return
            inside, outside = (step, outside) if is_met else (inside, step)
            if inside and outside:
                step = math.sqrt(inside * outside)
            else:
                gets_finer = is_met == (self._goal.nbytes is not None)
                step = step / factor if gets_finer else step * factor
                step = min(max(step, within.step / most, SMALLEST_STEP), within.step * most, COARSEST_STEP)
                factor *= factor

    def _is_spent(self, outcome: Outcome) -> bool:
        """Whether a file that meets the goal is so near to it that the search ends."""
        if self._goal.nbytes is not None:
            return outcome.nbytes >= _SPENT * self._goal.nbytes
        return outcome.sqnr_db <= (self._goal.sqnr_db or 0.0) + _OVER_DB


class SplicedResults(Sequence[Result]):
    """The first results of one file, followed by the last results of another.

    Args:
        first, last: Results of both files.
        n_first: How many are taken from the first file.
        other: By number, results that replace those.
    """

    def __init__(
        self, first: Sequence[Result], last: Sequence[Result], n_first: int, other: Mapping[int, Result] | None = None
    ) -> None:
        self._first, self._last, self._n_first, self._other = first, last, n_first, other or {}

    def with_one(self, number: int, result: Result) -> SplicedResults:
        """The same results with one of them replaced."""
        return SplicedResults(self._first, self._last, self._n_first, {number: result})

    def __len__(self) -> int:
        return len(self._last)

    @overload
    def __getitem__(self, at: int) -> Result: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Result]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        if at in self._other:
            return self._other[at]
        return self._first[at] if at < self._n_first else self._last[at]
