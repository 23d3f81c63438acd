"""Weights that were dequantized with a zero point or an offset: to the bit, near the entropy of their codes."""

from __future__ import annotations

import functools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import vqformat
from vqformat.encode.methods import affine, exact
from vqformat.encode.methods.groupings import Grouping
from vqformat.format.stages import CodebookStage, ProgressionSource, TableSource

BF16 = np.dtype(ml_dtypes.bfloat16)
F32, F16 = np.dtype(np.float32), np.dtype(np.float16)
NAMES = {BF16: "bf16", F16: "f16", F32: "f32", np.dtype(np.float64): "f64"}


@functools.cache
def quantized(bits: int, group: int, parameters: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and least values of groups of normal weights, ``(n_groups, group)`` and ``(n_groups, 1)``."""
    weights = 0.02 * np.random.default_rng(0).standard_normal((64, 512), np.float32).reshape(-1, group)
    least, most = weights.min(axis=1, keepdims=True), weights.max(axis=1, keepdims=True)
    scales = ((most - least) / (2**bits - 1)).astype(parameters).astype(np.float32)
    offsets = least.astype(parameters).astype(np.float32)
    return np.clip(np.rint((weights - offsets) / scales), 0, 2**bits - 1).astype(np.float32), scales, offsets


def encoded(values: np.ndarray) -> Any:
    """The tensor of a file that gives every bit back."""
    file = vqformat.save({"w": values}, lossless=True)
    assert vqformat.load(file)["w"].tobytes() == values.tobytes()
    return exact.encode("w", NAMES[values.dtype], values, is_lossless=True)


def entropy_nbytes(codes: np.ndarray) -> float:
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(shares * np.log2(shares)).sum() * codes.size / 8)


def is_affine(tensor: Any) -> bool:
    stages = tensor.record.stages
    return len(stages) == 2 and all(isinstance(stage, CodebookStage) and isinstance(stage.source, ProgressionSource)
                                    and stage.scale is not None for stage in stages)  # fmt: skip


@pytest.mark.parametrize(
    ("bits", "group", "parameters", "dtype"),
    [(4, 64, F16, F16), (4, 32, F16, F32), (4, 32, F16, BF16), (4, 128, BF16, BF16), (3, 64, BF16, F32),
     (8, 64, F16, F32), (8, 64, F16, F16), (4, 64, F32, F32), (2, 64, F32, F32)],
)  # fmt: skip
def test_scale_times_integer_plus_offset(
    bits: int, group: int, parameters: np.dtype[Any], dtype: np.dtype[Any]
) -> None:
    codes, scales, offsets = quantized(bits, group, parameters)
    values = (codes * scales + offsets).astype(dtype).reshape(64, 512)
    tensor = encoded(values)
    assert is_affine(tensor)
    assert tensor.stored_nbytes < (entropy_nbytes(codes) + 2 * scales.size * parameters.itemsize) / 0.95


@pytest.mark.parametrize("bits", [4, 8])
def test_products_less_products_of_zero_points(bits: int) -> None:
    codes, scales, offsets = quantized(bits, 512, F32)
    zeros = np.rint(-offsets / scales)
    values = (codes * scales - zeros * scales).reshape(64, 512)
    assert is_affine(encoded(values))


def test_groups_along_columns() -> None:
    codes, scales, offsets = quantized(4, 64, F16)
    values = (codes * scales + offsets).reshape(64, 512).T
    assert is_affine(encoded(np.ascontiguousarray(values)))


def test_float64_of_float32_sums() -> None:
    codes, scales, offsets = quantized(4, 64, F16)
    assert is_affine(encoded((codes * scales + offsets).astype(np.float64).reshape(64, 512)))


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_sums_that_were_rounded_twice_have_a_table_for_each_group(dtype: np.dtype[Any]) -> None:
    codes, scales, offsets = quantized(4, 64, dtype)
    values = (codes.astype(dtype) * scales.astype(dtype) + offsets.astype(dtype)).reshape(64, 512)
    tensor = encoded(values)
    (stage,) = tensor.record.stages
    assert isinstance(stage, CodebookStage)
    assert isinstance(stage.source, TableSource)
    assert stage.book_columns == 64
    assert tensor.stored_nbytes < values.nbytes / 2


def test_a_value_off_the_grid_and_zeros_of_both_signs_are_kept() -> None:
    codes, scales, offsets = quantized(4, 64, F16)
    values = (codes * scales + offsets).reshape(64, 512)
    values[3, 77] = np.nextafter(values[3, 77], np.float32(1))
    values[5, :64] = [0.0, -0.0] * 32
    values[7, 64:128] = 0.25
    encoded(values)


def test_a_group_of_one_value_is_an_offset() -> None:
    codes, scales, offsets = quantized(4, 64, F16)
    values = (codes * scales + offsets).reshape(64, 512)
    values[:, 128:192] = np.float32(0.375)
    assert is_affine(encoded(values))


def test_ordinary_weights_are_on_no_such_grid() -> None:
    weights = np.random.default_rng(3).standard_normal((64, 512), np.float32)
    for dtype in (F16, BF16, F32):
        assert not affine.stages(weights.astype(dtype), NAMES[dtype], Grouping(1, 1, 64))


def test_steps_beyond_the_range_of_scales_are_on_no_such_grid() -> None:
    encoded(np.tile(np.array([2.35099e-38, 131072], BF16), (2500, 2)))  # the step in float16 would be infinite
