"""Stages from metadata, and every rule on them (SPEC sections 8, 9, 11, 12): parsed and checked once, then trusted."""

from __future__ import annotations

from math import prod
from typing import Any, Protocol

import numpy as np

from ..errors import FormatError, LimitError, UnsupportedError
from . import limits
from .bits import Planes
from .dtypes import DType
from .fields import Fields
from .layout import View
from .metadata import unpack_column
from .records import BookRecord, FreqRecord
from .stages import (
    CLASSES_COLUMNS,
    CLASSES_ROWS,
    CODEBOOK,
    FLOAT,
    LOW_RANK,
    MAX_TRELLIS_ZERO,
    MAX_ZERO,
    PROGRESSION,
    RAW,
    SHARED,
    SPARSE,
    TABLE,
    TRANSFORM,
    TRELLIS,
    AxisScale,
    CodebookStage,
    FloatSource,
    LowRankStage,
    ProgressionSource,
    RawStage,
    Scale,
    SharedSource,
    Source,
    SparseStage,
    Stage,
    TableSource,
    TransformSource,
    Trellis,
    TrellisStage,
    n_words_of,
)

_SOURCE_FIELDS = {FLOAT: 5, TRANSFORM: 3}  # number of fields by source id; other sources have 2
_FLOAT_FIELDS = {"signed": (0, 1), "exponent_bits": (0, 5), "fraction_bits": (0, 10), "exponent": (-120, 60)}
_MAX_TRELLIS = 511  # the largest polynomial (TRL-003)


class Shared(Protocol):
    """The records of the BOOK and FREQ chunks that come before a layer, by number."""

    @property
    def n_books(self) -> int: ...

    @property
    def n_freqs(self) -> int: ...

    def book(self, number: int) -> BookRecord: ...

    def freq(self, number: int) -> FreqRecord: ...


def stage_id(stage: Any, where: str) -> int:
    if not isinstance(stage, list) or not stage or type(stage[0]) is not int or stage[0] < 0:
        raise FormatError(f"{where}: a stage is {stage!r:.80}, not an array that begins with its id", clause="MET-008")
    if stage[0] not in _PARSE_STAGE:
        raise UnsupportedError(f"{where}: unknown stage id {stage[0]}", clause="TEN-006")
    return stage[0]


def parse_stage(meta: list[Any], view: View, dtype: DType, shared: Shared, where: str) -> Stage:
    """A stage from its array of metadata, whose id ``stage_id`` has checked."""
    stage: Stage = _PARSE_STAGE[meta[0]](meta, view, dtype, shared, where)
    return stage


def _parse_raw(meta: Any, view: View, dtype: DType, shared: Shared, where: str) -> RawStage:
    fields = Fields(meta, 2, where)
    fields.any()
    split = fields.integer("split", 0, None, "RAW-001")
    if split > 2:
        fields.fail(f"split is {split}; 0, 1 and 2 are known", "RAW-001", UnsupportedError)
    if split and not dtype.word_nbytes:
        fields.fail(f"split is {split}, but dtype {dtype.name} cannot be split", "RAW-001")
    return RawStage(split)


def _parse_sparse(meta: Any, view: View, dtype: DType, shared: Shared, where: str) -> SparseStage:
    fields = Fields(meta, 3, where)
    fields.any()
    split = fields.integer("split", 0, None, "SPA-001")
    if split not in (1, 2):
        fields.fail(f"split is {split}; 1 and 2 are known", "SPA-001", UnsupportedError)
    if not dtype.word_nbytes:
        fields.fail(f"dtype {dtype.name} cannot be split", "SPA-001")
    counts = unpack_column(fields.bin("counts"), view.n_blocks, f"{where}, counts")
    n_words = np.full(view.n_blocks, n_words_of(view.block(0), dtype), np.uint64)
    every = -(-view.n_columns // view.layout.block_columns) if view.layout.block_columns else view.n_blocks
    n_words[every - 1 :: every] = n_words_of(view.block(view.n_blocks - 1), dtype)  # those at the ends are shorter
    too_many = np.flatnonzero(counts > n_words)
    if too_many.size:
        at = too_many[0]
        fields.fail(f"the count of block {at} is {counts[at]}, but it has {n_words[at]} words", "SPA-002")
    return SparseStage(split, tuple(counts.tolist()))


def _parse_codebook(meta: Any, view: View, dtype: DType, shared: Shared, where: str) -> CodebookStage:
    fields = Fields(meta, 9, where)
    fields.any()
    dim = fields.integer("dim", 1, limits.MAX_DIM, "CBK-001")
    entries = fields.integer("entries", 1, limits.MAX_ENTRIES, "CBK-001")
    source = _parse_source(fields.array("source"), shared.n_books, (TABLE, PROGRESSION, SHARED, FLOAT), where)
    assert not isinstance(source, TransformSource)
    if fields.integer("choice", 0, None, "CBK-004"):
        fields.fail("choice is not 0", "CBK-004", UnsupportedError)
    n_subvectors = -(-view.n_columns // dim)
    book_rows = _parse_group(fields, "book_rows", view.n_rows)
    book_columns = _parse_group(fields, "book_columns", n_subvectors)
    scale = _parse_scale(fields.any(), view, where)
    planes = _parse_planes(fields.any(), entries, where)
    stage = CodebookStage(dim, entries, source, book_rows, book_columns, scale, planes)
    if dim > view.n_columns:
        fields.fail(f"dim is {dim}, but a row has {view.n_columns} columns", "CBK-001")
    if view.layout.block_columns % dim:
        fields.fail(f"block_columns is {view.layout.block_columns}, no multiple of dim {dim}", "CBK-002")
    if isinstance(source, ProgressionSource) and dim != 1:
        fields.fail(f"an arithmetic progression has dim {dim}, not 1", "CBK-005")
    if isinstance(source, SharedSource):
        book = shared.book(source.number)
        groups = prod(stage.book_grid(view))
        if (book.dim, book.entries, book.groups) != (dim, entries, groups):
            fields.fail(f"BOOK {source.number} has dim {book.dim}, {book.entries} entries and {book.groups} groups; the"
                        f" stage has {dim}, {entries} and {groups}", "CBK-006")  # fmt: skip
    if isinstance(source, FloatSource) and (dim != 1 or entries != source.entries or book_rows or book_columns):
        fields.fail(f"floating-point codes have dim 1, {source.entries} entries and one group, not dim {dim},"
                    f" {entries} entries and groups of {book_rows} and {book_columns}", "CBK-009")  # fmt: skip
    return stage


def _parse_source(meta: list[Any], n_books: int, known: tuple[int, ...], where: str) -> Source | TransformSource:
    where = f"{where}, source"
    id = meta[0] if meta and type(meta[0]) is int else -1
    if id < 0:
        id = Fields(meta[:1], 1, where).integer("source id", 0, None, "CBK-007")  # raises
    if id not in known:
        raise UnsupportedError(f"{where}: unknown source id {id}", clause="CBK-007")
    fields = Fields(meta, _SOURCE_FIELDS.get(id, 2), where)
    fields.any()
    if id == TABLE:
        return TableSource(fields.table_dtype("dtype"))
    if id in (PROGRESSION, TRANSFORM):
        zero = fields.integer("zero", -MAX_ZERO, None, "CBK-005")
        if zero > MAX_ZERO:
            fields.fail(f"zero is {zero}; at most {MAX_ZERO} is allowed", "CBK-005")
        if id == PROGRESSION:
            return ProgressionSource(zero)
        return TransformSource(zero, fields.integer("size", 2, None, "TRL-006"))
    if id == SHARED:
        number = fields.integer("number", 0, None, "BOK-001")
        if number >= n_books:
            fields.fail(f"BOOK {number} is used, but {n_books} come before", "BOK-001")
        return SharedSource(number)
    values = []
    for name, (least, most) in _FLOAT_FIELDS.items():
        values.append(fields.integer(name, least, None, "CBK-009"))
        if values[-1] > most:
            fields.fail(f"{name} is {values[-1]}; at most {most} is allowed", "CBK-009")
    signed, exponent_bits, fraction_bits, exponent = values
    return FloatSource(signed, exponent_bits, fraction_bits, exponent)


def _parse_group(fields: Fields, name: str, length: int) -> int:
    size = fields.integer(name, 0, None, "CBK-003")
    if size and size >= length:
        fields.fail(f"{name} is {size}; 0 or less than {length} is allowed", "CBK-003")
    return size


def _parse_scale(meta: Any, view: View, where: str) -> Scale | None:
    if meta is None:
        return None
    fields = Fields(meta, 3, f"{where}, scale")
    dtype = fields.table_dtype("dtype")
    rows = _parse_group(fields, "rows", view.n_rows)
    return Scale(dtype, rows, _parse_group(fields, "columns", view.n_columns))


def _parse_planes(meta: Any, entries: int, where: str) -> Planes:
    if not isinstance(meta, list):
        raise FormatError(f"{where}: planes is {meta!r:.80}, not an array", clause="MET-008")
    if len(meta) > 3:
        raise FormatError(f"{where}: {len(meta)} planes; at most 3 are allowed", clause="COD-004")
    planes = []
    for plane in meta:
        fields = Fields(plane, 2, f"{where}, plane")
        base = fields.integer("base", 2, None, "COD-003")
        per_byte = fields.integer("digits per byte", 1, None, "COD-003")
        if base > 256 or per_byte > 8 or base**per_byte > 256:
            fields.fail(f"{per_byte} digits of base {base} do not fit a byte", "COD-003")
        planes.append((base, per_byte))
    if planes:
        covered = prod(base for base, _ in planes)
        if covered < entries or covered // planes[-1][0] >= entries:
            raise FormatError(f"{where}: planes {meta!r:.80} do not fit {entries} entries", clause="COD-004")
    return tuple(planes)


def _parse_low_rank(meta: Any, view: View, dtype: DType, shared: Shared, where: str) -> LowRankStage:
    fields = Fields(meta, 6, where)
    fields.any()
    rank = fields.integer("rank", 1, limits.MAX_LOW_RANK, "LOW-001")
    entries_u, planes_u = _parse_factor(fields.any(), f"{where}, left factor")
    entries_v, planes_v = _parse_factor(fields.any(), f"{where}, right factor")
    # LOW-003: the rules of codebook scales
    row_scale = _parse_axis_scale(fields.any(), view.n_rows, f"{where}, row scale")
    column_scale = _parse_axis_scale(fields.any(), view.n_columns, f"{where}, column scale")
    if rank > min(view.n_rows, view.n_columns):
        fields.fail(f"rank is {rank}, but the view is {view.n_rows} x {view.n_columns}", "LOW-001")
    if rank * view.n_columns > limits.MAX_RIGHT_FACTOR:
        fields.fail(f"the right factor has {rank * view.n_columns} elements; at most {limits.MAX_RIGHT_FACTOR} are"
                    " allowed", "LOW-001", LimitError)  # fmt: skip
    if view.layout.block_columns:
        fields.fail(f"block_columns is {view.layout.block_columns}, not 0", "LOW-002")
    return LowRankStage(rank, entries_u, planes_u, entries_v, planes_v, row_scale, column_scale)


def _parse_trellis(meta: Any, view: View, dtype: DType, shared: Shared, where: str) -> TrellisStage:
    fields = Fields(meta, 8, where)
    fields.any()
    # TRL-005: the rules of codebook stages
    source = _parse_source(fields.array("source"), 0, (TABLE, PROGRESSION, TRANSFORM), where)
    assert isinstance(source, (TableSource, ProgressionSource, TransformSource))
    if not isinstance(source, TableSource) and abs(source.zero) > MAX_TRELLIS_ZERO:
        fields.fail(f"zero is {source.zero}; from -{MAX_TRELLIS_ZERO} to {MAX_TRELLIS_ZERO} is allowed", "TRL-005")
    if isinstance(source, TransformSource) and source.size > limits.MAX_TRANSFORM:
        fields.fail(f"size of the transform is {source.size}; at most {limits.MAX_TRANSFORM} is allowed", "TRL-006",
                    LimitError)  # fmt: skip
    trellis = _parse_polynomials(fields.any(), where)
    scale = _parse_scale(fields.any(), view, where)
    classes = fields.integer("classes", 0, None, "TRL-004")
    if classes > (CLASSES_ROWS | CLASSES_COLUMNS):
        fields.fail(f"classes is {classes}; only bits 0 and 1 are known", "TRL-004", UnsupportedError)
    number = fields.integer("freq", 0, None, "FRQ-004")
    if number >= shared.n_freqs:
        fields.fail(f"FREQ {number} is used, but {shared.n_freqs} come before", "FRQ-004")
    freq = shared.freq(number)
    first = fields.integer("first", 0, None, "TRL-004")
    n_books = 1 if trellis is None else 2
    if first + n_books > freq.tables:
        fields.fail(f"first is {first}, but FREQ {number} has {freq.tables} tables", "TRL-004")
    tile = Fields(fields.any(), 2, f"{where}, tile")
    sizes = tile.integer("rows", 1, None, "TRL-001"), tile.integer("columns", 1, None, "TRL-001")
    stage = TrellisStage(source, trellis, scale, classes, number, first, sizes, freq.entries)
    block = view.block(0)
    if sizes[0] > block.n_rows or sizes[1] > block.n_columns:
        tile.fail(f"{sizes[0]} x {sizes[1]} is larger than a block of {block.n_rows} x {block.n_columns}", "TRL-001")
    if isinstance(source, TransformSource):
        _check_transform(fields, source.size, view)
    n_steps, n_sequences = prod(sizes), prod(stage.tile_grid(block))
    if n_steps > limits.MAX_STEPS_PER_SEQUENCE * n_sequences:
        tile.fail(f"{n_steps} codes in each of {n_sequences} sequences; at most {limits.MAX_STEPS_PER_SEQUENCE} times"
                  " their number are allowed", "TRL-002")  # fmt: skip
    return stage


def _check_transform(fields: Fields, size: int, view: View) -> None:
    for name, n in (("the number of rows", view.n_rows), ("block_rows", view.layout.block_rows)):
        if n % size:
            fields.fail(f"{name} is {n}, no multiple of the {size} rows of the transform", "TRL-006")


def _parse_polynomials(meta: Any, where: str) -> Trellis | None:
    if meta is None:
        return None
    fields = Fields(meta, 2, f"{where}, trellis")
    values = []
    for name in ("feedback", "forward"):
        values.append(fields.integer(name, 0, None, "TRL-003"))
        if values[-1] > _MAX_TRELLIS:
            fields.fail(f"{name} is {values[-1]}; at most {_MAX_TRELLIS} is allowed", "TRL-003")
    return Trellis(*values)


def _parse_factor(meta: Any, where: str) -> tuple[int, Planes]:
    fields = Fields(meta, 2, where)
    entries = fields.integer("entries", 2, None, "LOW-001")
    if entries > limits.MAX_ENTRIES - 1:
        fields.fail(f"entries is {entries}; at most {limits.MAX_ENTRIES - 1} are allowed", "LOW-001")
    return entries, _parse_planes(fields.any(), entries, where)


def _parse_axis_scale(meta: Any, length: int, where: str) -> AxisScale:
    fields = Fields(meta, 2, where)
    return AxisScale(fields.table_dtype("dtype"), _parse_group(fields, "size", length))


_PARSE_STAGE: dict[int, Any] = {RAW: _parse_raw, CODEBOOK: _parse_codebook, LOW_RANK: _parse_low_rank,
                                TRELLIS: _parse_trellis, SPARSE: _parse_sparse}  # fmt: skip
