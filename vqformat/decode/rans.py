"""Entropy coding of codes by rANS, many sequences in parallel (SPEC 6 "FREQ", 12.2 and 12.3).

Asymmetric numeral systems: Duda 2009, "Asymmetric numeral systems". The range variant that reads whole words, with
several coders on one stream: Giesen 2014, "Interleaved entropy coders". Every step decodes one code of every sequence,
so that NumPy works on vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..forks import cached_property
from ..format.records import FreqRecord
from ..format.stages import Trellis

START = 1 << 16  # the state in which an encoder begins and a decoder ends
WORD_BITS = 16
STATE_NBYTES = 4
STATE_BITS = 8  # width of the state of a trellis
_FEW_CODES = 1 << 16  # of a FREQ whose frequencies are all computed and kept

Codes = npt.NDArray[Any]
Words = npt.NDArray[np.uint32]


class Tables:
    """The tables of a FREQ chunk.

    Frequencies are computed when they are needed: a FREQ may have 4,194,304 codes, and a stage uses few of them.

    Args:
        section: Plain section of the chunk.

    Raises:
        FormatError: A table has no weight (FRQ-003).
    """

    def __init__(self, section: bytes, record: FreqRecord) -> None:
        self.precision = record.precision
        self._weights = np.frombuffer(section, np.uint8).reshape(record.tables, record.entries)  # bytes of weights
        has_weight = self._weights.any(axis=1)
        if not has_weight.all():
            raise FormatError(f"table {int(np.argmin(has_weight))} of a FREQ has no weight that is not 0",
                              clause="FRQ-003")  # fmt: skip

    def __len__(self) -> int:
        return len(self._weights)

    def frequencies(self, used: slice = slice(None)) -> npt.NDArray[np.uint32]:
        """Frequencies of the codes of some tables, by default of all: ``(n, entries)`` uint32.

        Each table has the sum ``2**precision``.
        """
        if self._weights.size > _FEW_CODES:
            return _frequencies(self._weights[used], self.precision)
        return self._of_all[used]

    @cached_property
    def _of_all(self) -> npt.NDArray[np.uint32]:
        return _frequencies(self._weights, self.precision)


def starts(frequencies: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """For each code the sum of the frequencies of the codes before it in its table, ``(tables, entries)``."""
    return (np.cumsum(frequencies, axis=1) - frequencies).astype(np.uint32)


def _frequencies(weights: npt.NDArray[np.uint8], precision: int) -> npt.NDArray[np.uint32]:
    """Frequencies from the bytes of weights, ``(tables, entries)`` (SPEC 6)."""
    byte = weights.astype(np.int64) - 1
    weight = np.where(byte >= 0, (16 + byte % 16) << np.maximum(byte // 16, 0), 0)
    total = weight.sum(axis=1, keepdims=True)
    is_there = (weight > 0).astype(np.int64)
    spare = (1 << precision) - is_there.sum(axis=1, keepdims=True)
    found = is_there + weight * spare // total
    found[np.arange(len(found)), weight.argmax(axis=1)] += (1 << precision) - found.sum(axis=1)
    frequencies: npt.NDArray[np.uint32] = found.astype(np.uint32)
    return frequencies


class Slots:
    """Look-up tables of a stage by slot. A slot is the low ``precision`` bits of a state, in a table of frequencies.

    Args:
        first, n_contexts, n_books: The tables that the stage uses: ``n_books`` for each context, from number ``first``.
        trellis: The trellis of the stage; None for one codebook.

    Attributes:
        symbols: ``n_books · code + q`` of each slot, with q the codebook: ``((n_contexts + 1) · n_books ·
            2**precision,)``. The last context is the rest context: it leaves a sequence unchanged where it has no code.
        steps: For each slot what a decoding step needs, packed into an integer of 32 bits if that is enough, else 64.
            With P the precision, bits 0 to P − 1 are ``2**P − frequency``, bits P to 2 P − 1 are ``start``, and the
            highest 8 bits are what the code adds to the next trellis state (by exclusive or).
        shift: Number of the lowest of these highest bits.
        rest: The first slot of the rest context.
    """

    def __init__(self, tables: Tables, first: int, n_contexts: int, n_books: int, trellis: Trellis | None) -> None:
        self.precision, self.trellis = tables.precision, trellis
        used = slice(first, first + n_contexts * n_books)
        frequencies = tables.frequencies(used)
        n_tables, entries = frequencies.shape
        n_slots = 1 << self.precision
        symbols = n_books * np.arange(entries) + np.arange(n_books)[:, None]  # (n_books, entries)
        rest = np.zeros(n_books, np.intp)
        of_all = np.concatenate([np.tile(symbols, (n_contexts, 1)).reshape(-1), rest])
        counts = np.concatenate([frequencies.reshape(-1), rest + n_slots])
        dtype = np.dtype(np.uint32 if STATE_BITS + 2 * self.precision <= 32 else np.uint64)
        self.shift = 8 * dtype.itemsize - STATE_BITS
        steps = (n_slots - counts).astype(dtype)
        steps[: -n_books] |= starts(frequencies).reshape(-1).astype(dtype) << dtype.type(self.precision)
        if trellis is not None:
            steps[: -n_books] |= _additions(trellis)[of_all[: -n_books] & 3].astype(dtype) << dtype.type(self.shift)
        self.symbols = of_all.astype(np.uint8 if n_books * entries <= 256 else np.uint16).repeat(counts)
        self.steps = steps.repeat(counts)
        self.rest = np.uint32(n_tables * n_slots)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of both tables."""
        return self.symbols.nbytes + self.steps.nbytes

    @classmethod
    def joined(cls, parts: Sequence[Slots]) -> Slots:
        """The slots of several stages one after another, with one rest context for all.

        Args:
            parts: At least one; all of the same precision and trellis.
        """
        if len(parts) == 1:
            return parts[0]
        joined = copy.copy(parts[0])
        last = parts[-1]
        joined.symbols = np.concatenate([*(part.symbols[: part.rest] for part in parts), last.symbols[last.rest :]])
        joined.steps = np.concatenate([*(part.steps[: part.rest] for part in parts), last.steps[last.rest :]])
        joined.rest = np.uint32(sum(int(part.rest) for part in parts))
        return joined


def _additions(trellis: Trellis) -> npt.NDArray[np.uint32]:
    """The bits that a code flips in ``state >> 1``, at index ``2 · (code & 1) + (state & 1)`` (SPEC 12.2)."""
    forward, feedback = trellis.forward >> 1, trellis.feedback >> 1
    return np.array([0, feedback, forward, forward ^ feedback], np.uint32)


class Decoder:
    """Decodes the codes of several payloads together, one step at a time.

    Args:
        payloads: For each block the initial states of its sequences, then its words (SPEC 12.3).
        n_sequences: Number of sequences of each payload.

    Raises:
        FormatError: A state is impossible (ANS-001).
    """

    def __init__(self, slots: Slots, payloads: list[bytes], n_sequences: list[int]) -> None:
        self._slots = slots
        heads = [np.frombuffer(payload, "<u4", n) for payload, n in zip(payloads, n_sequences, strict=True)]
        words = [np.frombuffer(payload, "<u2", offset=STATE_NBYTES * n)
                 for payload, n in zip(payloads, n_sequences, strict=True)]  # fmt: skip
        self._x = np.concatenate(heads).astype(np.uint32)
        if int(self._x.min()) < START:
            raise FormatError(f"a state is {int(self._x.min())}, below {START}", clause="ANS-001")
        # The words of all payloads, one after another. ``finish`` detects payloads that read beyond their own words
        self._words = np.concatenate([*words, np.zeros(1, np.uint16)], dtype=np.uint32)  # of the dtype of states
        self._end = np.cumsum([w.size for w in words])
        self._next = self._end - [w.size for w in words]
        n = self._x.size
        self._bounds = np.cumsum([0, *n_sequences])
        self._numbers = np.arange(n)
        self._states = np.zeros(n, slots.steps.dtype)  # trellis states, in the highest bits; the others have no meaning
        self._book_slots = np.zeros(n, np.uint32)  # for each sequence the first slot of its current codebook

    def run(self, first_slots: npt.NDArray[np.uint32] | None, out: Codes, *, goes_on: bool = True) -> None:
        """Decode the next codes of the first n sequences.

        Args:
            first_slots: ``(n_steps, n)``: for each code the first slot of its context, or ``Slots.rest`` where the
                sequence has no code; None if all are 0.
            out: ``(n_steps, n)``. It is filled with symbols. A later run must not have more sequences.
            goes_on: Whether a sequence may have codes after a step at which it has none. Then its trellis state is
                kept over such a step.
        """
        slots, n = self._slots, out.shape[1]
        table, symbols, has_trellis = slots.steps, slots.symbols, slots.trellis is not None
        # For speed: NumPy handles 0-d arrays faster than its scalars, and positional outputs faster than ``out=``
        precision, half, start = (np.array(v, np.uint32) for v in (slots.precision, WORD_BITS, START))
        mask, book_bit = (np.array(v, np.uint32) for v in ((1 << slots.precision) - 1, 1 << slots.precision))
        one, to_book = (np.array(v, table.dtype) for v in (1, slots.shift - slots.precision))
        x, states, book_slots = self._x[:n], self._states[:n], self._book_slots[:n]
        slot, part, product = (np.empty(n, np.uint32) for _ in range(3))
        is_low = np.empty(n, np.bool_)
        place, found, shifted = np.empty(n, np.intp), np.empty(n, table.dtype), np.empty(n, table.dtype)
        for k in range(len(out)):
            np.bitwise_and(x, mask, slot)
            if has_trellis:
                np.add(slot, book_slots, slot)
            if first_slots is not None:
                np.add(slot, first_slots[k], slot)
            place[...] = slot
            table.take(place, 0, found, "clip")
            symbols.take(place, 0, out[k], "clip")
            # The new state f · (x >> P) + slot − start, where slot is x mod 2^P: x − (2^P − f) · (x >> P) − start
            np.bitwise_and(found, mask, part, casting="unsafe")
            np.right_shift(x, precision, product)
            np.multiply(product, part, product)
            np.subtract(x, product, x)
            np.right_shift(found, precision, shifted)
            np.bitwise_and(shifted, mask, part, casting="unsafe")
            np.subtract(x, part, x)
            (low,) = np.less(x, start, is_low).nonzero()
            if low.size:
                few = x.take(low)
                np.left_shift(few, half, few)
                np.bitwise_or(few, self._take_words(low), few)
                x[low] = few
            if has_trellis:
                np.right_shift(states, one, shifted)
                if first_slots is not None and goes_on:
                    np.bitwise_xor(shifted, found, states, where=first_slots[k] != slots.rest)
                else:
                    np.bitwise_xor(shifted, found, states)
                np.right_shift(states, to_book, shifted)
                np.bitwise_and(shifted, book_bit, book_slots, casting="unsafe")

    def _take_words(self, low: npt.NDArray[np.intp]) -> Words:
        """The next word of each of these sequences (ascending numbers), from its own payload."""
        if self._next.size == 1:
            start = int(self._next[0])
            self._next[0] += low.size
            words = self._words[start : start + low.size]
            return words if words.size == low.size else np.zeros(low.size, np.uint32)
        cuts = low.searchsorted(self._bounds)
        counts = cuts[1:] - cuts[:-1]
        places = (self._next - cuts[:-1]).repeat(counts)
        places += self._numbers[: low.size]
        self._next += counts
        return self._words.take(places, mode="clip")

    def finish(self) -> None:
        """Raise FormatError unless all words are used and every state is the one with which an encoder begins."""
        if (self._next > self._end).any():
            raise FormatError("the words of a payload end before its codes", clause="ANS-002")
        left = int((self._end - self._next).max())
        if left:
            raise FormatError(f"{left} words of a payload are left after its last code", clause="ANS-003")
        if (self._x != START).any():
            raise FormatError(f"a state ends at {int(self._x[self._x != START][0])}, not at {START}", clause="ANS-003")


def encode(frequency: Codes, start: Codes, precision: int, n_sequences: list[int]) -> list[bytes]:
    """Encode codes into the payloads of blocks (SPEC 12.3).

    Args:
        frequency, start: ``(n_steps, sum(n_sequences))``: of each code, by its table. The frequency is 0 where a
            sequence has no code at a step.
        n_sequences: Number of sequences of each block.

    Returns:
        For each block its states, then its words.
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
