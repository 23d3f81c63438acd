"""The step that meets a budget: estimated from samples, corrected by real files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..codecs.tables import Floats
from .uniform import ROUNDING

SAMPLE = 1 << 15
# One absolute step for all tensors is best: Caffe's LeNet at 32x loses 0.4, 0.9 and 1.4 points with steps in proportion
# to the deviation to the 0, 0.35 and 0.7. But a tensor of small weights must not vanish beside a large one.
_LARGEST_STEP = 3.0  # times a tensor's deviation: beyond it nearly everything becomes 0
_LARGEST_SHARE = 4.0  # times the step that the tensor would have if all had its deviation
_SMALLEST_STEP: float = 2.0**-14
_COARSEST_STEP: float = 2.0**8
_TOLERANCE = 0.004
_MAX_TRIES = 7


@dataclass(frozen=True)
class Statistics:
    """What a first pass notes of a tensor that a grid will code."""

    n_values: int
    deviation: float  # root of the mean square
    sample: Floats  # (n,) values, evenly spread

    @classmethod
    def of(cls, values: Floats) -> Statistics:
        flat = values.reshape(-1)
        stride = max(1, flat.size // SAMPLE) | 1  # odd, so that no column of an even number is favoured
        return cls(flat.size, root_mean_square(flat), flat[::stride].copy())

    def entropy_nbytes(self, step: float) -> float:
        """Estimate of the bytes that its codes take at a step: their entropy."""
        codes = np.floor(np.abs(self.sample) / np.float32(step) + np.float32(ROUNDING)) * np.sign(self.sample)
        _, counts = np.unique(codes, return_counts=True)
        share = counts / counts.sum()
        return float(-(share * np.log2(share)).sum()) * self.n_values / 8


def root_mean_square(values: Floats) -> float:
    """Of all values, in any order; squares beyond the range of float32 do no harm."""
    flat = values.reshape(-1)
    return math.sqrt(float(np.einsum("i,i->", flat, flat, dtype=np.float64)) / max(flat.size, 1))


class Steps:
    """One knob for all tensors: the step of each follows from a global one."""

    def __init__(self, statistics: Sequence[Statistics]) -> None:
        self._statistics = statistics
        energy = sum(s.deviation**2 * s.n_values for s in statistics)
        n_values = sum(s.n_values for s in statistics)
        self.reference = math.sqrt(energy / n_values) if n_values and energy else 1.0

    @property
    def is_empty(self) -> bool:
        """Whether no tensor has a step to choose."""
        return not self._statistics

    def step(self, statistics: Statistics, relative: float) -> float:
        """Step of a tensor when the global step is ``relative`` times the model's root mean square."""
        if not statistics.deviation:
            return 1.0
        largest = min(_LARGEST_SHARE * relative, _LARGEST_STEP) * statistics.deviation
        return min(relative * self.reference, largest)

    def estimate(self, relative: float) -> float:
        """Bytes of all codes at this step."""
        return sum(s.entropy_nbytes(self.step(s, relative)) for s in self._statistics)


def meet(steps: Steps, target_nbytes: float, encode: Callable[[float], int]) -> None:
    """Try relative steps until a file comes just under the target.

    The largest file not above the target is the one to keep; if there is none, even the coarsest step was tried.

    Args:
        encode: Encodes the model at a relative step and returns the bytes of the file.
    """
    if steps.is_empty:
        encode(_COARSEST_STEP)
        return
    tried: dict[float, int] = {}
    correction, fixed = 1.0, 0.0
    step = _solve(lambda s: steps.estimate(s), target_nbytes)
    for _ in range(_MAX_TRIES):
        if step in tried:
            break
        tried[step] = encode(step)
        if target_nbytes * (1 - _TOLERANCE) <= tried[step] <= target_nbytes:
            return
        estimate = steps.estimate(step)
        if len(tried) == 1:
            fixed = max(0.0, tried[step] - 1.02 * estimate)
        correction = max(tried[step] - fixed, 1.0) / max(estimate, 1.0)
        wanted = (target_nbytes * (1 - _TOLERANCE / 2) - fixed) / correction
        step = _between(tried, target_nbytes, _solve(lambda s: steps.estimate(s), wanted))
    if min(tried.values()) > target_nbytes and _COARSEST_STEP not in tried:
        encode(_COARSEST_STEP)


def _solve(estimate: Callable[[float], float], target: float) -> float:
    """The step at which a falling function meets the target, by bisection of its logarithm."""
    low, high = math.log2(_SMALLEST_STEP), math.log2(_COARSEST_STEP)
    for _ in range(18):
        middle = (low + high) / 2
        if estimate(2.0**middle) > target:
            low = middle
        else:
            high = middle
    return math.pow(2.0, high)


def _between(tried: dict[float, int], target: float, proposed: float) -> float:
    """The proposal, or where it leaves the interval known to hold the answer, the middle of that."""
    low: float = max((step for step, nbytes in tried.items() if nbytes > target), default=_SMALLEST_STEP / 2)
    high: float = min((step for step, nbytes in tried.items() if nbytes <= target), default=2 * _COARSEST_STEP)
    return proposed if low < proposed < high else math.sqrt(low * high)
