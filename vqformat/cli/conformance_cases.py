"""The fixtures of ``vqm conformance``: where they are, what is expected of them, and to which level they belong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any, Literal

from ..format.dtypes import BY_NAME
from .parsers import UsageError
from .text import FileError

Level = Literal["core", "full"]
LEVELS: tuple[Level, ...] = ("core", "full")


@dataclass(frozen=True)
class Case:
    """A fixture.

    Attributes:
        file: Its name in the manifest.
        entry: What the manifest says of it.
        level: ``core`` if a decoder needs no more than raw and codebook stages for it.
    """

    file: str
    path: Path
    entry: dict[str, Any]
    level: Level

    @property
    def error(self) -> str | None:
        """The class of its refusal; None if it is valid."""
        return self.entry.get("error")

    @property
    def clauses(self) -> list[str]:
        return list(self.entry["clauses"])

    @property
    def decoded_nbytes(self) -> int:
        """The bytes of its decoded tensors; 0 if it is invalid."""
        tensors = self.entry.get("tensors", [])
        return sum(prod(integers(tensor["shape"])) * BY_NAME[tensor["dtype"]].bits // 8 for tensor in tensors)


def find_fixtures(folder: str | None) -> Path:
    """The folder of the fixtures: the given one, or that of the checkout.

    Raises:
        UsageError: There is no manifest in it.
    """
    places = [Path(folder)] if folder else [Path(__file__).parents[2] / "fixtures", Path("fixtures")]
    for place in places:
        if (place / "manifest.json").is_file():
            return place
    if folder:
        raise UsageError(f"{folder!r} has no manifest.json")
    raise UsageError("the fixtures are in the source of vqformat, not in its package; --fixtures tells where they are")


def load_cases(folder: Path, patterns: Sequence[str], levels: Sequence[Level]) -> list[Case]:
    """The fixtures of some levels whose names match one of the patterns; all names if there are none.

    Raises:
        FileError: A fixture is not the file of the manifest.
        UsageError: No fixture is left.
    """
    cases = []
    for entry in json.loads((folder / "manifest.json").read_text("utf-8")):
        file = entry["file"]
        if patterns and not any(fnmatchcase(file, pattern) for pattern in patterns):
            continue
        path = folder / file
        if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            raise FileError(f"{str(path)!r} is a damaged copy: its SHA-256 is not that of the manifest")
        cases.append(Case(file, path, entry, entry["level"]))
    cases = [case for case in cases if case.level in levels]
    if not cases:
        raise UsageError("no fixture has such a name")
    return cases


def integers(value: Any) -> Any:
    """A value of the manifest with plain integers in place of ``{"int": …}``."""
    if isinstance(value, list):
        return [integers(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"int"} and isinstance(value["int"], str):
            return int(value["int"])
        return {key: integers(item) for key, item in value.items()}
    return value
