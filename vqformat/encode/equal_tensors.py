"""Finding equal tensors that are not views of each other, so that their values are stored once (WRI-002)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..native.crc import crc32
from .options import Options
from .recipe import Method
from .source import SourceTensor, native

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

_SMALLEST_NBYTES = 1 << 12  # below, an alias and its ``copy`` chunk may take as many bytes as the tensor
_N_PIECES, _PIECE_NBYTES = 16, 1 << 12  # of a tensor whose CRC is compared first
_COMPARED_NBYTES = 1 << 20  # that are compared at once


class EqualTensors:
    """Finds the tensors whose bytes are those of an earlier one, and that are coded in the same way.

    A tensor is looked at when its array is in memory to be encoded. Only its checksums are kept: first that of some
    pieces of it, then that of all bytes, once a second tensor has the same pieces. If these are equal too, the earlier
    tensor is loaded again, so that both are in memory, and all bytes are compared.

    With a calibration only tensors that are stored without loss are looked at: others are coded and corrected by the
    inputs of their own layers.

    Args:
        tensors: All tensors, in file order.
        method: Gives the method of a tensor by the recipe.

    Attributes:
        targets: For each copy found so far, the earlier tensor.
    """

    def __init__(
        self, tensors: Sequence[SourceTensor], options: Options, method: Callable[[SourceTensor], Method | None]
    ) -> None:
        self.targets: dict[str, str] = {}
        self._by_pieces: dict[Any, SourceTensor] = {}  # kind of coding and CRC of pieces -> first tensor
        self._by_bytes: dict[Any, SourceTensor] = {}  # kind of coding and CRC of all bytes -> first tensor
        self._summed: set[str] = set()  # tensors that are in ``_by_bytes``
        large = [tensor for tensor in tensors if tensor.alias_of is None and tensor.nbytes >= _SMALLEST_NBYTES]
        is_calibrated = options.calibration is not None or options.correct is not None
        kinds: dict[str, Any] = {}
        for tensor in _alike(large, [(tensor.dtype, tensor.shape) for tensor in large]):
            how = method(tensor)
            if not is_calibrated or (how is not None and how.name == "lossless"):
                form = None if tensor.form is None else tensor.form.name
                kinds[tensor.name] = (tensor.dtype, tensor.shape, form, how)
        n = Counter(kinds.values())
        # Position and kind of coding of each tensor that may be equal to another, until it has been looked at
        self._waiting = {tensor.name: (at, kinds[tensor.name]) for at, tensor in enumerate(large)
                         if tensor.name in kinds and n[kinds[tensor.name]] > 1}  # fmt: skip
        self._positions = {name: at for name, (at, _) in self._waiting.items()}

    def is_waiting(self, tensor: SourceTensor) -> bool:
        """Whether the tensor may be equal to another one and has not been looked at."""
        return tensor.name in self._waiting

    def find(self, tensor: SourceTensor, array: Array | None = None, crc: int | None = None) -> str | None:
        """The earlier tensor of which a tensor is a copy; None if there is none. Each tensor is looked at once.

        Args:
            array: As ``native`` gives it; None if it is not loaded: then only tensors that are quantized in the source
                are looked at.
            crc: What ``crc_of_pieces`` gives, if that is known. The tensor is then loaded only if another has the same.
        """
        is_known = crc is not None or array is not None or tensor.form is not None
        if tensor.name not in self._waiting or not is_known:
            return self.targets.get(tensor.name)
        at, kind = self._waiting.pop(tensor.name)
        data = None
        if crc is None:
            data = _bytes_of(tensor, array)
            crc = _crc_of_pieces(data)
        other = self._by_pieces.setdefault((kind, crc), tensor)
        if other is tensor:
            return None
        data = _bytes_of(tensor, array) if data is None else data
        if other.name not in self._summed:
            self._summed.add(other.name)
            self._by_bytes.setdefault((kind, crc32(_bytes_of(other).data)), other)
        other = self._by_bytes.setdefault((kind, crc32(data.data)), tensor)
        if other is tensor:
            self._summed.add(tensor.name)
            return None
        if self._positions[other.name] > at or not _is_same(data, _bytes_of(other)):
            return None
        self.targets[tensor.name] = other.name
        return other.name


def _alike(tensors: list[SourceTensor], keys: list[Any]) -> list[SourceTensor]:
    """The tensors whose key another one has, too."""
    n = Counter(keys)
    return [tensor for tensor, key in zip(tensors, keys, strict=True) if n[key] > 1]


def crc_of_pieces(tensor: SourceTensor, array: Array) -> int:
    """A checksum of some pieces of a tensor, for ``EqualTensors.find``.

    Args:
        array: As ``native`` gives it.
    """
    return _crc_of_pieces(_bytes_of(tensor, array))


def _bytes_of(tensor: SourceTensor, array: Array | None = None) -> Bytes:
    """The bytes of a tensor; of one that is quantized in the source, those that it has there.

    Args:
        array: As ``native`` gives it; None if it is not loaded.
    """
    if tensor.form is not None:
        return _flat(np.ascontiguousarray(tensor.form.load()))
    return _flat(native(tensor) if array is None else array)


def _flat(array: Array) -> Bytes:
    return array.reshape(-1).view(np.uint8)


def _is_same(a: Bytes, b: Bytes) -> bool:
    starts = range(0, a.size, _COMPARED_NBYTES)
    return all(np.array_equal(a[i : i + _COMPARED_NBYTES], b[i : i + _COMPARED_NBYTES]) for i in starts)


def _crc_of_pieces(data: Bytes) -> int:
    if data.size <= _N_PIECES * _PIECE_NBYTES:
        return crc32(data.data)
    crc = 0
    for i in range(_N_PIECES):
        start = i * (data.size - _PIECE_NBYTES) // (_N_PIECES - 1)
        crc = crc32(data[start : start + _PIECE_NBYTES].data, crc)
    return crc
