"""Memory of sections that have been decoded is used again for those that follow."""

from __future__ import annotations

from functools import cache

_KEPT_NBYTES = 1 << 22


@cache  # the thresholds stay as they are
def keep_freed_memory() -> None:
    """Let glibc keep freed memory for what follows, at most 8 MB in each thread.

    By default it soon gives memory back to the system. To get new pages for each section takes a fifth of the time of
    a load. glibc raises its thresholds when it frees memory that it mapped for one array (mallopt(3): to the size of
    the array, and to twice that for what it keeps). The bytes here are mapped and freed, but never touched. With other
    allocators this does nothing.
    """
    bytes(_KEPT_NBYTES)
