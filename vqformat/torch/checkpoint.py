"""Checkpoints and state dicts by their structure in ``vqm.source`` (SPEC 18): what lies beside the tensors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import ConversionError
from ..format.checkpoint import Special, from_json


def read_checkpoint(text: Any, tensors: Mapping[str, Any], left_out: list[str]) -> Any:
    """The checkpoint whose structure is ``checkpoint`` of ``vqm.source``.

    Args:
        tensors: By name.
        left_out: Gets a line for each value that could not be kept when the ``.vqm`` was written.

    Raises:
        ConversionError: The structure cannot be read.
    """
    if not isinstance(text, str):
        raise ConversionError("the structure of the PyTorch checkpoint in vqm.source is no string; extract to"
                              " .safetensors or .npz")  # fmt: skip
    return from_json(text, tensors, _SPECIALS, left_out)


def _dtype(parts: list[Any]) -> torch.dtype:
    (name,) = parts
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{str(name)[:40]!r} is no dtype")
    return dtype


def _device(parts: list[Any]) -> torch.device:
    (name,) = parts
    return torch.device(name)


def _numbers(parts: list[Any]) -> list[Any]:
    (tensor,) = parts
    if tensor.ndim != 1:
        raise ValueError("numbers that are no vector")
    found: list[Any] = tensor.tolist()
    return found


def _quantized(parts: list[Any]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that quantized tensors will go; these are what the source had
        return _make_quantized(*parts)


def _make_quantized(scheme: str, values: Any, scale: Any, zero_point: Any, axis: int | None) -> torch.Tensor:
    if scheme == "per_tensor_affine":
        return torch._make_per_tensor_quantized_tensor(values, float(scale), int(zero_point))
    if scheme not in ("per_channel_affine", "per_channel_affine_float_qparams") or type(axis) is not int:
        raise ValueError(f"the quantization {str(scheme)[:40]!r}")
    if not 0 <= axis < values.ndim or scale.shape != zero_point.shape or scale.shape != values.shape[axis : axis + 1]:
        raise ValueError("scales that do not fit the axis")
    return torch._make_per_channel_quantized_tensor(values, scale, zero_point, axis)


_SPARSE = {"sparse_csr": torch.sparse_csr, "sparse_csc": torch.sparse_csc, "sparse_bsr": torch.sparse_bsr,
           "sparse_bsc": torch.sparse_bsc}  # fmt: skip


def _sparse(parts: list[Any]) -> torch.Tensor:
    layout, values, *rest = parts
    n_indices = 1 if layout == "sparse_coo" else 2
    indices, size = rest[:n_indices], rest[n_indices:]
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in size):
        raise ValueError("a size that is none")
    if layout == "sparse_coo":
        return torch.sparse_coo_tensor(indices[0], values, size, check_invariants=True)
    if layout not in _SPARSE:
        raise ValueError(f"the layout {str(layout)[:40]!r}")
    compressed, plain = indices
    return torch.sparse_compressed_tensor(compressed, plain, values, size, layout=_SPARSE[layout],
                                          check_invariants=True)  # fmt: skip


_SPECIALS: dict[str, Special] = {
    "dtype": _dtype, "device": _device, "numbers": _numbers, "quantized": _quantized, "sparse": _sparse,
}  # fmt: skip
