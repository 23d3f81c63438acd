"""Weights decoded from the file of a streamed model, the next ones ahead of time, into memory that is used again."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..read.safe_open import safe_open
from ..read.torch_arrays import torch_dtype


class WeightStore:
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
