"""Tensors that are decoded whenever an operation needs their values; the values are not kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..read.safe_open import safe_open
from ..read.torch_arrays import torch_dtype

# Operations that need no values. All other operations decode the tensor.
_T: Any = torch.Tensor  # as Any: the type checker does not know that its attributes are descriptors
_SHAPE_AND_DTYPE = frozenset({
    _T.shape.__get__, _T.dtype.__get__, _T.ndim.__get__, _T.layout.__get__, _T.requires_grad.__get__,
    _T.is_leaf.__get__, _T.grad_fn.__get__, _T.itemsize.__get__, _T.nbytes.__get__, _T.size, _T.dim, _T.numel,
    _T.nelement, _T.element_size, _T.stride, _T.is_contiguous, _T.is_floating_point, _T.is_complex, _T.__len__,
    _T.grad.__get__, _T.is_sparse.__get__, _T.is_quantized.__get__, _T.is_nested.__get__, _T.is_signed, _T.is_conj,
    _T.is_neg, _T.storage_offset,
})  # fmt: skip
_IS_META = _T.is_meta.__get__
_IS_CUDA, _IS_CPU = _T.is_cuda.__get__, _T.is_cpu.__get__
_DEVICE = _T.device.__get__


class DeferredTensor(torch.Tensor):
    """A tensor with a shape, a dtype and a device, whose values are decoded by each operation that needs them."""

    _decode: Callable[[], torch.Tensor]
    _device: torch.device

    @classmethod
    def make(
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, decode: Callable[[], torch.Tensor]
    ) -> Any:
        """Make one.

        Args:
            shape, dtype, device: Of the decoded tensor.
            decode: Returns the decoded tensor.
        """
        deferred: DeferredTensor = torch.Tensor._make_subclass(cls, torch.empty(shape, dtype=dtype, device="meta"))
        deferred._decode, deferred._device = decode, device
        return deferred

    @classmethod
    def __torch_function__(cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:  # fmt: skip
        if func in _SHAPE_AND_DTYPE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func == _IS_META:
            return False
        if func == _DEVICE:
            return args[0]._device
        if func in (_IS_CUDA, _IS_CPU):
            return args[0]._device.type == ("cuda" if func == _IS_CUDA else "cpu")
        return func(*_decoded(args), **{key: _decoded(value) for key, value in (kwargs or {}).items()})


def deferred_state(files: Iterable[safe_open[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of files opened for PyTorch, by name. Whatever the number of threads, one is decoded at a time."""
    lock = threading.Lock()
    return {name: deferred_tensor(file, name, lock) for file in files for name in file}


def deferred_tensor(
    file: safe_open[torch.Tensor], name: str, lock: AbstractContextManager[Any] | None = None
) -> torch.Tensor:
    """The tensor ``name`` of a file opened for PyTorch. A 4-bit tensor is decoded at once, since its shape changes.

    Args:
        lock: Held while it is decoded.
    """

    def decode() -> torch.Tensor:
        with lock or nullcontext():
            return file[name]

    info = file.get_slice(name)
    shape, dtype = tuple(info.get_shape()), info.get_dtype().lower()
    found = torch_dtype(dtype)
    if found is None:
        return file[name]
    made: torch.Tensor = DeferredTensor.make(shape, found, torch.device("cpu"), decode)
    return made


def _decoded(value: Any) -> Any:
    if isinstance(value, DeferredTensor):
        return value._decode()
    if isinstance(value, (list, tuple)):
        items = [_decoded(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
