"""Whether decoders agree about a file: the same contents, or refusals that SPEC 15.1 allows side by side."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from fuzz.workers import Found

SPEC = Path(__file__).resolve().parents[2] / "SPEC.md"
DEFERRED = {"12", "13", "14", "15", "16", "F1", "F2"}  # REA-004: sections may be decoded later than they are read


@cache
def steps() -> dict[str, frozenset[str]]:
    """The steps of the table of SPEC 15.1 in which a rule, or the rules of a prefix, are tested."""
    found: dict[str, set[str]] = {}
    for row in re.findall(r"(?m)^\| (F?\d+) \|.*\|([^|]*)\|$", SPEC.read_text()):
        step = "sections" if row[0] in DEFERRED else row[0]
        for prefix, first, last in re.findall(r"\b([A-Z]{3})(?:-(\d{3})(?:\.\.(\d{3}))?)?\b", row[1]):
            numbers = range(int(first), int(last or first) + 1) if first else [None]
            for number in numbers:
                found.setdefault(prefix if number is None else f"{prefix}-{number:03}", set()).add(step)
    found["REA-001"] = {"sections"}  # elsewhere nothing that comes later is read before
    return {rule: frozenset(where) for rule, where in found.items()}


def steps_of(clause: str) -> frozenset[str]:
    exact = steps().get(clause)
    general = steps().get(clause[:3], frozenset())
    return (exact or frozenset()) | general if exact is None or clause[:3] in ("TRL", "CBK") else exact


def is_budget(found: Found) -> bool:
    """Whether a bound of the caller refused the file: what counts against it differs in part (LIM-002)."""
    return found.get("error") == "limit" and found.get("clause", found.get("rule")) in ("LIM-002", "")


def disagreements(outcomes: dict[str, Found], sequential: frozenset[str], expected: Found | None = None) -> list[str]:
    """What is wrong about what decoders say of one file.

    Args:
        outcomes: What each way of reading found.
        sequential: Those that go by SPEC 15.1. One by the index may refuse a file later or for another reason.
        expected: What the file holds, if it is known to be valid.
    """
    outcomes = {way: {**item, "clause": item.get("clause", item.get("rule", ""))} if "error" in item else item
                for way, item in outcomes.items() if item.get("error") != "crash"}  # fmt: skip
    in_order = {way: item for way, item in outcomes.items() if way in sequential}
    if expected is None:
        if any(map(is_budget, outcomes.values())):
            return []
        accepted = [item for item in in_order.values() if "error" not in item]
        expected = max(accepted, key=len) if accepted else None  # the one that tells most
        if expected is not None and "tensors" not in expected:
            return []
    if expected is not None:
        return [f"{way}: {difference}" for way, item in outcomes.items() if (difference := _difference(item, expected))]
    refusals = list(in_order.items())
    faults = []
    for way, item in refusals[1:]:
        first_way, first = refusals[0]
        if item["error"] != first["error"] and not steps_of(item["clause"]) & steps_of(first["clause"]):
            faults.append(f"{first_way}: {first['error']} {first['clause']}, {way}: {item['error']} {item['clause']}")
    return faults


def _difference(item: Found, expected: Found) -> str:
    """How what was found differs; fields that a decoder does not give are not compared."""
    if "error" in item:
        return f"refuses a valid file: {item['error']} {item['clause']} {item.get('message', '')}"
    tensors = expected["tensors"]
    for key, value in item.items():
        if key == "backend":
            continue
        if key == "by name":
            tensors = sorted(tensors, key=lambda tensor: tensor["name"])
        elif key != "tensors":
            if value != expected.get(key, value):
                return f"{key} {value!r:.200} instead of {expected[key]!r:.200}"
            continue
        if len(value) != len(tensors):
            return f"{len(value)} tensors instead of {len(tensors)}"
        for found, wanted in zip(value, tensors, strict=True):
            if wrong := {k: v for k, v in found.items() if v != wanted.get(k, v)}:
                return f"tensor {wanted['name']!r:.100} has {wrong} instead of {wanted}"
    return ""


def label(outcomes: dict[str, Any]) -> str:
    """A word for a report: what the first way of reading made of the file."""
    first = next(iter(outcomes.values()), {"error": "died"})
    return f"{first['error']} {first.get('clause', '')}".strip() if "error" in first else "valid"
