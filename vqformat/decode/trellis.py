"""The trellis stage: entropy-coded codes choose entries of one or two codebooks (SPEC section 12)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..errors import FormatError
from ..forks import cached_property
from ..format.layout import Block, View
from ..format.stages import CLASSES_COLUMNS, CLASSES_ROWS, ProgressionSource, TableSource, TransformSource, TrellisStage
from ..native import decoding
from . import rans, tables
from .tables import Floats
from .transform import TransformDecoder

_RESTS = np.uint32(1 << 30)  # marks, in place of a first slot, a row or column that a tile does not have
_SLOTS = 1 << 18  # first slots that are computed together

Codes = npt.NDArray[Any]


def points_of(stage: TrellisStage, zero: int) -> npt.NDArray[np.intp]:
    """The integer of each code in each codebook of a progression: ``(n_books, entries)`` (SPEC 12.4)."""
    return stage.n_books * (np.arange(stage.entries) - zero) + np.arange(stage.n_books)[:, None]


def _largest_point(stage: TrellisStage, zero: int) -> int:
    """The largest magnitude of the integers of all codes of a progression."""
    n_books = stage.n_books
    return max(n_books * zero, n_books * (stage.entries - zero) - 1)


def entries_of(stage: TrellisStage, section: bytes) -> Floats:
    """The codebooks of a stage: ``(n_books, entries)`` float32 (SPEC 12.4). For a transform they are integers.

    Args:
        section: Plain section of its source.
    """
    match stage.source:
        case TableSource(dtype):
            return tables.decode(section, dtype, "codebook").reshape(stage.n_books, stage.entries)
        case ProgressionSource(zero):
            return points_of(stage, zero).astype(np.float32) * tables.decode(section, "f32", "step")
        case TransformSource(zero):
            return points_of(stage, zero).astype(np.float32)


class TrellisDecoder:
    """Decodes the blocks of one stage of one tensor.

    Args:
        resident: Plain bytes of the stage's resident sections.
        freq: Tables of its FREQ chunk.

    Attributes:
        bound: Upper bound of the magnitude of all values of the stage (SPEC 12.4). It may be infinite, see VAL-002.
        row_classes, column_classes: Class of each row (column) of the stored matrix; None without classes.
        slots: Look-up tables of its contexts, for NumPy.

    Raises:
        FormatError: A value is not finite (CBK-008), or a context has no table (TRL-004).
    """

    def __init__(self, stage: TrellisStage, view: View, resident: list[bytes], freq: rans.Tables) -> None:
        self.stage = stage
        sections = iter(resident)
        with np.errstate(all="ignore"):  # a bound may be infinite, and times 0 it is NaN: VAL-002
            self._of_source = of_source = next(sections)
            self._transform: TransformDecoder | None = None
            # The value of each symbol, for the kernel; or zero and step of a progression
            self._values: Floats | tuple[int, float]
            match stage.source:
                case TableSource():
                    self._values = self._book
                    bound = tables.largest(self._values)
                case ProgressionSource(zero):
                    step = tables.decode(of_source, "f32", "step")[0]
                    self._values = stage.n_books * zero, float(step)
                    bound = np.abs(np.float32(_largest_point(stage, zero)) * step)
                case TransformSource(zero):
                    self._values = stage.n_books * zero, 1.0
                    self._transform = TransformDecoder(stage.source, of_source, self._book)
                    bound = self._transform.bound
            self._scales: tables.Scales | None = None
            if stage.scale is not None:
                self._scales = tables.Scales(stage.scale, next(sections), view)
                bound = self._scales.largest * bound
        self.bound = np.float32(bound)
        self.row_classes = np.frombuffer(next(sections), np.uint8) if stage.classes & CLASSES_ROWS else None
        self.column_classes = np.frombuffer(next(sections), np.uint8) if stage.classes & CLASSES_COLUMNS else None
        n_contexts = 1 + sum(int(c.max()) for c in (self.row_classes, self.column_classes) if c is not None)
        if stage.first + n_contexts * stage.n_books > len(freq):
            raise FormatError(f"{n_contexts} contexts from table {stage.first} on, but FREQ {stage.freq} has"
                              f" {len(freq)} tables", clause="TRL-004")  # fmt: skip
        self._freq, self._n_contexts = freq, n_contexts

    @cached_property
    def _book(self) -> Floats:
        """The codebooks: code i of codebook q is at ``i · n_books + q``."""
        return np.ascontiguousarray(entries_of(self.stage, self._of_source).T).reshape(-1)

    @cached_property
    def slots(self) -> rans.Slots:
        stage = self.stage
        return rans.Slots(self._freq, stage.first, self._n_contexts, stage.n_books, stage.trellis)

    @cached_property
    def _native_slots(self) -> decoding.TrellisSlots:
        used = slice(self.stage.first, self.stage.first + self._n_contexts * self.stage.n_books)
        return decoding.TrellisSlots.of(self._freq.frequencies(used), self._freq.precision, self.stage.n_books)

    @property
    def table_sizes(self) -> tuple[int, int]:
        """Number of slots, and of frequencies, of all tables that the stage uses."""
        n_tables = self._n_contexts * self.stage.n_books
        return n_tables << self._freq.precision, n_tables * self.stage.entries

    @property
    def kind(self) -> tuple[object, ...]:
        """Stages of the same kind can be decoded together."""
        return self.stage.trellis, self.slots.precision, self.slots.symbols.dtype

    def prepare(self, blocks: Sequence[Block], payloads: Sequence[list[bytes]]) -> Iterable[Codes | bytes]:
        """Decode the codes of blocks, together if they are bands of rows.

        Args:
            payloads: For each block its one payload section.

        Returns:
            For each block ``n_books · code + q`` of its elements, ``(n_rows, n_columns)``; or its payload, if kernels
            are in use.

        Raises:
            FormatError: A payload breaks a rule of SPEC 12.3.
        """
        if native.is_used():
            return [payload[0] for payload in payloads]
        by_width: dict[int, list[int]] = {}
        for at, block in enumerate(blocks):
            by_width.setdefault(block.n_columns, []).append(at)
        if len(by_width) == 1:
            return decode_together([Bands(self, blocks, [payload[0] for payload in payloads])])[0]
        found: dict[int, Codes] = {}
        for places in by_width.values():
            bands = Bands(self, [blocks[at] for at in places], [payloads[at][0] for at in places])
            found.update(zip(places, decode_together([bands])[0], strict=True))
        return [found[at] for at in range(len(blocks))]

    @property
    def can_add(self) -> bool:
        """Whether ``put`` can be called, and ``decode`` to add."""
        return native.is_used() and self._transform is None and (self._scales is None or self._scales.are_of_rows)

    def decode(self, block: Block, codes: Codes | bytes, out: Floats, *, adds: bool = False) -> None:
        """Write the values of a block to ``out``, ``(n_rows, n_columns)`` float32, C-contiguous.

        Args:
            codes: Of the block, as ``prepare`` returns them.
            adds: Whether the values are added to those in ``out``, if ``can_add``.

        Raises:
            FormatError: ``codes`` are a payload, which breaks a rule of SPEC 12.3.
        """
        if isinstance(codes, bytes):
            rows = np.arange(block.n_rows, dtype=np.int64) * block.n_columns
            places = decoding.Places(rows, None, block.n_columns)
            whole = Block(0, block.n_rows, 0, block.n_columns)
            self.put(block, codes, places.addresses(whole, out), out if adds else None)
            if self.can_add:
                return
            if self._transform is not None:
                self._transform.decode(out, out)
        elif self._transform is None:
            np.take(self._book, codes.astype(np.intp), out=out, mode="clip")
        else:
            self._transform.decode(codes, out)
        if self._scales is not None:
            self._scales.multiply(block, out)

    def put(
        self, block: Block, payload: bytes, places: tuple[int, int, int], addend: Floats | None
    ) -> None:  # fmt: skip
        """Write the values of a block to their places by the kernel; without scales unless ``can_add``.

        Of a transform it writes the coefficients.

        Args:
            payload: Of the block, as ``prepare`` returns it.
            places: See ``decoding.Places.addresses``.
            addend: ``(n_rows, n_columns)``, C-contiguous: what is added to the values; None for nothing.

        Raises:
            FormatError: ``payload`` breaks a rule of SPEC 12.3.
        """
        self._kernel.decode(payload, block, places, addend)

    @cached_property
    def _kernel(self) -> decoding.TrellisKernel:
        trellis = self.stage.trellis
        return decoding.TrellisKernel(
            self._native_slots,
            tile=self.stage.tile,
            polynomials=(0, 0) if trellis is None else (trellis.feedback, trellis.forward),
            row_classes=self.row_classes,
            column_classes=self.column_classes,
            values=self._values,
            row_scales=self._scales.of_rows() if self._scales is not None and self.can_add else None,
        )


class Bands:
    """Blocks of one stage that are equally wide, and the tiles that they are cut into. A tile is one sequence.

    Attributes:
        n_steps: Number of codes of a whole tile.
        n_sequences: For each block the number of its tiles.
        has_contexts: Whether there is more than one context, or a tile that is not whole.
        has_rests: Whether there are tiles that are not whole: they have fewer rows or columns.
        goes_on: Whether a tile lacks columns. Such a tile has codes after a step at which it has none.
    """

    def __init__(self, decoder: TrellisDecoder, blocks: Sequence[Block], payloads: list[bytes]) -> None:
        self.decoder, self.payloads = decoder, payloads
        self._blocks = blocks
        self._height, self._width = decoder.stage.tile
        self._n_across = -(-blocks[0].n_columns // self._width)  # tiles beside each other
        self._bands = [-(-block.n_rows // self._height) for block in blocks]  # for each block, tiles below each other
        self.n_steps = self._height * self._width
        self.n_sequences = [n * self._n_across for n in self._bands]
        # What each row and column of a tile adds to the first slot: (height, bands), (width, bands or 1, n_across)
        of_rows = [self._first_slots(decoder.row_classes, b.row, b.row_end, self._height) for b in blocks]
        self._rows = np.concatenate(of_rows, axis=1)
        starts = {block.column for block in blocks} if decoder.column_classes is not None else {blocks[0].column}
        of_columns = [self._first_slots(decoder.column_classes, b.column, b.column_end, self._width)
                      for b in (blocks if len(starts) > 1 else blocks[:1])]  # fmt: skip
        self._columns = np.stack(of_columns, axis=1)
        if len(starts) > 1:
            self._columns = self._columns.repeat(self._bands, axis=1)
        self.has_contexts = bool(self._rows.any() or self._columns.any())
        self.goes_on = bool((self._columns >= _RESTS).any())
        self.has_rests = self.goes_on or bool((self._rows >= _RESTS).any())

    def _first_slots(self, classes: Codes | None, start: int, end: int, size: int) -> npt.NDArray[np.uint32]:
        """What rows (columns) ``start:end`` add to the first slot: ``(size, n_tiles)``, one column for each tile."""
        n_tiles = -(-(end - start) // size)
        slots = np.full(n_tiles * size, _RESTS, np.uint32)
        slots[: end - start] = 0
        if classes is not None:
            stage, precision = self.decoder.stage, self.decoder.slots.precision
            slots[: end - start] = classes[start:end].astype(np.uint32) * stage.n_books << precision
        return slots.reshape(n_tiles, size).T

    def first_slots(self, start: int, end: int, base: int, rest: np.uint32) -> npt.NDArray[np.uint32]:
        """First slot of each sequence at steps ``start:end``: ``(n_steps, n_sequences)``.

        Args:
            base: First slot of the stage in the joined tables.
            rest: First slot where a sequence has no code.
        """
        i, j = np.divmod(np.arange(start, end), self._width)
        slots = (self._rows[i] + np.uint32(base))[:, :, None] + self._columns[j]
        if self.has_rests:
            np.copyto(slots, rest, where=slots >= _RESTS)
        return slots.reshape(end - start, -1)

    def codes(self, symbols: Codes) -> Iterator[Codes]:
        """Rearrange symbols ``(n_steps, n_sequences)`` into those of each block, ``(n_rows, n_columns)``."""
        of_tiles = symbols.reshape(self._height, self._width, sum(self._bands), self._n_across)
        end = 0
        for block, n in zip(self._blocks, self._bands, strict=True):
            start, end = end, end + n
            part = np.ascontiguousarray(of_tiles[:, :, start:end])  # a copy: its smaller strides suit the CPU cache
            matrix = part.transpose(2, 0, 3, 1).reshape(n * self._height, self._n_across * self._width)
            yield matrix[: block.n_rows, : block.n_columns]


def decode_together(jobs: Sequence[Bands]) -> list[Iterator[Codes]]:
    """Decode the codes of blocks of several stages together.

    Args:
        jobs: At least one; their decoders have the same ``kind``.

    Returns:
        For each job, for each of its blocks the symbols, ``(n_rows, n_columns)``.

    Raises:
        FormatError: A payload breaks a rule of SPEC 12.3.
    """
    order = sorted(range(len(jobs)), key=lambda k: -jobs[k].n_steps)  # so that unfinished sequences come first
    ordered = [jobs[k] for k in order]
    slots = rans.Slots.joined([job.decoder.slots for job in ordered])
    bases = list(accumulate((int(job.decoder.slots.rest) for job in ordered[:-1]), initial=0))
    ends = list(accumulate(sum(job.n_sequences) for job in ordered))
    decoder = rans.Decoder(slots, [payload for job in ordered for payload in job.payloads],
                           [n for job in ordered for n in job.n_sequences])  # fmt: skip
    has_contexts = len(jobs) > 1 or jobs[0].has_contexts
    goes_on = any(job.goes_on for job in jobs)
    runs: list[Codes] = []  # symbols (n_steps, n), one array for each stretch of steps with the same n sequences
    done = 0
    # n_steps: a length of jobs; last: the last job of this length
    for n_steps, last in sorted({job.n_steps: i for i, job in enumerate(ordered)}.items()):
        active, n = list(zip(ordered, bases, strict=True))[: last + 1], ends[last]
        run = np.empty((n_steps - done, n), slots.symbols.dtype)
        size = max(1, _SLOTS // n)
        for start in range(done, n_steps, size):
            end = min(start + size, n_steps)
            first = None
            if has_contexts:
                first = np.concatenate([job.first_slots(start, end, base, slots.rest) for job, base in active], axis=1)
            decoder.run(first, run[start - done : end - done], goes_on=goes_on)
        runs.append(run)
        done = n_steps
    decoder.finish()
    found: dict[int, Iterator[Codes]] = {}
    begin = 0
    for k, job, end in zip(order, ordered, ends, strict=True):
        parts = [run[:, begin:end] for run in runs if run.shape[1] >= end]  # later runs are without this job
        found[k] = job.codes(parts[0] if len(parts) == 1 else np.concatenate(parts))
        begin = end
    return [found[k] for k in range(len(jobs))]
