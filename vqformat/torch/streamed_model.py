"""``stream_model``: running a model whose weights stay in the file and are decoded when they are needed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor, nn

from ..files import Path
from ..forks import ForkSafeLock
from ..read.safe_open import safe_open
from ..read.shards import Shards, opened_model
from ..read.torch_arrays import torch_dtype
from .checkpoint import saved_state
from .loading import Device, Members, leave_meta, load_state
from .module_patches import WeightSwap, patch
from .streamed_weight import StreamedWeight
from .weight_store import WeightStore

_SMALLEST_STREAMED_NBYTES = 1 << 16  # smaller tensors stay in memory: norms, biases, running statistics
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")


def stream_model(
    model: nn.Module,
    filename: Path | BinaryIO,
    *,
    keep: Literal["file", "memory"] = "file",
    prefetch: int = 1,
    strict: bool = True,
    device: Device = "cpu",
    max_weight_bytes: int = 1 << 27,
    threads: int | None = None,
) -> nn.Module:
    """Make a model read its weights from a file whenever it runs, for inference in little memory.

    Each parameter and buffer of 64 KiB or more is replaced by a tensor that is decoded for each operation that needs
    it, and dropped after the operation. An ``Embedding`` decodes only the blocks of the rows that are looked up.
    Smaller parameters and buffers are loaded. Forward methods may use ``module.weight`` in any way, and tied weights
    stay tied. Under ``torch.no_grad()`` the outputs equal those of a model that ``load_model`` has filled, bit for bit
    unless a weight is larger than ``max_weight_bytes``. Several threads may run the model. ``state_dict()`` decodes
    all tensors. The file must not change while the model is used.

    Run the model under ``torch.no_grad()`` or ``torch.inference_mode()``. Otherwise PyTorch keeps the decoded weights
    for the gradients. (Inputs can have gradients; streamed weights cannot.)

    Args:
        model: A model with weights, or on the meta device. It is changed in place, and its own weights are freed.
        filename: Path, or a binary file that can seek and stays open.
        keep: ``"file"`` reads the file in each run. ``"memory"`` keeps the bytes of the file, compressed, in memory.
        prefetch: How many weights a thread decodes ahead, in the order in which they were needed last time.
        strict: Whether the names in the file and in the model must be the same.
        device: Device of parameters and buffers that are on the meta device.
        max_weight_bytes: A larger weight of a ``Linear`` is never decoded whole. The product is computed block by block
            in another order of summation, so that rounding may differ.
        threads: Threads that decode a weight; None for the number of processors, but at most 8.

    Returns:
        The model.

    Raises:
        RuntimeError: A shape differs, or names differ and ``strict`` is true.
        ValueError: The model is of a kind that cannot be streamed.
        VqmError: The file is refused.
    """
    if keep not in ("file", "memory"):
        raise ValueError(f"keep is {keep!r}; 'file' and 'memory' are allowed")
    if not isinstance(prefetch, int) or isinstance(prefetch, bool) or prefetch < 0:
        raise ValueError(f"prefetch is {prefetch!r}; whole numbers from 0 are allowed")
    _check_kind(model)
    source: Any = filename
    if keep == "memory":
        with opened_model(filename) as opened:
            if isinstance(opened, Shards):
                source = opened.in_memory()
            else:
                opened.seek(0)
                source = io.BytesIO(opened.read())
    store = WeightStore(safe_open(source, framework="pt", threads=threads), prefetch)
    try:
        _Streaming(model, store, max_weight_bytes).begin(strict, device)
    except BaseException:
        store.close()
        raise
    return model


def _check_kind(model: nn.Module) -> None:
    """Raise ValueError unless the weights of all modules can be replaced."""
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{where} is TorchScript, which keeps its weights to itself: stream the Python model")
        if kind in _WRAPPERS:
            raise ValueError(f"{where} is a {kind}, which copies or compiles what it wraps: stream the model in it")
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(torch.nn.parameter.is_lazy(tensor) for tensor in own):
            raise ValueError(f"{where} has parameters without a shape yet: run it once, or load it")


class _Streaming:
    """Replaces the large tensors of a model by streamed ones."""

    def __init__(self, model: nn.Module, store: WeightStore, max_weight_nbytes: int) -> None:
        self._model, self._store, self._max_weight_nbytes = model, store, max_weight_nbytes
        self._places: list[tuple[Members, str, Tensor]] = []  # dict, key and original of each replaced tensor
        self._weights: dict[int, StreamedWeight] = {}  # by the ``id`` of the tensor that it replaces
        self._names: set[str] = set()  # names in the file of the streamed weights

    def begin(self, strict: bool, device: Device) -> None:
        """Replace large tensors by streamed ones, and load the others. After an error the model is unchanged."""
        model, file = self._model, self._store.file
        modules = self._find(device)
        before = [(tensor, tensor.detach().clone()) for name, tensor in _named_tensors(model)
                  if name in file and name not in self._names and not tensor.is_meta]  # fmt: skip
        for members, key, _ in self._places:
            members[key] = None  # load_state_dict skips it
        replaced: dict[str, tuple[Members, str, Tensor]] = {}
        try:
            replaced = leave_meta(model, device)
            state, lost = saved_state(file, model)
            for name in self._names:
                state.pop(name, None)
            load_state(model, state, lost, replaced, strict=strict, device=device)
        except BaseException:
            for members, key, tensor in [*self._places, *replaced.values()]:
                members[key] = tensor
            with torch.no_grad():
                for tensor, values in before:
                    tensor.copy_(values)
            raise
        for members, key, tensor in self._places:
            members[key] = self._weights[id(tensor)].tensor
        for module in modules:
            patch(module)
        lock = ForkSafeLock()
        for module in model.modules():
            WeightSwap.around_calls(module, lock)

    def _find(self, device: Device) -> list[nn.Module]:
        """Find the tensors to replace. Returns the modules that have one."""
        names = set(self._store.file)
        found = []
        modules: list[nn.Module] = []
        for prefix, module in self._model.named_modules(remove_duplicate=False):
            members: Any
            for members in (module._parameters, module._buffers):
                for key, tensor in members.items():
                    name = f"{prefix}.{key}" if prefix else key
                    if tensor is None or tensor.nbytes < _SMALLEST_STREAMED_NBYTES:
                        continue
                    found.append((members, key, tensor, module))
                    if name in names and key not in module._non_persistent_buffers_set:
                        self._take(name, tensor, torch.device(device) if tensor.is_meta else tensor.device)
        for members, key, tensor, module in found:
            if id(tensor) in self._weights:  # by this name or by another one of the same tensor
                self._places.append((members, key, tensor))
                if not any(module is other for other in modules):
                    modules.append(module)
        return modules

    def _take(self, name: str, tensor: Tensor, device: torch.device) -> None:
        """Make the streamed weight for a tensor of the model."""
        info = self._store.file.get_slice(name)
        shape = tuple(info.get_shape())
        if torch_dtype(info.get_dtype().lower()) is None:
            return
        if shape != tuple(tensor.shape):
            raise RuntimeError(f"{name!r} has shape {shape} in the file, {tuple(tensor.shape)} in the model")
        self._names.add(name)
        self._weights[id(tensor)] = StreamedWeight(self._store, name, tensor, device, self._max_weight_nbytes)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
