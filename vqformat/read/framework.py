"""The form of decoded tensors that a caller asks for: NumPy arrays or PyTorch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Generic, Literal, SupportsIndex, cast

import numpy as np
import numpy.typing as npt

from ..format.dtypes import BY_NAME

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeVar

    Tensor = TypeVar("Tensor", default=Any)  # of a framework
    Device = str | int | torch.device
else:
    from typing import TypeVar

    Tensor = TypeVar("Tensor")

Array = npt.NDArray[Any]
NumPy = Literal["np", "numpy"]
PyTorch = Literal["pt", "torch"]
IndexItem = SupportsIndex | slice | EllipsisType | None | Array | Sequence[int]
Index = IndexItem | tuple[IndexItem, ...]  # as NumPy takes it


class Framework(Generic[Tensor]):
    """Converts decoded arrays to NumPy arrays, or to PyTorch tensors on a device.

    Args:
        name: ``"np"`` or ``"numpy"``, ``"pt"`` or ``"torch"``.
        device: Device of PyTorch tensors. For arrays only ``"cpu"`` is allowed.

    Raises:
        ValueError: The name is unknown, or the device is not allowed.
        ImportError: PyTorch is not installed.
    """

    def __init__(self, name: str, device: Any) -> None:
        if name not in ("np", "numpy", "pt", "torch"):
            raise ValueError(f"framework is {name!r}; 'np', 'numpy', 'pt' and 'torch' are allowed")
        self._is_torch = name in ("pt", "torch")
        self._device = device
        if self._is_torch:
            from .torch_arrays import from_numpy  # here, so that a missing PyTorch is reported at once

            self._from_numpy = from_numpy
        elif str(device) != "cpu":
            raise ValueError(f"device is {device!r}; arrays are on 'cpu'")

    def give(self, array: Array) -> Tensor:
        """Convert a decoded array."""
        given = self._from_numpy(np.asarray(array)).to(self._device) if self._is_torch else array
        return cast("Tensor", given)


def as_output(out: Any, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """The memory of a caller's array or PyTorch tensor, as an array into which a tensor can be decoded.

    Args:
        out: NumPy array, or PyTorch tensor on the CPU.
        name, dtype, shape: Of the tensor that will be decoded.

    Raises:
        ValueError: ``out`` has another shape or dtype, is not C-contiguous, or is read-only.
        TypeError: ``out`` is neither an array nor a tensor.
    """
    if hasattr(out, "detach"):
        from .torch_arrays import memory_of

        out = memory_of(out, name)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"tensor {name!r}: expected an array, not a {type(out).__name__}")
    if out.shape != shape or out.dtype != BY_NAME[dtype].numpy:
        raise ValueError(f"tensor {name!r} has shape {shape} and dtype {BY_NAME[dtype].numpy}, the array has"
                         f" {out.shape} and {out.dtype}")  # fmt: skip
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"tensor {name!r}: the array must be C-contiguous and writable")
    return out


def spelled_as_safetensors(dtype: str) -> str:
    """The name of a dtype in safetensors, such as ``"F32"`` or ``"F8_E4M3"``; upper case where that has none."""
    return {"f8_e4m3fn": "F8_E4M3"}.get(dtype, dtype.upper())
