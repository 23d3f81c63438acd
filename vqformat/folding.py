"""Repeated layers folded in tables: tensors that are alike and whose names differ in numbers share a row."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

_FEWEST = 3  # tensors that are folded into one row
_DEPTH = 2  # numbers of a name that may vary: layers, and experts in them
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
    keys = [[(row.name[: match.start()], row.name[match.end() :], kind) for match in _NUMBER.finditer(row.name)]
            for row, kind in zip(rows, kinds, strict=True)]  # fmt: skip
    counts = Counter(key for some in keys for key in some)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, some in enumerate(keys):
        best = max(some, key=counts.__getitem__, default=None)  # the first of several
        groups[best if best is not None and counts[best] >= _FEWEST else i].append(i)
    folded = []
    for key, group in groups.items():
        if len(group) < _FEWEST or not isinstance(key, tuple):
            folded += [rows[i] for i in group]
            continue
        before, after, _ = key
        numbers = (rows[i].name[len(before) : len(rows[i].name) - len(after)] for i in group)
        members = sorted(member for i in group for member in rows[i].members)
        folded.append(Folded(f"{before}{_ranges(numbers)}{after}", tuple(members)))
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


def without_numbers(text: str) -> str:
    """The text with ``#`` for each number: part of a kind, for texts that ``merged`` is to merge."""
    return _NUMBER.sub("#", text)


def merged(texts: Sequence[str]) -> str:
    """Texts that differ in numbers only, as one: ``codebook 149-307`` for ``codebook 149`` and ``codebook 307``."""
    columns = zip(*(map(int, _NUMBER.findall(text)) for text in texts), strict=True)
    spans = (str(min(column)) if min(column) == max(column) else f"{min(column)}-{max(column)}" for column in columns)
    return _NUMBER.sub(lambda _: next(spans), texts[0])
