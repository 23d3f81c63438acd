"""One knob for a whole model: the step of every tensor follows from it, and it is turned until a goal is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..codecs.tables import Floats
from .report import energy
from .uniform import ROUNDING

SAMPLE = 1 << 15
# The loss of accuracy adds up over tensors, each by its noise against its weights, so that tensors of large norm may be
# coarser; but norms tell only part of it (those of batch-normed layers nothing). The step goes with this power of the
# norm: with 0 the first and last layers of small networks suffer, with 1 the large layers of batch-normed ones.
_NORM_POWER = 0.35
_LARGEST_STEP = 8.0  # times a tensor's deviation: beyond it nearly everything becomes 0
_LARGEST_SHARE = 4.0  # times the step that the tensor would have if all had its deviation
SMALLEST_STEP: float = 2.0**-14
COARSEST_STEP: float = 2.0**8
_TOLERANCE = 0.004
_MAX_TRIES = 14
_FURTHEST = 4.0  # times the step before


@dataclass(frozen=True)
class Statistics:
    """What a first pass notes of a tensor that a grid will code."""

    n_values: int
    deviation: float  # root of the mean square
    sample: Floats  # (n,) values, evenly spread
    sensitivity: float = 0.0  # what the model loses by a squared error of an element; 0 if unknown

    @classmethod
    def of(cls, values: Floats, sensitivity: float = 0.0) -> Statistics:
        flat = values.reshape(-1)
        stride = max(1, flat.size // SAMPLE) | 1  # odd, so that no column of an even number is favoured
        return cls(flat.size, root_mean_square(flat), flat[::stride].copy(), sensitivity)

    @property
    def norm(self) -> float:
        return self.deviation * math.sqrt(self.n_values)

    def entropy_nbytes(self, step: float) -> float:
        """Estimate of the bytes that its codes take at a step: their entropy."""
        codes = np.floor(np.abs(self.sample) / np.float32(step) + np.float32(ROUNDING)) * np.sign(self.sample)
        _, counts = np.unique(codes, return_counts=True)
        share = counts / counts.sum()
        return float(-(share * np.log2(share)).sum()) * self.n_values / 8


def root_mean_square(values: Floats) -> float:
    """Of all values, in any order; squares beyond the range of float32 do no harm."""
    return math.sqrt(energy(values) / max(values.size, 1))


class Steps:
    """The step of each tensor, from a relative one for all.

    Args:
        statistics: Of all tensors whose steps are to be chosen.
        by_deviation: Whether steps go with the deviation of each tensor alone, so that all have the same SQNR.
    """

    def __init__(self, statistics: Sequence[Statistics], *, by_deviation: bool = False) -> None:
        self._statistics = statistics
        self._by_deviation = by_deviation
        some = [s for s in statistics if s.deviation > 0]
        n_values = sum(s.n_values for s in some)
        self.reference = math.sqrt(sum(s.norm**2 for s in some) / n_values) if some else 1.0
        # The norm of the layer that the middle one of all weights is in, more or less
        self._reference_norm = math.exp(sum(s.n_values * math.log(s.norm) for s in some) / n_values) if some else 1.0
        # Where sensitivities are known the step goes with their inverse root, and is as large on average as without
        known = [s for s in some if s.sensitivity > 0]
        logarithm = sum(s.n_values * (math.log(self._by_norm(s)) + math.log(s.sensitivity) / 2) for s in known)
        self._unit = math.exp(logarithm / sum(s.n_values for s in known)) if known else 1.0

    @property
    def is_empty(self) -> bool:
        """Whether no tensor has a step to choose."""
        return not self._statistics

    def step(self, statistics: Statistics, relative: float) -> float:
        """Step of a tensor when the global step is ``relative`` times the model's root mean square."""
        if not statistics.deviation:
            return 1.0
        if self._by_deviation:
            return min(relative, _LARGEST_STEP) * statistics.deviation
        if statistics.sensitivity > 0:
            step = relative * self._unit / math.sqrt(statistics.sensitivity)
            return min(step, _LARGEST_STEP * statistics.deviation)
        largest = min(_LARGEST_SHARE * relative, _LARGEST_STEP) * statistics.deviation
        return min(relative * self._by_norm(statistics), largest)

    def _by_norm(self, statistics: Statistics) -> float:
        return self.reference * math.pow(statistics.norm / self._reference_norm, _NORM_POWER)

    def vector_step(self, norm: float, relative: float, sensitivity: float = 0.0) -> float:
        """Step of a short tensor of that norm.

        Its noise against its values may be as much less than that of the large tensors as it has fewer of them.
        """
        if sensitivity > 0:
            return relative * self._unit / math.sqrt(sensitivity)
        return float(relative * self.reference * norm / self._reference_norm)

    def estimate(self, relative: float) -> float:
        """Bytes of all codes at this step."""
        return sum(s.entropy_nbytes(self.step(s, relative)) for s in self._statistics)


@dataclass(frozen=True)
class Goal:
    """What a file is to be: so large, or so good.

    Attributes:
        nbytes: Of the file at most; None where ``sqnr_db`` is the goal.
        sqnr_db: Of all weights together at least.
    """

    nbytes: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a relative step leads to."""

    nbytes: int
    sqnr_db: float

    def meets(self, goal: Goal) -> bool:
        """Whether it is within the goal."""
        return self.nbytes <= goal.nbytes if goal.nbytes is not None else self.sqnr_db >= (goal.sqnr_db or 0.0)

    def is_nearer(self, other: Outcome, goal: Goal) -> bool:
        """Whether it is nearer to the goal than another one that is within it."""
        return self.nbytes > other.nbytes if goal.nbytes is not None else self.sqnr_db < other.sqnr_db


def meet(steps: Steps, goal: Goal, encode: Callable[[float], Outcome]) -> None:
    """Try relative steps until the outcome just meets the goal.

    The largest file not above the goal, or the smallest that is good enough, is the one to keep. If there is none, the
    coarsest step was tried, or the finest.

    Args:
        encode: Encodes the model at a relative step.
    """
    if steps.is_empty:
        encode(COARSEST_STEP)
        return
    search = _SizeSearch(steps, goal.nbytes) if goal.nbytes is not None else _QualitySearch(goal.sqnr_db or 0.0)
    tried: set[float] = set()
    step = search.first_step()
    for _ in range(_MAX_TRIES):
        if step in tried:
            break
        tried.add(step)
        if search.is_met(step, encode(step)):
            return
        step = search.next_step()
    last = search.last_resort()
    if last is not None and last not in tried:
        encode(last)


class _SizeSearch:
    """The step at which a file is just small enough: estimated from samples, corrected by real files."""

    def __init__(self, steps: Steps, nbytes: float) -> None:
        self._steps, self._goal = steps, nbytes
        self._tried: dict[float, int] = {}
        self._fixed = 0.0

    def first_step(self) -> float:
        return solve(self._steps.estimate, self._goal)

    def is_met(self, step: float, outcome: Outcome) -> bool:
        if not self._tried:
            self._fixed = max(0.0, outcome.nbytes - 1.02 * self._steps.estimate(step))
        self._tried[step] = outcome.nbytes
        self._last = step
        return self._goal * (1 - _TOLERANCE) <= outcome.nbytes <= self._goal

    def next_step(self) -> float:
        wanted = self._goal * (1 - _TOLERANCE / 2)
        above = {step: n for step, n in self._tried.items() if n > wanted}
        below = {step: n for step, n in self._tried.items() if n <= wanted}
        if above and below:  # between the two nearest, where the logarithms are nearly on a line
            low, high = max(above), min(below)
            share = math.log(above[low] / wanted) / max(math.log(above[low] / below[high]), 1e-9)
            *_, before, last = self._tried.values()
            if (before > wanted) == (last > wanted):  # or not: sizes may fall off as from a cliff
                share = 0.5
            return low * math.pow(high / low, min(max(share, 0.05), 0.95))
        correction = max(self._tried[self._last] - self._fixed, 1.0) / max(self._steps.estimate(self._last), 1.0)
        step = solve(self._steps.estimate, (wanted - self._fixed) / correction)
        least = math.pow(1.002, 2 ** (len(self._tried) - 1))
        if above:
            step = min(max(step, max(above) * least), max(above) * max(least, _FURTHEST))
        else:
            step = max(min(step, min(below) / least), min(below) / max(least, _FURTHEST))
        return min(max(step, SMALLEST_STEP), COARSEST_STEP)

    def last_resort(self) -> float | None:
        return COARSEST_STEP if min(self._tried.values()) > self._goal else None


class _QualitySearch:
    """The step at which the SQNR is just good enough: it falls by 6 dB as the step doubles, or nearly so."""

    def __init__(self, sqnr_db: float) -> None:
        self._goal = sqnr_db
        self._tried: dict[float, float] = {}

    def first_step(self) -> float:
        return float(min(max(2.0 ** ((10.8 - self._goal) / 6.02), SMALLEST_STEP), 2.0))  # noise of step**2 / 12

    def is_met(self, step: float, outcome: Outcome) -> bool:
        self._tried[step] = outcome.sqnr_db
        return self._goal <= outcome.sqnr_db <= self._goal + 0.08

    def next_step(self) -> float:
        wanted = self._goal + 0.04
        above = [step for step, sqnr in self._tried.items() if sqnr >= wanted]
        below = [step for step, sqnr in self._tried.items() if sqnr < wanted]
        if above and below:
            low, high = max(above), min(below)
            share = (self._tried[low] - wanted) / max(self._tried[low] - self._tried[high], 1e-9)
            return low * math.pow(high / low, min(max(share, 0.05), 0.95))
        nearest = max(above) if above else min(below)
        step = nearest * 2.0 ** ((self._tried[nearest] - wanted) / 5)
        return min(max(float(step), SMALLEST_STEP), _LARGEST_STEP)

    def last_resort(self) -> float | None:
        return SMALLEST_STEP if max(self._tried.values()) < self._goal else None


def solve(estimate: Callable[[float], float], target: float) -> float:
    """The step at which a falling function meets the target, by bisection of its logarithm."""
    low, high = math.log2(SMALLEST_STEP), math.log2(COARSEST_STEP)
    for _ in range(18):
        middle = (low + high) / 2
        if estimate(2.0**middle) > target:
            low = middle
        else:
            high = middle
    return math.pow(2.0, high)
