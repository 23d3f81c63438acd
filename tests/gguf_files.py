"""GGUF files for tests: whole ones by the gguf package, and ones of which every byte is chosen."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Kind = gguf.GGMLQuantizationType


def write(path: Path, tensors: dict[str, Any], metadata: dict[str, Any] | None = None, **types: Any) -> Path:
    """A GGUF file; ``types`` says which arrays are bytes of a quantized type."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (metadata or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, array in tensors.items():
        writer.add_tensor(name, array, raw_dtype=types.get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks_of(kind: str, n_rows: int, n_columns: int, seed: int = 0) -> np.ndarray:
    """Blocks of random codes whose scales are ordinary numbers, ``(n_rows, bytes of a row)``."""
    block, nbytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
    rng = np.random.default_rng(seed)
    weights = (0.02 * rng.standard_normal((n_rows, n_columns))).astype(np.float32)
    try:
        return gguf.quants.quantize(weights, Kind[kind])
    except NotImplementedError:
        data = rng.integers(0, 256, (n_rows * n_columns // block, nbytes), dtype=np.uint8)
        for at in _SCALES.get(kind, ()):
            data[:, at : at + 2] = (0.01 * rng.standard_normal(len(data))).astype("<f2").view(np.uint8).reshape(-1, 2)
        if kind == "NVFP4":
            data[:, :4] = rng.integers(40, 60, (len(data), 4))
        return data.reshape(n_rows, -1)


# Where the f16 numbers are in a block of those that gguf cannot make
_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,),
           "IQ4_XS": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,),
           "IQ1_S": (0,), "Q8_1": (0, 2)}  # fmt: skip


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return u64(len(data)) + data
