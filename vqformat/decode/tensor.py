"""Decoding one tensor block by block: the values of its stages are added and put in place (SPEC 7.2 to 7.4)."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import native
from ..errors import FormatError
from ..forks import cached_property
from ..format.layout import Block
from ..format.records import TensorRecord
from ..format.stages import CodebookStage, LowRankStage, RawStage, SharedSource, SparseStage, TrellisStage
from . import rans, raw
from .codebook import CodebookDecoder
from .lowrank import LowRankDecoder
from .placement import Placement
from .tables import Book, Floats
from .trellis import Bands, Codes, TrellisDecoder

# For each dtype the smallest float32 value that rounds to infinity in it
_OVERFLOW = {"f16": np.float32(65520), "bf16": np.uint32(0x7F7F8000).view(np.float32)}

# Sequences of trellis stages that are decoded together: with fewer, a NumPy call takes longer than its computation
_SEQUENCES = 1 << 13
# Most elements of blocks that are decoded together, to use little memory (about 20 MB), and for speed
FEW_ELEMENTS, MANY_ELEMENTS = 1 << 22, 1 << 24
# What share of them kernels decode at a time, codebook stages in one call. After a block the cache holds values and no
# Python, so that each call takes long. With more blocks, plain bytes are out of the cache before they are decoded
_RUN_SHARE = 16
_FEWEST_GROUPS = 4  # of the blocks of a tensor of other stages, so that threads share them

_NOTHING = contextlib.nullcontext()


class SharedValues(Protocol):
    """The contents of the BOOK and FREQ chunks before a tensor, by number."""

    def book_values(self, number: int) -> Book: ...

    def freq_tables(self, number: int) -> rans.Tables: ...


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
        placement: Where the elements of its blocks are.
        stages: The decoders of its stages; empty for a raw tensor.

    Raises:
        FormatError: A table, a scale or a right factor breaks a rule, or values could overflow (VAL-002).
    """

    def __init__(self, record: TensorRecord, resident: list[bytes], shared: SharedValues) -> None:
        self.record = record
        self.view = record.view()
        sections = iter(resident)
        self.placement = Placement(record, sections)
        self.stages: list[CodebookDecoder | LowRankDecoder | TrellisDecoder] = []
        for i, (stage, sizes) in enumerate(zip(record.stages, record.resident_nbytes()[1:], strict=True)):
            mine = [next(sections) for _ in sizes]
            with naming(record.name, stage=i):
                match stage:
                    case CodebookStage():
                        is_shared = isinstance(stage.source, SharedSource)
                        book = shared.book_values(stage.source.number) if is_shared else None  # type: ignore[union-attr]
                        self.stages.append(CodebookDecoder(stage, self.view, mine, book))
                    case LowRankStage():
                        self.stages.append(LowRankDecoder(stage, self.view, mine))
                    case TrellisStage():
                        freq = shared.freq_tables(stage.freq)
                        self.stages.append(TrellisDecoder(stage, self.view, mine, freq))
        self._check_bound()

    @cached_property
    def _scratch(self) -> threading.local:
        return threading.local()

    def _check_bound(self) -> None:
        if not self.stages:
            return
        total = self.stages[0].bound
        if len(self.stages) > 1:
            with np.errstate(over="ignore"):
                for stage in self.stages[1:]:
                    total = np.float32(total + stage.bound)
        dtype = self.record.dtype
        if not math.isfinite(total) or total >= _OVERFLOW.get(dtype, np.float32(np.inf)):
            raise FormatError(f"tensor {self.record.name!r}: values up to {total} are possible, beyond dtype {dtype}",
                              clause="VAL-002")  # fmt: skip

    def bands(self, blocks: Sequence[Block], payloads: Sequence[list[bytes]]) -> Bands | None:
        """The payloads of the only trellis stage, to be decoded together with others by NumPy.

        None if there is none or several, blocks are not bands of rows, or kernels are in use, which decode them one by
        one.
        """
        found = [i for i, stage in enumerate(self.stages) if isinstance(stage, TrellisDecoder)]
        if native.is_used() or len(found) != 1 or self.record.layout.block_columns:
            return None
        stage = self.stages[found[0]]
        assert isinstance(stage, TrellisDecoder)
        first = sum(other.stage.n_payload() for other in self.stages[: found[0]])
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
        block = self.view.block(0)
        at_once = max(1, most_elements // _RUN_SHARE // block.n_elements)
        if self._run_stage is not None:
            return at_once
        if not self.is_stepwise:
            return min(at_once, max(1, self.view.n_blocks // _FEWEST_GROUPS)) if self.stages else 1
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
        if len(blocks) > 1 and self._decode_run(blocks, payloads, out):
            return
        for block, *of_stages in zip(blocks, *self._prepare(blocks, payloads, codes), strict=True):
            part = self.placement.part_of(block, out)
            if part is not None:
                self._fill(block, of_stages, part)
            elif self._last_puts:
                self._put(block, of_stages, out)
            else:
                values = self._scratch_of("block", block, self.placement.stored_dtype)
                self._fill(block, of_stages, values)
                self.placement.scatter(block, values, out)

    @property
    def _run_stage(self) -> CodebookDecoder | None:
        """The only stage, if its kernel decodes several blocks of whole rows in one call, to float32."""
        stage = self.stages[0] if len(self.stages) == 1 else None
        can_run = native.is_used() and self.placement.is_float32 and not self.record.layout.block_columns
        return stage if can_run and isinstance(stage, CodebookDecoder) else None

    def _decode_run(self, blocks: Sequence[Block], payloads: Sequence[list[bytes]], out: npt.NDArray[Any]) -> bool:
        """Decode blocks whose places follow each other, in one call; returns False if that is not possible."""
        first, last, stage = blocks[0], blocks[-1], self._run_stage
        rows = Block(first.row, last.row_end, 0, self.view.n_columns)
        if stage is None or rows.n_rows != sum([block.n_rows for block in blocks]):
            return False
        part = self.placement.part_of(rows, out)
        return part is not None and stage.decode_run(blocks, payloads, part)

    def block_values(
        self, blocks: Sequence[Block], payloads: Sequence[list[bytes]]
    ) -> Iterator[npt.NDArray[Any]]:
        """Decode blocks. Arguments and errors are those of ``decode_blocks``.

        Yields:
            For each block its values in stored order, ``(n_rows, n_columns)`` of ``placement.stored_dtype``.
        """
        for block, *of_stages in zip(blocks, *self._prepare(blocks, payloads), strict=True):
            values = np.empty((block.n_rows, block.n_columns), self.placement.stored_dtype)
            self._fill(block, of_stages, values)
            yield values

    def _prepare(
        self, blocks: Sequence[Block], payloads: Sequence[list[bytes]], codes: Iterable[Codes] | None = None
    ) -> Sequence[Iterable[Any]]:
        """For each stage, for each block the second argument of its ``decode``: payloads or codes."""
        if self.record.is_raw or (len(self.stages) == 1 and isinstance(self.stages[0], CodebookDecoder)):
            return [payloads]
        prepared: list[Iterable[Any]] = []
        decodes = not native.is_used()  # else payloads are only handed on
        first = 0
        for i, stage in enumerate(self.stages):
            last = first + stage.stage.n_payload()
            if codes is not None and isinstance(stage, TrellisDecoder):
                prepared.append(codes)
            else:
                mine = [sections[first:last] for sections in payloads]
                with naming(self.record.name, stage=i), np.errstate(all="ignore") if decodes else _NOTHING:
                    prepared.append(stage.prepare(blocks, mine))
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
        values = out if self.placement.is_float32 else self._scratch_of("values", block)
        self._add_up(block, of_stages, values)
        if values is not out:
            with np.errstate(all="ignore"):
                out[...] = values  # VAL-001: NumPy rounds to nearest, ties to even

    def _add_up(self, block: Block, of_stages: Sequence[Any], out: Floats) -> None:
        """Write the sum of the first stages, as many as ``of_stages``, to ``out``, ``(n_rows, n_columns)``."""
        # Subnormals must not raise, whatever the caller has set. Kernels raise nothing
        with _NOTHING if all([stage.can_add for stage in self.stages]) else np.errstate(all="ignore"):
            for i, (decoder, of_stage) in enumerate(zip(self.stages, of_stages, strict=False)):
                with naming(self.record.name, stage=i):
                    if i == 0:
                        decoder.decode(block, of_stage, out)
                    elif decoder.can_add:
                        decoder.decode(block, of_stage, out, adds=True)
                    else:
                        addend = self._scratch_of("addend", block)
                        decoder.decode(block, of_stage, addend)
                        np.add(out, addend, out=out)

    @property
    def _last_puts(self) -> bool:
        """Whether the last stage can put values in the places that the order of rows and columns gives them."""
        last = self.stages[-1] if self.stages else None
        return isinstance(last, TrellisDecoder) and last.can_add and self.placement.is_float32

    def _put(self, block: Block, of_stages: Sequence[Any], out: npt.NDArray[Any]) -> None:
        """Decode a block into its places in the tensor (SPEC 7.2), if ``_last_puts``."""
        values: Floats | None = None
        if len(of_stages) > 1:
            values = self._scratch_of("values", block)
            self._add_up(block, of_stages[:-1], values)
        last = self.stages[-1]
        assert isinstance(last, TrellisDecoder)
        with naming(self.record.name, stage=len(of_stages) - 1):
            last.put(block, of_stages[-1], self.placement.addresses(block, out), values)

    def _scratch_of(self, use: str, block: Block, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """An array ``(n_rows, n_columns)`` of any contents, one for each use and thread. New memory costs time."""
        scratch: npt.NDArray[Any] | None = getattr(self._scratch, use, None)
        if scratch is None or scratch.size < block.n_elements:
            scratch = np.empty(block.n_elements, dtype)
            setattr(self._scratch, use, scratch)
        return scratch[: block.n_elements].reshape(block.n_rows, block.n_columns)


class naming:
    """Context manager that adds the name of the tensor, and the number of the stage, to a FormatError."""

    def __init__(self, name: str, stage: int | None = None) -> None:
        self._name, self._stage = name, stage

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if isinstance(err, FormatError) and not err.message.startswith("tensor "):
            stage = "" if self._stage is None else f", stage {self._stage}"
            err.message = f"tensor {self._name!r}{stage}: {err.message}"
            err.args = (err.message,)
