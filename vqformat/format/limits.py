"""The limits of SPEC section 14, and the budgets that a caller may set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

MAX_META_NBYTES: Final = 1 << 24  # META, LAYR, BOOK, ancillary
MAX_INDEX_NBYTES: Final = 1 << 28  # INDX
MAX_DEPTH: Final = 16
MAX_NODES: Final = 1 << 20
MAX_SECTIONS: Final = 1 << 22
MAX_CHUNKS: Final = 1 << 20
MAX_TENSORS: Final = 1 << 20
MAX_NAME_NBYTES: Final = 1024
MAX_RANK: Final = 32
MAX_SHAPE_PRODUCT: Final = (1 << 58) - 1
MAX_STAGES: Final = 16
MAX_ENTRIES: Final = 1 << 16
MAX_DIM: Final = 1 << 12
MAX_GROUPS: Final = 1 << 20
MAX_LOW_RANK: Final = 1 << 16
MAX_RIGHT_FACTOR: Final = 1 << 24
MAX_RESIDENT_NBYTES: Final = 1 << 28
MAX_BLOCK_ELEMENTS: Final = 1 << 22
MAX_WINDOW_NBYTES: Final = 1 << 23
MAX_SLOTS: Final = 1 << 22  # of all tables of a FREQ
MAX_PRECISION: Final = 14
MAX_STEPS_PER_SEQUENCE: Final = 64  # TRL-002
MAX_TRANSFORM: Final = 128  # rows of a transform

MAX_SECTION_NBYTES: Final = (1 << 31) - 1  # bit 31 of the length is a flag
MAX_META_COPY_NBYTES: Final = 1 << 16  # longer META is not copied into INDX

ALIGNMENT: Final = 64
ALIGNED_FROM_NBYTES: Final = 4096

DEFAULT_MAX_TENSOR_NBYTES: Final = 16 << 30

_most_memory: int | None = None


@contextlib.contextmanager
def limit_memory(nbytes: int | None) -> Iterator[None]:
    """Context in which so many bytes of memory count as available in this process; None changes nothing."""
    global _most_memory
    before = _most_memory
    if nbytes is not None:
        _most_memory = nbytes
    try:
        yield
    finally:
        _most_memory = before


def memory_bound() -> int | None:
    """What ``limit_memory`` has set; None if it has not been called."""
    return _most_memory


def available_memory() -> int:
    """Bytes of memory that a load may fill by default.

    Returns:
        What ``limit_memory`` has set, else ``MemAvailable`` of ``/proc/meminfo`` on Linux; elsewhere the physical
        memory; 64 GiB if that is unknown.
    """
    if _most_memory is not None:
        return _most_memory
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 64 << 30
