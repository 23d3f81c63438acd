"""``vqm recover``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..read.recovery import write_whole
from ..read.survey import survey
from ..text import count, counted, escape, one_line
from .files import STDIO, check_output, check_source, label, local_path
from .parsers import UsageError
from .text import message, to_json
from .verify import survey_json


def run_recover(args: argparse.Namespace) -> int:
    """Run ``vqm recover``: write the whole tensors of a damaged file to a new one."""
    check_source(args.file)
    if args.output == STDIO:
        raise UsageError("-o -: recover writes to a file only")
    output = Path(args.output)
    check_output(output, args.file, force=args.force)
    with local_path(args.file) as path, open(path, "rb") as stream:
        found = survey(stream)
        write_whole(found, stream, output, overwrite=args.force)
    for tensor in found.tensors:
        for fault in tensor.faults[:1]:
            message("note", f"left out {escape(tensor.name)}: {one_line(str(fault))}")
    for fault in found.faults:
        message("note", f"damage of no tensor: {one_line(str(fault))}")
    for chunk in found.ancillary:
        message("note", f"left out the {chunk}, which this version does not know")
    if not found.has_index:
        message("note", "the index is lost, so that there may have been more tensors")
    if found.metadata is None:
        message("note", "left out the metadata, which is lost")
    if args.json:
        print(to_json({"source": args.file, "output": str(output), **survey_json(found)}))
    elif not args.quiet:
        print(f"{label(str(output))}: {found.n_whole:,} of {counted(len(found.tensors), 'tensor')},"
              f" {count(output.stat().st_size)} bytes")  # fmt: skip
    return 0
