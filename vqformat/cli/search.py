"""``vqm search``: the smallest file with which a model is still good enough, by a metric of the user."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from vqformat.converters import convert

from ..encode.calibration import Calibration
from ..encode.report import Report
from ..smallest import TRIAL_HEAD, SearchResult, Trial, search_subject, trial_row
from ..text import escape, one_line
from .calibrate import calibrated, check_model, opened_model
from .conversion_report import print_report, report_json
from .files import STDIO, check_output, check_source, local_path, outputs_for, stdout
from .parsers import UsageError
from .progress import progress_line
from .text import FileError, to_json
from .user_code import call, load_object, running

if TYPE_CHECKING:
    from .text_model import TextModel
    from .torch_model import FilledModel

_MAX_DROP = 0.01


def run_search(args: argparse.Namespace) -> int:
    """Run ``vqm search``: find the smallest file that keeps a metric."""
    check_source(args.file)
    check_model(args)
    _check_metric(args)
    (output,) = outputs_for([args.file], args.output)
    to_stdout = args.output == STDIO
    if not to_stdout:
        check_output(output, args.file, force=args.force)
    target = stdout(force=args.force) if to_stdout else None
    out: TextIO | None = sys.stderr if to_stdout else sys.stdout
    with local_path(args.file) as path:
        found, report = _search(args, path, out)
    if target is not None:
        target.write(found.data)
    else:
        found.save(output, overwrite=args.force)
    file = STDIO if to_stdout else str(output)
    print_report(args, report, file, out)
    if args.json:
        trials = [{"ratio": each.ratio, "nbytes": each.nbytes, "metric": each.metric, "drop": each.drop,
                   "best": each is found.best} for each in found.trials]  # fmt: skip
        print(to_json({**report_json(args.file, file, report), "preset": found.preset,
                       "original_metric": found.reference, "max_drop": found.max_drop, "trials": trials}), file=out)
    return 0


def _search(args: argparse.Namespace, path: Path, out: TextIO | None) -> tuple[SearchResult, Report]:
    """Search, and print the trials.

    Args:
        path: The path from which the weights are read.
        out: Where trials are printed.

    Returns:
        The result, and the report on its file.
    """
    import torch

    calibration = None if args.calibration is None else Calibration.load(args.calibration)
    model, text = opened_model(args, path)
    learned: list[Any] = []
    if text is None:
        evaluate = _metric(args.metric)
    else:
        learned, measured = _halves(args, text)
        evaluate = text.divergence(measured)
    correct = None
    if args.inputs is not None or (text is not None and args.preset == "small" and calibration is None):
        calibration, _ = calibrated(args, model, learned)
        correct = model.corrector(calibration)
    subject = _Converted(args, path, model)
    options = {"preset": args.preset, "seed": args.seed, "calibration": calibration, "correct": correct}
    max_drop = (args.max_drop if text is None else args.max_divergence) or _MAX_DROP
    shown = None if args.quiet or args.json else out

    def show(trial: Trial) -> None:
        if len(subject.reports) == 1:
            print(f"trials of preset {args.preset}\n{TRIAL_HEAD}", file=shown)
        print(trial_row(trial), file=shown, flush=True)

    with running("the model"), torch.no_grad():
        found = search_subject(subject, evaluate, max_drop, options, None if shown is None else show,
                               max_evaluations=args.trials)  # fmt: skip
    if shown is not None:
        print(f"{str(found).splitlines()[-1]}\n", file=shown)
    return found, subject.reports[found.best.step]


def _halves(args: argparse.Namespace, text: TextModel) -> tuple[list[Any], list[Any]]:
    """Windows of the text to calibrate with, and others to measure with."""
    windows = text.windows(args.text, args.batches)
    if len(windows) < 2:
        raise FileError(f"{escape(args.text)}: two windows or more are needed, of {text.length} tokens each: one to"
                        " calibrate with, one to measure")  # fmt: skip
    return windows[::2], windows[1::2]


def _check_metric(args: argparse.Namespace) -> None:
    """Check that a model and a metric are given, and nothing that excludes them.

    Raises:
        UsageError: They are not.
    """
    if args.preset != "small" and (args.calibration is not None or args.inputs is not None):
        raise UsageError(f"a calibration is for the preset small, not {args.preset}")
    if args.text is not None:
        if args.metric is not None or args.max_drop is not None:
            raise UsageError("--text measures how far predictions diverge: --max-divergence tells how far they may;"
                             " --metric and --max-drop are for other models")  # fmt: skip
        return
    if args.max_divergence is not None:
        raise UsageError("--max-divergence is for --text; --max-drop tells how far the metric may drop")
    for option, what in (("model", "the model that has the weights"), ("metric", "how good it is")):
        if getattr(args, option) is None:
            raise UsageError(f"--{option} FILE.py:NAME tells {what}; a folder of Hugging Face needs --text only")


def _metric(place: str) -> Callable[[Any], float]:
    """The metric that a function of the user computes.

    Raises:
        FileError: It is no function. The result has: it returned no number.
    """
    function = load_object(place)
    if not callable(function):
        raise FileError(f"{escape(place)} is a {type(function).__name__}, not a function of the model")

    def evaluate(model: Any) -> float:
        value = call(place, function, model)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as err:
            raise FileError(one_line(f"{escape(place)} returned a {type(value).__name__} that is no number")) from err

    return evaluate


class _Converted:
    """The files that ``vqm convert`` would write, each loaded into a copy of the model.

    Args:
        path: The path from which the weights are read.

    Attributes:
        reports: The report on each file, by its step.
    """

    def __init__(self, args: argparse.Namespace, path: Path, model: FilledModel) -> None:
        self._args, self._path, self._model = args, path, model
        self._copy = copy.deepcopy(model.model)
        self.reports: dict[float, Report] = {}

    def original(self) -> Any:
        return self._copy

    def save(self, stream: BinaryIO, options: dict[str, Any]) -> Report:
        with progress_line(quiet=self._args.quiet) as progress:
            report: Report = convert(self._path, stream, progress=progress, **options)
        self.reports[options.get("step", 0.0)] = report
        return report

    def load(self, stream: Any) -> Any:
        from ..torch import load_file

        self._model.fill(self._copy, load_file(stream))
        return self._copy.eval()
