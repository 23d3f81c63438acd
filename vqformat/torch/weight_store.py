"""Decoding the weights of a streamed model: the next ones ahead of time, into memory that is reused."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..forks import ForkSafeLock, RenewedByFork
from ..read.safe_open import safe_open
from ..read.torch_arrays import torch_dtype


class WeightStore(RenewedByFork):
    """Decodes weights from a file. A thread decodes ahead those that followed last time.

    A forked process has a thread of its own. In a pickle it opens its file again, see ``safe_open``.

    Args:
        file: Opened for PyTorch. ``close``, or the end of the store, closes it.
        prefetch: How many weights are decoded ahead.
    """

    def __init__(self, file: safe_open[torch.Tensor], prefetch: int) -> None:
        self.file = file
        self._prefetch = prefetch
        self._lock = ForkSafeLock()
        self._following: dict[str, str] = {}  # name of a weight -> name of the weight that was needed next
        self._last = threading.local()  # for each thread the name of its last weight
        self._ahead: OrderedDict[str, Future[Tensor]] = OrderedDict()
        self._buffers = _Buffers()
        self._thread = _Thread()
        self.close = weakref.finalize(self, _close, file, self._thread)  # called when the model is freed, too
        super().__init__()

    def renew_after_fork(self) -> None:
        self._ahead.clear()  # the thread that would have decoded them is in the parent
        self._thread.pool = None

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightStore, (self.file, self._prefetch)

    def tensor(self, name: str) -> Tensor:
        """Decode a tensor, or wait for the thread that decodes it, and start to decode the next ones."""
        with self._lock:
            last = getattr(self._last, "name", None)
            if last is not None:
                self._following[last] = name
            self._last.name = name
            future = self._ahead.pop(name, None)
        tensor = self._decode(name) if future is None or future.cancel() else future.result()
        if self._prefetch:
            self._begin_next(name)
        return tensor

    def _begin_next(self, name: str) -> None:
        with self._lock:
            following: str | None = name
            for _ in range(self._prefetch):
                following = self._following.get(following or "")
                if following is None or following == name:
                    return
                if following not in self._ahead:
                    self._ahead[following] = self._thread.submit(self._decode, following)
            while len(self._ahead) > self._prefetch:  # wrong guesses from before
                self._ahead.popitem(last=False)[1].cancel()

    def _decode(self, name: str) -> Tensor:
        part = self.file.get_slice(name)
        dtype = torch_dtype(part.get_dtype().lower())
        assert dtype is not None
        tensor = self._buffers.tensor(part.get_shape(), dtype)
        part.decode_into(tensor)
        return tensor


class _Thread:
    """The thread that decodes ahead. It is started when it gets its first job."""

    pool: ThreadPoolExecutor | None = None

    def submit(self, job: Callable[[str], Tensor], name: str) -> Future[Tensor]:
        if self.pool is None:
            self.pool = ThreadPoolExecutor(1, "vqformat-prefetch")
        return self.pool.submit(job, name)


def _close(file: safe_open[torch.Tensor], thread: _Thread) -> None:
    if thread.pool is not None:
        thread.pool.shutdown(wait=False, cancel_futures=True)
    file.close()


class _Buffers:
    """Memory for decoded weights. When a weight is freed, its memory is kept for the next one.

    Allocating large memory from the system each time would cost time and fragment it.
    """

    _ALIGNMENT = 64  # of PyTorch's own allocations

    def __init__(self) -> None:
        self._free: deque[npt.NDArray[np.uint8]] = deque()

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised, contiguous tensor."""
        nbytes = prod(shape) * dtype.itemsize
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if memory.size < nbytes + self._ALIGNMENT:
            del memory  # before new memory is allocated
            memory = np.empty(nbytes + self._ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % self._ALIGNMENT
        part = memory[start : start + nbytes]  # alive as long as the tensor, or a view of it
        weakref.finalize(part, self._give_back, memory).atexit = False
        return torch.from_numpy(part).view(dtype).view(*shape)

    def _give_back(self, memory: npt.NDArray[np.uint8]) -> None:
        self._free.append(memory)
        while len(self._free) > 1:
            self._free.popleft()
