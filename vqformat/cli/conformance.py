"""``vqm conformance``: score a decoder in any language by the fixtures (fixtures/README.md)."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import NewFile
from ..text import counted, escape, table
from .conformance_cases import LEVELS, Case, Level, find_fixtures, load_cases
from .conformance_page import page_of
from .conformance_runs import Decoder, Way, problem_of
from .files import check_output
from .parsers import UsageError
from .progress import progress_line
from .text import FileError, message, to_json

# Beside its decoded tensors a file may cost a block, the metadata of a chunk and the objects of its million values. A
# decoder that believes an announcement of 256 MiB takes more.
_MEMORY_NBYTES = 192 << 20


@dataclass(frozen=True)
class _Result:
    """What came of a run. ``memory`` is what is wrong with its peak of memory."""

    case: Case
    way: Way
    problem: str | None
    peak_nbytes: int | None
    memory: str | None = None


def run_conformance(args: argparse.Namespace) -> int:
    """Score a decoder, or write the page of clauses, or both."""
    if args.decoder is None and args.page is None:
        raise UsageError("give --decoder, --page or both")
    folder = find_fixtures(args.fixtures)
    document: dict[str, Any] = {}
    code = 0
    if args.page is not None:
        missing = _write_page(folder, Path(args.page), force=args.force)
        document["missing"] = missing
        code = int(bool(missing))
    if args.decoder is not None:
        levels: Sequence[Level] = ("core",) if args.level == "core" else LEVELS
        results = _run_all(args, load_cases(folder, args.names, levels))
        document |= _document(args.decoder, results)
        code |= int(any(result.problem or result.memory for result in results))
        if not args.json:
            print("\n".join(_report(results, args)))
    if args.json:
        print(to_json(document))
    return code


def _write_page(folder: Path, path: Path, *, force: bool) -> list[str]:
    """Write the page of clauses. Returns those that have neither a fixture nor a reason."""
    check_output(path, "", force=force)
    text, missing = page_of(folder)
    with NewFile(path, overwrite=force) as stream:
        stream.write(text.encode())
    for clause in missing:
        message("note", f"{clause} has no fixture")
    return missing


def _run_all(args: argparse.Namespace, cases: list[Case]) -> list[_Result]:
    ways: dict[str, tuple[Way, ...]] = {"both": ("name", "pieces"), "name": ("name",), "stdin": ("pieces",)}
    tasks = [(case, way) for case in cases for way in ways[args.by]]
    decoder = Decoder(args.decoder, args.timeout, stdin_only=args.by == "stdin")

    def score(task: tuple[Case, Way]) -> _Result:
        case, way = task
        try:
            answer = decoder.run(case, way)
        except OSError as err:
            raise FileError(f"the decoder cannot be run: {escape(str(err))}") from err
        return _Result(case, way, problem_of(case, answer), answer.peak_nbytes)

    results = []
    with progress_line(quiet=args.quiet) as progress, ThreadPoolExecutor(args.jobs or os.cpu_count() or 1) as pool:
        try:
            for result in pool.map(score, tasks):
                results.append(result)
                if progress:
                    progress(result.case.file, len(results), len(tasks))
        except BaseException:  # the pool waits for its threads, and they for their runs
            pool.shutdown(wait=False, cancel_futures=True)
            decoder.end()
            raise
    return _with_memory(results)


def _with_memory(results: list[_Result]) -> list[_Result]:
    """Compare the peaks with that of the run which took least: this is what the decoder takes for itself."""
    least = min((result.peak_nbytes for result in results if result.peak_nbytes is not None), default=0)
    judged = []
    for result in results:
        allowed = _MEMORY_NBYTES + 2 * result.case.decoded_nbytes
        memory = None
        if result.peak_nbytes is not None and result.peak_nbytes - least > allowed:
            memory = f"it took {_mib(result.peak_nbytes - least)} MiB; the file may cost {_mib(allowed)} MiB"
        judged.append(_Result(result.case, result.way, result.problem, result.peak_nbytes, memory))
    return judged


def _report(results: list[_Result], args: argparse.Namespace) -> list[str]:
    rows = [[what, *(f"{right}/{all}" if all else "-" for right, all in scores)]
            for what, scores in _scores(results).items()]  # fmt: skip
    lines = table([["", *LEVELS], *rows], "<" + ">" * len(LEVELS))
    peaks = [result.peak_nbytes for result in results if result.peak_nbytes is not None]
    if peaks and not args.quiet:
        lines.append(f"at most {_mib(max(peaks) - min(peaks))} MiB more for one file than for another")
    clauses = _by_clause(results)
    shown = [[clause, f"{right}/{all}"] for clause, (right, all) in clauses.items() if args.verbose or right < all]
    if shown:
        lines += ["", *table([["clause", "right"], *shown], "<>")]
    failed = [(result, text) for result in results for text in (result.problem, result.memory) if text]
    if failed:
        lines += ["", f"{counted(len(failed), 'failure')}:"]
        lines += [f"{result.case.file}{_NAMES[result.way]}: {text} [{', '.join(result.case.clauses)}]"
                  for result, text in failed]  # fmt: skip
    return lines


_NAMES: dict[Way, str] = {"name": "", "pieces": " in pieces"}


def _scores(results: list[_Result]) -> dict[str, list[tuple[int, int]]]:
    """Runs that are right, and all runs, of each kind and each level."""
    first = results[0].way
    kinds = {
        "valid": [result for result in results if result.way == first and result.case.error is None],
        "invalid": [result for result in results if result.way == first and result.case.error is not None],
        "in pieces": [result for result in results if result.way == "pieces"],
    }
    scores = {}
    for kind, of_kind in kinds.items():
        levels = [[result.problem is None for result in of_kind if result.case.level == level] for level in LEVELS]
        scores[kind] = [(sum(level), len(level)) for level in levels]
    measured = [result for result in results if result.peak_nbytes is not None]
    levels = [[result.memory is None for result in measured if result.case.level == level] for level in LEVELS]
    scores["memory"] = [(sum(level), len(level)) for level in levels]
    return scores


def _by_clause(results: list[_Result]) -> dict[str, tuple[int, int]]:
    """Fixtures that are right in every way, and all fixtures, of each clause."""
    wrong = {result.case.file for result in results if result.problem or result.memory}
    clauses = {result.case.file: result.case.clauses for result in results}
    everything = Counter(clause for listed in clauses.values() for clause in listed)
    right = Counter(clause for file, listed in clauses.items() if file not in wrong for clause in listed)
    return {clause: (right[clause], everything[clause]) for clause in sorted(everything)}


def _document(decoder: str, results: list[_Result]) -> dict[str, Any]:
    scores = {
        kind: {level: {"right": right, "all": all} for level, (right, all) in zip(LEVELS, pairs, strict=True)}
        for kind, pairs in _scores(results).items()
    }
    failures: list[dict[str, Any]] = [
        {"file": result.case.file, "way": result.way, "clauses": result.case.clauses, "problem": text}
        for result in results for text in (result.problem, result.memory) if text
    ]  # fmt: skip
    peaks = [result.peak_nbytes for result in results if result.peak_nbytes is not None]
    clauses = {clause: {"right": right, "all": all} for clause, (right, all) in _by_clause(results).items()}
    memory = {"least_nbytes": min(peaks, default=None), "most_nbytes": max(peaks, default=None)}
    return {"decoder": decoder, "scores": scores, "clauses": clauses, "memory": memory, "failures": failures}


def _mib(nbytes: int) -> int:
    return round(nbytes / (1 << 20))
