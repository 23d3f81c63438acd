"""Weights that were dequantized, as the lossless benchmark takes them: by kind, with the bytes of codes and scales."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

FLOAT32 = np.float32, np.float32  # of weights and scales
BF16 = np.dtype(ml_dtypes.bfloat16), np.float32
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)  # fmt: skip


class Quantized(NamedTuple):
    """A tensor and the bytes that an ideal coder takes for its codes, each for itself, and its scales."""

    kind: str
    values: np.ndarray
    ideal_nbytes: float


def quantized(shape: tuple[int, int]) -> Iterator[Quantized]:
    """Normal weights, quantized in the usual ways and expanded again."""
    weights = 0.02 * np.random.default_rng(0).standard_normal(shape, np.float32)
    for peak, name in ((127, "int8"), (7, "int4")):
        yield _scaled(f"{name} by rows, float32", weights, (1, shape[1]), _integers(peak), FLOAT32)
        yield _scaled(f"{name} in 128, float32", weights, (1, 128), _integers(peak), FLOAT32)
        yield _scaled(f"{name} in 128, float16", weights, (1, 128), _integers(peak), (np.float16, np.float16))
    yield _scaled("int8 by rows, bfloat16", weights, (1, shape[1]), _integers(127), BF16)
    yield _scaled("int8 by columns, float32", weights, (shape[0], 1), _integers(127), FLOAT32)
    yield _scaled("int4 by rows with -0, float32", weights, (1, shape[1]), lambda x: np.rint(7 * x), FLOAT32)
    yield _scaled("nf4 in 64, bfloat16", weights, (1, 64), _nf4, BF16)
    yield _scaled("e4m3 by tensor, bfloat16", weights, shape, _float8(ml_dtypes.float8_e4m3fn), BF16)
    yield _scaled("e4m3 in 128 x 128, bfloat16", weights, (128, 128), _float8(ml_dtypes.float8_e4m3fn), BF16)
    yield _scaled("ternary by rows, bfloat16", weights, (1, shape[1]),
                  lambda x: np.clip(np.rint(x * 5), -1, 1) + np.float32(0), BF16)  # fmt: skip
    yield _asymmetric("int4 with zeros in 128, float16", weights)
    for bits, dtype in ((4, np.float16), (4, ml_dtypes.bfloat16), (4, np.float32), (8, np.float16), (8, np.float32)):
        yield _with_offsets(f"int{bits} and offsets in 64, {np.dtype(dtype).name}", weights, bits, dtype, np.float32)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        yield _with_offsets(f"int4 and offsets in 64, all in {np.dtype(dtype).name}", weights, 4, dtype, dtype)
    ratios = weights / np.abs(weights).max(axis=1, keepdims=True)
    for kind, codes in {"int8": np.rint(127 * ratios).astype(np.int8),
                        "float8_e4m3fn": (448 * ratios).astype(ml_dtypes.float8_e4m3fn)}.items():  # fmt: skip
        yield Quantized(f"{kind}, as such", codes, _entropy_nbytes(codes.view(np.uint8)))
    pruned = np.where(np.random.default_rng(1).random(shape) < 0.5, np.float32(0), weights)
    yield Quantized("half zeros, float32", pruned, pruned.size * (1 + 0.5 * 26.6) / 8)


def _scaled(
    kind: str, weights: np.ndarray, group: tuple[int, int], units: Any, dtypes: tuple[Any, Any]
) -> Quantized:
    (rows, columns), (dtype, scale_dtype) = group, dtypes
    grouped = weights.reshape(weights.shape[0] // rows, rows, weights.shape[1] // columns, columns)
    peaks = np.abs(grouped).max(axis=(1, 3), keepdims=True)
    points = units(grouped / peaks)
    scales = (peaks / np.abs(points).max(axis=(1, 3), keepdims=True)).astype(scale_dtype).astype(np.float32)
    values = (points * scales).astype(dtype).reshape(weights.shape)
    codes = np.where((points == 0) & np.signbit(points), np.float32(1e-9), points)  # -0 is a code of its own
    return Quantized(kind, values, _entropy_nbytes(codes) + scales.size * np.dtype(scale_dtype).itemsize)


def _asymmetric(kind: str, weights: np.ndarray) -> Quantized:
    """As of GPTQ and AWQ: (q - zero) · scale."""
    groups = weights.reshape(-1, 128)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    scales = ((high - low) / 15).astype(np.float16).astype(np.float32)
    zeros = np.rint(-low / scales)
    codes = np.clip(np.rint(groups / scales) + zeros, 0, 15) - zeros
    return Quantized(kind, (codes * scales).astype(np.float16).reshape(weights.shape),
                     _entropy_nbytes(codes) + 2 * scales.size)  # fmt: skip


def _with_offsets(kind: str, weights: np.ndarray, bits: int, dtype: Any, arithmetic: Any) -> Quantized:
    """As of MLX, torchao and GGUF Q4_1: q · scale + offset. Sums of short floats are rounded twice."""
    groups = weights.reshape(-1, 64)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    scales, offsets = ((high - low) / (2**bits - 1)).astype(dtype), low.astype(dtype)
    codes = np.clip(np.rint((groups - offsets.astype(np.float32)) / scales.astype(np.float32)), 0, 2**bits - 1)
    sums = codes.astype(arithmetic) * scales.astype(arithmetic) + offsets.astype(arithmetic)
    return Quantized(kind, sums.astype(dtype).reshape(weights.shape),
                     _entropy_nbytes(codes) + 2 * scales.nbytes)  # fmt: skip


def _integers(peak: int) -> Any:
    return lambda ratios: np.rint(peak * ratios) + np.float32(0)


def _float8(dtype: Any) -> Any:
    largest = float(ml_dtypes.finfo(dtype).max)
    return lambda ratios: (largest * ratios).astype(dtype).astype(np.float32) + np.float32(0)


def _nf4(ratios: np.ndarray) -> np.ndarray:
    return NF4[np.searchsorted((NF4[1:] + NF4[:-1]) / 2, ratios)]


def _entropy_nbytes(codes: np.ndarray) -> float:
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(shares * np.log2(shares)).sum() * codes.size / 8)
