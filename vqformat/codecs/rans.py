"""Entropy coding of codes by rANS, many sequences side by side (SPEC 6 "FREQ", 12.2 and 12.3).

Asymmetric numeral systems: Duda 2009, "Asymmetric numeral systems"; the range variant with whole words, and several
coders that share one stream: Giesen 2014, "Interleaved entropy coders". Every step takes one code of every sequence,
so that NumPy works on vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..records import FreqRecord, Trellis

START = 1 << 16  # the state in which an encoder begins and a decoder ends
WORD_BITS = 16
STATE_NBYTES = 4
_START, _HALF, _LOW = np.uint32(START), np.uint32(WORD_BITS), np.uint32((1 << WORD_BITS) - 1)

Codes = npt.NDArray[Any]
Words = npt.NDArray[np.uint16]


def frequencies(section: bytes, record: FreqRecord) -> npt.NDArray[np.uint32]:
    """Frequencies of codes from the section of a FREQ chunk (SPEC 6).

    Returns:
        ``(tables, entries)``, the sum of each table ``2**precision``.

    Raises:
        FormatError: A table has no weight (FRQ-003).
    """
    byte = np.frombuffer(section, np.uint8).reshape(record.tables, record.entries).astype(np.int64) - 1
    weights = np.where(byte >= 0, (16 + byte % 16) << np.maximum(byte // 16, 0), 0)
    total = weights.sum(axis=1, keepdims=True)
    if not total.all():
        raise FormatError(f"table {int(np.argmin(total))} of a FREQ has no weight that is not 0", clause="FRQ-003")
    is_there = (weights > 0).astype(np.int64)
    spare = (1 << record.precision) - is_there.sum(axis=1, keepdims=True)
    found = is_there + weights * spare // total
    found[np.arange(len(found)), weights.argmax(axis=1)] += (1 << record.precision) - found.sum(axis=1)
    frequencies: npt.NDArray[np.uint32] = found.astype(np.uint32)
    return frequencies


@dataclass(frozen=True)
class Tables:
    """The tables of a FREQ chunk.

    Attributes:
        frequencies: ``(tables, entries)``.
    """

    precision: int
    frequencies: npt.NDArray[np.uint32]

    @classmethod
    def decode(cls, section: bytes, record: FreqRecord) -> Tables:
        """The tables from the plain section.

        Raises:
            FormatError: A table has no weight (FRQ-003).
        """
        return cls(record.precision, frequencies(section, record))

    @property
    def starts(self) -> npt.NDArray[np.uint32]:
        """Sum of the frequencies of the codes before each one, ``(tables, entries)``."""
        return (np.cumsum(self.frequencies, axis=1) - self.frequencies).astype(np.uint32)


class Slots:
    """What a stage finds in each slot of its tables.

    Args:
        first, n_contexts, n_books: The tables that the stage uses: ``n_books`` for each context from ``first`` on.

    Attributes:
        symbols: ``n_books · code + q`` of each slot, ``((n_contexts + 1) · n_books · 2**precision,)``. The last
            context is one of rest: a sequence that meets it stays as it is.
        steps: ``frequency << 16 | slot − start`` of each slot.
    """

    def __init__(self, tables: Tables, first: int, n_contexts: int, n_books: int) -> None:
        self.precision = tables.precision
        self.shift, self.mask = np.uint32(tables.precision), np.uint32((1 << tables.precision) - 1)
        used = slice(first, first + n_contexts * n_books)
        counts = tables.frequencies[used].reshape(-1)
        n_tables, entries = tables.frequencies[used].shape
        dtype = np.uint8 if n_books * entries <= 256 else np.uint16
        symbols = n_books * np.arange(entries) + np.arange(n_books)[:, None]  # (n_books, entries)
        rest = np.zeros(n_books << self.precision, np.uint32)
        slot = np.tile(np.arange(1 << self.precision, dtype=np.uint32), n_tables + n_books)
        self.symbols = np.concatenate([np.repeat(np.tile(symbols.astype(dtype), (n_contexts, 1)).reshape(-1), counts),
                                       rest.astype(dtype)])  # fmt: skip
        starts = np.concatenate([np.repeat(tables.starts[used].reshape(-1), counts), rest])
        frequency = np.concatenate([np.repeat(counts, counts), rest + np.uint32(1 << self.precision)])
        self.steps = frequency << np.uint32(16) | (slot - starts)
        self.rest = np.uint32(n_tables << self.precision)  # first slot of the context of rest

    @classmethod
    def joined(cls, parts: Sequence[Slots]) -> Slots:
        """Slots of several stages of one precision in a row; one rest serves all."""
        if len(parts) == 1:
            return parts[0]
        joined = copy.copy(parts[0])
        last = parts[-1]
        joined.symbols = np.concatenate([*(part.symbols[: part.rest] for part in parts), last.symbols[last.rest :]])
        joined.steps = np.concatenate([*(part.steps[: part.rest] for part in parts), last.steps[last.rest :]])
        joined.rest = np.uint32(sum(int(part.rest) for part in parts))
        return joined


class Decoder:
    """Decodes the codes of several payloads at once, a step at a time.

    Args:
        payloads: One for each block: the states of its sequences, then words.
        n_sequences: Sequences of each payload.
        trellis: Which codebook serves a code; None for one codebook.

    Raises:
        FormatError: A state is impossible (ANS-001).
    """

    def __init__(self, slots: Slots, payloads: list[bytes], n_sequences: list[int], trellis: Trellis | None) -> None:
        self._slots, self._trellis = slots, trellis
        heads = [np.frombuffer(payload, "<u4", n) for payload, n in zip(payloads, n_sequences, strict=True)]
        words = [np.frombuffer(payload, "<u2", offset=STATE_NBYTES * n)
                 for payload, n in zip(payloads, n_sequences, strict=True)]  # fmt: skip
        self._x = np.concatenate(heads).astype(np.uint32)
        if int(self._x.min()) < START:
            raise FormatError(f"a state is {int(self._x.min())}, below {START}", clause="ANS-001")
        # The words of all payloads in a row. Who reads beyond its own is found out in the end
        self._words = np.concatenate([*words, np.zeros(1, np.uint16)])
        self._end = np.cumsum([w.size for w in words])
        self._next = self._end - [w.size for w in words]
        self._bounds = np.cumsum(n_sequences)
        n = self._x.size
        self._numbers = np.arange(n)
        self._firsts = np.zeros(self._bounds.size, np.intp)  # of the words that a step takes, for each payload
        # Where what follows a state begins in the tables of _what_follows, and the first slot of its codebook
        self._part, self._book_slot = np.zeros(n, np.intp), np.zeros(n, np.uint32)
        if trellis is not None:
            self._next_part, self._next_book_slot = _what_follows(trellis, slots.shift)
        self._buffers = np.empty(n, np.intp), np.empty(n, np.uint32), np.empty(n, np.uint32)
        self.narrow(n)

    def narrow(self, n: int) -> None:
        """Go on with the first ``n`` sequences only."""
        self._active = (self._x[:n], self._part[:n], self._book_slot[:n], *(buffer[:n] for buffer in self._buffers))

    def step(self, first_slots: npt.NDArray[np.uint32] | None, out: Codes, *, some_rest: bool) -> None:
        """Take the next code of every sequence that is gone on with.

        Args:
            first_slots: ``(n,)``: for each sequence the first slot of its context, or ``Slots.rest``; None for 0.
            out: ``(n,)``, gets the symbols.
            some_rest: Whether some sequences have no code at this step.
        """
        slots = self._slots
        x, part, book_slot, indices, steps, factors = self._active
        np.bitwise_and(x, slots.mask, out=steps)
        if first_slots is not None:
            np.add(steps, first_slots, out=steps)
        if self._trellis is not None:
            np.add(steps, book_slot, out=steps)
        indices[...] = steps
        slots.symbols.take(indices, out=out, mode="clip")
        slots.steps.take(indices, out=steps, mode="clip")
        np.right_shift(x, slots.shift, out=x)
        np.right_shift(steps, _HALF, out=factors)
        np.multiply(x, factors, out=x)
        np.bitwise_and(steps, _LOW, out=steps)
        np.add(x, steps, out=x)
        low = (x < _START).nonzero()[0]
        if low.size:
            x[low] = x[low] << _HALF | self._take_words(low)
        if self._trellis is None:
            return
        rests = first_slots == slots.rest if some_rest and first_slots is not None else None
        before = None if rests is None else (part[rests], book_slot[rests])
        np.bitwise_and(out, 3, out=indices)  # parity of the code, and q
        np.add(indices, part, out=indices)
        self._next_part.take(indices, out=part, mode="clip")
        self._next_book_slot.take(indices, out=book_slot, mode="clip")
        if before is not None:
            part[rests], book_slot[rests] = before

    def _take_words(self, low: npt.NDArray[np.intp]) -> Words:
        """A word for each of these sequences, from the payload that is theirs."""
        if self._next.size == 1:
            start = int(self._next[0])
            self._next[0] += low.size
            words = self._words[start : start + low.size]
            return words if words.size == low.size else np.zeros(low.size, np.uint16)
        ends = low.searchsorted(self._bounds)
        first = self._firsts
        first[1:] = ends[:-1]
        counts = ends - first
        places = (self._next - first).repeat(counts)
        places += self._numbers[: low.size]
        self._next += counts
        return self._words.take(places, mode="clip")

    def finish(self) -> None:
        """Raise FormatError unless all words are used and every state is back where its encoder began."""
        if (self._next > self._end).any():
            raise FormatError("the words of a payload end before its codes", clause="ANS-002")
        left = int((self._end - self._next).max())
        if left:
            raise FormatError(f"{left} words of a payload are left after its last code", clause="ANS-003")
        if (self._x != START).any():
            raise FormatError(f"a state ends at {int(self._x[self._x != START][0])}, not at {START}", clause="ANS-003")


def _what_follows(trellis: Trellis, shift: np.uint32) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]:
    """The next state (SPEC 12.2), at ``4 · (state >> 1) + 2 · (code & 1) + q``.

    Returns:
        Where what follows it begins in these very tables, and the first slot of its codebook.
    """
    half, parity, q = np.ogrid[:128, :2, :2]
    state = (half ^ q * (trellis.feedback >> 1) ^ parity * (trellis.forward >> 1)).reshape(-1)
    return (state >> 1) * 4, (state & 1).astype(np.uint32) << shift


def encode(frequency: Codes, start: Codes, precision: int, n_sequences: list[int]) -> list[bytes]:
    """Payloads of blocks, side by side (SPEC 12.3).

    Args:
        frequency, start: ``(n_steps, sum(n_sequences))``: of each code in its table; frequency 0 where a sequence has
            no code at a step.
        n_sequences: Of each block.

    Returns:
        For each block states, then words.
    """
    x = np.full(frequency.shape[1], START, np.float64)  # integers below 2**32, exact
    scale = float(1 << precision)
    words, owners = [], []
    for f, s in zip(frequency[::-1].astype(np.float64), start[::-1].astype(np.float64), strict=True):
        is_coded = f > 0
        large = np.flatnonzero((x >= f * (2.0**32 / scale)) & is_coded)
        if large.size:
            high = np.floor(x[large] * 2.0**-WORD_BITS)
            words.append((x[large] - high * 2.0**WORD_BITS)[::-1])
            owners.append(large[::-1])
            x[large] = high
        quotient = np.floor(x / np.where(is_coded, f, 1.0))  # exact: x < 2**32, f < 2**15
        np.copyto(x, quotient * scale + (x - quotient * f) + s, where=is_coded)
    stream = np.concatenate(words)[::-1].astype("<u2") if words else np.zeros(0, "<u2")
    owner = np.concatenate(owners)[::-1] if owners else np.zeros(0, np.intp)
    ends = np.cumsum(n_sequences)
    block = np.searchsorted(ends, owner, side="right")
    order = np.argsort(block, kind="stable")
    cuts = np.searchsorted(block[order], np.arange(1, len(n_sequences)))
    states = np.split(x.astype("<u4"), ends[:-1])
    return [state.tobytes() + part.tobytes() for state, part in
            zip(states, np.split(stream[order], cuts), strict=True)]  # fmt: skip
