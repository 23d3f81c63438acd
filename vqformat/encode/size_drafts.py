"""Estimates of the size of a file of preset ``small``, from drafts of its tensors, before the tensors are encoded.

The entropy of quantized values is 5 to 50 % off, which costs a budget search one or two more passes over the whole
model. Drafts are mostly less than 0.5 % off, and find the plans of the tensors, which the first pass needs anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..format.limits import ALIGNED_FROM_NBYTES, ALIGNMENT
from .methods.assemble import BLOCK_ELEMENTS
from .sensitivity import Statistics, Steps
from .small.draft import FINER_BY, Drafted
from .step_search import solve

# Bytes of the record of a coarse tensor and its names; of the entry of the section of a block; of its mean padding; and
# of the chunks of frequency tables and of a layer
_OF_TENSOR, _OF_BLOCK, _OF_TABLES = 35, 8, 200
_PADDING = ALIGNMENT / 2
# Entropies of codes of a scalar grid are more than the bits of a trellis: by this share, and at most so many bits
_LESS, _MOST_LESS = 0.15, 0.35
_FEWEST_BITS = 0.02  # least estimate for a code
_FIRST_STEP = 0.5  # relative step at which the bytes of other tensors are estimated first
_MOST_ROUNDS = 3  # of drafts
# Ratios of the step of drafts to the step that follows from them, between which no further drafts are needed. The
# finer step of the drafts is within. With a larger ratio plans would be found anew
_NEAR = (0.9, 1.19)
_ENTRY_NBYTES, _LESS_A_BIT = 1.55, 0.1  # stored bytes of an entry of a table at no bits a code, and less for each bit
_OWN_TABLES_BITS = 1 << 21  # a tensor of more bits has tables of its own; others share some, see layers.py
_SHARED_WEIGHTS = 1 << 19  # about the weights of tensors that share tables
_NEW = 0.3  # share of the entries of a further tensor with the same tables that it adds to these
_MISFIT = 1.004  # factor of the bits of codes with tables that are those of several tensors


@dataclass(frozen=True)
class _Curve:
    """Bits of a code of a tensor as a function of its step: those of the entropy, corrected by a draft.

    Attributes:
        statistics: Of the tensor.
        step: Step of the draft.
        correction, finer_correction: Bits to add at this step, and at the step divided by ``FINER_BY``.
    """

    statistics: Statistics
    step: float
    correction: float
    finer_correction: float

    @classmethod
    def of(cls, statistics: Statistics, step: float, drafted: Drafted) -> _Curve:
        factor = 1.0 if _has_own_tables(statistics, drafted) else _MISFIT
        return cls(statistics, step, factor * drafted.bits - _entropy(statistics, step),
                   factor * drafted.finer_bits - _entropy(statistics, step / FINER_BY))  # fmt: skip

    def nbytes_at(self, step: float) -> float:
        share = min(max(math.log(self.step / step) / math.log(FINER_BY), -1.0), 2.0)
        bits = _entropy(self.statistics, step) + (1 - share) * self.correction + share * self.finer_correction
        return max(bits, _FEWEST_BITS) * self.statistics.n_values / 8


class DraftedSteps(Steps):
    """Steps with estimates of sizes from drafts.

    Args:
        statistics: Statistics of the tensors whose steps are to be chosen.
        draft: Makes a draft of each tensor with its step.
        rest: Bytes of a file of the other tensors, given the relative step.
        nbytes: Bytes that the file should have. Drafts are made with steps near those for this size.
    """

    def __init__(
        self, statistics: Sequence[Statistics], draft: Callable[[Sequence[float]], Iterable[Drafted]],
        rest: Callable[[float], float], nbytes: float,
    ) -> None:  # fmt: skip
        super().__init__(statistics)
        self._curves: list[_Curve] = []
        self._fixed_nbytes = rest(_FIRST_STEP)
        relative = solve(self.estimate, nbytes)
        for _ in range(_MOST_ROUNDS):
            steps = [self.step(s, relative) for s in statistics]
            drafts = list(draft(steps))
            self._curves = [_Curve.of(*each) for each in zip(statistics, steps, drafts, strict=True)]
            self._fixed_nbytes = rest(relative) + _overhead(statistics, drafts)
            before, relative = relative, solve(self.estimate, nbytes)
            if _NEAR[0] <= before / relative <= _NEAR[1]:
                break

    def estimates(self, relative: float) -> list[float]:
        if self._curves:
            return [curve.nbytes_at(self.step(curve.statistics, relative)) for curve in self._curves]
        entropies = [_entropy(s, self.step(s, relative)) for s in self._statistics]
        return [(entropy - min(_LESS * entropy, _MOST_LESS)) * s.n_values / 8
                for s, entropy in zip(self._statistics, entropies, strict=True)]  # fmt: skip

    def estimate(self, relative: float) -> float:
        """Estimate of the bytes of the file."""
        return self._fixed_nbytes + sum(self.estimates(relative))


def _entropy(statistics: Statistics, step: float) -> float:
    """Bits of a code of a scalar grid."""
    return 8 * statistics.entropy_nbytes(step) / statistics.n_values


def _has_own_tables(statistics: Statistics, drafted: Drafted) -> bool:
    return drafted.bits * statistics.n_values > _OWN_TABLES_BITS


def _overhead(statistics: Sequence[Statistics], drafts: Sequence[Drafted]) -> float:
    """About the bytes that tensors take besides their codes: frequency tables, records, tables of sections."""
    total = 0.0
    n_together = _SHARED_WEIGHTS  # weights of tensors with the same tables
    most = 0.0  # bytes that one of them would take for these
    for s, drafted in zip(statistics, drafts, strict=True):
        n_blocks = math.ceil(s.n_values / BLOCK_ELEMENTS)
        is_padded = drafted.bits * s.n_values / 8 > ALIGNED_FROM_NBYTES * n_blocks
        total += _OF_TENSOR + (_OF_BLOCK + _PADDING * is_padded) * n_blocks
        nbytes = drafted.n_entries * max(_ENTRY_NBYTES - _LESS_A_BIT * drafted.bits, 0.5)
        if _has_own_tables(s, drafted):
            total += nbytes + _OF_TABLES
        elif n_together + s.n_values > _SHARED_WEIGHTS:
            total += nbytes + _OF_TABLES
            n_together, most = s.n_values, nbytes
        else:
            total += _NEW * min(nbytes, most) + max(nbytes - most, 0.0)
            n_together, most = n_together + s.n_values, max(nbytes, most)
    return total
