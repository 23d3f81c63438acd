"""The tensors of a streamed model. Each is decoded for an operation that needs it, and dropped after that."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..read.torch_arrays import memory_format
from .deferred_tensor import DeferredTensor
from .weight_store import WeightStore

_T: Any = torch.Tensor
_SETTING = frozenset({_T.requires_grad_, _T.requires_grad.__set__, _T.grad.__set__})
_ADDRESSES = frozenset({_T.data_ptr, _T.untyped_storage, _T.storage, _T.share_memory_})


class StreamedWeight:
    """A weight of a streamed model, and the ways to decode it.

    Args:
        store: Decodes the tensors of the file.
        name: Name in the file.
        original: The tensor of the model that it replaces.
        device: Device of the decoded weight.
        max_weight_nbytes: A larger weight of a ``Linear`` is decoded block by block.

    Attributes:
        tensor: The tensor that stands for it in the model.
        dtype, device: Of the decoded weight.
    """

    def __init__(
        self, store: WeightStore, name: str, original: Tensor, device: torch.device, max_weight_nbytes: int
    ) -> None:
        self._store, self.name, self._max_nbytes = store, name, max_weight_nbytes
        self._is_parameter = isinstance(original, nn.Parameter)
        self._wants_grad = original.requires_grad
        self._memory_format = memory_format(original)
        self.dtype, self.device, self._shape = original.dtype, device, tuple(original.shape)
        self._begin()

    def _begin(self) -> None:
        self.tensor = self._make()
        self._n_holders = 0
        self._held: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in ("tensor", "_n_holders", "_held")}
        return state | {"_memory_format": str(self._memory_format).removeprefix("torch.")}  # for torch.save

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _memory_format=getattr(torch, state["_memory_format"]))
        self._begin()

    def _make(self) -> WeightTensor:
        made: WeightTensor = WeightTensor.make(self._shape, self.dtype, self.device, self.decode)
        made.weight = self
        if self._is_parameter:
            made._is_param = True
        return made

    def change(self, dtype: torch.dtype, device: torch.device) -> WeightTensor:
        """Change dtype and device of the decoded weight. Returns the tensor that stands for it from now on."""
        if (dtype, device) != (self.dtype, self.device):
            self.dtype, self.device = dtype, device
            self.tensor = self._make()
        return self.tensor

    @property
    def is_for_blocks(self) -> bool:
        """Whether it is so large that it should be decoded block by block."""
        return self.tensor.nbytes > self._max_nbytes

    def decode(self) -> Tensor:
        """Decode the whole weight."""
        _check_not_traced(self.name)
        with torch._C._DisableFuncTorch():  # the weight is a constant for the transforms of torch.func
            found = self._store.tensor(self.name).to(self.device, self.dtype, memory_format=self._memory_format)
            if self._wants_grad and not torch.is_grad_enabled():
                found.requires_grad_()  # it decides which kernel PyTorch uses, and kernels round differently
        return found

    def hold(self) -> Tensor:
        """Decode the whole weight and keep it until ``release`` has been called as often as ``hold``."""
        if self._held is None:
            held = self.decode()
            self._held = nn.Parameter(held, held.requires_grad) if self._is_parameter else held
        self._n_holders += 1
        return self._held

    def is_in(self, tensor: Tensor | None) -> bool:
        """Whether a tensor in the model is that of this weight, and not one that the user has assigned since."""
        return tensor is not None and (tensor is self.tensor or tensor is self._held)

    def release(self) -> Tensor:
        """End one ``hold``. Returns the tensor to put back into the model."""
        self._n_holders -= 1
        if self._n_holders:
            assert self._held is not None
            return self._held
        self._held = None
        return self.tensor

    def rows(self, numbers: Tensor) -> Tensor:
        """Decode some rows, ``(n, …)``.

        Args:
            numbers: Numbers of the rows, ``(n,)`` integers.
        """
        _check_not_traced(self.name)
        rows: Tensor = self._store.file.get_slice(self.name)[numbers.cpu().numpy()]
        return rows.to(self.device, self.dtype)

    def blocks(self) -> Iterator[tuple[Any, Any, Tensor]]:
        """Decode a matrix block by block.

        Yields:
            For each block its rows and columns, as slices or index tensors, and its values ``(n_rows, n_columns)``.
        """
        _check_not_traced(self.name)
        for index, values in self._store.file.get_slice(self.name).blocks():
            rows, columns = (*index, slice(None), slice(None))[:2]
            block = values.to(self.device, self.dtype)
            if isinstance(rows, np.ndarray) and rows.ndim == 2:
                if rows[0, 0] == rows[0, -1] and columns[0, 0] == columns[-1, 0]:
                    rows, columns = rows[:, 0], columns[0]
                else:  # the rows of a block are columns of the matrix
                    rows, columns, block = rows[0], columns[:, 0], block.T
            yield self._places(rows), self._places(columns), block

    def _places(self, places: Any) -> Any:
        return torch.from_numpy(places).to(self.device) if isinstance(places, np.ndarray) else places


def _check_not_traced(name: str) -> None:
    if torch._C._is_tracing():
        raise RuntimeError(f"{name!r} is streamed from a file, and a trace would have none of its values; trace a model"
                           " that load_model fills")  # fmt: skip


class WeightTensor(DeferredTensor):
    """The tensor that stands for a weight in a streamed model."""

    weight: StreamedWeight
    _is_param: bool

    @classmethod
    def __torch_function__(cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        if func is functional.embedding and _is_plain_lookup(*args, **kwargs):
            return _look_up(args[0], args[1].weight)
        if func is functional.linear and _is_product_by_blocks(*args, **kwargs):
            return _multiply(*args, **kwargs)
        out = kwargs.get("out")
        own = out if isinstance(out, WeightTensor) else next(iter((*args, *kwargs.values())), None)
        if isinstance(own, WeightTensor):
            name = getattr(func, "__name__", "")
            value = next(iter((*args, *kwargs.values())[1:]), True)
            if func in _SETTING and (value is None or value is False):
                return own  # it has no gradient anyway
            if func in _ADDRESSES:
                raise RuntimeError(f"{own.weight.name!r} is streamed from a file: it has no memory of its own, which"
                                   f" {name} is for, as torch.compile and torch.export ask for; load_model fills a"
                                   " model that has")  # fmt: skip
            if own is out or (name.endswith("_") and not name.endswith("__")) or name in ("__set__", "__setitem__"):
                raise RuntimeError(f"{own.weight.name!r} is streamed from a file: it cannot be changed ({name}) or"
                                   " trained; load_model fills a model that can")  # fmt: skip
            if func == _T.__reduce_ex__:
                return _tensor_of, (own.weight,)
            if func == _T.__deepcopy__:
                return copy.deepcopy(own.weight, args[1]).tensor
        return super().__torch_function__(func, types, args, kwargs)


def _tensor_of(weight: StreamedWeight) -> WeightTensor:
    """A pickled ``WeightTensor``."""
    return weight.tensor


def _is_plain_lookup(
    input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any
) -> bool:
    is_streamed = isinstance(weight, WeightTensor) and not isinstance(input, WeightTensor)
    return is_streamed and max_norm is None and input.dtype in (torch.int32, torch.int64)


def _look_up(ids: Tensor, weight: StreamedWeight) -> Tensor:
    """``F.embedding``, decoding only the rows that are needed."""
    if ids.numel() and int(ids.min()) < 0:
        raise IndexError("index out of range in self")  # the text of PyTorch
    numbers, places = torch.unique(ids, return_inverse=True)
    return functional.embedding(places, weight.rows(numbers))


def _is_product_by_blocks(input: Any, weight: Any, bias: Any = None) -> bool:
    is_streamed = isinstance(weight, WeightTensor) and not isinstance(input, WeightTensor)
    return is_streamed and weight.weight.is_for_blocks and weight.dim() == 2


def _multiply(input: Tensor, weight: WeightTensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, decoding the weight block by block. Products of blocks are added in float32 or a wider dtype."""
    if input.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"an input of shape {tuple(input.shape)} cannot be multiplied by the transpose of"
                           f" {weight.weight.name!r}, whose shape is {tuple(weight.shape)}")  # fmt: skip
    out: Tensor | None = None
    dtype = input.dtype
    for rows, columns, block in weight.weight.blocks():
        product = input[..., columns] @ block.T
        dtype = product.dtype
        if out is None:
            sums = torch.promote_types(dtype, torch.float32)
            out = torch.zeros(*input.shape[:-1], weight.shape[0], dtype=sums, device=input.device)
        out[..., rows] += product
    assert out is not None
    return (out if bias is None else out + bias).to(dtype)
