"""``vqm verify``."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict, cast

from ..errors import FormatError, VqmError
from ..hub import is_hub_path
from ..read.contents import read_contents
from ..read.shards import Shards, index_of, opened_model
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
            found = {} if args.quiet and not args.json else _surveys(file, err)
            if file in found:
                result |= survey_json(found[file])
            elif found:
                result["shards"] = [{"file": name, **survey_json(one)} for name, one in found.items()]
            if not args.json:
                where = "" if getattr(err, "filename", None) is not None else f"{label(file)}: "
                message("error", f"{where}{text}")
                for name, one in found.items():
                    print("\n".join(_survey_text(name, one, verbose=args.verbose)))
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
    if file != STDIO and (index_of(file) is not None or is_hub_path(file)):
        with opened_model(file) as source:
            if isinstance(source, Shards):
                return _verify_shards(source, key, quiet=quiet)
            return read_contents(source)
    total = 0 if file == STDIO else Path(file).stat().st_size
    with opened(file) as stream, progress_line(quiet=quiet or not total) as progress:
        if key is not None:
            check_signature(file, stream, key)
        watch = _watch(file, total, progress)
        return read_contents(watch(stream) if watch else stream)


def _verify_shards(shards: Shards, key: Ed25519PublicKey | None, *, quiet: bool) -> tuple[str, str]:
    """Check shards. What is signed is their index, which has the digest of each."""
    total = shards.nbytes
    with progress_line(quiet=quiet or not total) as progress:
        if key is not None:
            check_signature(shards.label, io.BytesIO(shards.text), key)
        shards.watch = _watch(shards.label, total, progress)
        return read_contents(shards)


def _watch(file: str, total: int, progress: Progress | None) -> Callable[[BinaryIO], BinaryIO] | None:
    """What makes streams report to the line of progress how much has been read of all of them."""
    if progress is None:
        return None
    done = [0]
    return lambda stream: cast(BinaryIO, _Watched(stream, file, total, done, progress))


def _surveys(file: str, err: Exception) -> dict[str, Survey]:
    """What is whole in a refused file, or in each shard of a model, by name."""
    index = None if file == STDIO or is_hub_path(file) else index_of(file)
    if not isinstance(index, Path):
        found = _survey(file, err)
        return {} if found is None else {file: found}
    shards = Shards(index)
    try:
        shards.read_index()
        names = [str(shards.path(at)) for at in range(len(shards))]
    except (VqmError, OSError):
        return {}
    return {name: found for name in names if (found := _survey(name, err)) is not None}


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

    def __init__(self, stream: BinaryIO, label: str, total: int, done: list[int], progress: Progress) -> None:
        self._stream, self._label, self._total, self._progress = stream, label, total, progress
        self._done = done  # one number, which the streams of a model share

    def read(self, n: int) -> bytes:
        data = self._stream.read(n)
        self._done[0] += len(data)
        self._progress(self._label, self._done[0], self._total)
        return data
