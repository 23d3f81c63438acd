"""The page of ``vqm conformance --page``: for each clause of SPEC.md its fixtures, and the line that enforces it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

from .text import FileError

# Clauses without a fixture
REASONS = {
    "CNV-001": "a definition that every valid file uses",
    "CNV-002": "a definition that every valid file uses",
    "CNV-003": "a definition that every valid file uses",
    "CNV-004": "a definition that every valid file uses",
    "CNV-005": "a definition that every valid file uses",
    "IDX-003": "of readers by index; a sequential reader refuses such a file by IDX-001",
    "LIM-002": "the bounds are the caller's",
    "REA-004": "a liberty",
    "REA-005": "a liberty, on request",
    "WRI-001": "of writers; readers refuse what it forbids by other rules",
    "WRI-003": "of writers",
    "EXT-002": "of future versions",
}

_PACKAGE = Path(__file__).parents[1]


def page_of(folder: Path) -> tuple[str, list[str]]:
    """The page as markdown, and the clauses that have neither a fixture nor a reason.

    Args:
        folder: That of the fixtures; SPEC.md is beside it.

    Raises:
        FileError: There is no SPEC.md.
    """
    spec = folder.absolute().parent / "SPEC.md"
    if not spec.is_file():
        raise FileError(f"there is no {str(spec)!r}, of which the page lists the clauses")
    clauses = re.findall(r"\*\*\[([A-Z]{3}-\d{3})\]\*\*", spec.read_text("utf-8"))
    fixtures: dict[str, list[str]] = defaultdict(list)
    for entry in json.loads((folder / "manifest.json").read_text("utf-8")):
        for clause in entry["clauses"]:
            fixtures[clause].append(entry["file"])
    lines = _enforcing_lines(clauses)
    rows = []
    for clause in clauses:
        shown = ", ".join(f"`{file.removesuffix('.vqm')}`" for file in sorted(fixtures.get(clause, [])))
        enforced = f"`{lines[clause]}`" if clause in lines else "-"
        rows.append(f"| {clause} | {enforced} | {shown or 'none: ' + REASONS.get(clause, '**no reason is given**')} |")
    head = ["# Clauses, the lines that enforce them, and their fixtures", "",
            "Written by `vqm conformance --page`. A line is one of the reference implementation.", "",
            "| clause | line | fixtures |", "|---|---|---|"]  # fmt: skip
    missing = [clause for clause in clauses if clause not in fixtures and clause not in REASONS]
    return "\n".join([*head, *rows, ""]), missing


def _enforcing_lines(clauses: list[str]) -> dict[str, str]:
    """For each clause a line of the reference: one that raises its error, or else one that names it."""
    ranks: tuple[dict[str, str], ...] = ({}, {}, {})  # lines that name it, that pass it on, that raise its error
    for path in sorted(_PACKAGE.rglob("*.py")):
        if path.parent.name == "cli" or path.name == "errors.py":
            continue
        file = path.relative_to(_PACKAGE.parent).as_posix()
        for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
            for clause in _named(line, clauses):
                rank = (f'"{clause}"' in line) + (f'clause="{clause}"' in line)
                ranks[rank].setdefault(clause, f"{file}:{number}")
    return ranks[0] | ranks[1] | ranks[2]


def _named(line: str, clauses: list[str]) -> list[str]:
    """The clauses that a line names, also as part of a range such as SEC-005..010."""
    found = set(re.findall(r"[A-Z]{3}-\d{3}", line))
    if not found:
        return []  # as in most lines
    for area, first, last in re.findall(r"([A-Z]{3})-(\d{3})\.\.(\d{3})", line):
        found |= {f"{area}-{number:03}" for number in range(int(first), int(last) + 1)}
    return [clause for clause in clauses if clause in found]
