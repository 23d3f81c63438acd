"""``vqm convert`` and ``vqm extract``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vqformat.converters import convert, open_source
from vqformat.converters.export import SUFFIXES, export

from ..encode.calibration import Calibration
from ..encode.recipe import Recipe
from ..errors import EncodeError
from ..files import name_full_disk
from .arguments import UsageError
from .files import STDIO, check_output, default_output, is_special, label, local_path, select, stdout
from .progress import progress_line
from .text import count, counted, decibel, escape, number, one_line, shape_text, table, to_json

if TYPE_CHECKING:
    from ..encode.report import Report


def run_convert(args: argparse.Namespace) -> int:
    """Run ``vqm convert``: compress a checkpoint."""
    recipe = _recipe(args)
    calibration = None if args.calibration is None else Calibration.load(args.calibration)
    preset = args.preset or ("default" if calibration is None else "small")
    to_stdout = args.output == STDIO
    output = default_output(args.source) if args.output is None else Path(args.output)
    with contextlib.ExitStack() as stack:
        target: Any = output
        if to_stdout:
            target = stdout(force=args.force)
        elif is_special(output):
            target = stack.enter_context(open(output, "wb"))
        else:
            check_output(output, args.source, force=args.force)
            if output.name.lower().endswith(SUFFIXES):
                raise UsageError(f"-o {args.output!r}: convert writes a .vqm, from which vqm extract makes such a file")
        start = time.monotonic()
        source = stack.enter_context(local_path(args.source))
        progress = stack.enter_context(progress_line(quiet=args.quiet))
        stack.enter_context(_naming_full_disk("stdout" if to_stdout else output))
        report = convert(source, target, recipe=recipe, bits=args.bits, ratio=args.ratio, size=args.size,
                         sqnr=args.sqnr, lossless=args.lossless, preset=preset, seed=args.seed, calibration=calibration,
                         progress=progress, include_optimizer=args.include_optimizer,
                         overwrite=args.force)  # fmt: skip
    seconds = time.monotonic() - start
    where: TextIO = sys.stderr if to_stdout else sys.stdout
    always = [*report.missed, *report.ruined, *report.left_out, *report.grown]
    _print_notes(always if args.quiet or args.json else report.notes)
    if args.json:
        print(to_json(_report_json(args.source, STDIO if to_stdout else str(output), report)), file=where)
        return 0
    if not args.quiet:
        print("\n".join(_report_table(report, verbose=args.verbose)), file=where)
        than_source = ""
        if report.source_file_nbytes:
            than_source = (f"; the source file has {count(report.source_file_nbytes)} bytes, ratio"
                           f" {report.source_file_nbytes / report.file_nbytes:.2f}")  # fmt: skip
        took = f" in {seconds:.1f} s" if args.verbose else ""
        print(f"{'stdout' if to_stdout else label(str(output))}: {count(report.source_nbytes)} bytes of tensors in"
              f" {count(report.file_nbytes)}, ratio {report.ratio:.2f}{than_source}{took}", file=where)  # fmt: skip
    return 0


@contextlib.contextmanager
def _naming_full_disk(output: str | Path) -> Iterator[None]:
    """Context in which an error of a full disk names the output, also if that is a stream without a name."""
    try:
        yield
    except OSError as err:
        name_full_disk(err, output)
        raise


def _recipe(args: argparse.Namespace) -> Recipe | None:
    if not args.layer and args.method is None:
        return None
    if args.lossless:
        raise UsageError("--lossless leaves nothing to --layer and --method to decide")
    try:
        return Recipe.parse(args.layer, default=args.method)
    except EncodeError as err:
        raise UsageError(str(err)) from err


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        print(f"vqm: note: {one_line(note)}", file=sys.stderr)


def _report_json(source: str, output: str, report: Report) -> dict[str, Any]:
    return {"source": source, "output": output, "source_nbytes": report.source_nbytes,
            "file_nbytes": report.file_nbytes, "section_nbytes": report.section_nbytes,
            "shared_nbytes": report.shared_nbytes, "overhead_nbytes": report.overhead_nbytes, "ratio": report.ratio,
            "sqnr_db": report.sqnr_db, "notes": report.notes,
            "tensors": [{"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "method": tensor.method,
                         "bits_per_weight": tensor.bits_per_weight, "sqnr_db": tensor.sqnr_db,
                         "exact": tensor.sqnr_db == float("inf"), "stored_nbytes": tensor.stored_nbytes}
                        for tensor in report.tensors]}  # fmt: skip


def _report_table(report: Report, *, verbose: bool) -> list[str]:
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
        is_alias = is_alias or (tensor.stored_nbytes == 0 and tensor.method.startswith("copy of "))
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


def run_extract(args: argparse.Namespace) -> int:
    """Run ``vqm extract``: write tensors in another format."""
    if args.output == STDIO:
        raise UsageError("-o -: extract writes to a file only, whose suffix tells the format")
    if not args.output.lower().endswith(SUFFIXES):
        raise UsageError(f"-o {args.output!r}: the suffix tells the format: {', '.join(SUFFIXES)}")
    output = Path(args.output)
    check_output(output, args.file, force=args.force)
    with local_path(args.file) as path, open_source(path) as source:
        names = select([tensor.name for tensor in source.tensors], args.names)
        notes = export(source, output, names=names if args.names else None, overwrite=args.force)
    left_out, notes = source.left_out, [*source.notes, *notes]
    nbytes = output.stat().st_size
    if args.json:
        document = {"source": args.file, "output": str(output), "file_nbytes": nbytes, "names": names, "notes": notes}
        print(to_json(document))
    _print_notes(left_out if args.quiet or args.json else notes)
    if not (args.quiet or args.json):
        if args.verbose:
            print("\n".join(map(escape, names)))
        print(f"{label(str(output))}: {counted(len(names), 'tensor')}, {count(nbytes)} bytes")
    return 0
