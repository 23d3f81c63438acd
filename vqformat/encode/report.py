"""The report on an encoded model, its table, and measures of signal and noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..folding import fold, merged, without_numbers
from ..format.dtypes import BY_NAME
from ..text import count, counted, escape, number, one_line, shape_text, table
from ..text import decibel as decibel_text

_HEAD = ("tensor", "shape", "method", "bits/weight", "SQNR dB", "bytes", "% of file", "dtype")
_ALIGN = "<<<>>>><"


@dataclass(frozen=True)
class TensorReport:
    """The report on one tensor.

    Attributes:
        name, dtype, shape: Of the tensor; the dtype is a name in SPEC 7.1.
        method: Its stages in words, ``"alias of …"`` or ``"copy of …"``.
        stored_nbytes: Bytes of its sections, as stored.
        sqnr_db: Signal-to-quantization-noise ratio in dB; inf if it is exact, nan if it has no elements or is an alias.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: str
    stored_nbytes: int
    sqnr_db: float

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_nbytes / self.n_elements if self.n_elements else 0.0


@dataclass(repr=False)
class Report:
    """The report on a model. ``print`` shows it as the table of the command line, a notebook as a table.

    Attributes:
        tensors: The reports on its tensors, in file order.
        source_nbytes: Bytes of the tensors in the source, without aliases, with copies. Tensors may be quantized there.
        file_nbytes: Bytes of the file, or of all shards.
        section_nbytes: Bytes of all sections; the other bytes of the file are overhead.
        sqnr_db: SQNR in dB of all tensors that were coded coarsely; inf if there are none.
        notes: Notes for the user: tensors that were left out or stored twice, a budget that was missed.
        missed: Those of the notes that say that a budget was missed.
        ruined: Those of the notes that say that the model will most likely not work any more.
        left_out: Those of the notes that say that tensors of the source are not in the file.
        grown: Those of the notes that say that the file is larger than its source.
        source_file_nbytes: Bytes of the source file; 0 if there is none, or if the model is in several files.
        files: Names of the files that were written, if they are several: the shards, then their index.
    """

    tensors: list[TensorReport] = field(default_factory=list)
    source_nbytes: int = 0
    file_nbytes: int = 0
    section_nbytes: int = 0
    sqnr_db: float = math.inf
    notes: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    ruined: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    source_file_nbytes: int = 0
    files: list[str] = field(default_factory=list)

    def note_missed(self, notes: Iterable[str]) -> None:
        """Add notes on a budget that was missed."""
        self.missed.extend(notes)
        self.notes.extend(self.missed)

    def note_ruined(self, note: str) -> None:
        """Add a note that the model will most likely not work any more."""
        self.ruined.append(note)
        self.notes.append(note)

    def __str__(self) -> str:
        notes = (f"note: {one_line(note)}" for note in self.notes)
        return "\n".join([*report_table(self), report_summary(self), *notes])

    def __repr__(self) -> str:
        sqnr = "" if math.isinf(self.sqnr_db) else f", SQNR {self.sqnr_db:.2f} dB"
        notes = f", {counted(len(self.notes), 'note')}" if self.notes else ""
        return f"<Report: {counted(len(self.tensors), 'tensor')}, {report_summary(self)}{sqnr}{notes}>"

    def _repr_html_(self) -> str:
        head, *rows = [row[:-1] for row in _rows(self, unfold=False)]
        lines = ["<table>", f"<thead>{_html_row(head, 'th')}</thead>", "<tbody>"]
        lines += [_html_row(row, "td") for row in rows]
        lines += ["</tbody>", "</table>", f"<p>{_html(report_summary(self))}</p>"]
        lines += [f"<p>note: {_html(one_line(note))}</p>" for note in self.notes]
        return "\n".join(lines)

    @property
    def ratio(self) -> float:
        return self.source_nbytes / self.file_nbytes if self.file_nbytes else 0.0

    @property
    def overhead_nbytes(self) -> int:
        return self.file_nbytes - self.section_nbytes

    @property
    def shared_nbytes(self) -> int:
        """Bytes of sections that serve several tensors: codebooks and tables of frequencies."""
        return self.section_nbytes - sum(tensor.stored_nbytes for tensor in self.tensors)


def report_table(report: Report, *, verbose: bool = False, unfold: bool = False, width: int | None = None) -> list[str]:
    """The lines of the table of tensors and of the bytes that they take.

    Args:
        verbose: Whether their dtypes are shown.
        unfold: Whether tensors of repeated layers have rows of their own.
        width: Most columns of a line; None for any.
    """
    rows = _rows(report, unfold=unfold)
    return table(rows, _ALIGN, width) if verbose else table([row[:-1] for row in rows], _ALIGN[:-1], width)


def report_summary(report: Report) -> str:
    """The size of the file beside those of its tensors and its source."""
    than_source = ""
    if report.source_file_nbytes:
        than_source = (f"; the source file has {count(report.source_file_nbytes)} bytes, ratio"
                       f" {report.source_file_nbytes / report.file_nbytes:.2f}")  # fmt: skip
    in_shards = f" in {counted(len(report.files) - 1, 'shard')}" if report.files else ""
    return (f"{count(report.source_nbytes)} bytes of tensors in {count(report.file_nbytes)}{in_shards}, ratio"
            f" {report.ratio:.2f}{than_source}")  # fmt: skip


def _html(text: str) -> str:
    from html import escape  # with tables of entities, which other uses of this module need not wait for

    return escape(text)


def _html_row(cells: Sequence[str], tag: str) -> str:
    sides = ("left" if side == "<" else "right" for side in _ALIGN)
    return "<tr>" + "".join(f'<{tag} style="text-align: {side}">{_html(cell)}</{tag}>'
                            for cell, side in zip(cells, sides, strict=False)) + "</tr>"  # fmt: skip


def _rows(report: Report, *, unfold: bool) -> list[tuple[str, ...]]:
    tensors = report.tensors
    kinds = [(tensor.shape, tensor.dtype, without_numbers(tensor.method), math.isfinite(tensor.sqnr_db))
             for tensor in tensors]  # fmt: skip
    folded = fold([tensor.name for tensor in tensors], kinds, unfold=unfold)
    rows: list[tuple[str, ...]] = [_HEAD]
    rows += [_row(row.label, [tensors[i] for i in row.members], report) for row in folded]
    if report.shared_nbytes:
        rows.append(_sum("shared tables", report.shared_nbytes, report))
    rows.append(_sum("overhead", report.overhead_nbytes, report))
    n_weights = sum(tensor.n_elements for tensor in tensors if not _is_alias(tensor))
    bits = f"{8 * report.file_nbytes / n_weights:.3f}" if n_weights else "-"
    return [*rows, _sum("total", report.file_nbytes, report, bits)]


def _row(label: str, alike: list[TensorReport], report: Report) -> tuple[str, ...]:
    first = alike[0]
    nbytes = sum(tensor.stored_nbytes for tensor in alike)
    bits = sum(tensor.bits_per_weight for tensor in alike) / len(alike)  # all have the same shape
    has_bytes = not (_is_alias(first) or _is_copy(first))
    cells = (number(bits, ".3f"), count(nbytes), _share(nbytes, report)) if has_bytes else ("-", "-", "-")
    least, most = (decibel_text(among(tensor.sqnr_db for tensor in alike)) for among in (min, max))
    sqnr = least if least == most else f"{least}..{most}"
    return (escape(label), shape_text(first.shape), escape(merged([tensor.method for tensor in alike])), cells[0],
            sqnr, *cells[1:], first.dtype)  # fmt: skip


def _sum(what: str, nbytes: int, report: Report, bits: str = "") -> tuple[str, ...]:
    return (what, "", "", bits, "", count(nbytes), _share(nbytes, report), "")


def _share(nbytes: int, report: Report) -> str:
    return f"{100 * nbytes / report.file_nbytes:.1f}" if report.file_nbytes else "-"


def _is_alias(tensor: TensorReport) -> bool:
    return tensor.stored_nbytes == 0 and tensor.method.startswith("alias of ")


def _is_copy(tensor: TensorReport) -> bool:
    return tensor.stored_nbytes == 0 and tensor.method.startswith("copy of ")


def as_decoded(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.float32]:
    """Round float32 values to the dtype of a tensor, as the decoder does (VAL-001). Returns float32."""
    info = BY_NAME[dtype]
    if info.bits >= 32:
        return values
    return np.clip(values, -info.largest, info.largest).astype(info.numpy).astype(np.float32)


def decibel(signal: float, noise: float) -> float:
    """Signal-to-noise ratio in dB, from the energies of both; inf if the noise is no more than float64 rounding."""
    if noise <= 1e-15 * signal:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def sqnr_db(original: npt.NDArray[Any], decoded: npt.NDArray[Any]) -> float:
    """Signal-to-quantization-noise ratio in dB; inf if both arrays are equal."""
    signal = noise = 0.0
    for start in range(0, original.size, 1 << 20):  # piece by piece, to save memory for float64 copies
        a = original.reshape(-1)[start : start + (1 << 20)].astype(np.float64)
        b = decoded.reshape(-1)[start : start + (1 << 20)].astype(np.float64)
        signal += float(np.vdot(a, a))
        noise += float(np.vdot(a - b, a - b))
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
