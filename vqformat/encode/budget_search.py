"""Search for a file that just meets a goal.

First one relative step for all tensors is searched. With preset ``small``, a file near the goal meets it by another
step for few tensors, see partial_pass.py. If sizes jump past the goal, tensors of two files are mixed, and the step of
a single tensor makes up the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from .layers import Result
from .methods.sampling import Doubles
from .partial_pass import PartlyReplaced, find_part
from .sensitivity import Steps
from .step_search import COARSEST_STEP, SMALLEST_STEP, Goal, Outcome, meet

EXACT = 0.0  # in place of a step: every tensor without a method is stored exactly
_MAX_ADJUSTMENTS = 12  # steps that are tried for the single tensor
_MAX_ADJUSTED = 3  # tensors that are tried as the single tensor
_MOST_FACTOR = 1.5  # largest ratio of its step to that of the others, if it is not the tensor at which files differ
_FIRST_FACTOR = 1.03  # first change of its step; squared at each further try
_MOST_PARTIAL = 2  # partial passes after a pass


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
        encode_some: Encodes some tensors with a relative step, given their numbers; None if this is not to be tried.
        coarse: The numbers of the tensors that have a step.
    """

    encode: Callable[[float], Sequence[Result]]
    encode_one: Sequence[Callable[[int, float], Result]]
    measure: Callable[[Iterable[Result]], Outcome]
    encode_some: Callable[[Sequence[int], float], Sequence[Result]] | None = None
    coarse: Sequence[int] = ()


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
        self._last: Attempt | None = None

    def try_step(self, step: float) -> Outcome:
        """Encode all tensors with a step, and keep the attempt if it is the nearest so far."""
        return self._try(step, self._trials.encode(step))

    def run(self, steps: Steps, first_step: float | None = None) -> None:
        """Try files until one is near the goal, or there is nothing more to try.

        Args:
            first_step: See ``step_search.meet``.
        """
        can_refine = self._trials.encode_some is not None
        meet(steps, self._goal, self.try_step, first_step, partial(self._refine, steps) if can_refine else None)
        if self.within is None or self.within.outcome.is_near(self._goal):
            return
        if self.beyond is None and self._goal.nbytes is not None:
            self.try_step(EXACT)
        if self.beyond is not None and not self.within.outcome.is_near(self._goal):
            self._mix(self.within, self.beyond)

    def _try(self, step: float, results: Sequence[Result]) -> Outcome:
        attempt = self._last = Attempt(step, results, self._trials.measure(results))
        if attempt.outcome.meets(self._goal):
            if self.within is None or attempt.outcome.is_nearer(self.within.outcome, self._goal):
                self.within = attempt
        elif self.beyond is None or attempt.outcome.is_nearer(self.beyond.outcome, self._goal):
            self.beyond = attempt
        return attempt.outcome

    def _refine(self, steps: Steps, step: float) -> bool:
        """Code some tensors of the last attempt again, with another step. Returns whether the goal is met.

        For a size, these are small tensors. For an SQNR they are those with the most noise, which gain most by a bit.
        There they do not get coarser: what most tensors would save by that is less than with one step for all.
        """
        assert self._last is not None and self._trials.encode_some is not None
        base, coarse, n_values = self._last, self._trials.coarse, steps.n_values
        change = self._missing(base)
        if self._goal.nbytes is not None:
            amounts, order = partial(_nbytes, steps, step), np.argsort(n_values, kind="stable")
        elif change > 0:
            return False
        else:
            noise = np.array([base.results[i].noise for i in coarse])
            amounts, order = partial(_noise, noise), np.argsort(-noise / n_values, kind="stable")
        part = find_part(amounts, n_values, change, order=order.tolist())
        if part is None:
            return False
        numbers = [coarse[i] for i in part.numbers]
        for _ in range(_MOST_PARTIAL):
            others = self._trials.encode_some(numbers, step * part.factor)
            if self._try(step, PartlyReplaced(base.results, numbers, others)).ends(self._goal):
                return True
            part = part.corrected(change, change - self._missing(self._last))
        return False

    def _missing(self, attempt: Attempt) -> float:
        """What an attempt lacks: bytes, or noise."""
        if self._goal.nbytes is not None:
            return self._goal.aim - attempt.outcome.nbytes
        energy = sum(result.energy for result in attempt.results)
        noise = sum(result.noise for result in attempt.results)
        return energy / math.pow(10, self._goal.aim / 10) - noise

    def _mix(self, within: Attempt, beyond: Attempt) -> None:
        """Take as many of the first tensors from the file beyond the goal as meet it; then adjust a single tensor."""
        n_beyond, too_many = 0, len(within.results)
        while too_many - n_beyond > 1:
            n = (n_beyond + too_many) // 2
            if self._try(within.step, PartlyReplaced(within.results, range(n), beyond.results)).meets(self._goal):
                n_beyond = n
            else:
                too_many = n
        mixed = PartlyReplaced(within.results, range(n_beyond), beyond.results)
        by_size = sorted(range(len(mixed)), key=lambda i: -within.results[i].report.n_elements)
        numbers = [n_beyond, *(i for i in by_size if i != n_beyond)][:_MAX_ADJUSTED]
        for number, encode in product(numbers, self._trials.encode_one):
            assert self.within is not None
            if not self.within.outcome.is_near(self._goal):
                most = math.inf if number == n_beyond else _MOST_FACTOR
                self._adjust(within, mixed, number, partial(encode, number), most)

    def _adjust(
        self, within: Attempt, mixed: Sequence[Result], number: int, encode: Callable[[float], Result], most: float
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
            outcome = self._try(within.step, PartlyReplaced(mixed, [number], [encode(step)]))
            is_met = outcome.meets(self._goal)
            if outcome.ends(self._goal):
                return
            inside, outside = (step, outside) if is_met else (inside, step)
            if inside and outside:
                step = math.sqrt(inside * outside)
            else:
                gets_finer = is_met == (self._goal.nbytes is not None)
                step = step / factor if gets_finer else step * factor
                step = min(max(step, within.step / most, SMALLEST_STEP), within.step * most, COARSEST_STEP)
                factor *= factor


def _nbytes(steps: Steps, step: float, factor: float) -> Doubles:
    """Estimates of the bytes of each tensor with its step times a factor."""
    return np.array(steps.estimates(step * factor))


def _noise(noise: Doubles, factor: float) -> Doubles:
    """The same of the noise of each, from that with its step."""
    return noise * factor**2
