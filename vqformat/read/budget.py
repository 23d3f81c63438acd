"""The caller's limits on decoded bytes (SPEC section 14)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import LimitError
from ..format import limits
from ..format.records import TensorRecord
from ..sizes import Size, parse_size

_FREE_NBYTES = 1 << 20  # of resident sections of a tensor, or of the index, which do not count
_MOST_TABLE_NBYTES = 1 << 28  # of all tables together, if the caller sets no bound on the total
_ASKED_NBYTES = 1 << 24  # more bytes, after which the system is asked again for the memory that is available


@dataclass
class Budget:
    """The caller's limits on decoded bytes. They are checked before memory is allocated.

    Tables are BOOK and FREQ sections, and the resident sections of the tensor that is decoded. A zstd frame of 8 kB can
    hold one of 256 MiB. So without a bound on the total, tables may have 256 MiB together, or as many bytes as the
    tensor that is decoded.

    Attributes:
        max_tensor_nbytes: Most bytes of one tensor.
        max_total_nbytes: Most bytes of all tensors and tables together; None for the memory that is available.
        tensor_nbytes: Bytes counted so far of tensors that are held.
        shared_nbytes: Bytes counted so far of BOOK and FREQ sections.
        index_nbytes: Bytes of the index, or of those of several files, if they count.
    """

    max_tensor_nbytes: int = limits.DEFAULT_MAX_TENSOR_NBYTES
    max_total_nbytes: int | None = None
    tensor_nbytes: int = 0
    shared_nbytes: int = 0
    index_nbytes: int = 0
    # What the system said, and the total up to which that holds
    _available: tuple[int, int] = field(default=(0, -1), init=False, repr=False, compare=False)

    @classmethod
    def of(cls, max_tensor_bytes: Size, max_total_bytes: Size | None) -> Budget:
        """The budget of a caller, whose limits may be texts such as ``"1.5MB"``.

        Raises:
            ValueError: A text is no size.
        """
        return cls(parse_size(max_tensor_bytes) if isinstance(max_tensor_bytes, str) else max_tensor_bytes,
                   parse_size(max_total_bytes) if isinstance(max_total_bytes, str) else max_total_bytes)  # fmt: skip

    def take(self, record: TensorRecord) -> None:
        """Count a tensor, with its tables, before it is decoded into a new array.

        Raises:
            LimitError: It has too many bytes, or all tensors and tables together have.
        """
        if 0 in record.shape:
            return
        self.check_size(record)
        nbytes = _in_memory(record)
        self.check_tables(record, nbytes)
        self.tensor_nbytes += nbytes

    def drop_tensors(self) -> None:
        """Count no tensor any more: those that were counted are not held."""
        self.tensor_nbytes = 0
        self._available = 0, -1

    def take_copy(self, name: str, nbytes: int) -> None:
        """Count a copy of a tensor before it is made.

        Raises:
            LimitError: All tensors and tables together have too many bytes.
        """
        self._check(nbytes, 0, f"tensor {name!r}", 0)
        self.tensor_nbytes += nbytes

    def check_size(self, record: TensorRecord) -> None:
        """Check the bytes of a tensor alone.

        Raises:
            LimitError: It has too many.
        """
        nbytes = _in_memory(record)
        if nbytes > self.max_tensor_nbytes:
            raise LimitError(f"tensor {record.name!r} has {nbytes} bytes; max_tensor_bytes is {self.max_tensor_nbytes}",
                             clause="LIM-002")  # fmt: skip

    def check_tables(self, record: TensorRecord, new_nbytes: int = 0) -> None:
        """Check the tables of a tensor before it is decoded. They are in memory only during that.

        Args:
            new_nbytes: Bytes of a new array for its values.

        Raises:
            LimitError: They have too many bytes together with all else that is held.
        """
        resident_nbytes = sum(map(sum, record.resident_nbytes())) if record.stages else 0
        # Small tables do not count, so that a limit of exactly the bytes of all tensors is enough
        if resident_nbytes <= _FREE_NBYTES:
            resident_nbytes = 0
        self._check(new_nbytes, resident_nbytes, f"tensor {record.name!r}", _in_memory(record))

    def take_shared(self, nbytes: int, what: str) -> None:
        """Count a BOOK or FREQ section before it is read.

        Args:
            what: Its name, for the error.

        Raises:
            LimitError: All counted bytes together are too many.
        """
        self._check(0, nbytes, what, 0)
        self.shared_nbytes += nbytes

    def take_index(self, nbytes: int) -> None:
        """Count the index, if it is kept, before it is read. A small one does not count.

        Raises:
            LimitError: It has too many bytes.
        """
        if nbytes > _FREE_NBYTES:
            self.index_nbytes += nbytes
            self._check(0, 0, "the index", 0)

    def _check(self, tensor_nbytes: int, table_nbytes: int, what: str, fair_nbytes: int) -> None:
        table_nbytes += self.shared_nbytes
        total_nbytes = self.index_nbytes + self.tensor_nbytes + tensor_nbytes + table_nbytes
        most_nbytes, allowed = self.max_total_nbytes, f"max_total_bytes is {self.max_total_nbytes}"
        if most_nbytes is None:
            most_nbytes = limits.memory_bound()
            if most_nbytes is None and total_nbytes > _FREE_NBYTES:
                most_nbytes = self._available_for(total_nbytes)
            allowed = f"{most_nbytes} are available"
            most_tables = max(_MOST_TABLE_NBYTES, fair_nbytes)
            if table_nbytes > most_tables:
                raise LimitError(f"with {what} there are {table_nbytes} bytes of tables; without max_total_bytes at"
                                 f" most {most_tables} are allowed", clause="LIM-002")  # fmt: skip
        if most_nbytes is not None and total_nbytes > most_nbytes:
            raise LimitError(f"with {what} there are {total_nbytes} bytes; {allowed}", clause="LIM-002")

    def _available_for(self, total_nbytes: int) -> int:
        """The memory that is available. To ask the system each time takes longer than to decode a small tensor."""
        if total_nbytes > self._available[1]:
            self._available = limits.available_memory(), total_nbytes + _ASKED_NBYTES
        return self._available[0]


def _in_memory(record: TensorRecord) -> int:
    """Bytes of a tensor in memory, where a 4-bit element takes one byte."""
    return max(record.nbytes, record.n_elements)
