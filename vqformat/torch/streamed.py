"""Models whose weights stay in the file: each is decoded for the operation that needs it, and dropped after it."""

from __future__ import annotations

import io
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial, wraps
from math import prod
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..files import Path, opened
from ..read.access import safe_open
from ..read.torch_arrays import memory_format, torch_dtype
from .loading import Device, Members, leave_meta, mismatch, really_missing
from .pending import Pending, pending

_SMALLEST_STREAMED_NBYTES = 1 << 16  # smaller tensors stay in memory: norms, biases, running statistics
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")
_T: Any = torch.Tensor
_COPIES = frozenset({_T.__deepcopy__, _T.__reduce_ex__})
_SETTING = frozenset({_T.requires_grad_, _T.requires_grad.__set__, _T.grad.__set__})
_ADDRESSES = frozenset({_T.data_ptr, _T.untyped_storage, _T.storage, _T.share_memory_})


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
    """Let a model take its weights from a file whenever it runs, for inference in little memory.

    Every parameter and buffer of 64 KiB or more becomes a tensor that is decoded for each operation that needs it, and
    dropped after it; an ``Embedding`` decodes only the blocks of the rows that are looked up. The others are loaded.
    Whatever the forward methods do with ``module.weight`` works, tied weights stay tied, and under ``torch.no_grad()``
    outputs are those of the model that ``load_model`` fills, bit for bit unless a weight is larger than
    ``max_weight_bytes``. Several threads may run the model. ``state_dict()`` decodes everything; the file has to stay
    as it is.

    Run it under ``torch.no_grad()`` or ``torch.inference_mode()``: where gradients are recorded, PyTorch keeps the
    decoded weights for them. (They reach the inputs, not the weights.)

    Args:
        model: Live, or on the meta device. It is changed in place; its own weights are let go.
        filename: Path, or a binary file that can seek and is left open.
        keep: ``"file"`` to read the file again and again; ``"memory"`` to have its bytes, compressed, in memory.
        prefetch: How many weights a thread decodes ahead, in the order in which they were needed last time.
        strict: Refuse a file that has more or less than the model.
        device: Where parameters go that are on the meta device.
        max_weight_bytes: A larger weight of a ``Linear`` is never decoded whole: the product is taken block by block,
            and differs by what rounding makes of another order of summation.
        threads: How many decode a weight; by default as many as there are processors, 8 at most.

    Returns:
        The model.

    Raises:
        RuntimeError: A shape differs; or names do and ``strict`` is true.
        ValueError: The model is of a kind that cannot be streamed.
        VqmError: The file is refused.
    """
    if keep not in ("file", "memory"):
        raise ValueError(f"keep is {keep!r}; 'file' and 'memory' are allowed")
    if not isinstance(prefetch, int) or isinstance(prefetch, bool) or prefetch < 0:
        raise ValueError(f"prefetch is {prefetch!r}; whole numbers from 0 are allowed")
    _check_kind(model)
    if keep == "memory":
        with opened(filename) as stream:
            stream.seek(0)
            filename = io.BytesIO(stream.read())
    store = _Store(safe_open(filename, framework="pt", threads=threads), prefetch)
    try:
        _Streaming(model, store, max_weight_bytes).begin(strict, device)
    except BaseException:
        store.close()
        raise
    return model


def _check_kind(model: nn.Module) -> None:
    """Raise unless all modules keep their weights where they can be replaced."""
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
    """A model on its way to be streamed."""

    def __init__(self, model: nn.Module, store: _Store, max_weight_nbytes: int) -> None:
        self._model, self._store, self._max_weight_nbytes = model, store, max_weight_nbytes
        self._places: list[tuple[Members, str, Tensor]] = []  # of the tensors that are replaced, and those tensors
        self._weights: dict[int, _Weight] = {}  # by the identity of the tensor that it replaces
        self._names: set[str] = set()

    def begin(self, strict: bool, device: Device) -> None:
        """Replace large tensors by streamed ones and load the others; on an error the model is as it was."""
        model, file = self._model, self._store.file
        modules = self._find(device)
        before = [(tensor, tensor.detach().clone()) for name, tensor in _named_tensors(model)
                  if name in file and name not in self._names and not tensor.is_meta]  # fmt: skip
        for members, key, _ in self._places:
            members[key] = None  # load_state_dict passes by
        replaced: dict[str, tuple[Members, str, Tensor]] = {}
        try:
            replaced = leave_meta(model, device)
            state = {name: pending(file, name) for name in file if name not in self._names}
            result = model.load_state_dict(state, strict=False)
            missing, unexpected = really_missing(model, result.missing_keys), list(result.unexpected_keys)
            for name in missing:
                if name in replaced:
                    of, key, original = replaced[name]
                    of[key] = original
            if strict and (missing or unexpected):
                raise RuntimeError(mismatch(type(model).__name__, missing, unexpected))
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
            _renew_flat_weights(module)
            module._apply = partial(_apply, module)  # type: ignore[method-assign]
            module.__prepare_scriptable__ = _refuse_script  # type: ignore[assignment]
        lock = threading.RLock()
        for module in model.modules():
            _Swap.around_calls(module, lock)

    def _find(self, device: Device) -> list[nn.Module]:
        """Note what is to be replaced; the modules that have some of it."""
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
        info = self._store.file.get_slice(name)
        shape = tuple(info.get_shape())
        if torch_dtype(info.get_dtype().lower()) is None:
            return
        if shape != tuple(tensor.shape):
            raise RuntimeError(f"{name!r} has shape {shape} in the file, {tuple(tensor.shape)} in the model")
        self._names.add(name)
        self._weights[id(tensor)] = _Weight(self._store, name, tensor, device, self._max_weight_nbytes)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


class _Store:
    """The file of a model, and the weights that are decoded ahead."""

    def __init__(self, file: safe_open[torch.Tensor], prefetch: int) -> None:
        self.file = file
        self._prefetch = prefetch
        self._lock = threading.Lock()
        self._following: dict[str, str] = {}  # which weight was needed after which
        self._last = threading.local()
        self._ahead: OrderedDict[str, Future[Tensor]] = OrderedDict()
        self._buffers = _Buffers()
        self._pool = ThreadPoolExecutor(1, "vqformat-prefetch") if prefetch else None
        self.close = weakref.finalize(self, _close, file, self._pool)  # also when the model is let go

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file; the next ones are begun."""
        with self._lock:
            last = getattr(self._last, "name", None)
            if last is not None:
                self._following[last] = name
            self._last.name = name
            future = self._ahead.pop(name, None)
        tensor = self._decode(name) if future is None or future.cancel() else future.result()
        if self._pool is not None:
            self._begin_next(name)
        return tensor

    def _begin_next(self, name: str) -> None:
        assert self._pool is not None
        with self._lock:
            following: str | None = name
            for _ in range(self._prefetch):
                following = self._following.get(following or "")
                if following is None or following == name:
                    return
                if following not in self._ahead:
                    self._ahead[following] = self._pool.submit(self._decode, following)
            while len(self._ahead) > self._prefetch:  # guesses that were wrong
                self._ahead.popitem(last=False)[1].cancel()

    def _decode(self, name: str) -> Tensor:
        part = self.file.get_slice(name)
        dtype = torch_dtype(part.get_dtype().lower())
        assert dtype is not None
        tensor = self._buffers.tensor(part.get_shape(), dtype)
        part.decode_into(tensor)
        return tensor


def _close(file: safe_open[torch.Tensor], pool: ThreadPoolExecutor | None) -> None:
    if pool is not None:
        pool.shutdown(wait=False, cancel_futures=True)
    file.close()


class _Buffers:
    """Memory for decoded weights; that of one is kept for the next when nothing refers to it any more.

    Memory that is asked of the system again and again costs time, and lies scattered between what lives longer.
    """

    _ALIGNMENT = 64  # as PyTorch's own

    def __init__(self) -> None:
        self._free: deque[npt.NDArray[np.uint8]] = deque()

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor, not initialised."""
        nbytes = prod(shape) * dtype.itemsize
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if memory.size < nbytes + self._ALIGNMENT:
            del memory  # before there is other one
            memory = np.empty(nbytes + self._ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % self._ALIGNMENT
        part = memory[start : start + nbytes]  # the tensor refers to it, whatever is made of the tensor
        weakref.finalize(part, self._give_back, memory).atexit = False
        return torch.from_numpy(part).view(dtype).view(*shape)

    def _give_back(self, memory: npt.NDArray[np.uint8]) -> None:
        self._free.append(memory)
        while len(self._free) > 1:
            self._free.popleft()


class _Weight:
    """A tensor of a model that is decoded when it is needed.

    Attributes:
        tensor: Stands for it in the model.
    """

    def __init__(
        self, store: _Store, name: str, original: Tensor, device: torch.device, max_weight_nbytes: int
    ) -> None:
        self._store, self.name, self._max_nbytes = store, name, max_weight_nbytes
        self._is_parameter = isinstance(original, nn.Parameter)
        self._wants_grad = original.requires_grad
        self._memory_format = memory_format(original)
        self.dtype, self.device, self._shape = original.dtype, device, tuple(original.shape)
        self.tensor = self._make()
        self._n_holders = 0
        self._held: Tensor | None = None

    def _make(self) -> Streamed:
        made: Streamed = Streamed.make(self._shape, self.dtype, self.device, self.decode)
        made.weight = self
        if self._is_parameter:
            made._is_param = True
        return made

    def change(self, dtype: torch.dtype, device: torch.device) -> Streamed:
        """The tensor that stands for it, from now on of this dtype and on this device."""
        if (dtype, device) != (self.dtype, self.device):
            self.dtype, self.device = dtype, device
            self.tensor = self._make()
        return self.tensor

    @property
    def is_for_blocks(self) -> bool:
        """Whether it is too large to be decoded whole where that can be helped."""
        return self.tensor.nbytes > self._max_nbytes

    def decode(self) -> Tensor:
        """All of it."""
        _check_not_traced(self.name)
        with torch._C._DisableFuncTorch():  # a constant to the transforms of torch.func
            found = self._store.tensor(self.name).to(self.device, self.dtype, memory_format=self._memory_format)
            if self._wants_grad and not torch.is_grad_enabled():
                found.requires_grad_()  # PyTorch chooses by it between ways that round differently
        return found

    def hold(self) -> Tensor:
        """All of it, one and the same until each holder has let go."""
        if self._held is None:
            held = self.decode()
            self._held = nn.Parameter(held, held.requires_grad) if self._is_parameter else held
        self._n_holders += 1
        return self._held

    def is_in(self, tensor: Tensor | None) -> bool:
        """Whether this tensor is its own, and not one that the model has got since."""
        return tensor is not None and (tensor is self.tensor or tensor is self._held)

    def let_go(self) -> Tensor:
        """What stands in the place of a holder from now on."""
        self._n_holders -= 1
        if self._n_holders:
            assert self._held is not None
            return self._held
        self._held = None
        return self.tensor

    def rows(self, numbers: Tensor) -> Tensor:
        """Some of its rows, ``(n, ...)``."""
        _check_not_traced(self.name)
        rows: Tensor = self._store.file.get_slice(self.name)[numbers.cpu().numpy()]
        return rows.to(self.device, self.dtype)

    def blocks(self) -> Iterator[tuple[Any, Any, Tensor]]:
        """Rows, columns and values ``(n_rows, n_columns)`` of each block of a matrix."""
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


def _refuse_script() -> None:
    raise RuntimeError("a streamed model cannot become TorchScript, which would have no weights; script a model that"
                       " load_model fills")  # fmt: skip


class Streamed(Pending):
    """A tensor of a streamed model."""

    weight: _Weight
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
        own = out if isinstance(out, Streamed) else next(iter((*args, *kwargs.values())), None)
        if isinstance(own, Streamed):
            name = getattr(func, "__name__", "")
            value = next(iter((*args, *kwargs.values())[1:]), True)
            if func in _SETTING and (value is None or value is False):
                return own  # it has neither anyway
            if func in _ADDRESSES:
                raise RuntimeError(f"{own.weight.name!r} is streamed from a file: it has no memory of its own, which"
                                   f" {name} is for, as torch.compile and torch.export ask for; load_model fills a"
                                   " model that has")  # fmt: skip
            if own is out or (name.endswith("_") and not name.endswith("__")) or name in ("__set__", "__setitem__"):
                raise RuntimeError(f"{own.weight.name!r} is streamed from a file: it cannot be changed ({name}) or"
                                   " trained; load_model fills a model that can")  # fmt: skip
            if func in _COPIES:
                raise RuntimeError(f"{own.weight.name!r} is streamed from a file, and a model with it cannot be copied"
                                   " or pickled; copy it first, or save its state_dict")  # fmt: skip
        return super().__torch_function__(func, types, args, kwargs)


def _is_plain_lookup(
    input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any
) -> bool:
    is_streamed = isinstance(weight, Streamed) and not isinstance(input, Streamed)
    return is_streamed and max_norm is None and input.dtype in (torch.int32, torch.int64)


def _look_up(ids: Tensor, weight: _Weight) -> Tensor:
    """What ``F.embedding`` gives, from the rows that are needed."""
    if ids.numel() and int(ids.min()) < 0:
        raise IndexError("index out of range in self")  # as PyTorch says
    numbers, places = torch.unique(ids, return_inverse=True)
    return functional.embedding(places, weight.rows(numbers))


def _is_product_by_blocks(input: Any, weight: Any, bias: Any = None) -> bool:
    is_streamed = isinstance(weight, Streamed) and not isinstance(input, Streamed)
    return is_streamed and weight.weight.is_for_blocks and weight.dim() == 2


def _multiply(input: Tensor, weight: Streamed, bias: Tensor | None = None) -> Tensor:
    """What ``F.linear`` gives, from one block of the weight after the other.

    Sums of several blocks are in float32 at least.
    """
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


# Modules that hand their weights to PyTorch's own code, which looks at them first, are given real ones for a call.


class _Swap:
    """Real weights in place of streamed ones while calls of a module need them; several threads may call."""

    def __init__(self, modules: list[nn.Module], lock: threading.RLock) -> None:
        self._modules, self._lock = modules, lock
        self._places: list[tuple[Any, str, _Weight]] = [
            (members, key, tensor.weight) for module in modules for members in (module._parameters, module._buffers)
            for key, tensor in members.items() if isinstance(tensor, Streamed)]  # fmt: skip

    @classmethod
    def around_calls(cls, module: nn.Module, lock: threading.RLock) -> None:
        """Swap whenever the module is called, if it is of a kind that needs it."""
        match module:
            case nn.TransformerEncoder():
                modules = list(module.layers[0].modules())  # it looks at those of its first layer
            case nn.TransformerEncoderLayer() | nn.MultiheadAttention() | nn.RNNBase():
                modules = list(module.modules())
            case _:
                return
        swap = cls(modules, lock)
        if swap._places:
            around = swap._around(module.forward)  # not by hooks: PyTorch's quick ways are for modules without
            module.forward = around  # type: ignore[method-assign]

    def _around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def swapping(*args: Any, **kwargs: Any) -> Any:
            held: list[tuple[Any, str, _Weight]] = []
            try:
                self._enter(held)
                return forward(*args, **kwargs)
            finally:
                self._leave(held)

        return swapping

    def _enter(self, held: list[tuple[Any, str, _Weight]]) -> None:
        with self._lock:
            for members, key, weight in self._places:
                if weight.is_in(members.get(key)):
                    members[key] = weight.hold()
                    held.append((members, key, weight))
            self._renew()

    def _leave(self, held: list[tuple[Any, str, _Weight]]) -> None:
        with self._lock:
            for members, key, weight in held:
                members[key] = weight.let_go()
            self._renew()

    def _renew(self) -> None:
        for module in self._modules:
            _renew_flat_weights(module)


def _renew_flat_weights(module: nn.Module) -> None:
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What ``module._apply`` does, such as to move a model: streamed weights change dtype and device, undecoded."""
    kept: list[tuple[Any, str, Streamed]] = []
    for members in (module._parameters, module._buffers):
        for key, tensor in members.items():
            if isinstance(tensor, Streamed):
                kept.append((members, key, tensor))
    for members, key, _ in kept:
        members[key] = None
    try:
        type(module)._apply(module, function, recurse)  # type: ignore[no-untyped-call]
    finally:
        for members, key, tensor in kept:
            members[key] = tensor
    for members, key, tensor in kept:
        probe = function(torch.empty(0, dtype=tensor.weight.dtype, device=tensor.weight.device))
        members[key] = tensor.weight.change(probe.dtype, probe.device)
    _renew_flat_weights(module)
    return module
