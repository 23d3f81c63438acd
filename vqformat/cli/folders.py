"""``vqm convert`` and ``vqm extract`` of whole model folders."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from vqformat.converters import FolderReport, convert_folder, extract_folder
from vqformat.converters.export import SUFFIXES

from ..encode.options import Options
from ..encode.report import report_summary, report_table
from ..text import count, counted, escape
from .conversion_report import print_notes, report_json
from .files import STDIO, is_special, label, naming
from .parsers import UsageError
from .progress import progress_line
from .text import table_width, to_json


def makes_folder(source: str, output: str | None) -> bool:
    """Whether a conversion makes a folder: from a folder, to a name that does not end in ``.vqm``."""
    if output in (None, STDIO) or source == STDIO or not os.path.isdir(source):
        return False
    return not output.lower().endswith((".vqm", *SUFFIXES)) and not is_special(Path(output))


def run_convert_folder(args: argparse.Namespace, options: Options) -> int:
    """Run ``vqm convert FOLDER -o FOLDER``."""
    with naming(args.sources[0]), progress_line(quiet=args.quiet) as progress:
        found = convert_folder(args.sources[0], args.output, options=replace(options, progress=progress),
                               include_optimizer=args.include_optimizer, overwrite=args.force,
                               max_shard_size=args.max_shard_size)  # fmt: skip
    _print_notes(args, found)
    if args.json:
        files = {name: report_json(args.sources[0], name, report) for name, report in found.reports.items()}
        print(to_json({"source": args.sources[0], "output": args.output, "files": files, "copied": found.copied,
                       "left_out": found.left_out, "notes": found.notes}))  # fmt: skip
        return 0
    if not args.quiet:
        for name, report in found.reports.items():
            print("\n".join(report_table(report, verbose=args.verbose, unfold=args.all or args.verbose,
                                         width=table_width(sys.stdout, verbose=args.verbose))))  # fmt: skip
            print(f"{escape(os.path.join(args.output, name))}: {report_summary(report)}")
        _print_copied(args, found)
    return 0


def run_extract_folder(args: argparse.Namespace) -> int:
    """Run ``vqm extract FOLDER -o FOLDER``."""
    if args.names:
        raise UsageError("names of tensors: a folder is extracted whole; give the .vqm in it, and a file as the output")
    with naming(args.file):
        found = extract_folder(args.file, args.output, overwrite=args.force)
    _print_notes(args, found)
    if args.json:
        print(to_json({"source": args.file, "output": args.output, "written": found.written, "copied": found.copied,
                       "left_out": found.left_out, "notes": found.notes}))  # fmt: skip
    elif not args.quiet:
        for name in found.written:
            path = os.path.join(args.output, name)
            print(f"{escape(path)}: {count(os.path.getsize(path))} bytes")
        _print_copied(args, found)
    return 0


def _print_notes(args: argparse.Namespace, found: FolderReport) -> None:
    notes = list(found.left_out)
    for name, report in found.reports.items():
        always = [*report.missed, *report.ruined, *report.left_out, *report.grown]
        chosen = always if args.quiet or args.json else report.notes
        notes += [f"{name}: {note}" for note in chosen] if len(found.reports) > 1 else chosen
    print_notes(notes if args.quiet or args.json else [*notes, *found.notes])


def _print_copied(args: argparse.Namespace, found: FolderReport) -> None:
    if args.verbose:
        print("\n".join(f"copied {escape(name)}" for name in found.copied))
    print(f"{label(args.output)}: {counted(len(found.copied), 'other file')} copied")
