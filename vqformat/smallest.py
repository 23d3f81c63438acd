"""``search``: the smallest file with which a model is still good enough by the user's own metric."""

from __future__ import annotations

import copy
import io
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, cast

from .encode.step_search import COARSEST_STEP, SMALLEST_STEP
from .errors import EncodeError, missing_package
from .files import NewFile

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .encode.calibration import Calibration
    from .encode.options import Preset
    from .encode.progress import Progress
    from .encode.recipe import Recipe

Model = TypeVar("Model")

_FIRST_STEP = 0.5
_MOST_GROWTH = 2.0  # largest factor of the step from one trial to the next
_POWER = 2.5  # the drop of the metric is about proportional to this power of the step
# The search ends when the drop is at least this share of the allowed drop, or when the best file is so near in size to
# the next file that is too bad: smaller differences are noise of the metric
_NEAR_DROP = 0.9
_NEAR_SIZE = 1.03
_EXACT = 0.0  # in place of a step: every bit is kept


@dataclass(frozen=True)
class Trial:
    """A file that was tried.

    Attributes:
        step: Step of the grid of the typical tensor, relative to its scale; 0 if every bit is kept.
        nbytes: Bytes of the file.
        ratio: Bytes of the tensors divided by bytes of the file.
        metric: Result of ``evaluate``.
        drop: Metric of the original minus ``metric``.
    """

    step: float
    nbytes: int
    ratio: float
    metric: float
    drop: float


@dataclass(frozen=True)
class SearchResult:
    """The result of a search. ``str`` gives a table of all trials.

    Attributes:
        data: Bytes of the smallest file that is good enough.
        best: Its trial.
        trials: All trials, the largest file first.
        reference: Metric of the original.
        max_drop: The largest drop that was allowed.
        preset: The preset of the files that were tried. A file that keeps every bit has none.
    """

    data: bytes = field(repr=False)
    best: Trial
    trials: list[Trial]
    reference: float
    max_drop: float
    preset: str = "small"

    @property
    def ratio(self) -> float:
        """Bytes of the tensors divided by bytes of the file."""
        return self.best.ratio

    def save(self, filename: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write the file.

        Args:
            filename: Path.
            overwrite: Whether an existing file may be replaced.

        Raises:
            FileExistsError: The file exists and ``overwrite`` is false.
        """
        with NewFile(filename, overwrite=overwrite) as stream:
            stream.write(self.data)

    def plot(self, filename: str | os.PathLike[str] | None = None) -> Any:
        """Plot the metric against the ratio.

        Args:
            filename: Path of a picture to write, such as a ``.png``; None for none.

        Returns:
            The ``matplotlib.figure.Figure``.

        Raises:
            ImportError: matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as err:
            raise missing_package("plot needs", "matplotlib", err) from err
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="times smaller", ylabel="metric", xscale="log")
        axes.axhline(self.reference, color="0.6", linewidth=1, label="original")
        axes.axhline(self.reference - self.max_drop, color="0.6", linewidth=1, linestyle=":", label="allowed")
        axes.plot([trial.ratio for trial in self.trials], [trial.metric for trial in self.trials], "o-")
        axes.plot([self.best.ratio], [self.best.metric], "o", markersize=10, markerfacecolor="none",
                  label=f"{self.best.ratio:.1f} times smaller")  # fmt: skip
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.legend()
        if filename is not None:
            figure.savefig(filename, dpi=150)
        return figure

    def __str__(self) -> str:
        lines = [TRIAL_HEAD, *(trial_row(trial, trial is self.best) for trial in self.trials)]
        how = f"preset: {self.preset}" if self.best.step != _EXACT else "every bit is kept"
        return "\n".join([*lines, f"{how}; original: {self.reference:.6g}; a drop of {self.max_drop:g} is allowed"])


TRIAL_HEAD = "  ratio        bytes       metric        drop"


def trial_row(trial: Trial, is_best: bool = False) -> str:
    mark = "  <- the smallest that is good enough" if is_best else ""
    return f"{trial.ratio:>7.2f}{trial.nbytes:>13,}{trial.metric:>13.6g}{trial.drop:>12.4g}{mark}"


class SearchOptions(TypedDict, total=False):
    """Keywords of ``save_file`` and ``save_model`` that ``search`` hands on."""

    metadata: Mapping[str, Any]
    recipe: Recipe | Mapping[str, str] | str | None
    preset: Preset
    calibration: Calibration | None
    seed: int
    progress: Progress | None


def search(
    model: Model,
    evaluate: Callable[[Model], float],
    max_drop: float = 0.01,
    *,
    max_evaluations: int = 10,
    on_trial: Callable[[Trial], None] | None = None,
    **options: Unpack[SearchOptions],
) -> SearchResult:
    """Find the smallest file for which a metric drops by at most ``max_drop``.

    Args:
        model: A ``torch.nn.Module``, which does not change; or a mapping of names to arrays or PyTorch tensors.
        evaluate: A function that gets a copy of the model filled from a file (or a mapping like the given one), and
            returns a metric that falls as the model gets worse, such as the accuracy on held-out data.
        max_drop: The largest drop of the metric that is allowed, in the units of the metric. For an accuracy from 0
            to 1, 0.01 is one percentage point.
        max_evaluations: Most files to try. 6 to 10 are usually enough. In addition the original is evaluated, and a
            lossless file if all files were too bad.
        on_trial: Called with each trial. By default trials are printed to stderr if that is a terminal.
        options: As for ``save_file``; for a module as for ``vqformat.torch.save_model``, including ``calibration``.
            Budgets are not allowed. The default preset is ``small``.

    Returns:
        The smallest file that is good enough, and all trials.

    Raises:
        ValueError: An argument is not allowed; or even a lossless file is too bad, because ``evaluate`` returns values
            for the same model that differ by more than ``max_drop``.
        EncodeError: The model cannot be written, or an option is not allowed.
    """
    taken = sorted({"bits", "ratio", "size", "sqnr", "lossless", "step"} & options.keys())
    if taken:
        raise EncodeError(f"{taken[0]} is what a search finds; it cannot be given")
    if not max_drop > 0:
        raise ValueError(f"max_drop is {max_drop!r}; a number above 0 is allowed")
    if max_evaluations < 1:
        raise ValueError(f"max_evaluations is {max_evaluations!r}; 1 or more are allowed")
    options.setdefault("preset", "small")
    subject = _subject(model)
    if on_trial is None and sys.stderr is not None and sys.stderr.isatty():
        print(f"trials of preset {options['preset']}\n{TRIAL_HEAD}", file=sys.stderr, flush=True)
        on_trial = _print_trial
    return search_subject(subject, evaluate, max_drop, dict(options), on_trial, max_evaluations=max_evaluations)


def _print_trial(trial: Trial) -> None:
    print(trial_row(trial), file=sys.stderr, flush=True)


def search_subject(subject: Subject, evaluate: Callable[[Any], float], max_drop: float, options: dict[str, Any],
                   on_trial: Callable[[Trial], None] | None, *, max_evaluations: int) -> SearchResult:  # fmt: skip
    """Search as ``search`` does, among the files that a subject saves with these options and a step."""
    return _Search(subject, evaluate, max_drop, options, on_trial).run(max_evaluations)


class _Search:
    """Tries files of different steps, each chosen from the results of those before."""

    def __init__(self, subject: Subject, evaluate: Callable[[Any], float], max_drop: float, options: dict[str, Any],
                 on_trial: Callable[[Trial], None] | None) -> None:  # fmt: skip
        self._subject, self._evaluate, self._max_drop = subject, evaluate, max_drop
        self._options, self._on_trial = options, on_trial
        self._reference = float(evaluate(subject.original()))
        if not math.isfinite(self._reference):
            raise ValueError(f"evaluate says {self._reference} of the original; a finite number is allowed")
        self._trials: list[Trial] = []
        self._best: tuple[Trial, bytes] | None = None

    def run(self, max_evaluations: int) -> SearchResult:
        step: float | None = _FIRST_STEP
        while step is not None and len(self._trials) < max_evaluations:
            self._try(step)
            step = self._next_step()
        if self._best is None:
            self._try(_EXACT)
        if self._best is None:
            drop = self._trials[-1].drop
            raise ValueError(f"a file that keeps every bit has a drop of {drop:g}, {self._max_drop:g} is allowed:"
                             " evaluate says different things of the same model")  # fmt: skip
        best, data = self._best
        trials = sorted(self._trials, key=lambda trial: trial.ratio)
        return SearchResult(data, best, trials, self._reference, self._max_drop, self._options["preset"])

    def _try(self, step: float) -> None:
        """Write and evaluate a file with this step. Keep it if it is the smallest that is good enough."""
        stream = io.BytesIO()
        options = {**self._options, "step": step}
        if step == _EXACT:  # the other options are for lossy coding
            kept = {name: value for name, value in self._options.items() if name == "metadata"}
            options = {"lossless": True, **kept}
        report = self._subject.save(stream, options)
        stream.seek(0)
        metric = self._metric(self._subject.load(stream))
        trial = Trial(step, report.file_nbytes, report.ratio, metric, self._reference - metric)
        self._trials.append(trial)
        if trial.drop <= self._max_drop and (self._best is None or trial.nbytes < self._best[0].nbytes):
            self._best = trial, stream.getvalue()
        if self._on_trial is not None:
            self._on_trial(trial)

    def _metric(self, filled: Any) -> float:
        metric = float(self._evaluate(filled))
        if not math.isfinite(metric):
            metric = -math.inf  # the outputs of a ruined network may be NaN
        return metric

    def _next_step(self) -> float | None:
        """The step at which the drop is expected to be ``max_drop``; None if no better file is expected."""
        good = max((t for t in self._trials if t.drop <= self._max_drop), key=lambda t: t.step, default=None)
        bad = min((t for t in self._trials if t.drop > self._max_drop and (good is None or t.step > good.step)),
                  key=lambda t: t.step, default=None)  # fmt: skip
        if good is not None and bad is not None:
            if good.drop >= _NEAR_DROP * self._max_drop or good.nbytes <= bad.nbytes * _NEAR_SIZE:
                return None
            low, high = self._logarithm(good), self._logarithm(bad)
            share = (math.log(self._max_drop) - low) / max(high - low, 1e-9)
            return float(good.step * (bad.step / good.step) ** min(max(share, 0.2), 0.8))
        if good is not None:
            growth = math.exp((math.log(self._max_drop) - self._logarithm(good)) / _POWER)
            step = good.step * min(max(growth, 1.1), _MOST_GROWTH)
            return step if step < COARSEST_STEP else None
        assert bad is not None
        growth = math.exp((math.log(self._max_drop) - self._logarithm(bad)) / _POWER)
        step = bad.step * min(max(growth, 1 / 4), 1 / 1.1)
        return step if step > SMALLEST_STEP else None

    def _logarithm(self, trial: Trial) -> float:
        """Logarithm of the drop, which is clipped: it may be 0 or negative, or infinite for a ruined model."""
        return math.log(min(max(trial.drop, self._max_drop / 30), self._max_drop * 30))


class Subject(Protocol):
    """What a search can save, load and evaluate, such as a module or a mapping of tensors."""

    def original(self) -> Any: ...

    def save(self, stream: io.BytesIO, options: dict[str, Any]) -> Any: ...

    def load(self, stream: io.BytesIO) -> Any: ...


def _subject(model: Any) -> Subject:
    torch = sys.modules.get("torch")  # not imported here: a caller who has a module has imported it
    if torch is not None and isinstance(model, torch.nn.Module):
        return _Module(model)
    if not isinstance(model, Mapping):
        raise ValueError(f"model is a {type(model).__name__}; a torch.nn.Module or a mapping of names to arrays or"
                         " tensors is allowed")  # fmt: skip
    if torch is not None and any(isinstance(value, torch.Tensor) for value in model.values()):
        from . import torch as of_torch

        return _Tensors(model, of_torch)
    from . import numpy as of_numpy

    return _Tensors(model, of_numpy)


@dataclass
class _Tensors:
    """A mapping of names to arrays or PyTorch tensors."""

    tensors: Mapping[str, Any]
    front: Any  # the module whose save_file and load_file are used

    def original(self) -> Any:
        return self.tensors

    def save(self, stream: io.BytesIO, options: dict[str, Any]) -> Any:
        return self.front.save_file(self.tensors, stream, **options)

    def load(self, stream: io.BytesIO) -> Any:
        return self.front.load_file(stream)


class _Module:
    """A PyTorch model. Files are loaded into a copy of it."""

    def __init__(self, model: Any) -> None:
        self._model, self._copy = model, copy.deepcopy(model)

    def original(self) -> Any:
        return self._copy

    def save(self, stream: io.BytesIO, options: dict[str, Any]) -> Any:
        from .torch import save_model

        return save_model(self._model, stream, **options)

    def load(self, stream: io.BytesIO) -> Any:
        from .torch import load_model

        load_model(self._copy, cast(Any, stream))
        return self._copy
