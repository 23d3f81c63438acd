"""How much a caller lets a file decode to (SPEC section 14)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LimitError
from ..format import limits
from ..format.records import TensorRecord

_FREE_RESIDENT_NBYTES = 1 << 20


@dataclass
class Budget:
    """How much a caller lets a file decode to; both tested before allocation.

    Attributes:
        max_tensor_nbytes: For one tensor.
        max_total_nbytes: For all tensors together; None for what memory is available.
    """

    max_tensor_nbytes: int = limits.DEFAULT_MAX_TENSOR_NBYTES
    max_total_nbytes: int | None = None
    used_nbytes: int = 0

    def take(self, record: TensorRecord) -> None:
        """Count a tensor that is about to be decoded.

        Raises:
            LimitError: It is too large, or all together are.
        """
        # Memory, not decoded bytes: 4-bit elements take a byte each
        nbytes = max(record.nbytes, record.n_elements)
        if nbytes > self.max_tensor_nbytes:
            raise LimitError(f"tensor {record.name!r} has {nbytes} bytes; max_tensor_bytes is {self.max_tensor_nbytes}",
                             clause="LIM-002")  # fmt: skip
        resident_nbytes = sum(map(sum, record.resident_nbytes())) if record.stages else 0
        if resident_nbytes <= _FREE_RESIDENT_NBYTES:  # so that a bound can be the bytes of the tensors, exactly
            resident_nbytes = 0
        self.take_bytes(nbytes + resident_nbytes, f"tensor {record.name!r}")
        self.used_nbytes -= resident_nbytes  # held only while it is decoded

    def take_bytes(self, nbytes: int, what: str) -> None:
        """Count bytes that are about to be held.

        Raises:
            LimitError: All together are too many.
        """
        if self.max_total_nbytes is None:
            self.max_total_nbytes = limits.available_memory()
        self.used_nbytes += nbytes
        if self.used_nbytes > self.max_total_nbytes:
            raise LimitError(f"with {what} there are {self.used_nbytes} bytes; max_total_bytes is"
                             f" {self.max_total_nbytes}", clause="LIM-002")  # fmt: skip
