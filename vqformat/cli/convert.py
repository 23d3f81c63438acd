"""``vqm convert`` and ``vqm extract``."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vqformat.converters import convert, open_source
from vqformat.converters.export import SUFFIXES, export

from ..encode.calibration import Calibration
from ..encode.options import Options, Preset
from ..encode.outcome_folder import SUFFIX
from ..encode.recipe import Recipe
from ..errors import EncodeError
from ..files import name_full_disk
from ..text import count, counted, escape
from .cluster import cluster
from .conversion_report import print_notes, print_report, report_json
from .files import (
    STDIO,
    check_output,
    check_source,
    for_each,
    is_special,
    label,
    local_path,
    outputs_for,
    select,
    stdout,
)
from .folders import makes_folder, run_convert_folder, run_extract_folder
from .parsers import UsageError
from .progress import progress_line
from .text import FileError, message, to_json

if TYPE_CHECKING:
    pass


def run_convert(args: argparse.Namespace) -> int:
    """Run ``vqm convert``: compress checkpoints."""
    for source in args.sources:
        check_source(source)
    if len(args.sources) > 1 and STDIO in args.sources:
        raise UsageError("stdin cannot be one of several sources")
    recipe = _recipe(args)
    calibration = None if args.calibration is None else Calibration.load(args.calibration)
    if len(args.sources) == 1 and makes_folder(args.sources[0], args.output):
        options = Options(recipe, args.bits, args.ratio, args.size, args.sqnr, lossless=args.lossless,
                          preset=_preset(args, calibration), seed=args.seed, calibration=calibration,
                          workers=args.workers or 1)  # fmt: skip
        return run_convert_folder(args, options)
    if args.max_shard_size is not None and args.output == STDIO:
        raise UsageError("--max-shard-size makes several files, and stdout is one")
    outputs = dict(zip(args.sources, outputs_for(args.sources, args.output), strict=True))
    to_stdout = args.output == STDIO
    for source, output in outputs.items():
        if not (to_stdout or is_special(output)):
            check_output(output, source, force=args.force)
            if output.name.lower().endswith(SUFFIXES):
                raise UsageError(f"-o {args.output!r}: convert writes a .vqm, from which vqm extract makes such a file")
    out: TextIO | None = sys.stderr if to_stdout else sys.stdout
    if args.resume and (to_stdout or any(map(is_special, outputs.values()))):
        raise UsageError("--resume keeps finished tensors beside the output, which has no place here")
    with cluster(args.dask) as (executor, n_workers):
        workers = n_workers if args.workers is None else args.workers
        return for_each(args, list(outputs), lambda source: _convert(
            args, source, outputs[source], out, recipe=recipe, calibration=calibration, workers=workers,
            executor=executor), out)  # fmt: skip


def _convert(args: argparse.Namespace, source: str, output: Path, out: TextIO | None, *, recipe: Recipe | None,
             calibration: Calibration | None, workers: int, executor: Executor | None) -> dict[str, Any]:  # fmt: skip
    """Convert a source, print the report, and return it for a JSON document."""
    preset = _preset(args, calibration)
    to_stdout = args.output == STDIO
    with contextlib.ExitStack() as stack:
        target: Any = output
        if to_stdout:
            target = stdout(force=args.force)
        elif is_special(output):
            target = stack.enter_context(open(output, "wb"))
        start = time.monotonic()
        path = stack.enter_context(local_path(source))
        progress = stack.enter_context(progress_line(quiet=args.quiet))
        stack.enter_context(_naming_full_disk("stdout" if to_stdout else output))
        stack.enter_context(_telling_what_is_kept(output))
        report = convert(path, target, recipe=recipe, bits=args.bits, ratio=args.ratio, size=args.size,
                         sqnr=args.sqnr, lossless=args.lossless, preset=preset, seed=args.seed, calibration=calibration,
                         progress=progress, include_optimizer=args.include_optimizer, workers=workers,
                         executor=executor, resume=args.resume or None, overwrite=args.force,
                         max_shard_size=args.max_shard_size)  # fmt: skip
    file = STDIO if to_stdout else str(output.with_name(report.files[-1]) if report.files else output)
    print_report(args, report, file, out, f" in {time.monotonic() - start:.1f} s", is_last=source == args.sources[-1])
    return report_json(source, file, report)


def _preset(args: argparse.Namespace, calibration: Calibration | None) -> Preset:
    preset: Preset = args.preset or ("default" if calibration is None else "small")
    return preset


@contextlib.contextmanager
def _naming_full_disk(output: str | Path) -> Iterator[None]:
    """Context in which an error of a full disk names the output, also if that is a stream without a name."""
    try:
        yield
    except OSError as err:
        name_full_disk(err, output)
        raise


@contextlib.contextmanager
def _telling_what_is_kept(output: Path) -> Iterator[None]:
    """Context that tells, when the work was stopped or failed, that it can be resumed."""
    try:
        yield
    except BaseException:
        folder = f"{output}{SUFFIX}"
        if os.path.isdir(folder):
            message("note", f"{label(folder)} keeps the tensors that are finished; --resume continues from them")
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


def run_extract(args: argparse.Namespace) -> int:
    """Run ``vqm extract``: write tensors in another format."""
    check_source(args.file)
    to_stdout = args.output == STDIO
    if to_stdout != (args.format is not None):
        raise UsageError("-o - needs --format, such as npz: no suffix tells the format" if to_stdout else
                         "--format is for -o - only: the suffix of OUT tells the format")  # fmt: skip
    form = f".{args.format.lstrip('.')}" if to_stdout else args.output
    if not form.lower().endswith(SUFFIXES):
        if os.path.isdir(args.file) and not to_stdout:
            return run_extract_folder(args)
        raise UsageError(f"{'--format' if to_stdout else '-o'} {args.format or args.output!r}: the suffix tells the"
                         f" format: {', '.join(SUFFIXES)}")  # fmt: skip
    with contextlib.ExitStack() as stack:
        output = Path(args.output)
        if to_stdout:
            target = stdout(force=args.force)
            output = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vqm-")), f"stdout{form}")
        else:
            check_output(output, args.file, force=args.force)
        path = stack.enter_context(local_path(args.file))
        source = stack.enter_context(open_source(path))
        names = select([tensor.name for tensor in source.tensors], args.names)
        notes = export(source, output, names=names if args.names else None, overwrite=args.force)
        nbytes = output.stat().st_size
        if to_stdout:
            if len(os.listdir(output.parent)) > 1:
                raise FileError("the model needs two files of this format, and stdout is one; name a file by -o")
            with open(output, "rb") as stream:
                shutil.copyfileobj(stream, target)
    left_out, notes = source.left_out, [*source.notes, *notes]
    out: TextIO | None = sys.stderr if to_stdout else sys.stdout
    if args.json:
        document = {"source": args.file, "output": args.output, "file_nbytes": nbytes, "names": names, "notes": notes}
        print(to_json(document), file=out)
    print_notes(left_out if args.quiet or args.json else notes)
    if not (args.quiet or args.json):
        if args.verbose:
            print("\n".join(map(escape, names)), file=out)
        where = "stdout" if to_stdout else label(str(output))
        print(f"{where}: {counted(len(names), 'tensor')}, {count(nbytes)} bytes", file=out)
    return 0
