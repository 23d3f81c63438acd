"""A bound of this reader on the work that a file asks for, so that a small file does not take long (LIM-002)."""

from __future__ import annotations

import io
import os
import stat
from math import prod
from typing import BinaryIO

from ..decode.tensor import TensorDecoder
from ..decode.trellis import TrellisDecoder
from ..errors import LimitError
from ..format import limits
from ..format.layout import View
from ..format.records import TensorRecord
from ..format.stages import (
    CodebookStage,
    LowRankStage,
    ProgressionSource,
    RawStage,
    Size,
    SparseStage,
    Stage,
    TransformSource,
    TrellisStage,
)

_PER_BYTE = 20_000  # units for each byte of a file; a trellis stage of 0.06 bits per weight needs as many
_LEAST_NBYTES = 100_000  # a smaller file has the units of one of this size
_PER_BOUND = 4  # units for each byte of the caller's bound on the total

# Units: about 0.6 ns each on a slow processor with NumPy alone. A byte that is decompressed or decoded is one
_TENSOR = 50_000  # the objects of a tensor or alias
_SPLIT = 2  # a byte of byte planes
_BARE, _MARKED = 1, 4  # a byte of a sparse raw stage: of words that have no bytes in the planes, and of the others
_OF_VALUE = 4  # a value of a stage: its bytes as float32. As many for its scale
_OF_TRELLIS_VALUE = 128
_OF_PLACE = 40  # an element that is put where the order of rows and columns, or of axes, says
_PRODUCTS = 2  # of a matrix product for each unit
_STEP = 16_000  # a step of all sequences together (SPEC 12.3)
_TOGETHER = 1 << 13  # sequences that are decoded together
_SLOT, _FREQUENCY = 2, 100  # of the tables that a trellis stage uses


class Work:
    """Counts the work of reading a file, and refuses what is out of proportion to its bytes.

    Args:
        max_total_nbytes: The caller's bound, which allows work, too; None for the process's, if there is one.
        file_nbytes: Bytes of the file; 0 if that is not known. ``saw`` says how many there are at least.
    """

    def __init__(self, max_total_nbytes: int | None, file_nbytes: int = 0) -> None:
        bound = limits.memory_bound() if max_total_nbytes is None else max_total_nbytes
        self._least = max(_PER_BYTE * _LEAST_NBYTES, _PER_BOUND * (bound or 0))
        self._file_nbytes = file_nbytes
        self._done = 0
        self._counted: set[str] = set()

    @property
    def left(self) -> int:
        """Units that are allowed and have not been used."""
        return max(self._least, _PER_BYTE * self._file_nbytes) - self._done

    def saw(self, nbytes: int) -> None:
        """Note that the file has at least so many bytes."""
        self._file_nbytes = max(self._file_nbytes, nbytes)

    def count(self, units: int, what: str) -> None:
        """Count work before it is done.

        Args:
            what: Name of what is read, for the error.

        Raises:
            LimitError: It is too much for a file of this size.
        """
        self._done += units
        if self.left < 0:
            raise LimitError(f"with {what} the file asks for {self._done} units of work; at {self._file_nbytes} bytes"
                             f" {self._done + self.left} are allowed, and more by a larger max_total_bytes",
                             clause="LIM-002")  # fmt: skip

    def count_records(self, n: int, layer: str) -> None:
        """Count the tensors and aliases of a layer. Arguments and errors are those of ``count``."""
        self.count(_TENSOR * n, f"layer {layer!r}")

    def count_tensor(self, record: TensorRecord) -> None:
        """Count the decoding of a tensor. Errors are those of ``count``."""
        self.count(units_of(record), f"tensor {record.name!r}")

    def count_tables(self, decoder: TensorDecoder) -> None:
        """Count the look-up tables of trellis stages, before they are made. Errors are those of ``count``."""
        for stage in decoder.stages:
            if isinstance(stage, TrellisDecoder):
                n_slots, n_frequencies = stage.table_sizes
                self.count(_SLOT * n_slots + _FREQUENCY * n_frequencies, f"the tables of {decoder.record.name!r}")

    def is_first(self, name: str) -> bool:
        """Whether a tensor or alias is decoded for the first time. Only that counts: the caller chooses the others."""
        is_first = name not in self._counted
        self._counted.add(name)
        return is_first


def units_of(record: TensorRecord) -> int:
    """The work of decoding a tensor, without that for each record."""
    if not record.n_elements:
        return 0
    view = record.view()
    units = max(record.nbytes, record.n_elements) + sum(map(sum, record.resident_nbytes()))
    if record.is_raw:
        units += _of_bytes(record)
    else:
        units += sum(_of_stage(stage, view) for stage in record.stages)
    if record.layout.axes is not None or record.layout.order:
        units += _OF_PLACE * view.n_rows * view.n_columns
    return units


def _of_bytes(record: TensorRecord) -> int:
    (stage,) = record.stages
    if isinstance(stage, SparseStage):
        return _BARE * record.nbytes + _MARKED * sum(stage.counts) * record.dtype_info.word_nbytes
    assert isinstance(stage, RawStage)
    return record.nbytes * _SPLIT if stage.split else 0  # without planes it is decompressed to its place


def _of_stage(stage: Stage, view: View) -> int:
    block, n_values = view.block(0), view.n_rows * view.n_columns
    match stage:
        case CodebookStage():
            n_computed = stage.entries if isinstance(stage.source, ProgressionSource) else 0
            n_computed += n_values if stage.scale is None else 2 * n_values
            return _OF_VALUE * n_computed + view.n_blocks * _plain(stage.payload_nbytes(block))
        case LowRankStage():
            units = (_OF_VALUE + stage.rank // _PRODUCTS) * n_values
            return units + view.n_blocks * _plain(stage.payload_nbytes(block))
        case TrellisStage():
            of_value = _OF_TRELLIS_VALUE
            if isinstance(stage.source, TransformSource):
                of_value += stage.source.size // _PRODUCTS
            n_together = -(-view.n_blocks * prod(stage.tile_grid(block)) // _TOGETHER)
            return of_value * n_values + _STEP * prod(stage.tile) * n_together
    raise AssertionError(f"{stage} is no arithmetic stage")


def _plain(sizes: list[Size]) -> int:
    return sum(size for size in sizes if isinstance(size, int))


def size_of(stream: BinaryIO) -> int:
    """Bytes of a stream, if it can tell without being read; else 0."""
    if isinstance(stream, io.BytesIO):
        at = stream.tell()
        nbytes = stream.seek(0, io.SEEK_END)  # getbuffer would copy the bytes
        stream.seek(at)
        return nbytes
    try:
        status = os.fstat(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
