"""Estimates of the size of a file of preset ``small``, from drafts: a trellis of few states on a sample of each tensor.

The entropy of quantized values is 5 to 10 % off, which costs a budget search one or two more passes over the whole
model. Drafts are less than 1 % off and take a twentieth of the time of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .methods.layout import ShortFloats
from .sensitivity import Statistics, Steps
from .small.bands import Points
from .small.contexts import find_contexts
from .small.decorrelate import FINER, PRICE
from .small.error_weights import power_at
from .small.trellis import Draft
from .step_search import solve

_OVERHEAD = 1.002  # factor for initial states of sequences, classes of rows and columns, and tables
_FEWEST_BITS = 0.02  # least estimate for a code
ROUNDS = 2  # of drafts. Two are enough: the difference from the entropy is nearly the same at all steps


class DraftedSteps(Steps):
    """Steps with estimates of sizes that are corrected by drafts.

    Args:
        statistics: Statistics of the tensors whose steps are to be chosen.
        draft: Makes a draft of each tensor with its step, and returns their bits for each code, see ``bits_of_code``.
        nbytes: Bytes that all codes together should take. Drafts are made with the step for this size.
    """

    def __init__(
        self, statistics: Sequence[Statistics], draft: Callable[[Sequence[float]], Iterable[float]], nbytes: float
    ) -> None:
        super().__init__(statistics)
        self._corrections = [0.0] * len(statistics)  # for each tensor, bits to add for each code
        for _ in range(ROUNDS):
            relative = solve(self.estimate, nbytes)
            steps = [self.step(s, relative) for s in statistics]
            self._corrections = [
                bits - 8 * s.entropy_nbytes(step) / s.n_values
                for s, bits, step in zip(statistics, draft(steps), steps, strict=True)
            ]

    def estimate(self, relative: float) -> float:
        total = 0.0
        for s, correction in zip(self._statistics, self._corrections, strict=True):
            bits = 8 * s.entropy_nbytes(self.step(s, relative)) / s.n_values + correction
            total += max(bits, _FEWEST_BITS) * s.n_values / 8
        return total


def bits_of_code(values: ShortFloats, step: float) -> float:
    """Bits for each code of a tensor with this step, overhead included."""
    points = Points(values.reshape(len(values), -1), np.float32(step * FINER))
    contexts = find_contexts(points)
    return _OVERHEAD * Draft.of(points, contexts, PRICE, power_at(contexts.expected_bits)).bits
