"""Kernels in C for what NumPy does slowly. Each has a twin in NumPy, which is the reference that one reads.

A kernel gives the same bytes as its twin, with every instruction set. The extension module is optional: where it was
not built, the twins are used. The environment variable ``VQFORMAT_BACKEND`` chooses: ``numpy``, ``native`` (the best
instruction set that the processor has), ``native-scalar``, ``native-avx2`` or ``native-avx512``.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import numpy.typing as npt

try:
    from . import _kernels as _found  # type: ignore[attr-defined, unused-ignore]
except ImportError:
    _found = None
_kernels: ModuleType | None = _found

_INSTRUCTION_SETS = ("scalar", "avx2", "avx512")  # as trellis.h numbers them


def available() -> list[str]:
    """Names of the backends that this machine has, the best one last."""
    names = ["numpy"]
    if _kernels is not None:
        names += [f"native-{name}" for name, there in zip(_INSTRUCTION_SETS, _kernels.instruction_sets(), strict=True)
                  if there]  # fmt: skip
    return names


def _chosen(asked: str | None) -> str:
    names = available()
    if not asked:
        return names[-1]
    if asked == "native" and len(names) > 1:
        return names[-1]
    if asked not in names:
        raise ImportError(f"VQFORMAT_BACKEND is {asked!r}; this machine has {', '.join(names)}")
    return asked


_backend = _chosen(os.environ.get("VQFORMAT_BACKEND"))


def backend() -> str:
    """The backend in use: ``"numpy"`` or, for example, ``"native-avx2"``."""
    return _backend


def use(name: str) -> str:
    """Change the backend of this process.

    Args:
        name: One of ``available()``, or ``"native"`` for the best of them.

    Returns:
        The backend that was in use.

    Raises:
        ImportError: This machine does not have it.
    """
    global _backend
    before, _backend = _backend, _chosen(name)
    return before


def is_used() -> bool:
    """Whether kernels are in use."""
    return _backend != "numpy"


def _instruction_set() -> int:
    return _INSTRUCTION_SETS.index(_backend.removeprefix("native-"))


def _address(array: npt.NDArray[Any] | bytes | None) -> int:
    """The address of the values of a C-contiguous array, or of bytes; 0 for None."""
    assert _kernels is not None
    address: int = _kernels.address(array)
    return address


