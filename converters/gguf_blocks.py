"""The blocks of quantized GGUF tensors as tensors of a ``.vqm``, and back to the byte (SPEC section 18).

A type whose values are scale times entry becomes codebook stages with the same arithmetic. The blocks of any other type
stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vqformat.encode.methods import packing
from vqformat.encode.methods.assemble import BLOCK_ELEMENTS, choose_blocks
from vqformat.errors import ConversionError
from vqformat.format import bits
from vqformat.format.chunkwriter import EncodedTensor
from vqformat.format.layout import Layout
from vqformat.format.limits import MAX_RESIDENT_NBYTES
from vqformat.format.records import TensorRecord
from vqformat.format.sections import TABLE_ENTRY_NBYTES
from vqformat.format.stages import CodebookStage, RawStage, Stage

from .gguf_forms import FORMS, BlockForm, Bytes, Scales

# Stages may take more bytes than the blocks, by this factor and this number, since a reader of stages gets values. They
# do where codes do not compress (the section table is added), and for the scales of MXFP4 (one byte becomes two).
_MOST_GROWTH, _FREE_NBYTES = 1.005, 256
# Rows of a band of planes, unless that makes a block too large. Lower bands compress no better, since each has a table
# of its own; in higher ones bytes of several kinds share one. Where less than a share is saved, others are tried.
_BAND_ROWS, _FEW_SAVED = 16, 0.002


def encode_blocks(name: str, kind: str, shape: tuple[int, ...], blocks: Bytes) -> EncodedTensor:
    """A quantized tensor, so that its blocks come back to the byte.

    Args:
        kind: Type, such as ``"Q4_0"``.
        shape: Of the values.
        blocks: ``(n_blocks, bytes of a block)``, at least one.
    """
    form = FORMS.get(kind)
    encoded = None if form is None else _as_stages(name, form, shape, blocks)
    if encoded is None or _cost(encoded) > blocks.size * _MOST_GROWTH + _FREE_NBYTES:
        return _as_planes(name, blocks)
    return encoded


def holds_blocks(record: TensorRecord, kind: str, shape: tuple[int, ...], block_nbytes: int, n_blocks: int) -> bool:
    """Whether a tensor of a ``.vqm`` is what ``encode_blocks`` makes of a tensor of this type and shape."""
    if record.dtype == "u8":
        return record.shape == (block_nbytes, n_blocks)
    form = FORMS.get(kind)
    if form is None or record.dtype != "f32" or record.shape != shape:
        return False
    expected = form.record(record.name, shape)
    layout = replace(record.layout, block_rows=0, block_columns=0)
    return layout == expected.layout and _without_planes(record) == _without_planes(expected)


def _without_planes(record: TensorRecord) -> list[Stage]:
    return [replace(stage, planes=()) if isinstance(stage, CodebookStage) else stage for stage in record.stages]


def decode_blocks(kind: str, record: TensorRecord, sections: list[bytes]) -> Bytes:
    """The blocks of a tensor for which ``holds_blocks``, from its stages.

    Args:
        sections: Plain bytes of all its sections.

    Returns:
        ``(n_blocks, bytes of a block)``.

    Raises:
        ConversionError: Its codebook is another one.
        FormatError: A code is outside its codebook.
    """
    form = FORMS[kind]
    view = record.view()
    n_blocks = record.n_elements // form.weights
    n_stages = len(record.stages)
    scales: list[Scales] = [np.frombuffer(sections[2 * i + 1], "<u2").reshape(n_blocks, -1) for i in range(n_stages)]
    if form.resident(scales) != sections[: 2 * n_stages]:
        raise ConversionError(f"tensor {record.name!r} does not have the codebook of {kind}: it was written by another"
                              " program, or is damaged")  # fmt: skip
    stage = record.stages[0]
    assert isinstance(stage, CodebookStage)
    n_planes, n_payload = stage.n_payload(), record.n_payload()
    codes = np.empty(record.n_elements, np.uint8)
    done = 0
    for i in range(view.n_blocks):
        first = 2 * n_stages + i * n_payload
        payloads = [np.frombuffer(section, np.uint8) for section in sections[first : first + n_planes]]
        n_codes = view.block(i).n_elements
        codes[done : done + n_codes] = bits.unpack(payloads, n_codes, stage.entries, stage.planes)
        done += n_codes
    return form.join((scales, codes.reshape(n_blocks, form.weights)))


def _as_stages(name: str, form: BlockForm, shape: tuple[int, ...], blocks: Bytes) -> EncodedTensor | None:
    """Codebook stages; None where they cannot give the values or the blocks back."""
    scales, codes = form.split(blocks)
    resident = form.resident(scales)
    is_small = max(map(len, resident)) <= MAX_RESIDENT_NBYTES
    if not is_small or not form.is_exact(scales) or not np.array_equal(form.join((scales, codes)), blocks):
        return None
    record = form.record(name, shape)
    view = record.view()
    layout = choose_blocks(record.layout, view.n_rows, view.n_columns)
    record = replace(record, layout=layout)
    view = record.view()
    flat = codes.reshape(-1)
    payloads: list[bytes] = []
    done = 0
    for i in range(view.n_blocks):
        n_codes = view.block(i).n_elements
        payloads += bits.pack(flat[done : done + n_codes], form.entries, form.planes)
        payloads += [b""] * form.has_minimum  # its codes have no bits
        done += n_codes
    return EncodedTensor(record, packing.literal_sections(resident + payloads))


def _as_planes(name: str, blocks: Bytes) -> EncodedTensor:
    """The bytes unchanged, in planes by their position in the block, so that bytes of one kind lie together."""
    columns = np.ascontiguousarray(blocks.T)  # (bytes of a block, n_blocks)
    layout = choose_blocks(Layout(n_row_axes=1), *columns.shape)
    most = min(max(1, BLOCK_ELEMENTS // columns.shape[1]), columns.shape[0] - 1)
    if layout.block_columns or most < 1:
        return _raw(name, columns, layout)
    bands = _raw(name, columns, replace(layout, block_rows=min(_BAND_ROWS, most)))
    if _cost(bands) < (1 - _FEW_SAVED) * blocks.size:
        return bands
    others = [_raw(name, columns, replace(layout, block_rows=rows)) for rows in (1, 2, 4) if rows < most]
    return min(bands, *others, _raw(name, columns, layout), key=_cost)


def _raw(name: str, columns: Bytes, layout: Layout) -> EncodedTensor:
    record = TensorRecord(name, "u8", columns.shape, layout, (RawStage(),))
    view = record.view()
    flat = columns.reshape(-1)
    payloads = []
    done = 0
    for i in range(view.n_blocks):
        n = view.block(i).n_elements
        payloads.append(flat[done : done + n].tobytes())
        done += n
    return EncodedTensor(record, packing.literal_sections(payloads))


def _cost(tensor: EncodedTensor) -> int:
    """Bytes that it takes in a file, approximately."""
    return tensor.stored_nbytes + TABLE_ENTRY_NBYTES * len(tensor.sections)
