"""What a forked process must make anew: locks, which a thread of its parent may have held, and threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

_Value = TypeVar("_Value")


class cached_property(Generic[_Value]):  # as functools names it
    """A property that is computed once for each object, without a lock.

    That of functools has one before Python 3.12, for all objects. A child of a fork would wait for a thread of its
    parent that held it. Here threads may compute a value twice; all get the first one, which stays.
    """

    def __init__(self, function: Callable[[Any], _Value]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> cached_property[_Value]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> _Value: ...

    def __get__(self, instance: object | None, owner: type) -> cached_property[_Value] | _Value:
        if instance is None:
            return self
        value: _Value = instance.__dict__.setdefault(self._name, self._function(instance))
        return value


class RenewedByFork:
    """Base of objects that hold a lock or threads. In a process that was forked, ``renew_after_fork`` is called."""

    def __init__(self) -> None:
        """Register the object. A subclass calls this when the object is complete: a fork may come directly after it."""
        _all.add(self)

    def renew_after_fork(self) -> None:
        """Replace what the process does not have, or must not share with its parent. No other thread runs yet."""
        raise NotImplementedError


class ForkSafeLock(RenewedByFork):
    """A lock that its thread may take several times. In a forked process it is free; a copy is a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        super().__init__()

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
