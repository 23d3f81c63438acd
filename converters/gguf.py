"""GGUF files as a source (SPEC section 18): quantized tensors as they are quantized, and what restores the file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqformat.encode.source import SourceTensor, StoredForm, check_name, check_shape
from vqformat.errors import ConversionError
from vqformat.format.dtypes import BY_NAME

from .file_region import file_bytes
from .gguf_blocks import encode_blocks
from .gguf_forms import Bytes
from .gguf_header import Header, TensorEntry, block_size, can_dequantize, dequantized, read_header
from .source import RESERVED_PREFIX, Source

# Types that are dtypes of a .vqm
PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64", "I8": "i8", "I16": "i16", "I32": "i32", "I64": "i64"}

_MAX_IN_METADATA = 1 << 23  # bytes of a header, which has to fit into META with the rest
_MAX_USER_VALUES, _MAX_USER_NBYTES = 1 << 14, 1 << 21


def open_gguf(path: Path) -> Source:
    """Open a GGUF file of version 2 or 3, little-endian.

    Raises:
        ConversionError: It is damaged, has another version, or has a tensor of an unknown type.
        EncodeError: A ``.vqm`` cannot hold the name or shape of a tensor.
    """
    with path.open("rb") as stream:
        header = read_header(stream, repr(str(path)))
        size = stream.seek(0, 2)
    tensors = []
    for entry in header.tensors:
        check_name(entry.name)
        check_shape(entry.name, entry.shape)
        end = header.data_start + entry.offset + entry.nbytes
        if end > size:
            raise ConversionError(f"{str(path)!r} is a GGUF file that cannot be read: tensor {entry.name!r} of"
                                  f" {entry.nbytes} bytes ends at {end}, beyond the end at {size}; it is cut short or"
                                  " damaged")  # fmt: skip
        tensors.append(_tensor(path, header, entry))
    notes: list[str] = []
    origin: dict[str, Any] = {"format": "gguf", "nbytes": size, "header": header.data}
    if len(header.data) > _MAX_IN_METADATA:
        origin["header"] = _free_name({entry.name for entry in header.tensors})
        data = np.frombuffer(header.data, np.uint8)
        tensors.append(SourceTensor(origin["header"], "u8", data.shape, lambda: data))
        notes.append(f"the metadata has {len(header.data):,} bytes: it is the tensor {origin['header']!r}")
    types = [[entry.name, entry.kind, list(entry.shape)] for entry in header.tensors if entry.kind not in PLAIN]
    if types:
        origin["ggml_types"] = types
    gaps = _gaps(path, header, size, notes)
    if gaps:
        origin["gaps"] = gaps
    n_parts = header.metadata.get("split.count")
    if isinstance(n_parts, int) and n_parts > 1:
        notes.append(f"this is one of {n_parts} files of a model: each is converted on its own")
    return Source("gguf", tensors, user_metadata(header), notes, origin)


def user_metadata(header: Header) -> dict[str, Any]:
    """The strings, integers and truth values of the metadata. The header has all of the metadata."""
    shown: dict[str, Any] = {}
    nbytes = 0
    for key, value in header.metadata.items():
        is_text = key.isprintable() or key.encode(errors="ignore").decode() == key  # no surrogates
        if value is None or key.startswith(RESERVED_PREFIX) or not is_text:
            continue
        nbytes += len(key) + (len(value) if isinstance(value, str) else 8)
        if nbytes > _MAX_USER_NBYTES or len(shown) >= _MAX_USER_VALUES:
            break
        shown[key] = value
    return shown


def quantized(
    name: str, kind: str, shape: tuple[int, ...], load_blocks: Callable[[], Bytes],
    load: Callable[[], npt.NDArray[Any]] | None = None,
) -> SourceTensor:  # fmt: skip
    """A tensor of a quantized type, with at least one block.

    Args:
        load_blocks: Gives ``(n_blocks, bytes of a block)``.
        load: Gives the values, if there is a quicker way than from the blocks.
    """
    weights, nbytes = block_size(kind)
    n_blocks = prod(shape) // weights
    form = StoredForm(kind, n_blocks * nbytes, load_blocks,
                      lambda: encode_blocks(name, kind, shape, load_blocks()))  # fmt: skip
    if not can_dequantize(kind):  # gguf knows the size of each type, and the values of some
        return SourceTensor(name, "u8", (nbytes, n_blocks), lambda: load_blocks().T, form=form)
    return SourceTensor(name, "f32", shape, load or (lambda: dequantized(kind, shape, load_blocks())), form=form)


def _tensor(path: Path, header: Header, entry: TensorEntry) -> SourceTensor:
    read = partial(file_bytes, path, header.data_start + entry.offset, entry.nbytes)
    dtype = PLAIN.get(entry.kind, "f32")
    if entry.kind in PLAIN or not entry.nbytes:
        return SourceTensor(entry.name, dtype, entry.shape,
                            lambda: read().view(BY_NAME[dtype].numpy).reshape(entry.shape))  # fmt: skip
    nbytes = block_size(entry.kind)[1]
    return quantized(entry.name, entry.kind, entry.shape, lambda: read().reshape(-1, nbytes))


def _free_name(names: set[str]) -> str:
    name = "gguf.header"
    while name in names:
        name += "_"
    return name


def _gaps(path: Path, header: Header, size: int, notes: list[str]) -> list[list[Any]]:
    """Offset and bytes of each gap between tensors that is not all zero, as padding is."""
    spans = sorted((header.data_start + entry.offset, entry.nbytes) for entry in header.tensors if entry.nbytes)
    gaps = []
    position = len(header.data)
    for start, nbytes in [*spans, (size, 0)]:
        gaps.append((position, start - position))
        position = start + nbytes
    total = sum(nbytes for _, nbytes in gaps)
    if total > header.most_gap_nbytes:
        notes.append(f"left out {total:,} bytes that belong to no tensor; an extracted file is without them")
        return []
    found = [(offset, file_bytes(path, offset, nbytes)) for offset, nbytes in gaps if nbytes > 0]
    return [[offset, data.tobytes()] for offset, data in found if data.any()]
