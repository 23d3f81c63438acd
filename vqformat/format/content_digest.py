"""The content digest: one SHA-256 for the tensors of a model, the same in every file format (SPEC 15.3)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from .bits import pack_nibbles
from .dtypes import BY_NAME

Array = npt.NDArray[Any]

_TAG = b"vqm content 1\n"


class ContentDigest:
    """Computes the content digest of a model. Tensors are added one by one, in any order.

    Only the digest of each tensor is kept, so that any model needs little memory.
    """

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}  # all of a record that follows the name

    def add(self, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterable[Array]) -> None:
        """Add a tensor.

        Args:
            dtype: Name in SPEC 7.1.
            pieces: Its elements in C order, in little-endian arrays; 4-bit elements take one byte each. Of these every
                piece but the last has an even number.
        """
        is_packed = BY_NAME[dtype].bits == 4
        data, nbytes = hashlib.sha256(), 0
        for piece in pieces:
            elements = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
            if is_packed:
                elements = np.frombuffer(pack_nibbles(elements), np.uint8)
            data.update(elements.data)
            nbytes += elements.size
        head = struct.pack(f"<BB{len(shape)}QQ", BY_NAME[dtype].id, len(shape), *shape, nbytes)
        self._records[name] = head + data.digest()

    def add_alias(self, name: str, target: str) -> None:
        """Add a further name of a tensor that has been added."""
        self._records[name] = self._records[target]

    def hexdigest(self) -> str:
        """The digest of all tensors added, in hexadecimal."""
        whole = hashlib.sha256(_TAG)
        for name, record in sorted((name.encode(), record) for name, record in self._records.items()):
            whole.update(struct.pack("<I", len(name)) + name + record)
        return whole.hexdigest()
