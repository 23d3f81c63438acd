"""Conversion of PyTorch tensors to NumPy arrays, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EncodeError, UnsupportedError, missing_package

try:
    import torch
except ImportError as err:
    raise missing_package("vqformat.torch needs", "torch", err) from err

from ..format.bits import pack_nibbles, unpack_nibbles
from ..format.dtypes import DTYPES

_PAIRS = "float4_e2m1fn_x2"  # PyTorch's name of f4_e2m1fn; it packs two elements of the last axis into a byte
_TORCH_NAMES = {dtype.name: _PAIRS if dtype.name == "f4_e2m1fn" else dtype.numpy_name for dtype in DTYPES
                if dtype.name not in ("u4", "i4")}  # fmt: skip
_NAMES = {getattr(torch, torch_name): name for name, torch_name in _TORCH_NAMES.items() if hasattr(torch, torch_name)}
_WORDS = {1: (torch.uint8, np.uint8), 2: (torch.int16, np.int16)}  # for dtypes that NumPy itself lacks, by bytes


def from_numpy(array: npt.NDArray[Any]) -> torch.Tensor:
    """Convert an array to a tensor. Both share memory if possible.

    bf16 and f8 share memory. Two elements of f4 along the last axis are packed into a byte, as PyTorch stores them.
    PyTorch has no u4 and i4: they become uint8 and int8.

    Raises:
        UnsupportedError: The installed PyTorch does not have the dtype.
    """
    name = array.dtype.name
    if name in ("uint4", "int4"):
        return torch.from_numpy(array.astype(name.replace("4", "8")))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    if name == "float4_e2m1fn":
        if not array.ndim or array.shape[-1] % 2:
            raise UnsupportedError(f"a tensor of dtype f4_e2m1fn and shape {array.shape}: PyTorch keeps two elements to"
                                   " a byte along the last axis, which must be even")  # fmt: skip
        packed = np.frombuffer(pack_nibbles(np.ascontiguousarray(array).view(np.uint8)), np.uint8).copy()
        pairs = torch.from_numpy(packed.reshape(*array.shape[:-1], array.shape[-1] // 2))
        return pairs.view(_existing_dtype(_PAIRS))
    if hasattr(np, name):
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    return torch.from_numpy(array.view(_WORDS[array.itemsize][1])).view(_existing_dtype(name))


def to_numpy(tensor: torch.Tensor, name: str = "") -> npt.NDArray[Any]:
    """Convert a tensor to an array, the inverse of ``from_numpy``. Both share memory if possible.

    Args:
        name: Name of the tensor, for error texts.

    Raises:
        EncodeError: A ``.vqm`` cannot hold the tensor.
    """
    dtype = dtype_name(tensor, name)
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if hasattr(np, tensor_name := _TORCH_NAMES[dtype]):
        array: npt.NDArray[Any] = tensor.numpy()
        # The bools of a loaded checkpoint may have other bytes than 0 and 1: every byte other than 0 is true
        return array.view(np.uint8) != 0 if dtype == "bool" else array
    info = next(info for info in DTYPES if info.name == dtype)
    if tensor_name == _PAIRS:
        packed = tensor.contiguous().view(torch.uint8).numpy()
        nibbles = unpack_nibbles(packed.reshape(-1), 2 * packed.size)
        return nibbles.view(info.numpy).reshape(logical_shape(tensor))
    word = _WORDS[info.bits // 8]
    return tensor.view(word[0]).numpy().view(info.numpy)


def memory_of(tensor: torch.Tensor, name: str) -> npt.NDArray[Any]:
    """An array that shares the memory of a tensor, so that writing to the array changes the tensor.

    Args:
        name: Name of the tensor, for error texts.

    Raises:
        ValueError: The tensor is not on the CPU, or an array cannot describe its memory.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"tensor {name!r}: expected a contiguous tensor on the CPU, not one on {tensor.device}")
    if tensor.dtype == torch.bool:
        return tensor.view(torch.uint8).numpy().view(np.bool_)
    array = to_numpy(tensor, name)
    if array.size and array.ctypes.data != tensor.data_ptr():
        raise ValueError(f"tensor {name!r}: the tensor of dtype {tensor.dtype} is packed, conjugate or negative; its"
                         " memory cannot be filled in place")  # fmt: skip
    return array


def dtype_name(tensor: torch.Tensor, name: str) -> str:
    """The name of a tensor's dtype in SPEC 7.1.

    Args:
        name: Name of the tensor, for error texts.

    Raises:
        EncodeError: A ``.vqm`` cannot hold the tensor; the message says what to do.
    """
    if tensor.is_nested:
        raise EncodeError(f"tensor {name!r} is a nested tensor; store its parts, tensor.unbind(), under names of their"
                          " own")  # fmt: skip
    if tensor.is_quantized:
        raise EncodeError(f"tensor {name!r} is a quantized tensor; store tensor.dequantize(), or tensor.int_repr() and"
                          " its scales")  # fmt: skip
    if tensor.layout != torch.strided:
        raise EncodeError(f"tensor {name!r} has layout {tensor.layout}; store tensor.to_dense()")
    if tensor.is_meta:
        raise EncodeError(f"tensor {name!r} is on the meta device: it has no values")
    dtype = _NAMES.get(tensor.dtype)
    if dtype is None:
        raise EncodeError(f"tensor {name!r} has dtype {tensor.dtype}, which a .vqm cannot hold; convert it with"
                          " tensor.to(…) first")  # fmt: skip
    return dtype


def logical_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape in elements. For f4 the last axis is twice as long as in PyTorch, which counts pairs."""
    shape = tuple(tensor.shape)
    return (*shape[:-1], 2 * shape[-1]) if _NAMES.get(tensor.dtype) == "f4_e2m1fn" else shape


def torch_dtype(name: str) -> torch.dtype | None:
    """The PyTorch dtype of a name in SPEC 7.1; None for 4-bit dtypes, which PyTorch lacks or packs in pairs.

    Raises:
        UnsupportedError: The installed PyTorch does not have the dtype.
    """
    if name not in _TORCH_NAMES or _TORCH_NAMES[name] == _PAIRS:
        return None
    return _existing_dtype(_TORCH_NAMES[name])


def identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A key that is equal for two tensors if they have the same device, memory, shape, strides, dtype and flags."""
    return (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype,
            tensor.is_conj(), tensor.is_neg())  # fmt: skip


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """The memory format of a tensor: channels last, or contiguous."""
    formats = (torch.channels_last, torch.channels_last_3d)
    return next((f for f in formats if tensor.is_contiguous(memory_format=f)), torch.contiguous_format)


def _existing_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise UnsupportedError(f"PyTorch {torch.__version__} has no dtype {name}; a newer one may")
    assert isinstance(dtype, torch.dtype)
    return dtype
