"""``fixtures/vqm.ksy`` and ``fixtures/vqm.hexpat`` describe the same fields, and those are the fields of the files."""

from __future__ import annotations

import re

import pytest
from conftest import FIXTURES

KSY = (FIXTURES / "vqm.ksy").read_text()
HEXPAT = re.sub(r"//.*", "", (FIXTURES / "vqm.hexpat").read_text())
TYPES = ["header", "footer", "chunk", "section_entry", "section"]
Fields = list[tuple[str, str]]  # name and size of each field: a number of bytes, or what tells it


def of_ksy(type: str) -> Fields:
    """The fields of a type in the description for Kaitai Struct."""
    body = re.search(rf"^  {type}:\n(.*?)(?=^  \w|\Z)", KSY, re.DOTALL | re.MULTILINE)
    assert body is not None
    sequence = re.split(r"^    instances:", body[1].partition("    seq:\n")[2], flags=re.MULTILINE)[0]
    found = []
    for name, rest in re.findall(r"- id: (\w+)\n(.*?)(?=      - id|\Z)", sequence, re.DOTALL):
        size = re.search(r"\bsize: (\S+)", rest)
        number = re.search(r"\btype: u(\d)", rest)
        kind = re.search(r"\btype: (\w+)", rest)
        if "contents" in rest:
            found.append((name, "8"))
        elif size is not None:
            found.append((name, size[1]))
        else:
            assert kind is not None
            repeat = re.search(r"repeat-expr: (\w+)", rest)
            found.append((name, number[1] if number else kind[1] + (f"[{repeat[1]}]" if repeat else "")))
    return found


def of_hexpat(type: str) -> Fields:
    """The fields of a type in the pattern for ImHex; what is computed is none."""
    body = re.search(rf"^struct {type} {{(.*?)^}};", HEXPAT, re.DOTALL | re.MULTILINE)
    assert body is not None
    found = []
    for kind, name, count in re.findall(r"^ *(?!if\b)(\w+) (\w+)(?:\[(\w+)\])? *(?:\[\[.*)?;", body[1], re.MULTILINE):
        unit = int(kind[1:]) // 8 if re.fullmatch(r"u\d+", kind) else 1 if kind == "char" else 0
        if not unit:
            found.append((name, kind + (f"[{count}]" if count else "")))
        else:
            found.append((name, count if count else str(unit)))
    return found


@pytest.mark.parametrize("type", TYPES)
def test_both_have_the_same_fields(type: str) -> None:
    assert [field for field in of_ksy(type) if field[0] != "padding"] == of_hexpat(type) != []


@pytest.mark.parametrize("fixture", ["worked-codebook", "worked-trellis", "section-aligned", "empty-model"])
def test_the_fields_are_those_of_a_file(fixture: str) -> None:
    data = (FIXTURES / f"valid/{fixture}.vqm").read_bytes()
    at = 16
    types = []

    while not types or types[-1] != b"INDX":
        found: dict[str, int] = {}
        for name, size in of_hexpat("chunk"):
            if name == "section_table":
                table = data[at : at + 8 * found["num_sections"]]
                at += len(table)
            elif name == "sections":
                for length in (int.from_bytes(table[i : i + 4], "little") for i in range(0, len(table), 8)):
                    at += -at % 64 if 4096 <= length < 1 << 31 else 0
                    at += length & 0x7FFFFFFF
            else:
                nbytes = int(size) if size.isdigit() else found[size]
                found[name] = int.from_bytes(data[at : at + nbytes], "little")
                at += nbytes
        types.append(found["type"].to_bytes(4, "little"))

    assert types[0] == b"META"
    assert at + sum(16 if size == "header" else int(size) for _, size in of_hexpat("footer")) == len(data)
