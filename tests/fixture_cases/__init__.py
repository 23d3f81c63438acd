"""The cases of the conformance suite: a file each, what it is for, and what a decoder must say about it."""

from __future__ import annotations

from dataclasses import dataclass

from vqmbuilder import File


@dataclass(frozen=True)
class Case:
    """One fixture.

    Attributes:
        path: Its path below ``fixtures/``.
        comment: What it shows; for an invalid file the one fault, and a valid sibling where that helps.
        clauses: Ids of SPEC.md that it tests.
        data: The bytes of the file.
        file: What it was built from, if valid.
        error: The error class, if invalid.
    """

    path: str
    comment: str
    clauses: tuple[str, ...]
    data: bytes
    file: File | None = None
    error: str | None = None


def valid(name: str, comment: str, clauses: str, file: File) -> Case:
    return Case(f"valid/{name}.vqm", comment, tuple(clauses.split()), file.build(), file)


def invalid(name: str, error: str, comment: str, clauses: str, file: File | bytes) -> Case:
    data = file if isinstance(file, bytes) else file.build()
    return Case(f"invalid/{name}.vqm", comment, tuple(clauses.split()), data, None, error)
