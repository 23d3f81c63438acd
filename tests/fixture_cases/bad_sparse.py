"""Invalid files: sparse raw stages (SPEC 8.1)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from vqmbuilder import layr, section
from vqmtensors import Layout, Tensor, edit, raw, sparse, with_section

from fixture_cases import Case, invalid
from fixture_cases.bases import base_codebook
from fixture_cases.sparses import RANGES, base_sparse, model, text

FORMAT, UNSUPPORTED = "format", "unsupported"


def one(name: str, error: str, comment: str, clauses: str, item: Tensor) -> Case:
    return invalid(name, error, comment, clauses, model(layr("", item)))


def changed(  # noqa: PLR0917
    name: str, error: str, comment: str, clauses: str, path: Sequence[int], value: object
) -> Case:  # fmt: skip
    """A field changed of valid/sparse-base.vqm: [5, split, counts]."""
    comment += "; sibling: valid/sparse-base.vqm"
    return one(name, error, comment, clauses, edit(base_sparse(), (4, 0, *path), value))


def cases() -> list[Case]:
    return [*fields(), *counts(), *sections()]


def fields() -> Iterator[Case]:
    a, example = base_sparse(), sparse("a", "f32", [5], text())
    stage = a.record[4][0]
    yield changed("spa-001-split-0", UNSUPPORTED, "split 0", "SPA-001", (1,), 0)
    yield changed("spa-001-split-3", UNSUPPORTED, "split 3", "SPA-001", (1,), 3)
    yield changed("spa-001-split-nil", FORMAT, "split is nil", "MET-008", (1,), None)
    narrow = replace(raw("a", "u8", [4], b"abcd"), sections=tuple(map(section, (b"\x0f", b"", b"abcd"))))
    yield one("spa-001-u8", FORMAT, "a dtype of 8 bits", "SPA-001", edit(narrow, (4, 0), [5, 1, b"\4"]))
    yield one("spa-001-two-fields", FORMAT, "no counts", "MET-008", edit(a, (4, 0), stage[:2]))
    yield one("spa-001-four-fields", FORMAT, "a field too many", "MET-008", edit(a, (4, 0), [*stage, 0]))
    yield one("ten-005-sparse-twice", FORMAT, "two sparse raw stages", "TEN-005",
              edit(example, (4,), 2 * example.record[4]))  # fmt: skip
    of_codes = base_codebook()
    yield one("ten-005-sparse-beside", FORMAT, "a sparse raw stage beside a codebook stage", "TEN-005",
              edit(of_codes, (4,), [*of_codes.record[4], [5, 2, b"\0"]]))  # fmt: skip
    yield one("ten-005-sparse-first", FORMAT, "a sparse raw stage before a raw one", "TEN-005",
              edit(example, (4,), [*example.record[4], [0, 0]]))  # fmt: skip
    yield one("lay-002-sparse-axes", FORMAT, "a sparse raw stage with axes", "LAY-002", edit(a, (3, 0), [1, 0]))
    yield one("lay-002-sparse-order", FORMAT, "a sparse raw stage with an order of rows", "LAY-002",
              replace(edit(a, (3, 2), 1), sections=(section(bytes(5)), *a.sections)))  # fmt: skip


def counts() -> Iterator[Case]:
    yield changed("spa-002-count", FORMAT, "a count above the number of words", "SPA-002", (2,), bytes([7, 0, 2]))
    yield changed("spa-002-count-last", FORMAT, "that of the last band, which is shorter", "SPA-002", (2,),
                  bytes([4, 0, 4]))  # fmt: skip
    ranges = sparse("a", "f32", [2, 3], struct.pack("<6f", 0, 1, 2, 3, 0, 0), layout=RANGES)
    yield one("spa-002-count-range", FORMAT, "that of a shorter range, with two words for its one", "SPA-002",
              edit(ranges, (4, 0, 2), bytes([1, 2, 1, 0])))  # fmt: skip
    halves = sparse("a", "c64", [2], bytes(16))
    yield one("spa-002-count-complex", FORMAT, "five words of two complex elements", "SPA-002",
              edit(halves, (4, 0, 2), bytes([5])))  # fmt: skip
    yield changed("spa-002-array", FORMAT, "counts is an array", "MET-008", (2,), [4, 0, 2])
    yield changed("spa-002-fewer", FORMAT, "counts of two of three blocks", "MET-009", (2,), bytes([4, 0]))
    yield changed("spa-002-none", FORMAT, "no counts", "MET-009", (2,), b"")
    yield changed("spa-002-three-bytes", FORMAT, "counts of three bytes", "MET-009", (2,), bytes([4, 0, 0] * 3))
    yield one("spa-002-hostile", FORMAT, "2^57 blocks, and counts of three", "MET-009",
              edit(edit(base_sparse(), (2,), [1 << 57, 1]), (3, 3), 1))  # fmt: skip
    yield changed("spa-002-wide", FORMAT, "counts in more bytes than they need", "MET-009", (2,),
                  np.array([4, 0, 2], "<u2").tobytes())  # fmt: skip


def sections() -> Iterator[Case]:
    a = base_sparse()
    short = Layout(n_row_axes=1, block_rows=1)
    rows = sparse("a", "u16", [2, 3], struct.pack("<6H", 1, 0, 0, 0, 2, 0), split=1, layout=short)
    yield one("spa-003-no-signs", FORMAT, "no signs", "SPA-003 LYR-002",
              replace(rows, sections=(rows.sections[0], *rows.sections[2:5], *rows.sections[6:])))  # fmt: skip
    yield one("spa-003-plane-size", FORMAT, "planes of all words, not of those that are marked", "SPA-003 SEC-004",
              with_section(a, 2, section(b"abcdef")))  # fmt: skip
    yield one("spa-003-signs-size", FORMAT, "as many signs as words", "SPA-003 SEC-004",
              with_section(sparse("a", "u16", [9], struct.pack("<9H", 1, *8 * [0])), 1, section(bytes(2))))  # fmt: skip
    for name, comment, marks in (("fewer", "a mark less", 0x31), ("more", "a mark more", 0x3B)):
        yield one(f"spa-004-{name}", FORMAT, f"{comment} than the count; sibling: valid/sparse-base.vqm", "SPA-004",
                  with_section(a, 0, section(bytes([marks]))))  # fmt: skip
    yield one("spa-004-unused-mark", FORMAT, "a bit after the last mark, and the count of all bits is right", "SPA-004",
              with_section(a, 0, section(b"\x71")))  # fmt: skip
    yield one("spa-004-unused-mark-set", FORMAT, "a bit after the last mark; sibling: valid/sparse-base.vqm", "SPA-004",
              with_section(a, 0, section(b"\xb9")))  # fmt: skip
    yield one("spa-004-unused-sign", FORMAT, "a bit after the last sign; sibling: valid/sparse-base.vqm", "SPA-004",
              with_section(a, 1, section(b"\x06")))  # fmt: skip
