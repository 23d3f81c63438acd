"""Repeated layers folded in tables: tensors that are alike and whose names differ in numbers share a row."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

_FEWEST = 3  # tensors that are folded into one row
_DEPTH = 2  # numbers of a name that may vary: layers, and experts in them
_MOST_NUMBERS = 8  # of a name, the others never vary: anybody may have chosen it
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Folded:
    """A row of a table.

    Attributes:
        name: The name of its tensor, or of several: ``layers.0-11.weight``.
        members: Their places in the sequence that was folded.
    """

    name: str
    members: tuple[int, ...]

    @property
    def label(self) -> str:
        """The name, and how many tensors have the row."""
        return self.name if len(self.members) == 1 else f"{self.name}, {len(self.members):,} alike"


def fold(names: Sequence[str], kinds: Sequence[Hashable], *, unfold: bool = False) -> list[Folded]:
    """Rows for tensors, in the order of their first members.

    Args:
        kinds: Tensors that are not of the same kind are not alike.
        unfold: Whether each tensor gets a row of its own.
    """
    rows = [Folded(name, (i,)) for i, name in enumerate(names)]
    for _ in range(0 if unfold else _DEPTH):
        rows = _fold(rows, [(kinds[row.members[0]], len(row.members)) for row in rows])
    return rows


def _fold(rows: list[Folded], kinds: list[tuple[Hashable, int]]) -> list[Folded]:
    spans = [[match.span() for match in islice(_NUMBER.finditer(row.name), _MOST_NUMBERS)] for row in rows]
    # Hashes, not the texts before and after a number: these would take a multiple of the memory of the names
    keys = [[hash((row.name[:start], row.name[end:], kind)) for start, end in places]
            for row, kind, places in zip(rows, kinds, spans, strict=True)]  # fmt: skip
    counts = Counter(key for some in keys for key in some)
    folded = []
    groups: dict[int, list[tuple[Folded, int, int]]] = defaultdict(list)  # rows, and where the number is that varies
    for row, some, places in zip(rows, keys, spans, strict=True):
        best = max(range(len(some)), key=lambda j: counts[some[j]], default=0)  # the first of several
        if not some or counts[some[best]] < _FEWEST:
            folded.append(row)
        else:
            groups[some[best]].append((row, *places[best]))
    for group in groups.values():
        if len(group) < _FEWEST:
            folded += [row for row, _, _ in group]
            continue
        first, start, end = group[0]
        numbers = _ranges(row.name[start:end] for row, start, end in group)
        members = sorted(member for row, _, _ in group for member in row.members)
        folded.append(Folded(f"{first.name[:start]}{numbers}{first.name[end:]}", tuple(members)))
    return sorted(folded, key=lambda row: row.members[0])


def _ranges(numbers: Iterable[str]) -> str:
    """Different numbers as ranges: ``0-3,5``."""
    ranges: list[list[str]] = []
    for number in sorted(numbers, key=int):
        if ranges and int(number) == int(ranges[-1][-1]) + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ",".join("-".join(some) for some in ranges)


@lru_cache(maxsize=1024)
def without_numbers(text: str) -> str:
    """The text with ``#`` for each number: part of a kind, for texts that ``merged`` is to merge."""
    return _NUMBER.sub("#", text)


def merged(texts: Sequence[str]) -> str:
    """Texts that differ in numbers only, as one: ``codebook 149-307`` for ``codebook 149`` and ``codebook 307``."""
    texts = list(dict.fromkeys(texts))  # of many tensors few differ
    columns = zip(*(map(int, _NUMBER.findall(text)) for text in texts), strict=True)
    spans = (str(min(column)) if min(column) == max(column) else f"{min(column)}-{max(column)}" for column in columns)
    return _NUMBER.sub(lambda _: next(spans), texts[0])
