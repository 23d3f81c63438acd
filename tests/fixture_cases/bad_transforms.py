"""Invalid files: trellis stages with a transform (SPEC 12.5)."""

# ruff: noqa: PLR0917 (a call is a row of a table)

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from vqmbuilder import layr, section
from vqmtensors import F32, Codebook, Layout, Scale, Tensor, edit, tensor, with_section

from fixture_cases import Case, invalid
from fixture_cases.bases import ROWS, codes, table
from fixture_cases.transforms import base, base_tensor, nearly_too_large
from fixture_cases.trellis_bases import model

SIBLING = "; sibling: valid/transform.vqm"


def cases() -> list[Case]:
    return [*records(), *sections()]


def bad(name: str, error: str, comment: str, clauses: str, item: Tensor) -> Case:
    return invalid(name, error, comment, clauses, model(base().freq.chunk(), layr("", item)))


def with_groups(size: int, layout: Layout = ROWS, tile: tuple[int, int] = (2, 2)) -> Tensor:
    """Groups of any size, whose matrix has zeros; all sections are as the record says."""
    item = tensor("a", "f32", [6, 5], base(matrix=None, tile=tile), layout=layout)
    item = edit(item, (4, 0, 1), [5, 2, size])
    return with_section(item, 0, section(item.sections[0].stored + bytes(size * size)))


def last_band() -> Tensor:
    """Bands of whole groups, and a last one that is shorter."""
    whole = base(matrix=None, tile=(1, 2))
    item = tensor("a", "f32", [7, 5], replace(whole, codes=codes(1, (7, 5), 5)),
                  layout=Layout(n_row_axes=1, block_rows=3))  # fmt: skip
    return with_section(edit(item, (4, 0, 1), [5, 2, 3]), 0, section(item.sections[0].stored + bytes(9)))


def records() -> list[Case]:
    def changed(name: str, error: str, comment: str, path: Sequence[int], value: object, clauses: str) -> Case:
        return bad(name, error, comment + SIBLING, clauses, edit(base_tensor(), (4, 0, 1, *path), value))

    def other(name: str, comment: str, size: int, layout: Layout = ROWS, tile: tuple[int, int] = (2, 2)) -> Case:
        return bad(name, "format", comment + SIBLING, "TRL-006", with_groups(size, layout, tile))

    book = Codebook(codes(2, (6, 5), 6), table(3, 1, 6, 1))
    return [
        other("trl-006-size-0", "groups of no rows", 0),
        other("trl-006-size-1", "groups of one row", 1),
        other("trl-006-size-4", "groups of 4 rows of 6", 4),
        other("trl-006-size-12", "a group of 12 rows of 6", 12),
        other("trl-006-bands", "bands of 2 rows, groups of 3", 3, Layout(n_row_axes=1, block_rows=2)),
        bad("trl-006-last-band", "format", "bands of 3 rows of 7, groups of 3", "TRL-006", last_band()),
        other("trl-006-ranges", "ranges of 2 columns", 3, Layout(n_row_axes=1, block_rows=1, block_columns=2), (1, 1)),
        changed("trl-006-limit", "limit", "groups of 129 rows", (2,), 129, "TRL-006 LIM-001"),
        changed("trl-006-hostile", "limit", "groups of 2^64 - 1 rows", (2,), 2**64 - 1, "TRL-006 LIM-001"),
        changed("trl-006-negative", "format", "groups of -3 rows", (2,), -3, "TRL-006 MET-008"),
        changed("trl-005-transform-zero", "format", "zero is 2^22 + 1", (1,), 2**22 + 1, "TRL-005"),
        changed("met-008-transform-fields", "format", "a transform of two fields", (), [5, 2], "MET-008"),
        changed("met-008-transform-more", "format", "a transform of four fields", (), [5, 2, 3, 0], "MET-008"),
        bad("cbk-007-transform", "unsupported", "a codebook stage with a transform", "CBK-007",
            edit(tensor("a", "f32", [6, 5], book, layout=ROWS), (4, 0, 3), [5, 2, 3])),
    ]  # fmt: skip


def sections() -> list[Case]:
    def other(name: str, comment: str, clauses: str, data: bytes, item: Tensor | None = None) -> Case:
        item = item or base_tensor()
        return bad(name, "format", comment + SIBLING, clauses, with_section(item, 0, section(data)))

    whole = base_tensor().sections[0].stored
    most = np.full((3, 3), -128, np.int8).tobytes()
    narrow = tensor("a", "f16", [6, 5], base(), layout=ROWS)
    step = 65_536 / (3 * 128 * 5)  # points are -4 to 5
    return [
        other("sec-004-transform-step", "a step without a matrix", "SEC-004", whole[:4]),
        other("sec-004-transform-long", "a matrix of ten elements", "SEC-004", whole + b"\0"),
        other("trl-005-transform-nan", "a step that is a NaN", "TRL-005 CBK-008",
              struct.pack("<f", np.nan) + whole[4:]),
        other("val-002-transform", "the bound is infinite", "VAL-002", struct.pack("<f", 3e38) + whole[4:]),
        other("val-002-transform-f16", "the bound is what f16 has no value for", "VAL-002",
              struct.pack("<f", step) + most, narrow),
        bad("val-002-transform-column", "format", "f16: a sum of a column of the matrix is too large, none of a row",
            "VAL-002", nearly_too_large(np.array([[-128, 1], [3, 2]], np.int8))),
        other("val-002-transform-scale", "the bound is infinite once it is scaled", "VAL-002",
              struct.pack("<f", 1e36) + whole[4:],
              tensor("a", "f32", [6, 5], base(scale=Scale(np.array([1e6], F32))), layout=ROWS)),
    ]  # fmt: skip
