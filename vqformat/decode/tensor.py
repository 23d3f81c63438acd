"""Decoding one tensor block by block: the values of its stages are added and put in place (SPEC 7.2 to 7.4)."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import native
from ..errors import FormatError
from ..format.layout import ORDER_COLUMNS, ORDER_ROWS, Block
from ..format.records import TensorRecord
from ..format.stages import CodebookStage, LowRankStage, RawStage, SharedSource, SparseStage, TrellisStage
from . import rans, raw
from .codebook import CodebookDecoder
from .lowrank import LowRankDecoder
from .tables import Floats
from .trellis import Bands, Codes, TrellisDecoder

# For each dtype the smallest float32 value that rounds to infinity in it
_OVERFLOW = {"f16": np.float32(65520), "bf16": np.uint32(0x7F7F8000).view(np.float32)}

# Sequences of trellis stages that are decoded together: with fewer, a NumPy call takes longer than its computation
_SEQUENCES = 1 << 13
# Most elements of blocks that are decoded together, to use little memory (about 20 MB), and for speed
FEW_ELEMENTS, MANY_ELEMENTS = 1 << 22, 1 << 24

# If the bytes of a row are a multiple of _CACHE_NBYTES, the elements of a column fall into few sets of the CPU cache
# and evict each other. Then _UNEVEN elements are added to each row.
_CACHE_NBYTES, _UNEVEN = 1024, 16

Order = npt.NDArray[np.intp]


class SharedValues(Protocol):
    """The contents of the BOOK and FREQ chunks before a tensor, by number."""

    def book_values(self, number: int) -> Floats: ...

    def freq_tables(self, number: int) -> rans.Tables: ...


def stable_order(classes: bytes | npt.NDArray[np.uint8]) -> Order:
    """For each stored row (column) the number of its view row (column) (SPEC 7.2, "Order")."""
    return np.argsort(np.frombuffer(classes, np.uint8), kind="stable")


def allocate(record: TensorRecord) -> npt.NDArray[Any]:
    """An uninitialised array for the tensor; 4-bit elements take one byte each."""
    return np.empty(record.shape, record.dtype_info.numpy)


class TensorDecoder:
    """Decodes the blocks of one tensor into an array.

    Args:
        record: Record of a tensor that has elements.
        resident: Plain bytes of its resident sections, in file order.
        shared: Contents of the BOOK and FREQ chunks that it uses.

    Attributes:
        row_order, column_order: For each stored row (column) the number of its view row (column); None if equal.

    Raises:
        FormatError: A table, a scale or a right factor breaks a rule, or values could overflow (VAL-002).
    """

    def __init__(self, record: TensorRecord, resident: list[bytes], shared: SharedValues) -> None:
        self.record = record
        self.view = record.view()
        sections = iter(resident)
        order = record.layout.order
        self.row_order = stable_order(next(sections)) if order & ORDER_ROWS else None
        self.column_order = stable_order(next(sections)) if order & ORDER_COLUMNS else None
        self._stages: list[CodebookDecoder | LowRankDecoder | TrellisDecoder] = []
        for i, (stage, sizes) in enumerate(zip(record.stages, record.resident_nbytes()[1:], strict=True)):
            mine = [next(sections) for _ in sizes]
            with naming(record.name, stage=i):
                match stage:
                    case CodebookStage():
                        is_shared = isinstance(stage.source, SharedSource)
                        book = shared.book_values(stage.source.number) if is_shared else None  # type: ignore[union-attr]
                        self._stages.append(CodebookDecoder(stage, self.view, mine, book))
                    case LowRankStage():
                        self._stages.append(LowRankDecoder(stage, self.view, mine))
                    case TrellisStage():
                        freq = shared.freq_tables(stage.freq)
                        self._stages.append(TrellisDecoder(stage, self.view, mine, freq))
        self._check_bound()
        self._scratch = threading.local()

    def _check_bound(self) -> None:
        if not self._stages:
            return
        total = self._stages[0].bound
        with np.errstate(over="ignore"):
            for stage in self._stages[1:]:
                total = np.float32(total + stage.bound)
        dtype = self.record.dtype
        if not np.isfinite(total) or total >= _OVERFLOW.get(dtype, np.float32(np.inf)):
            raise FormatError(f"tensor {self.record.name!r}: values up to {total} are possible, beyond dtype {dtype}",
                              clause="VAL-002")  # fmt: skip

    def bands(self, blocks: Sequence[Block], payloads: Sequence[list[bytes]]) -> Bands | None:
        """The payloads of the only trellis stage, to be decoded together with others by NumPy.

        None if there is none or several, blocks are not bands of rows, or kernels are in use, which decode them one by
        one.
        """
        found = [i for i, stage in enumerate(self._stages) if isinstance(stage, TrellisDecoder)]
        if native.is_used() or len(found) != 1 or self.record.layout.block_columns:
            return None
        stage = self._stages[found[0]]
        assert isinstance(stage, TrellisDecoder)
        first = sum(other.stage.n_payload() for other in self._stages[: found[0]])
        return Bands(stage, blocks, [sections[first] for sections in payloads])

    @property
    def is_stepwise(self) -> bool:
        """Whether a trellis stage is decoded by NumPy: by many short calls, which threads do not speed up."""
        return not native.is_used() and any(isinstance(stage, TrellisStage) for stage in self.record.stages)

    def group_size(self, most_elements: int) -> int:
        """How many blocks should be decoded together.

        Args:
            most_elements: Most elements of these blocks, if that is more than one block.
        """
        if not self.is_stepwise or self.record.layout.block_columns:
            return 1
        block = self.view.block(0)
        n_sequences = max(prod(stage.tile_grid(block)) for stage in self.record.stages
                          if isinstance(stage, TrellisStage))  # fmt: skip
        return max(1, min(-(-_SEQUENCES // n_sequences), most_elements // block.n_elements))

    def decode_blocks(
        self, blocks: Sequence[Block], payloads: Sequence[list[bytes]], out: npt.NDArray[Any],
        codes: Iterable[Codes] | None = None,
    ) -> None:  # fmt: skip
        """Decode blocks into the array of the tensor. Several threads may call this, each with other blocks.

        Args:
            blocks: Best as many as ``group_size`` says.
            payloads: For each block, plain bytes of its payload sections.
            out: The tensor, C-contiguous.
            codes: For each block the codes of the tensor's only trellis stage, if they have been decoded before.

        Raises:
            FormatError: A code, bool or padding bit breaks a rule; the message names the tensor.
        """
        for block, *of_stages in zip(blocks, *self._prepare(blocks, payloads, codes), strict=True):
            place = self._place(block, out)
            if place is not None:
                self._fill(block, of_stages, place)
            else:
                values = np.empty((block.n_rows, block.n_columns), np.float32)
                self._fill(block, of_stages, values)
                self._scatter(block, values, out)

    def block_values(
        self, blocks: Sequence[Block], payloads: Sequence[list[bytes]]
    ) -> Iterator[npt.NDArray[Any]]:
        """Decode blocks. Arguments and errors are those of ``decode_blocks``.

        Yields:
            For each block its values in stored order, ``(n_rows, n_columns)`` of ``stored_dtype``.
        """
        for block, *of_stages in zip(blocks, *self._prepare(blocks, payloads), strict=True):
            values = np.empty((block.n_rows, block.n_columns), self.stored_dtype)
            self._fill(block, of_stages, values)
            yield values

    @cached_property
    def stored_dtype(self) -> np.dtype[Any]:
        """dtype of the elements of the view: that of the tensor; for pairs of a complex one, that of its reals."""
        dtype = np.dtype(self.record.dtype_info.numpy)
        return np.empty(0, dtype).real.dtype if self._has_pairs else dtype

    @property
    def _has_pairs(self) -> bool:
        """Whether the view has one axis more than the tensor, of length 2 (SPEC 7.2)."""
        return self.record.dtype_info.is_complex and not self.record.is_raw

    def _prepare(
        self, blocks: Sequence[Block], payloads: Sequence[list[bytes]], codes: Iterable[Codes] | None = None
    ) -> Sequence[Iterable[Any]]:
        """For each stage, for each block the second argument of its ``decode``: payloads or codes."""
        if self.record.is_raw:
            return [payloads]
        prepared: list[Iterable[Any]] = []
        first = 0
        for i, stage in enumerate(self._stages):
            last = first + stage.stage.n_payload()
            with naming(self.record.name, stage=i), np.errstate(all="ignore"):
                if codes is not None and isinstance(stage, TrellisDecoder):
                    prepared.append(codes)
                else:
                    prepared.append(stage.prepare(blocks, [sections[first:last] for sections in payloads]))
            first = last
        return prepared

    def _fill(self, block: Block, of_stages: list[Any], out: npt.NDArray[Any]) -> None:
        """Decode a block into ``out``, in stored order, ``(n_rows, n_columns)``, C-contiguous."""
        if self.record.is_raw:
            stage = self.record.stages[0]
            assert isinstance(stage, (RawStage, SparseStage))
            decode = raw.decode if isinstance(stage, RawStage) else raw.decode_sparse
            with naming(self.record.name):
                decode(of_stages[0], self.record.dtype_info, stage.split, out.reshape(-1))
            return
        values = out if out.dtype == np.float32 else np.empty(out.shape, np.float32)
        with np.errstate(all="ignore"):  # subnormals must not raise, whatever the caller has set
            for i, (decoder, of_stage) in enumerate(zip(self._stages, of_stages, strict=True)):
                with naming(self.record.name, stage=i):
                    if i == 0:
                        decoder.decode(block, of_stage, values)
                    else:
                        addend = self._scratch_like(values)
                        decoder.decode(block, of_stage, addend)
                        np.add(values, addend, out=values)
            if values is not out:
                out[...] = values  # VAL-001: NumPy rounds to nearest, ties to even

    def _scratch_like(self, values: Floats) -> Floats:
        scratch: Floats | None = getattr(self._scratch, "values", None)
        if scratch is None or scratch.size < values.size:
            scratch = self._scratch.values = np.empty(values.size, np.float32)
        return scratch[: values.size].reshape(values.shape)

    def _reals(self, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array of the tensor with the elements of the view: reals, with one axis more, if they are pairs."""
        return out.reshape(-1).view(self.stored_dtype).reshape(self.view.shape) if self._has_pairs else out

    def _place(self, block: Block, out: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """The block's elements as a NumPy view of the tensor; None if stored order is not C order."""
        if self.record.layout.axes is not None or self.row_order is not None or self.column_order is not None:
            return None
        start = block.row * self.view.n_columns + block.column
        flat = self._reals(out).reshape(-1)
        return flat[start : start + block.n_elements].reshape(block.n_rows, block.n_columns)

    def _scatter(self, block: Block, values: Floats, out: npt.NDArray[Any]) -> None:
        """Write a block's values to their places in the tensor, by the order of rows and columns (SPEC 7.2)."""
        layout = self.record.layout
        rows: slice | Order = slice(block.row, block.row_end)
        if self.row_order is not None:
            rows = self.row_order[rows]
        reals = self._reals(out)
        if layout.block_columns or (layout.axes is not None and layout.n_row_axes > 1):
            columns: slice | Order = slice(block.column, block.column_end)
            if self.column_order is not None:
                columns = self.column_order[columns]
            row_offsets, column_offsets = self.offsets
            reals.reshape(-1)[row_offsets[rows][:, None] + column_offsets[columns]] = values
            return
        if self.column_places is not None:
            values = np.take(values, self.column_places, axis=1)
        if layout.axes is None:
            reals.reshape(self.view.n_rows, self.view.n_columns)[rows] = values
            return
        if block.n_columns * values.itemsize % _CACHE_NBYTES == 0:
            uneven = np.empty((block.n_rows, block.n_columns + _UNEVEN), values.dtype)[:, : block.n_columns]
            uneven[...] = values
            values = uneven
        permuted = reals.transpose(layout.axes)
        if layout.n_row_axes == 0:
            permuted = permuted[None]
        permuted[rows] = values.reshape(block.n_rows, *permuted.shape[1:])

    @cached_property
    def row_places(self) -> Order | None:
        """For each view row the number of its stored row; None if equal."""
        return None if self.row_order is None else _inverse(self.row_order)

    @cached_property
    def column_places(self) -> Order | None:
        """For each view column the number of its stored column; None if equal."""
        return None if self.column_order is None else _inverse(self.column_order)

    @cached_property
    def offsets(self) -> tuple[Order, Order]:
        """Offsets of view rows, ``(n_rows,)``, and of view columns, ``(n_columns,)``, in the tensor in C order.

        They count elements. Element (i, j) of the view is at the sum of the offsets of row i and column j.
        """
        shape, layout = self.view.shape, self.record.layout
        axes = layout.axes or tuple(range(len(shape)))
        strides = np.cumprod((1, *shape[:0:-1]))[::-1] if shape else ()
        parts = []
        for chosen in (axes[: layout.n_row_axes], axes[layout.n_row_axes :]):
            offsets = np.zeros(1, np.intp)
            for axis in chosen:
                offsets = (offsets[:, None] + np.arange(shape[axis]) * strides[axis]).reshape(-1)
            parts.append(offsets)
        return parts[0], parts[1]


def _inverse(order: Order) -> Order:
    places = np.empty_like(order)
    places[order] = np.arange(order.size)
    return places


class naming:
    """Context manager that adds the name of the tensor, and the number of the stage, to a FormatError."""

    def __init__(self, name: str, stage: int | None = None) -> None:
        self._where = f"tensor {name!r}" + ("" if stage is None else f", stage {stage}")

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if isinstance(err, FormatError) and not err.message.startswith("tensor "):
            err.message = f"{self._where}: {err.message}"
            err.args = (err.message,)
