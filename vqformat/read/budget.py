"""The caller's limits on decoded bytes (SPEC section 14)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LimitError
from ..format import limits
from ..format.records import TensorRecord

_FREE_RESIDENT_NBYTES = 1 << 20


@dataclass
class Budget:
    """The caller's limits on decoded bytes. They are checked before memory is allocated.

    Attributes:
        max_tensor_nbytes: Most bytes of one tensor.
        max_total_nbytes: Most bytes of all tensors together; None for the memory that is available.
        used_nbytes: Bytes counted so far against ``max_total_nbytes``.
    """

    max_tensor_nbytes: int = limits.DEFAULT_MAX_TENSOR_NBYTES
    max_total_nbytes: int | None = None
    used_nbytes: int = 0

    def take(self, record: TensorRecord) -> None:
        """Count a tensor before it is decoded.

        Raises:
            LimitError: It has too many bytes, or all tensors together have.
        """
        # Bytes in memory, where a 4-bit element takes one byte
        nbytes = max(record.nbytes, record.n_elements)
        if nbytes > self.max_tensor_nbytes:
            raise LimitError(f"tensor {record.name!r} has {nbytes} bytes; max_tensor_bytes is {self.max_tensor_nbytes}",
                             clause="LIM-002")  # fmt: skip
        resident_nbytes = sum(map(sum, record.resident_nbytes())) if record.stages else 0
        # Small tables do not count, so that a limit of exactly the bytes of all tensors is enough
        if resident_nbytes <= _FREE_RESIDENT_NBYTES:
            resident_nbytes = 0
        self.take_bytes(nbytes + resident_nbytes, f"tensor {record.name!r}")
        self.used_nbytes -= resident_nbytes  # tables are in memory only while the tensor is decoded

    def take_bytes(self, nbytes: int, what: str) -> None:
        """Count bytes before they are allocated.

        Args:
            what: What they are for, for the error.

        Raises:
            LimitError: All counted bytes together are too many.
        """
        if self.max_total_nbytes is None:
            self.max_total_nbytes = limits.available_memory()
        self.used_nbytes += nbytes
        if self.used_nbytes > self.max_total_nbytes:
            raise LimitError(f"with {what} there are {self.used_nbytes} bytes; max_total_bytes is"
                             f" {self.max_total_nbytes}", clause="LIM-002")  # fmt: skip
