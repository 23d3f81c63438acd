"""What ``vqm convert`` prints of a file that it wrote."""

from __future__ import annotations

import argparse
from typing import Any, TextIO

from ..encode.report import Report, report_summary, report_table
from ..text import one_line
from .files import STDIO, label
from .legend import legend
from .text import message, table_width


def print_report(args: argparse.Namespace, report: Report, output: str, out: TextIO | None, took: str = "", *,
                 is_last: bool = True) -> None:  # fmt: skip
    """Print the table and the notes of a file that was written.

    Args:
        output: The file, or ``-``.
        out: Where the table goes.
        took: How long it took; shown with ``-v``.
        is_last: Whether no other table follows.
    """
    if not (args.quiet or args.json):
        lines = report_table(report, verbose=args.verbose, unfold=args.all or args.verbose,
                             width=table_width(out, verbose=args.verbose))  # fmt: skip
        where = "stdout" if output == STDIO else label(output)
        lines.append(f"{where}: {report_summary(report)}{took if args.verbose else ''}")
        print("\n".join([*lines, *(["", *legend(lines)] if args.verbose else [])]), file=out)
        if not is_last:
            print(file=out)
    always = [*report.missed, *report.ruined, *report.left_out, *report.grown]
    print_notes(always if args.quiet or args.json else report.notes)


def print_notes(notes: list[str]) -> None:
    """Print notes on stderr."""
    for note in notes:
        message("note", one_line(note))


def report_json(source: str, output: str, report: Report) -> dict[str, Any]:
    """The JSON document on a file that was written."""
    return {"source": source, "output": output, "files": report.files, "source_nbytes": report.source_nbytes,
            "file_nbytes": report.file_nbytes, "section_nbytes": report.section_nbytes,
            "shared_nbytes": report.shared_nbytes, "overhead_nbytes": report.overhead_nbytes, "ratio": report.ratio,
            "sqnr_db": report.sqnr_db, "notes": report.notes,
            "tensors": [{"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "method": tensor.method,
                         "bits_per_weight": tensor.bits_per_weight, "sqnr_db": tensor.sqnr_db,
                         "exact": tensor.sqnr_db == float("inf"), "stored_nbytes": tensor.stored_nbytes}
                        for tensor in report.tensors]}  # fmt: skip
