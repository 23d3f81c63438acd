"""Search for the relative step at which a model just meets a goal; the steps of all tensors follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .sensitivity import LARGEST_STEP, Steps

SMALLEST_STEP: float = 2.0**-14
COARSEST_STEP: float = 2.0**8
_TOLERANCE = 0.004  # relative distance below a size at which a search ends
_NEAR_SIZE, _NEAR_DB = 0.01, 0.1  # relative size, and dB, by which a goal may be missed without a note
_OVER_DB = 0.08  # distance above an SQNR at which a search ends
_DB_OF_STEP = 10.2  # about the SQNR with a relative step of 1, from which the first step follows
_LOW_DB = 13.0  # an SQNR below which many values become 0
_MAX_TRIES = 14
_NARROW = 1.0001  # ratio of two steps between which no further step is tried
_EXTREME_DB = 300.0  # in place of an infinite SQNR
_FURTHEST = 4.0  # largest ratio of a step to the step tried before


@dataclass(frozen=True)
class Goal:
    """A goal for a file: a size or a quality.

    Attributes:
        nbytes: Most bytes of the file; None if ``sqnr_db`` is the goal.
        sqnr_db: Least SQNR of all weights together, in dB.
    """

    nbytes: float | None = None
    sqnr_db: float | None = None

    @property
    def aim(self) -> float:
        """What to aim at: the middle of what ends a search, for estimates are too small as often as too large."""
        return self.nbytes * (1 - _TOLERANCE / 2) if self.nbytes is not None else (self.sqnr_db or 0.0) + _OVER_DB / 2


@dataclass(frozen=True)
class Outcome:
    """Size and quality of a file."""

    nbytes: int
    sqnr_db: float

    def meets(self, goal: Goal) -> bool:
        """Whether the goal is met."""
        return self.nbytes <= goal.nbytes if goal.nbytes is not None else self.sqnr_db >= (goal.sqnr_db or 0.0)

    def ends(self, goal: Goal) -> bool:
        """Whether the goal is met so closely that a search ends."""
        if goal.nbytes is not None:
            return goal.nbytes * (1 - _TOLERANCE) <= self.nbytes <= goal.nbytes
        return self.meets(goal) and self.sqnr_db <= (goal.sqnr_db or 0.0) + _OVER_DB

    def is_near(self, goal: Goal) -> bool:
        """Whether the distance to the goal is so small that no note is needed."""
        if goal.nbytes is not None:
            return abs(self.nbytes - goal.nbytes) <= _NEAR_SIZE * goal.nbytes
        return self._distance(goal) <= _NEAR_DB

    def is_nearer(self, other: Outcome, goal: Goal) -> bool:
        """Whether this outcome is nearer to the goal than another one."""
        return self._distance(goal) < other._distance(goal)

    def _distance(self, goal: Goal) -> float:
        if goal.nbytes is not None:
            return abs(self.nbytes - goal.nbytes)
        return abs(self.sqnr_db - (goal.sqnr_db or 0.0))


def meet(
    steps: Steps, goal: Goal, encode: Callable[[float], Outcome], first_step: float | None = None,
    refine: Callable[[float], bool] | None = None,
) -> None:  # fmt: skip
    """Try relative steps until the outcome just meets the goal, or until two neighbouring steps miss it on both sides.

    The caller keeps the best outcome. If no step meets the goal, the coarsest step (for a size) or the finest one (for
    an SQNR) is among those tried.

    Args:
        encode: Encodes the model with a relative step.
        first_step: The step to try first; None for the estimated one.
        refine: Tries to meet the goal by changes to what was encoded last, with this step; returns whether it is met.
    """
    if steps.is_empty:
        encode(COARSEST_STEP)
        return
    search = _SizeSearch(steps, goal.aim) if goal.nbytes is not None else _QualitySearch(goal.aim)
    tried: set[float] = set()
    is_met = False
    step: float | None = first_step or search.first_step()
    for _ in range(_MAX_TRIES):
        if step is None or step in tried:
            break
        tried.add(step)
        outcome = encode(step)
        search.note(step, outcome)
        is_met |= outcome.meets(goal)
        if outcome.ends(goal) or (refine is not None and refine(step)):
            return
        step = search.next_step()
    last = COARSEST_STEP if goal.nbytes is not None else SMALLEST_STEP
    if not is_met and last not in tried:
        encode(last)


class _SizeSearch:
    """Search for the step at which a file has a size. Estimates from samples are corrected by the files tried.

    Args:
        wanted: The size, in bytes.
    """

    def __init__(self, steps: Steps, wanted: float) -> None:
        self._steps, self._wanted = steps, wanted
        self._tried: dict[float, int] = {}
        self._fixed = 0.0

    def first_step(self) -> float:
        return solve(self._steps.estimate, self._wanted)

    def note(self, step: float, outcome: Outcome) -> None:
        if not self._tried:
            self._fixed = max(0.0, outcome.nbytes - 1.02 * self._steps.estimate(step))
        self._tried[step] = outcome.nbytes
        self._last = step

    def next_step(self) -> float | None:
        """The step to try next; None if two neighbouring steps miss the goal on both sides."""
        wanted = self._wanted
        above = {step: n for step, n in self._tried.items() if n > wanted}
        below = {step: n for step, n in self._tried.items() if n <= wanted}
        if above and below:  # interpolate log(size) over log(step) between the two nearest
            low, high = max(above), min(below)
            if high < low * _NARROW:
                return None
            share = math.log(above[low] / wanted) / max(math.log(above[low] / below[high]), 1e-9)
            *_, before, last = self._tried.values()
            if (before > wanted) == (last > wanted):  # interpolation failed twice on one side: bisect
                share = 0.5
            return low * math.pow(high / low, min(max(share, 0.05), 0.95))
        correction = max(self._tried[self._last] - self._fixed, 1.0) / max(self._steps.estimate(self._last), 1.0)
        step = solve(self._steps.estimate, (wanted - self._fixed) / correction)
        least = _least_factor(len(self._tried))
        if above:
            step = min(max(step, max(above) * least), max(above) * max(least, _FURTHEST))
        else:
            step = max(min(step, min(below) / least), min(below) / max(least, _FURTHEST))
        return min(max(step, SMALLEST_STEP), COARSEST_STEP)


class _QualitySearch:
    """Search for the step at which the SQNR is just reached. The SQNR falls by about 6 dB when the step doubles, and by
    less where many values become 0."""

    def __init__(self, wanted_db: float) -> None:
        self._wanted = wanted_db
        self._tried: dict[float, float] = {}

    def first_step(self) -> float:
        # The noise is step² / 12 with presets default and fast, which is 10.8 dB, and a little more with small
        return float(min(max(2.0 ** ((_DB_OF_STEP - self._wanted) / 6.02), SMALLEST_STEP), 2.0))

    def note(self, step: float, outcome: Outcome) -> None:
        self._tried[step] = min(max(outcome.sqnr_db, -_EXTREME_DB), _EXTREME_DB)

    def next_step(self) -> float | None:
        """As in ``_SizeSearch``."""
        wanted = self._wanted
        above = [step for step, sqnr in self._tried.items() if sqnr >= wanted]
        below = [step for step, sqnr in self._tried.items() if sqnr < wanted]
        if above and below:
            low, high = max(above), min(below)
            if high < low * _NARROW:
                return None
            share = (self._tried[low] - wanted) / max(self._tried[low] - self._tried[high], 1e-9)
            return low * math.pow(high / low, min(max(share, 0.05), 0.95))
        nearest = max(above) if above else min(below)
        step = nearest * 2.0 ** ((self._tried[nearest] - wanted) / (6 if wanted > _LOW_DB else 5))
        least = _least_factor(len(self._tried))
        step = max(step, nearest * least) if above else min(step, nearest / least)
        return min(max(float(step), SMALLEST_STEP), LARGEST_STEP)


def _least_factor(n_tries: int) -> float:
    """The least ratio of the next step while all steps were on one side of the goal. It grows with each try, because a
    small change of the step may not change the file."""
    return math.pow(1.005, 2 ** (n_tries - 1))


def solve(estimate: Callable[[float], float], target: float) -> float:
    """The step at which a falling function of the step has the value ``target``, by bisection of the logarithm."""
    low, high = math.log2(SMALLEST_STEP), math.log2(COARSEST_STEP)
    for _ in range(18):
        middle = (low + high) / 2
        if estimate(2.0**middle) > target:
            low = middle
        else:
            high = middle
    return math.pow(2.0, high)
