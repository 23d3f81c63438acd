"""The note on a file whose steps are so coarse that the network will most likely not work any more."""

from __future__ import annotations

from .options import Options
from .report import Report
from .sensitivity import Steps

# A model is reported as ruined from this coarseness on, relative to the harmless step. Of seven networks six lost 7 to
# 95 points of accuracy at _RUIN, and one lost 2; at half of it they lost 0 to 12. Preset small bears more, because it
# keeps sums of errors small; a calibrated model even more, because other weights compensate errors
_RUIN, _RUIN_SMALL, _RUIN_CALIBRATED = 9.0, 16.0, 32.0
_BEARABLE = 4.0  # the coarseness that the note recommends


def note_ruin(report: Report, steps: Steps, step: float, options: Options) -> None:
    """Add a note to the report of a file, if its relative step is too coarse."""
    coarseness = steps.coarseness(step)
    most = _RUIN_SMALL if options.preset == "small" else _RUIN
    if steps.is_empty or coarseness <= (most if options.calibration is None else _RUIN_CALIBRATED):
        return
    nbytes = report.file_nbytes + steps.estimate(step * _BEARABLE / coarseness) - steps.estimate(step)
    report.note_ruined(f"this model will most likely not work: its weights are rounded {coarseness:.0f} times as"
                       " coarsely as most networks tolerate; try a ratio of"
                       f" {report.source_nbytes / nbytes:.2g}")  # fmt: skip
