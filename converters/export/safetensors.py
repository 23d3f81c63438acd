"""Writing tensors to a safetensors file."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import numpy as np

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError
from vqformat.format.bits import pack_nibbles
from vqformat.format.dtypes import BY_NAME

from ..source import RESERVED_PREFIX, Source

# dtype name in SPEC -> name in safetensors
NAMES = {
    "bool": "BOOL", "u8": "U8", "i8": "I8", "u16": "U16", "i16": "I16", "u32": "U32", "i32": "I32", "u64": "U64",
    "i64": "I64", "f16": "F16", "bf16": "BF16", "f32": "F32", "f64": "F64", "c64": "C64", "f8_e4m3fn": "F8_E4M3",
    "f8_e5m2": "F8_E5M2", "f8_e4m3fnuz": "F8_E4M3FNUZ", "f8_e5m2fnuz": "F8_E5M2FNUZ", "f8_e8m0fnu": "F8_E8M0",
    "f4_e2m1fn": "F4",
}  # fmt: skip


def write_safetensors(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
    """Write the header, then one tensor after another, sorted by the size of elements, so that all are aligned.

    Raises:
        ConversionError: safetensors cannot hold a tensor.
    """
    for tensor in tensors:
        if tensor.dtype not in NAMES:
            raise ConversionError(f"tensor {tensor.name!r} has dtype {tensor.dtype}, which safetensors cannot hold;"
                                  " export to .pt or .npz")  # fmt: skip
        if tensor.dtype == "f4_e2m1fn" and (not tensor.shape or tensor.shape[-1] % 2):
            raise ConversionError(f"tensor {tensor.name!r} has dtype {tensor.dtype} and shape {tensor.shape}:"
                                  " safetensors needs an even last axis; export to .npz")  # fmt: skip
    metadata = {key: value for key, value in source.metadata.items() if isinstance(value, str)}
    lost = [key for key in source.metadata if key not in metadata and not key.startswith(RESERVED_PREFIX)]
    if lost:
        notes.append(f"safetensors metadata holds strings only: left out {', '.join(map(repr, lost))}")
    if source.origin.get("format") in ("pytorch", "pytorch-distributed"):
        metadata.setdefault("format", "pt")  # the transformers library requires it
    order = sorted(tensors, key=lambda tensor: -BY_NAME[tensor.dtype].bits)
    offset = 0
    entries: dict[str, Any] = {}
    for tensor in order:
        entries[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape),
                                "data_offsets": [offset, offset + tensor.nbytes]}  # fmt: skip
        offset += tensor.nbytes
    header = {"__metadata__": metadata} if metadata else {}
    header.update((tensor.name, entries[tensor.name]) for tensor in tensors)
    if "__metadata__" in entries:
        raise ConversionError("a safetensors file cannot hold a tensor of the name '__metadata__'")
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for tensor in order:
        data = np.ascontiguousarray(tensor.load()).reshape(-1).view(np.uint8)
        stream.write(pack_nibbles(data) if BY_NAME[tensor.dtype].bits == 4 else data.data)
        if tensor.alias_of is not None:
            notes.append(f"{tensor.name!r} is tied to {tensor.alias_of!r}; safetensors cannot tell: stored as a copy")
