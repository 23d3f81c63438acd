"""How far an encoding is: its passes over the tensors, and the share of the work of all passes that is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Literal

from .source import SourceTensor

Phase = Literal["codebooks", "statistics", "drafts", "encoding", "measuring", "correction", "writing"]

# Time of a pass, relative to one that encodes all tensors; measured with AlexSmall and ResNet-20, drafts with MiniLM
_COSTS: dict[Phase, float] = {
    "codebooks": 0.5, "statistics": 0.03, "drafts": 0.8, "encoding": 1.0, "measuring": 0.07, "correction": 0.5,
    "writing": 0.07,
}  # fmt: skip
_SEARCHES = {"fast": 8, "default": 2, "small": 2}  # by preset, passes that a search for a budget usually takes
_FURTHER = 1.0  # passes that are expected to follow when a search has taken as many as usual
_OFTEN = 1 << 18  # least number of weights between two calls within a tensor


class TensorProgress(str):
    """The name of the tensor that has been processed, and how far the encoding is.

    Attributes:
        phase: What the current pass over the tensors does: it trains ``"codebooks"`` that tensors share, gathers
            ``"statistics"``, makes ``"drafts"`` to estimate sizes, is an ``"encoding"`` with one step, is
            ``"measuring"`` the file that would result, finds a ``"correction"`` of short tensors, or is ``"writing"``.
        number: Number of the pass, from 1.
        share: Share of the work of all passes that is done, from 0 to 1. It never decreases. How many passes a search
            for a budget takes is an estimate. None for a ``writer`` that encodes each layer when it is added: it does
            not know how many will follow.
    """

    phase: Phase
    number: int
    share: float | None

    def __new__(cls, name: str, phase: Phase, number: int, share: float | None) -> TensorProgress:
        self = super().__new__(cls, name)
        self.phase, self.number, self.share = phase, number, share
        return self


Progress = Callable[[TensorProgress, int, int], None]

_tell_share: ContextVar[Callable[[float], None] | None] = ContextVar("_tell_share", default=None)
_n_of_tensor: ContextVar[int] = ContextVar("_n_of_tensor", default=1)


def advance(n_weights: float) -> None:
    """Tell that so many further weights of the tensor that is being encoded are done."""
    advance_share(n_weights / _n_of_tensor.get())


def advance_share(share: float) -> None:
    """Tell that a further share of what is being done is done."""
    tell = _tell_share.get()
    if tell is not None:
        tell(share)


class Passes:
    """Counts the passes of an encoding, and calls the user's function.

    Args:
        progress: The user's function; None for none.
        tensors: All tensors, with aliases.
        preset: The preset, from which the number of passes of a search is estimated.
        is_part: Whether further tensors may follow, so that the share is unknown.

    Attributes:
        is_search: Whether encoding passes are made until a goal is met.
        is_corrected: Whether short tensors are corrected after an encoding pass.
    """

    def __init__(
        self, progress: Progress | None, tensors: Sequence[SourceTensor], preset: str, *, is_part: bool
    ) -> None:
        self._progress, self._is_part = progress, is_part
        self._sizes = {tensor.name: prod(tensor.shape) for tensor in tensors}
        self._n_weights = sum(self._sizes.values())
        self._n_usual = _SEARCHES[preset]
        self.is_search = self.is_corrected = False
        self._n_encodings = self._n_corrections = 0
        self._number = 0
        self._phase: Phase = "statistics"
        self._share = 0.0
        self._before, self._part = 0.0, 0.0  # share at the beginning of the pass, and share of the pass
        self._done = self._told = 0
        self._n_all = 0  # weights of the pass

    def begin(self, phase: Phase, n_weights: int | None = None) -> None:
        """Begin a pass.

        Args:
            n_weights: Number of its weights; None for those of all tensors.
        """
        self._phase = phase
        self._number += 1
        self._n_encodings += phase == "encoding" and n_weights is None
        self._n_corrections += phase == "correction"
        self._n_all = self._n_weights if n_weights is None else n_weights
        self._done = self._told = 0
        cost = _COSTS[phase] * self._n_all / max(self._n_weights, 1)
        self._before = self._share
        self._part = (1 - self._before) * cost / max(cost + self._later(), 1e-9)

    def _later(self) -> float:
        """Work that is expected after this pass, in encoding passes."""
        if self._phase == "writing":
            return 0.0
        later = _COSTS["writing"]
        if self._phase in ("codebooks", "statistics"):
            later += _COSTS["drafts"] * self.is_search
        one = 1.0
        if self.is_search:
            one += _COSTS["measuring"]
            later += max(self._n_usual - self._n_encodings, _FURTHER * (self._n_encodings > 0)) * one
            later += _COSTS["measuring"] * (self._phase == "encoding")
        elif not self._n_encodings:
            later += one
        if self.is_corrected:
            later += _COSTS["correction"] * max(1.0 - self._n_corrections, 0.0)
        return later

    @contextmanager
    def tensor(self, name: str, *, times: int = 1) -> Iterator[None]:
        """Context in which a tensor is processed. ``advance`` tells how far that is.

        Args:
            times: How often each weight is counted by ``advance``.
        """
        if self._progress is None:
            yield
            return
        start, n = self._done, self._sizes.get(name, self._n_all)
        share = 0.0

        def tell(further: float) -> None:
            nonlocal share
            share = min(share + further, 1.0)
            self._done = max(self._done, start + int(n * share))
            if self._told + _OFTEN <= self._done < start + n:
                self._call(name)

        tokens = _tell_share.set(tell), _n_of_tensor.set(max(n * times, 1))
        try:
            yield
        finally:
            _tell_share.reset(tokens[0])
            _n_of_tensor.reset(tokens[1])
        self._done = min(start + n, self._n_all)
        self._call(name)

    def passed(self, name: str) -> None:
        """Tell that a tensor has been processed."""
        with self.tensor(name):
            pass

    def end(self, name: str) -> None:
        """Tell that the pass has ended, with this tensor."""
        self._done = self._n_all
        self._call(name)

    def _call(self, name: str) -> None:
        if self._progress is None:
            return
        self._told = self._done
        of_pass = self._done / self._n_all if self._n_all else 1.0
        is_over = self._phase == "writing" and self._done == self._n_all
        self._share = 1.0 if is_over else max(self._share, min(self._before + self._part * of_pass, 1.0))
        share = None if self._is_part else self._share
        self._progress(TensorProgress(name, self._phase, self._number, share), self._done, self._n_all)
