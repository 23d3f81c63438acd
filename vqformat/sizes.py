"""Sizes in bytes that people write, such as ``1.5MB``."""

from __future__ import annotations

import math
import numbers
import re
from typing import TypeAlias

Size: TypeAlias = int | str  # a number of bytes, or a text such as "1.5MB"

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}  # fmt: skip
_SIZE = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(|[kmgt]i?)b?\s*", re.IGNORECASE)


def parse_size(size: float | str) -> int:
    """A size in whole bytes.

    Args:
        size: A number of bytes; or a text of a number, and a unit or none: ``K``, ``KB``, ``M``, ``MB``, ``G``, ``GB``,
            ``T`` and ``TB`` are powers of 1000, ``Ki``, ``KiB`` and so on are powers of 1024. Upper and lower case
            mean the same. A fraction of a byte is dropped.

    Raises:
        ValueError: It is not such a text, or no finite number above 0.
    """
    value = math.nan
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        if match and match.group(1).count(".") <= 1 and match.group(1).strip(".")[:1].isdigit():
            value = float(match.group(1)) * _UNITS[match.group(2).lower()]
    elif isinstance(size, numbers.Real) and not isinstance(size, bool):
        value = float(size) if not isinstance(size, int) else size
    if not (math.isfinite(value) and value >= 1):
        raise ValueError(f"{size!r} is not a number of bytes, such as 300000, 1.5MB or 300KiB")
    return int(value)
