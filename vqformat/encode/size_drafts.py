"""Estimates of the size of a file of preset ``small``, from drafts: a trellis of few states on a sample of each tensor.

The entropy of quantized values is 5 to 20 % off, which costs a budget search one or two more passes over the whole
model. The first drafts are of tensors as they are. For those of the last round the plans of the tensors are found,
which the first pass needs anyway; they are less than 1 % off above 1 bit a weight, so one pass is often enough.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

import numpy as np

from ..format.dtypes import BY_NAME
from .methods.layout import ShortFloats
from .sensitivity import Statistics, Steps
from .small.bands import Points
from .small.contexts import find_contexts
from .small.decorrelate import FINER, PRICE
from .small.error_weights import power_at
from .small.tiles import WITH_STATES
from .small.trellis import Draft
from .source import SourceTensor
from .step_search import solve

_OF_TENSOR, _OF_TABLES = 144, 250  # bytes of names and sections of a tensor, and of the tables of a coarse one
_SHORT_BITS = 9.5  # of a value of a short tensor; in a file their share is small
_FEWEST_BITS = 0.02  # least estimate for a code
ROUNDS = 2  # of drafts. Two are enough: the difference from the entropy is nearly the same at all steps


class DraftedSteps(Steps):
    """Steps with estimates of sizes that are corrected by drafts.

    Args:
        statistics: Statistics of the tensors whose steps are to be chosen.
        draft: Makes a draft of each tensor with its step, and returns their bits for each code. Its second argument is
            whether this is the last round, of which plans are kept.
        nbytes: Bytes that the file should have. Drafts are made with the step for this size.
        fixed_nbytes: Bytes of it that do not depend on the step, see ``fixed_nbytes``.
    """

    def __init__(
        self, statistics: Sequence[Statistics], draft: Callable[[Sequence[float], bool], Iterable[float]],
        nbytes: float, fixed_nbytes: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(statistics)
        self._fixed_nbytes = fixed_nbytes
        self._corrections = [0.0] * len(statistics)  # for each tensor, bits to add for each code
        for number in range(1, ROUNDS + 1):
            relative = solve(self.estimate, nbytes)
            steps = [self.step(s, relative) for s in statistics]
            self._corrections = [
                bits - 8 * s.entropy_nbytes(step) / s.n_values
                for s, bits, step in zip(statistics, draft(steps, number == ROUNDS), steps, strict=True)
            ]

    def estimate(self, relative: float) -> float:
        total = self._fixed_nbytes
        for s, correction in zip(self._statistics, self._corrections, strict=True):
            bits = 8 * s.entropy_nbytes(self.step(s, relative)) / s.n_values + correction
            total += max(bits, _FEWEST_BITS) * s.n_values / 8
        return total


def bits_of_code(values: ShortFloats, step: float) -> float:
    """Bits for each code of a tensor with this step, as it is."""
    points = Points(values.reshape(len(values), -1), np.float32(step * FINER))
    contexts = find_contexts(points)
    return WITH_STATES * Draft.of(points, contexts, PRICE, power_at(contexts.expected_bits)).bits


def fixed_nbytes(tensors: Iterable[SourceTensor], coarse: Container[str]) -> float:
    """About the bytes of a file that do not depend on the step.

    Args:
        tensors: All tensors of the file.
        coarse: Names of those whose steps are to be chosen.
    """
    total = 0.0
    for tensor in tensors:
        total += _OF_TENSOR
        if tensor.name in coarse:
            total += _OF_TABLES
        elif tensor.alias_of is None and BY_NAME[tensor.dtype].arithmetic:
            total += _SHORT_BITS / 8 * tensor.n_elements
    return total
