"""What a forked process must make anew: locks, which a thread of its parent may have held, and threads."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any


class RenewedByFork:
    """Base of objects that hold a lock or threads. In a process that was forked, ``renew_after_fork`` is called."""

    def __init__(self) -> None:
        _all.add(self)

    def renew_after_fork(self) -> None:
        """Replace what the process does not have, or must not share with its parent. No other thread runs yet."""
        raise NotImplementedError


class ForkSafeLock(RenewedByFork):
    """A lock that its thread may take several times. In a forked process it is free; a copy is a lock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()

    def renew_after_fork(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return ForkSafeLock, ()


_all: weakref.WeakSet[RenewedByFork] = weakref.WeakSet()


def _renew_all() -> None:
    for renewed in list(_all):
        renewed.renew_after_fork()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_renew_all)
