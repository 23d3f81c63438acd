"""Tensors in preset ``small``, step by step: quantized, coded, and what a decoder is to find."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

import vqformat
from vqformat.encode.methods.layout import reals
from vqformat.encode.small import small
from vqformat.encode.small.coded_tensor import CodedTensor
from vqformat.encode.small.entropy_coding import Pool
from vqformat.format.chunkwriter import ChunkWriter
from vqformat.format.dtypes import of_array

Array = np.ndarray[Any, Any]


def saved(array: Array, **options: Any) -> bytes:
    """A file of the one tensor ``w``."""
    file = io.BytesIO()
    vqformat.save_file({"w": array}, file, preset="small", **options)
    return file.getvalue()


def method(data: bytes) -> str:
    """What is said of ``w``."""
    with vqformat.safe_open(io.BytesIO(data)) as file:
        return file.info("w").method


def quantized(array: Array, step: float = 0.3, **options: Any) -> CodedTensor:
    settings = small.Settings(**options)
    return small.quantize("w", of_array(array, "w").name, array.shape, reals(array), step, settings=settings).coded


def written(*tensors: CodedTensor) -> bytes:
    """A file of tensors that share their tables."""
    pool, stream = Pool.of(tensors), io.BytesIO()
    with ChunkWriter(stream) as writer:
        number = writer.add_freq(pool.record, pool.section)
        writer.add_layer("", [pool.encode(tensor, number) for tensor in tensors])
    return stream.getvalue()


def decoded(coded: CodedTensor) -> Array:
    """What a decoder is to find in a file of this tensor alone, in its shape."""
    axes = coded.layout.axes or tuple(range(len(coded.shape)))
    permuted = Pool.of([coded]).decoded(coded).reshape([coded.shape[axis] for axis in axes])
    return np.ascontiguousarray(permuted.transpose(np.argsort(axes)))
