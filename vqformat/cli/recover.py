"""``vqm recover``."""

from __future__ import annotations

import argparse
import contextlib
import errno
from pathlib import Path
from typing import BinaryIO

from ..errors import FormatError
from ..read.recovery import write_whole
from ..read.shards import Shards, index_of
from ..read.survey import survey
from ..read.surveyed import SurveyedLayer, SurveyedTensor, joined
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
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(local_path(args.file))
        streams, lost, has_metadata = _streams(path, stack)
        surveys = [(survey(stream), stream) for stream in streams]
        write_whole(surveys, output, overwrite=args.force)
    found = joined([one for one, _ in surveys])
    found.parts.append(lost)
    if not has_metadata:
        found.metadata = None
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


def _streams(path: Path, stack: contextlib.ExitStack) -> tuple[list[BinaryIO], SurveyedLayer, bool]:
    """The file, or the shards that are there; the tensors of those that are not; whether the first shard is there."""
    index = index_of(path)
    if not isinstance(index, Path):
        return [stack.enter_context(open(path, "rb"))], SurveyedLayer("", []), True
    shards = Shards(index)
    shards.read_index()
    absent = shards.missing()
    names = shards.index.shards
    lost = [SurveyedTensor(name, None, (), [FormatError(f"its shard {names[at]!r} is missing")])
            for name, at in shards.index.places.items() if names[at] in absent]  # fmt: skip
    there = [shards.path(at) for at, name in enumerate(names) if name not in absent]
    if not there:
        raise FileNotFoundError(errno.ENOENT, "none of its shards is beside it", str(index))
    return [stack.enter_context(open(path, "rb")) for path in there], SurveyedLayer("", lost), names[0] not in absent
