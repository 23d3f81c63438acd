"""Invalid files: floating-point codes (SPEC 9.3)."""

# ruff: noqa: PLR0917 (a call is a row of a table)

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from vqmbuilder import (
    layr,
    section,
)
from vqmtensors import (
    F32,
    Codebook,
    Floats,
    Scale,
    edit,
    tensor,
    with_section,
)

from fixture_cases import Case, invalid
from fixture_cases.bases import (
    base_codebook,
)
from fixture_cases.trellis_bases import base_floats, model

FORMAT, UNSUPPORTED = "format", "unsupported"


def cases() -> list[Case]:
    return [*floats()]


def floats() -> Iterator[Case]:
    """[1, dim, entries, source, choice, rows, columns, scale, planes], source [4, 1, 2, 1, -1]."""

    def field(
        name: str, error: str, comment: str, clauses: str, path: Sequence[int], value: object, *sections: bytes
    ) -> Case:
        item = edit(base_floats(), (4, 0, *path), value)
        if sections:
            item = replace(item, sections=tuple(map(section, sections)))
        return invalid(name, error, comment + "; sibling: valid/base-floats.vqm", clauses, model(layr("", item)))

    def bad(name: str, comment: str, path: Sequence[int], value: object, *sections: bytes) -> Case:
        return field(f"cbk-009-{name}", FORMAT, comment, "CBK-009", path, value, *sections)

    for name, comment, source in [
        ("signed", "signed is 2", (2, 1, 1, 0)),
        ("exponent-bits", "6 bits of exponent", (0, 6, 0, 0)),
        ("fraction-bits", "11 bits of fraction", (1, 0, 11, -11)),
        ("exponent-low", "exponent -121; sibling: valid/floats-limits.vqm", (1, 2, 1, -121)),
        ("exponent-high", "exponent 61; sibling: valid/floats-limits.vqm", (1, 2, 1, 61)),
    ]:
        item = tensor("a", "f32", [3], Codebook(np.array([[0, 3, 1]]), floats=Floats(*source)))
        yield invalid(f"cbk-009-{name}", FORMAT, comment, "CBK-009", model(layr("", item)))
    yield bad("signed-negative", "signed is -1", (3, 1), -1)
    yield bad("exponent-bits-negative", "-1 bits of exponent", (3, 2), -1)
    yield bad("exponent-bits-hostile", "2^40 bits of exponent", (3, 2), 2**40)
    yield bad("fraction-bits-negative", "-1 bits of fraction", (3, 3), -1)
    yield bad("exponent-hostile", "exponent 2^63", (3, 4), 2**63)
    yield bad("dim", "dim 2", (1,), 2, bytes(2))
    yield bad("entries-less", "15 entries for 4 bits", (2,), 15)
    yield bad("entries-more", "17 entries for 4 bits", (2,), 17, bytes(5))
    yield bad("book-rows", "a codebook for each row", (5,), 1)
    yield bad("book-columns", "codebooks by groups of two columns", (6,), 2)
    yield field("met-008-floats-fields", FORMAT, "four fields of five", "MET-008", (3,), [4, 1, 2, 1])
    yield field("met-008-floats-fields-more", FORMAT, "six fields, not five", "MET-008", (3,), [4, 1, 2, 1, -1, 0])
    yield field("met-008-floats-true", FORMAT, "true as signed", "MET-008", (3, 1), True)
    yield field("met-008-floats-exponent", FORMAT, "false as exponent", "MET-008", (3, 4), False)
    yield field("lyr-002-floats", FORMAT, "a section of steps", "LYR-002", (), base_floats().record[4][0],
                struct.pack("<f", 1), base_floats().sections[0].stored)  # fmt: skip
    source = edit(base_codebook(), (4, 0, 3), [3, 1, 2, 1, -1])
    yield invalid(
        "cbk-007-source-fields",
        UNSUPPORTED,
        "an unknown source of five fields; sibling: valid/base-codebook.vqm",
        "CBK-007",
        model(layr("", source)),
    )
    great = Codebook(np.array([[0, 1, 2]]), floats=Floats(0, 5, 10, -24))
    yield invalid(
        "val-002-floats-f16",
        FORMAT,
        "the largest code stands for 131,008, though it does not occur; sibling: valid/floats-bound-f16.vqm",
        "VAL-002",
        model(layr("", tensor("a", "f16", [3], great))),
    )
    scaled = Codebook(np.array([[0, 1, 2]]), floats=Floats(1, 5, 10, 60), scale=Scale(np.array([2.0**28], F32)))
    yield invalid(
        "val-002-floats-scale",
        FORMAT,
        "the largest code times the scale overflows; sibling: valid/floats-bound-f32.vqm",
        "VAL-002",
        model(layr("", tensor("a", "f32", [3], scaled))),
    )
    one_code = Codebook(np.array([[0, 1, 2]]), floats=Floats(0, 1, 1, 0))
    yield invalid(
        "cod-002-floats",
        FORMAT,
        "a bit after the last floating-point code",
        "COD-002 CBK-009",
        model(layr("", with_section(tensor("a", "f32", [3], one_code), 0, section(b"\x64")))),
    )
