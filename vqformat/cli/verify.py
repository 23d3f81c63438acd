"""``vqm verify``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict

from ..errors import FormatError, VqmError
from ..hub import is_hub_path
from ..read.contents import read_contents
from ..read.survey import survey
from ..read.surveyed import Survey
from ..text import counted, escape, one_line
from .files import STDIO, label, opened
from .parsers import UsageError
from .progress import Progress, progress_line
from .signature import check_signature, load_public_key
from .text import describe_error, message, to_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def run_verify(args: argparse.Namespace) -> int:
    """Run ``vqm verify``: check whether files are complete and correct."""
    if args.key is not None and any(file == STDIO or is_hub_path(file) for file in args.files):
        raise UsageError("--key needs files on this machine: the signature of FILE is FILE.sig")
    key = None if args.key is None else load_public_key(args.key)
    results = []
    for file in args.files:
        result: dict[str, Any] = {"file": file, "ok": False}
        try:
            digest, content = _verify(file, key, quiet=args.quiet or args.json)
        except (VqmError, OSError) as err:
            text = describe_error(err)
            result["error"] = text
            if isinstance(err, FormatError):
                result |= {"error_class": err.error_class, "clause": err.clause or None, "offset": err.offset}
            found = None if args.quiet and not args.json else _survey(file, err)
            if found is not None:
                result |= survey_json(found)
            if not args.json:
                where = "" if getattr(err, "filename", None) is not None else f"{label(file)}: "
                message("error", f"{where}{text}")
                if found is not None:
                    print("\n".join(_survey_text(file, found, verbose=args.verbose)))
        else:
            result |= {"ok": True, "digest": digest, "content_digest": content}
            if key is not None:
                result["signature_ok"] = True
            if not (args.json or args.quiet):
                print(f"{label(file)}: ok {digest}, contents {content}{', signature right' * (key is not None)}")
        results.append(result)
    if args.json:
        print(to_json(results))
    return 0 if all(result["ok"] for result in results) else 1


def _verify(file: str, key: Ed25519PublicKey | None, *, quiet: bool) -> tuple[str, str]:
    """Check a file, its signature first. Returns its SHA-256 and its content digest, in hexadecimal."""
    total = 0 if file == STDIO or is_hub_path(file) else Path(file).stat().st_size
    with opened(file) as stream, progress_line(quiet=quiet or not total) as progress:
        if key is not None:
            check_signature(file, stream, key)
        return read_contents(_Watched(stream, file, total, progress) if progress else stream)  # type: ignore[arg-type]


def _survey(file: str, err: Exception) -> Survey | None:
    """What is whole in a refused file; None if it is no file, or no ``.vqm`` that this version can read."""
    # A pipe would be opened again, which waits for another writer
    if file == STDIO or not isinstance(err, FormatError) or not Path(file).is_file():
        return None
    if err.clause == "LIM-002":  # the caller's bound is no damage, and the survey would do what it forbids
        return None
    try:
        with open(file, "rb") as stream:
            return survey(stream)
    except (VqmError, OSError):
        return None


def _survey_text(file: str, found: Survey, *, verbose: bool) -> list[str]:
    tensors = found.tensors
    meta = "the metadata is whole" if found.metadata is not None else "the metadata is lost"
    more = "" if found.has_index else "; the index is lost, so that there may have been more"
    lines = [f"{label(file)}: {found.n_whole:,} of {counted(len(tensors), 'tensor')}"
             f" {'is' if found.n_whole == 1 else 'are'} whole{more}; {meta}"]  # fmt: skip
    for tensor in tensors:
        name = escape(tensor.name)
        if verbose and not tensor.faults:
            lines.append(f"  {name}: whole")
        lines += [f"  {name}: {one_line(str(fault))}" for fault in tensor.faults]
    lines += [f"  of no tensor: {one_line(str(fault))}" for fault in found.faults]
    if found.n_whole:
        lines.append("  vqm recover writes what is whole to a new file")
    return lines


class FaultJson(TypedDict):
    """A fault of a damaged file, for a JSON document."""

    error: str
    error_class: str
    clause: str | None
    offset: int | None


class TensorJson(TypedDict):
    """What is wrong with a tensor."""

    name: str
    whole: bool
    faults: list[FaultJson]


class SurveyJson(TypedDict):
    """What is whole in a damaged file; ``faults`` are those of no tensor."""

    index_is_whole: bool
    metadata_is_whole: bool
    n_whole: int
    tensors: list[TensorJson]
    faults: list[FaultJson]


def survey_json(found: Survey) -> SurveyJson:
    """The fields of a JSON document that tell what is whole in a damaged file."""
    return {"index_is_whole": found.has_index, "metadata_is_whole": found.metadata is not None,
            "n_whole": found.n_whole,
            "tensors": [{"name": tensor.name, "whole": not tensor.faults, "faults": _faults_json(tensor.faults)}
                        for tensor in found.tensors],
            "faults": _faults_json(found.faults)}  # fmt: skip


def _faults_json(faults: list[FormatError]) -> list[FaultJson]:
    return [{"error": describe_error(fault), "error_class": fault.error_class, "clause": fault.clause or None,
             "offset": fault.offset} for fault in faults]  # fmt: skip


class _Watched:
    """A stream that reports to the line of progress how much has been read."""

    def __init__(self, stream: BinaryIO, label: str, total: int, progress: Progress) -> None:
        self._stream, self._label, self._total, self._progress = stream, label, total, progress
        self._done = 0

    def read(self, n: int) -> bytes:
        data = self._stream.read(n)
        self._done += len(data)
        self._progress(self._label, self._done, self._total)
        return data
