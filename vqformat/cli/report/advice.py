"""What to do next: what the numbers of a report suggest."""

from __future__ import annotations

import math
from collections.abc import Callable

from ...text import count, escape
from .measure import Measured, MeasuredFile

Advice = tuple[str, str]  # what is seen; and what can be done, with what is to be typed in backticks

_LARGE_SHARE = 0.3  # of the bytes, for one tensor
_MUCH_LOSS = 0.4  # of the expected loss, for one tensor
_RAW_SHARE = 0.1  # of the bytes, for weights that are kept exactly
_GAIN = 0.05  # share of the bytes that entropy coding must save to be worth a word
_POOR_DB, _WORKING_DB, _GENEROUS_DB = 12.0, 20.0, 30.0  # most networks work from 20 to 25 dB on
_OVERHEAD_SHARE = 0.05
_FEWEST_WEIGHTS = 1000  # of a tensor whose error is worth a word


def advice(file: MeasuredFile) -> list[Advice]:
    """What to do next, the most useful first."""
    rules: tuple[Callable[[MeasuredFile], list[Advice]], ...] = (
        _poor_tensors, _loss, _largest, _raw, _entropy, _room, _overhead, _source,
    )  # fmt: skip
    return [item for rule in rules for item in rule(file)]


def plain(text: str) -> str:
    """What can be done, without backticks."""
    return text.replace("`", "")


def share_text(share: float) -> str:
    """A share in words where a word says it, else in percent."""
    for value, word in ((0.5, "half"), (1 / 3, "a third"), (2 / 3, "two thirds"), (0.75, "three quarters")):
        if abs(share - value) < 0.02:
            return word
    return f"{share:.0%}"


def _largest(file: MeasuredFile) -> list[Advice]:
    top = max(file.stored, key=lambda tensor: tensor.stored_nbytes, default=None)
    share = top.stored_nbytes / file.contents.file_nbytes if top is not None else 0.0
    if top is None or share < _LARGE_SHARE or len(file.stored) == 1:
        return []
    return [(f"{escape(top.name)} takes {share_text(share)} of the bytes.",
             "What is saved there counts most. `--layer` chooses a method for this tensor alone.")]  # fmt: skip


def _poor_tensors(file: MeasuredFile) -> list[Advice]:
    poor = [tensor for tensor in file.stored if tensor.n_elements >= _FEWEST_WEIGHTS and tensor.sqnr_db < _POOR_DB]
    if not poor:
        return []
    worst = min(poor, key=lambda tensor: tensor.sqnr_db)
    others = f", and {len(poor) - 1:,} more are below {_POOR_DB:g} dB" if len(poor) > 1 else ""
    return [(f"{escape(worst.name)} has an SQNR of only {worst.sqnr_db:.1f} dB{others}.",
             "Most networks work well from 20 to 25 dB on. Measure the accuracy; if it fell, ask for a lower `--ratio`,"
             " or calibrate, so that errors make up for each other.")]  # fmt: skip


def _loss(file: MeasuredFile) -> list[Advice]:
    total = file.loss
    known = [tensor for tensor in file.stored if math.isfinite(tensor.loss)]
    if not total or len(known) < 2:
        return []
    top = max(known, key=lambda tensor: tensor.loss)
    share, of_bytes = top.loss / total, top.stored_nbytes / file.contents.file_nbytes
    if share < _MUCH_LOSS or share < 1.25 * of_bytes:
        return []
    return [(f"{escape(top.name)} causes {share_text(share)} of the expected loss, with {of_bytes:.0%} of the bytes.",
             "More bits there, and fewer elsewhere, may give a better model of the same size.")]  # fmt: skip


def _raw(file: MeasuredFile) -> list[Advice]:
    raw = sum(tensor.stored_nbytes for tensor in file.stored if tensor.is_raw and tensor.is_weight)
    share = raw / file.contents.file_nbytes
    if share < _RAW_SHARE:
        return []
    return [(f"{share_text(share)[:1].upper()}{share_text(share)[1:]} of the bytes are weights that are kept exactly.",
             "Without `--lossless`, and without `--layer PATTERN=raw`, they become 4 to 8 times smaller.")]  # fmt: skip


def _entropy(file: MeasuredFile) -> list[Advice]:
    coded = [tensor for tensor in file.stored if not tensor.is_raw and tensor.n_elements >= _FEWEST_WEIGHTS]
    stored = sum(tensor.stored_nbytes for tensor in coded)
    saved = stored - math.ceil(sum(tensor.entropy_bits for tensor in coded) / 8)
    if any("entropy-coded" in tensor.summary.method for tensor in coded):
        return []
    if saved >= _GAIN * file.contents.file_nbytes:
        return [(f"The codes have {count(saved)} bytes less entropy than they take.",
                 "`--preset small` entropy-codes them.")]  # fmt: skip
    if stored >= 0.5 * file.contents.file_nbytes:
        return [("The codes are stored in about as many bits as their entropy.",
                 "Coding alone saves little more. `--preset small` makes better codes: at the same accuracy files are"
                 " up to 2 times smaller.")]  # fmt: skip
    return []


def _room(file: MeasuredFile) -> list[Advice]:
    sqnr = file.sqnr_db
    if not _GENEROUS_DB <= sqnr < math.inf or any(_is_poor(tensor) for tensor in file.stored):
        return []
    return [(f"The weights have an SQNR of {sqnr:.1f} dB.",
             "Most networks work well from 20 to 25 dB on: a higher `--ratio` may cost nothing. Measure it with"
             " `vqformat.search`.")]  # fmt: skip


def _is_poor(tensor: Measured) -> bool:
    return tensor.n_elements >= _FEWEST_WEIGHTS and tensor.sqnr_db < _WORKING_DB


def _overhead(file: MeasuredFile) -> list[Advice]:
    share = file.contents.overhead_nbytes / file.contents.file_nbytes
    if share < _OVERHEAD_SHARE:
        return []
    return [(f"{share:.0%} of the bytes are names, shapes, checksums and the index.",
             "That is so with many small tensors. Fewer and shorter names, and less metadata, help.")]  # fmt: skip


def _source(file: MeasuredFile) -> list[Advice]:
    if file.has_source:
        return []
    return [("The errors are not known, because no source was given.",
             "`vqm report model.vqm --source model.safetensors` shows them, and the expected loss of each"
             " tensor.")]  # fmt: skip
