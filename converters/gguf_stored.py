"""Tensors of a ``.vqm`` that came from a GGUF file, quantized as they were there (SPEC section 18)."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from vqformat import safe_open
from vqformat.encode.source import SourceTensor
from vqformat.format.records import TensorRecord
from vqformat.format.stages import RawStage

from .gguf import PLAIN, quantized
from .gguf_blocks import decode_blocks, holds_blocks
from .gguf_forms import Bytes
from .gguf_header import block_size


def with_blocks(file: safe_open, tensors: list[SourceTensor], types: object) -> list[SourceTensor]:
    """The tensors. Those whose blocks can be restored become quantized tensors.

    Args:
        types: ``ggml_types`` of SPEC section 18; anybody may have written it.
    """
    known = {}
    for entry in types if isinstance(types, list) else []:
        match entry:
            case [str(name), str(kind), list(shape)] if all(type(size) is int and size > 0 for size in shape):
                known[name] = kind, tuple(shape)
    return [_with_blocks(file, tensor, *known[tensor.name]) if tensor.name in known and tensor.alias_of is None
            else tensor for tensor in tensors]  # fmt: skip


def _with_blocks(file: safe_open, tensor: SourceTensor, kind: str, shape: tuple[int, ...]) -> SourceTensor:
    try:
        weights, nbytes = block_size(kind)
    except KeyError:
        return tensor
    record = file._reader.record(tensor.name)
    n_blocks = prod(shape) // weights
    is_whole = bool(shape) and shape[-1] % weights == 0 and kind not in PLAIN
    if not is_whole or not holds_blocks(record, kind, shape, nbytes, n_blocks):
        return tensor
    return quantized(tensor.name, kind, shape, lambda: _blocks(file, record, kind),
                     tensor.load if record.dtype == "f32" else None)  # fmt: skip


def _blocks(file: safe_open, record: TensorRecord, kind: str) -> Bytes:
    if isinstance(record.stages[0], RawStage):
        planes: Any = file[record.name]  # (bytes of a block, n_blocks)
        return np.ascontiguousarray(planes.T)
    return decode_blocks(kind, *file._reader.sections(record.name))
