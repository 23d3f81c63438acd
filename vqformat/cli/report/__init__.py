"""``vqm report``: a page on files, for a browser."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from vqformat.converters import open_source

from ...encode.calibration import Calibration
from ...files import NewFile
from ...text import count
from ..files import STDIO, check_output, check_source, label, local_path, naming, stdout
from ..inspect import is_vqm
from ..parsers import UsageError
from ..progress import progress_line
from ..text import message, to_json
from .advice import advice, plain
from .charts import Charts
from .measure import MOST_HISTOGRAMS, MeasuredFile, measure
from .page import page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...encode.source import SourceTensor


def run_report(args: argparse.Namespace) -> int:
    """Run ``vqm report``: write a page on one file or several, and on their errors if the source is given."""
    for file in (*args.files, *([args.source] if args.source is not None else [])):
        check_source(file)
    charts = Charts()
    with contextlib.ExitStack() as stack:
        paths = {file: stack.enter_context(local_path(file)) for file in args.files}
        models = [file for file in args.files if is_vqm(paths[file])]
        source = _source_name(args, [file for file in args.files if file not in models])
        if not models:
            raise UsageError("no FILE is a .vqm")
        if args.calibration is not None and source is None:
            raise UsageError("--calibration needs the source, too: the expected loss is of its errors")
        if args.output != STDIO:
            for file in (*args.files, *([args.source] if args.source is not None else [])):
                check_output(Path(args.output), file, force=args.force)
        calibration = None if args.calibration is None else Calibration.load(args.calibration)
        originals: Mapping[str, SourceTensor] | None = None
        if source is not None:
            path = paths[source] if source in paths else stack.enter_context(local_path(source))
            with naming(source):
                originals = {tensor.name: tensor for tensor in stack.enter_context(open_source(path)).tensors}
        # Folders are not told, as a page is often passed on
        names = {file: Path(file).name for file in models}
        if len(set(names.values())) < len(models):
            names = {file: file for file in models}
        files = []
        with progress_line(quiet=args.quiet or args.json) as progress:
            for file in models:
                with naming(file):
                    files.append(measure(names[file], paths[file], originals, calibration, progress=progress,
                                         n_histograms=MOST_HISTOGRAMS // len(models)))  # fmt: skip
    text = page(files, None if source is None else Path(source).name, charts).encode()
    if args.output == STDIO:
        stdout(force=args.force).write(text)
        return 0
    with NewFile(args.output, overwrite=args.force) as stream:
        stream.write(text)
    _tell(args, files, len(text))
    return 0


def _source_name(args: argparse.Namespace, others: list[str]) -> str | None:
    """The source: that of ``--source``, or the only FILE that is no ``.vqm``."""
    sources = [*others, *([args.source] if args.source is not None else [])]
    if len(sources) > 1:
        raise UsageError(f"one source at most can be given, not {', '.join(map(label, sources))}")
    return sources[0] if sources else None


def _tell(args: argparse.Namespace, files: list[MeasuredFile], nbytes: int) -> None:
    if args.json:
        print(to_json({"output": args.output, "nbytes": nbytes, "files": [_json(file) for file in files]}))
        return
    if args.quiet:
        return
    for file in files:
        for seen, todo in advice(file):
            message("note", f"{f'{label(file.name)}: ' if len(files) > 1 else ''}{seen} {plain(todo)}")
    print(f"{label(args.output)}: {count(nbytes)} bytes")


def _json(file: MeasuredFile) -> dict[str, object]:
    return {"file": file.name, "file_nbytes": file.contents.file_nbytes, "ratio": file.ratio,
            "bits_per_weight": file.bits_per_weight, "sqnr_db": file.sqnr_db if file.has_source else None,
            "loss_is_measured": file.loss_is_measured, "notes": file.notes,
            "advice": [f"{seen} {plain(todo)}" for seen, todo in advice(file)],
            "tensors": [{"name": tensor.name, "layer": tensor.summary.layer, "stored_nbytes": tensor.stored_nbytes,
                         "entropy_bits": tensor.entropy_bits, "sqnr_db": tensor.sqnr_db,
                         "loss_share": tensor.loss / file.loss if file.loss else None}
                        for tensor in file.tensors]}  # fmt: skip
