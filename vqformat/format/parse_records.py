"""Records from metadata, and every rule on them (SPEC sections 6 and 7): parsed and checked once, then trusted.

Each field is checked by itself before it is compared with others.
"""

from __future__ import annotations

from math import prod
from typing import Any

import msgpack

from ..errors import FormatError, LimitError, UnsupportedError
from . import limits
from .dtypes import DType, by_id
from .fields import Fields
from .layout import ORDER_COLUMNS, ORDER_ROWS, Layout, View, make_view
from .parse_stages import Shared, parse_stage, stage_id
from .records import AliasRecord, BookRecord, FreqRecord, Record, TensorRecord
from .stages import RAW, SPARSE

# A record by all of its fields but the name. Many tensors of a model differ in their names only
Known = dict[bytes, TensorRecord]
_MOST_KNOWN, _MOST_KNOWN_NBYTES = 256, 1 << 10
_SHORT_NAME = limits.MAX_NAME_NBYTES // 4  # characters of a name that cannot have too many bytes


def parse_book(meta: Any) -> BookRecord:
    """The record of a BOOK chunk (BOK-002)."""
    fields = Fields(meta, 4, "BOOK chunk")
    dim = fields.integer("dim", 1, limits.MAX_DIM, "BOK-002")
    entries = fields.integer("entries", 1, limits.MAX_ENTRIES, "BOK-002")
    groups = fields.integer("groups", 1, limits.MAX_GROUPS, "BOK-002")
    record = BookRecord(dim, entries, groups, fields.table_dtype("dtype"))
    if record.nbytes > limits.MAX_RESIDENT_NBYTES:
        fields.fail(f"has {record.nbytes} bytes; at most {limits.MAX_RESIDENT_NBYTES} are allowed", "BOK-002",
                    LimitError)  # fmt: skip
    return record


def parse_freq(meta: Any) -> FreqRecord:
    """The record of a FREQ chunk (FRQ-001)."""
    fields = Fields(meta, 3, "FREQ chunk")
    precision = fields.integer("precision", 1, None, "FRQ-001")
    entries = fields.integer("entries", 1, None, "FRQ-001")
    tables = fields.integer("tables", 1, None, "FRQ-001")
    if precision > limits.MAX_PRECISION or entries > 1 << precision:
        fields.fail(f"precision is {precision} and entries {entries}; at most {limits.MAX_PRECISION} and 2^precision"
                    " are allowed", "FRQ-001")  # fmt: skip
    if tables << precision > limits.MAX_SLOTS:
        fields.fail(f"tables · 2^precision is {tables << precision}; at most {limits.MAX_SLOTS} is allowed", "FRQ-001",
                    LimitError)  # fmt: skip
    return FreqRecord(precision, entries, tables)


def parse_layer(meta: Any) -> tuple[str, list[Any]]:
    """The name of a LAYR chunk, and the metadata of its tensors, not yet parsed (LYR-001)."""
    fields = Fields(meta, 2, "LAYR chunk")
    name = fields.string("name")
    if len(name.encode()) > limits.MAX_NAME_NBYTES:
        fields.fail(f"name has {len(name.encode())} bytes; at most {limits.MAX_NAME_NBYTES} are allowed",
                    "TEN-001", LimitError)  # fmt: skip
    tensors = fields.array("tensors")
    if not tensors:
        fields.fail("has no tensors", "LYR-001")
    return name, tensors


def parse_tensor(meta: Any, shared: Shared, known: Known | None = None) -> Record:
    """The record of a tensor or an alias.

    Args:
        shared: The BOOK and FREQ chunks before it, against which it is checked.
        known: Records of tensors before it in the file, for speed. It is filled.

    Raises:
        FormatError: It breaks a rule.
    """
    if known is None or type(meta) is not list or len(meta) != 5:
        return _parse_tensor(meta, shared)
    fields = msgpack.packb(meta[1:])
    if fields in known:
        name = meta[0]
        if type(name) is not str or len(name) > _SHORT_NAME or not name or "\0" in name:
            name = _parse_name(Fields(meta, 5, f"tensor {name!r:.200}"))
        return known[fields].renamed(name)
    record = _parse_tensor(meta, shared)
    assert isinstance(record, TensorRecord)
    if len(fields) <= _MOST_KNOWN_NBYTES:
        if len(known) >= _MOST_KNOWN:
            known.clear()
        known[fields] = record
    return record


def _parse_tensor(meta: Any, shared: Shared) -> Record:
    where = f"tensor {meta[0]!r:.200}" if type(meta) is list and meta and type(meta[0]) is str else "tensor record"
    is_alias = isinstance(meta, list) and len(meta) == 2
    fields = Fields(meta, 2 if is_alias else 5, where)
    name = _parse_name(fields)
    if is_alias:
        target = fields.string("target")
        if len(target.encode()) > limits.MAX_NAME_NBYTES:
            fields.fail(f"target has {len(target.encode())} bytes; at most {limits.MAX_NAME_NBYTES} are allowed",
                        "ALI-001", LimitError)  # fmt: skip
        return AliasRecord(name, target)
    id = fields.integer("dtype", 0, None, "TEN-006")
    try:
        dtype = by_id(id)
    except UnsupportedError as err:
        fields.fail(err.message, "TEN-006", UnsupportedError)
    shape = _parse_shape(fields)
    layout_meta = fields.any()
    stages_meta = fields.array("stages")
    if 0 in shape:
        if stages_meta or layout_meta is not None:
            fields.fail("has no elements, yet stages or a layout", "TEN-004")
        return TensorRecord(name, dtype.name, shape)
    if not stages_meta:
        fields.fail("has elements, yet no stages", "TEN-004")
    if len(stages_meta) > limits.MAX_STAGES:
        fields.fail(f"has {len(stages_meta)} stages; at most {limits.MAX_STAGES} are allowed", "TEN-004", LimitError)
    ids = [stage_id(stage, where) for stage in stages_meta]
    if len(ids) > 1 and (RAW in ids or SPARSE in ids):
        fields.fail("has a raw stage beside another one", "TEN-005")
    is_raw = ids[0] in (RAW, SPARSE)
    if not is_raw and not dtype.arithmetic:
        fields.fail(f"has dtype {dtype.name}, which only a raw stage can hold", "TEN-005")
    view = _parse_view(layout_meta, shape, dtype, is_raw, where)
    stages = tuple(
        parse_stage(stage, view, dtype, shared, f"{where}, stage {i}") for i, stage in enumerate(stages_meta)
    )
    record = TensorRecord(name, dtype.name, shape, view.layout, stages)
    for sizes in record.resident_nbytes():
        for nbytes in sizes:
            if nbytes > limits.MAX_RESIDENT_NBYTES:
                fields.fail(f"has a resident section of {nbytes} bytes; at most {limits.MAX_RESIDENT_NBYTES} are"
                            " allowed", "TEN-007", LimitError)  # fmt: skip
    return record


def _parse_name(fields: Fields) -> str:
    name = fields.string("name")
    nbytes = len(name.encode())
    if nbytes > limits.MAX_NAME_NBYTES:
        fields.fail(f"name has {nbytes} bytes; at most {limits.MAX_NAME_NBYTES} are allowed", "TEN-001", LimitError)
    if not nbytes or "\0" in name:
        fields.fail(f"name {name!r:.200} is empty or has a character U+0000", "TEN-001")
    return name


def _parse_shape(fields: Fields) -> tuple[int, ...]:
    sizes = fields.array("shape")
    if len(sizes) > limits.MAX_RANK:
        fields.fail(f"shape has {len(sizes)} axes; at most {limits.MAX_RANK} are allowed", "TEN-003", LimitError)
    if not set(map(type, sizes)) <= {int} or min(sizes, default=0) < 0:
        bad = next(size for size in sizes if type(size) is not int or size < 0)
        fields.fail(f"shape holds {bad!r:.80}, not an integer from 0 up", "TEN-003")
    if prod(filter(None, sizes)) > limits.MAX_SHAPE_PRODUCT:
        fields.fail(f"shape {sizes!r:.200} has a product above {limits.MAX_SHAPE_PRODUCT}", "TEN-003", LimitError)
    return tuple(sizes)


def _parse_view(meta: Any, shape: tuple[int, ...], dtype: DType, is_raw: bool, where: str) -> View:
    as_pairs = dtype.is_complex and not is_raw
    rank = len(shape) + as_pairs
    if meta is None:
        layout = Layout()
    else:
        fields = Fields(meta, 5, f"{where}, layout")
        axes = fields.any()
        if axes is not None:
            if not isinstance(axes, list) or any(type(axis) is not int for axis in axes):
                fields.fail(f"axes is {axes!r:.80}, neither nil nor an array of integers", "MET-008")
            if sorted(axes) != list(range(rank)) or axes == list(range(rank)):
                fields.fail(f"axes {axes!r:.80} is no permutation of {rank} axes, or the identity", "LAY-001")
        n_row_axes = fields.integer("n_row_axes", 0, None, "LAY-001")
        if n_row_axes > rank:
            fields.fail(f"n_row_axes is {n_row_axes}; at most {rank} are there", "LAY-001")
        order = fields.integer("order", 0, None, "LAY-003")
        if order & ~(ORDER_ROWS | ORDER_COLUMNS):
            fields.fail(f"order is {order}; only bits 0 and 1 are known", "LAY-003", UnsupportedError)
        block_rows = fields.integer("block_rows", 0, None, "LAY-004")
        block_columns = fields.integer("block_columns", 0, None, "LAY-004")
        layout = Layout(None if axes is None else tuple(axes), n_row_axes, order, block_rows, block_columns)
        if is_raw and (axes is not None or order):
            fields.fail("a raw stage has axes or an order", "LAY-002")
    view = make_view(shape, as_pairs, layout)
    rows, columns = layout.block_rows, layout.block_columns
    if (columns and not (rows == 1 and columns < view.n_columns)) or (not columns and rows and rows >= view.n_rows):
        raise FormatError(f"{where}: blocks of {rows} rows and {columns} columns are not allowed in a view of"
                          f" {view.n_rows} x {view.n_columns}", clause="LAY-004")  # fmt: skip
    if view.block(0).n_elements > limits.MAX_BLOCK_ELEMENTS:
        raise LimitError(f"{where}: a block has {view.block(0).n_elements} elements; at most"
                         f" {limits.MAX_BLOCK_ELEMENTS} are allowed", clause="LAY-005")  # fmt: skip
    return view
