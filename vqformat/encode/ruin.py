"""The note on a file whose weights are so coarse that the network will most likely not work any more."""

from __future__ import annotations

import math

from .options import Options
from .report import Report
from .sensitivity import Steps

# A model is reported as ruined from this coarseness on, relative to the harmless step. Of seven networks six lost 7 to
# 95 points of accuracy at _RUIN, and one lost 2; at half of it they lost 0 to 12. Preset small bears more, because it
# keeps sums of errors small; a calibrated model even more, because other weights compensate errors
_RUIN, _RUIN_SMALL, _RUIN_CALIBRATED = 9.0, 16.0, 32.0
_BEARABLE = 4.0  # the coarseness that the note recommends

# Whatever the method: with an SQNR below _RUIN_DB in most weights, or with less than a bit a weight and little more.
# LeNet-300-100, which bears much, lost 1.1 points at 0.8 bits and 2.7 dB, 7.8 at 0.5 bits and 0 dB, 16 with signs alone
# at 3.3 dB. Preset small left 97.3 of 98.4 % at 0.4 bits and 3.6 dB, so its bits alone say nothing. A calibrated model
# bears less than 3 dB, because errors that its inputs do not meet do no harm
_RUIN_DB = 3.0
_RUIN_BITS, _RUIN_BITS_DB = 1.0, 6.0


def note_ruin(report: Report, steps: Steps, step: float, options: Options) -> None:
    """Add a note to the report of a file, if its relative step is too coarse, or its SQNR too low."""
    coarseness = steps.coarseness(step)
    most = _RUIN_SMALL if options.preset == "small" else _RUIN
    if steps.is_empty or coarseness <= (most if options.calibration is None else _RUIN_CALIBRATED):
        if options.calibration is None:
            _note_noise(report, options)
        return
    nbytes = report.file_nbytes + steps.estimate(step * _BEARABLE / coarseness) - steps.estimate(step)
    report.note_ruined(f"this model will most likely not work: its weights are rounded {coarseness:.0f} times as"
                       " coarsely as most networks tolerate; try a ratio of"
                       f" {report.source_nbytes / nbytes:.2g}")  # fmt: skip


def _note_noise(report: Report, options: Options) -> None:
    """Add a note if most weights are drowned in noise."""
    coded = [tensor for tensor in report.tensors if not math.isnan(tensor.sqnr_db) and tensor.n_elements]
    n_weights = sum(tensor.n_elements for tensor in coded)
    bits = 8 * report.file_nbytes / n_weights if n_weights else math.inf
    has_few_bits = bits < _RUIN_BITS and options.preset != "small"
    most_db = _RUIN_BITS_DB if has_few_bits else _RUIN_DB
    n_noisy = sum(tensor.n_elements for tensor in coded if tensor.sqnr_db < most_db)
    if 2 * n_noisy > n_weights:
        decibels = max(tensor.sqnr_db for tensor in coded if tensor.sqnr_db < most_db)
        report.note_ruined(f"this model will most likely not work: it has {bits:.2g} bits a weight, and most of its"
                           f" weights have an SQNR of at most {decibels:.1f} dB; networks need {most_db:.0f} dB and"
                           " more")  # fmt: skip
