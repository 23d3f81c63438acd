"""The goal that the options ask for, and notes and errors about it in the caller's units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod

from .budget_search import EXACT, BudgetSearch
from .options import Options
from .sensitivity import Steps
from .source import SourceTensor
from .step_search import Goal, Outcome

NO_TENSOR = "no tensor is of a kind and a size to be coded more finely or coarsely"


class RequestedGoal:
    """The goal that the options ask for.

    Attributes:
        n_weights, source_nbytes: Elements and bytes of all tensors, without aliases.
    """

    def __init__(self, tensors: Sequence[SourceTensor], options: Options) -> None:
        self._options = options
        self.n_weights = sum(prod(tensor.shape) for tensor in tensors if tensor.alias_of is None)
        self.source_nbytes = sum(tensor.source_nbytes for tensor in tensors if tensor.alias_of is None)

    def goal(self, *, has_steps: bool) -> Goal | None:
        """The goal; None if the options have none, or if there is nothing to choose.

        Args:
            has_steps: Whether there are tensors whose steps are to be chosen.
        """
        if not self.n_weights:
            return None  # no tensor could be made smaller
        options = self._options
        if options.sqnr is not None:
            return Goal(sqnr_db=options.sqnr) if has_steps else None
        if options.bits is not None:
            return Goal(options.bits * self.n_weights / 8)
        if options.ratio is not None:
            return Goal(self.source_nbytes / options.ratio)
        return None if options.size_nbytes is None else Goal(options.size_nbytes)

    def notes_on(self, goal: Goal, outcome: Outcome, why: str) -> list[str]:
        """Notes on a goal that is missed by more than the tolerance; empty otherwise.

        Args:
            why: The reason, for the note.
        """
        if outcome.is_near(goal):
            return []
        options = self._options
        if options.sqnr is not None:
            asked, reached = f"an SQNR of {options.sqnr:g} dB was", f"{outcome.sqnr_db:.2f} dB is"
        elif options.bits is not None:
            asked, reached = f"{options.bits:g} bits a weight were", f"{8 * outcome.nbytes / self.n_weights:.4g} is"
        elif options.ratio is not None:
            asked, reached = f"a ratio of {options.ratio:g} was", f"{self.source_nbytes / outcome.nbytes:.4g} is"
        else:
            asked, reached = f"a file of {options.size_nbytes:,g} bytes was", f"{outcome.nbytes:,} is"
        return [f"{asked} asked for; {reached} what was reached: {why}"]

    def unmet(self, nbytes: float, smallest_nbytes: int, fixed_nbytes: int) -> str:
        """The text of an error: the budget cannot be met, and what is possible.

        Args:
            nbytes: Bytes that were asked for.
            smallest_nbytes: Bytes of the smallest file.
            fixed_nbytes: Bytes of the tensors that no step changes.
        """
        if self._options.bits is not None:
            bits = math.ceil(800 * smallest_nbytes / self.n_weights) / 100
            possible = f"{bits:.2f} bits a weight are"
        elif self._options.ratio is not None:
            ratio = math.floor(100 * self.source_nbytes / smallest_nbytes) / 100
            possible = f"a ratio of {ratio:.2f} is"
        else:
            possible = "so many bytes are"
        return (f"a file of {nbytes:.0f} bytes was asked for; the smallest possible has {smallest_nbytes}: {possible}"
                f" possible, with {fixed_nbytes} bytes in tensors that no step changes")  # fmt: skip


def why_missed(goal: Goal, search: BudgetSearch, steps: Steps) -> str:
    """The reason why no file is nearer to a goal, for a note."""
    assert search.within is not None
    if steps.is_empty:
        return NO_TENSOR
    if search.within.step == EXACT:
        return "every bit is kept"
    if search.beyond is None:
        return f"nothing {'finer' if goal.nbytes is not None else 'coarser'} is possible"
    if goal.nbytes is not None:
        return f"sizes jump, the next larger file that was found has {search.beyond.outcome.nbytes:,} bytes"
    return f"files jump, the next smaller one that was found has {search.beyond.outcome.sqnr_db:.2f} dB"
