"""The report of a conversion, as a table or as JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .text import count, decibel, escape, number, one_line, shape_text, table

if TYPE_CHECKING:
    from ..encode.report import Report


def print_notes(notes: list[str]) -> None:
    for note in notes:
        print(f"vqm: note: {one_line(note)}", file=sys.stderr)


def report_json(source: str, output: str, report: Report) -> dict[str, Any]:
    return {"source": source, "output": output, "source_nbytes": report.source_nbytes,
            "file_nbytes": report.file_nbytes, "section_nbytes": report.section_nbytes,
            "shared_nbytes": report.shared_nbytes, "overhead_nbytes": report.overhead_nbytes, "ratio": report.ratio,
            "sqnr_db": report.sqnr_db, "notes": report.notes,
            "tensors": [{"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "method": tensor.method,
                         "bits_per_weight": tensor.bits_per_weight, "sqnr_db": tensor.sqnr_db,
                         "exact": tensor.sqnr_db == float("inf"), "stored_nbytes": tensor.stored_nbytes}
                        for tensor in report.tensors]}  # fmt: skip


def report_table(report: Report, *, verbose: bool) -> list[str]:
    """The table of tensors and of the bytes that they take."""
    head = ("tensor", "shape", "method", "bits/weight", "SQNR dB", "bytes", "% of file", "dtype")
    rows: list[tuple[str, ...]] = [head]
    n_weights = 0

    def share(nbytes: int) -> str:
        return f"{100 * nbytes / report.file_nbytes:.1f}"

    def row(what: str, nbytes: int, bits: str = "") -> tuple[str, ...]:
        return (what, "", "", bits, "", count(nbytes), share(nbytes), "")

    for tensor in report.tensors:
        is_alias = tensor.stored_nbytes == 0 and tensor.method.startswith("alias of ")
        n_weights += 0 if is_alias else tensor.n_elements
        bits = "-" if is_alias else number(tensor.bits_per_weight, ".3f")
        stored = "-" if is_alias else count(tensor.stored_nbytes)
        of_file = "-" if is_alias else share(tensor.stored_nbytes)
        rows.append((escape(tensor.name), shape_text(tensor.shape), escape(tensor.method), bits,
                     decibel(tensor.sqnr_db), stored, of_file, tensor.dtype))  # fmt: skip
    if report.shared_nbytes:
        rows.append(row("shared tables", report.shared_nbytes))
    rows.append(row("overhead", report.overhead_nbytes))
    rows.append(row("total", report.file_nbytes, f"{8 * report.file_nbytes / n_weights:.3f}" if n_weights else "-"))
    align = "<<<>>>><"
    return table(rows, align) if verbose else table([row[:-1] for row in rows], align[:-1])
