"""How large a file of preset ``small`` will be, from drafts: a trellis of few states on a sample of each tensor.

Entropies of values by themselves are 5 to 10 % off, which costs a search for a budget a pass over the whole model or
two; drafts are less than 1 % off and take as long as a twentieth of such a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..decode.tables import Floats
from .sensitivity import Statistics, Steps
from .small.contexts import find_contexts
from .small.decorrelate import FINER, PRICE
from .small.error_weights import power_at
from .small.trellis import Draft
from .step_search import solve

_OVERHEAD = 1.002  # states in which sequences begin, classes of rows and columns, tables
_FEWEST_BITS = 0.02  # of a code
_ROUNDS = 2  # the difference to entropies is nearly the same at all steps


class DraftedSteps(Steps):
    """Steps whose estimates of sizes are corrected by drafts.

    Args:
        statistics: Of the tensors whose steps are to be chosen.
        values: Theirs, loaded when they are asked for.
        nbytes: What all codes should take: drafts are made near the step that leads to this.
    """

    def __init__(self, statistics: Sequence[Statistics], values: Sequence[Callable[[], Floats]], nbytes: float) -> None:
        super().__init__(statistics)
        self._corrections = [0.0] * len(statistics)  # bits of a code
        for _ in range(_ROUNDS):
            relative = solve(self.estimate, nbytes)
            steps = [self.step(s, relative) for s in statistics]
            self._corrections = [
                bits_of_code(load(), step) - 8 * s.entropy_nbytes(step) / s.n_values
                for s, load, step in zip(statistics, values, steps, strict=True)
            ]

    def estimate(self, relative: float) -> float:
        total = 0.0
        for s, correction in zip(self._statistics, self._corrections, strict=True):
            bits = 8 * s.entropy_nbytes(self.step(s, relative)) / s.n_values + correction
            total += max(bits, _FEWEST_BITS) * s.n_values / 8
        return total


def bits_of_code(values: Floats, step: float) -> float:
    """Bits of a code of a tensor at a step, with all that goes with them."""
    points = np.divide(values.reshape(len(values), -1), np.float32(step * FINER), dtype=np.float32)
    contexts = find_contexts(points)
    return _OVERHEAD * Draft.of(points, contexts, PRICE, power_at(contexts.expected_bits)).bits
