"""Invalid files: payloads of trellis stages (SPEC 12.3)."""



from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from vqmbuilder import (
    Section,
    section,
    u16,
    u32,
    zstd_section,
)
from vqmtensors import (
    Layout,
    edit,
    tensor,
    with_section,
)
from vqmtrellis import (
    Freq,
    Trellis,
    frequencies,
)

from fixture_cases import Case
from fixture_cases.bad_trellises import one
from fixture_cases.bases import (
    ROWS,
)

FORMAT, CHECKSUM, TRUNCATED = "format", "checksum", "truncated"


def cases() -> list[Case]:
    return [*payloads()]


def payloads() -> Iterator[Case]:
    of = Freq(14, (bytes([1, 1, 113, 240]),))
    stage = Trellis(np.array([[0, 1, 2, 3, 1, 0, 1], [1, 1, 0, 0, 3, 3, 2]]), of, (1, 4), step=0.5)
    item = tensor("a", "f32", [2, 7], stage, layout=ROWS)
    bands = tensor("a", "f32", [2, 7], stage, layout=Layout(n_row_axes=1, block_rows=1))
    good, n = item.sections[1].stored, 4
    first, second = (item.stored for item in bands.sections[1:])
    assert len(good) >= 4 * n + 8 and len(good) + 8 < 4 * n + 2 * 14 and len(first) > 8 and len(first) + 2 < 8 + 2 * 7
    no_words = Trellis(np.zeros((2, 20), int), Freq(5, (b"\1",)), (1, 2), step=0.5)
    lone = tensor("a", "f32", [2, 20], no_words, layout=ROWS)

    def bad(name: str, comment: str, clauses: str, *stored: bytes | Section, **fields: Any) -> Case:
        """Other payloads of ``item``, or of ``bands`` if there are two."""
        made = item if len(stored) == 1 else bands
        sections = [value if isinstance(value, Section) else section(value) for value in stored]
        made = replace(made, sections=(made.sections[0], *sections))
        return one(name, fields.pop("error", FORMAT), comment, clauses, of, made)

    def wordless(name: str, comment: str, clauses: str, stored: bytes | Section) -> Case:
        """Another payload for 20 sequences of a table of one code, 65,536 each and no words."""
        made = with_section(lone, 1, stored if isinstance(stored, Section) else section(stored))
        return one(name, FORMAT, comment, clauses, no_words.freq, made)

    states = lone.sections[1].stored
    assert states == u32(2**16) * 20
    # Eight codes of one slot each: 64 codes 0 leave nothing but words of 0
    zeros = Trellis(np.zeros((2, 64), int), Freq(3, (b"\5" * 8,)), (1, 64), step=0.5)
    line = tensor("a", "f32", [64], replace(zeros, codes=zeros.codes[:1]))
    lines = tensor("a", "f32", [2, 64], zeros, layout=Layout(n_row_axes=1, block_rows=1))
    plain = line.sections[1].stored
    packed = zstd_section(plain)
    assert plain.endswith(bytes(20)) and 4 <= len(packed.stored) < len(plain) and len(packed.stored) % 2 == 0
    yield one(
        "ans-001-zstd",
        FORMAT,
        "a payload stored with zstd, of a size that a plain one could have",
        "ANS-001",
        zeros.freq,
        with_section(line, 1, packed),
    )
    yield bad("ans-001-odd", "a byte after the words", "ANS-001", good + b"\0")
    yield bad("ans-001-odd-short", "half a word is missing", "ANS-001", good[:-1])
    yield wordless("ans-001-short", "a state is missing", "ANS-001", states[4:])
    yield wordless("ans-001-empty", "no bytes at all", "ANS-001", b"")
    yield bad(
        "ans-001-long", "a word more than there are codes", "ANS-001", good + bytes(4 * n + 2 * 14 + 2 - len(good))
    )
    yield bad("ans-001-hostile", "a payload of 2 GiB is announced", "ANS-001", section(good, length=2**31 - 2))
    yield bad("ans-001-more", "4,094 bytes of a payload of at most 44 are announced", "ANS-001",
              section(good, length=4_094))  # fmt: skip
    two = Freq(3, (bytes([1, 113]),))
    assert frequencies(3, two.tables[0]) == (1, 7)
    early = tensor("a", "f32", [1], Trellis(np.array([[1]]), two, (1, 1), step=0.5))
    yield one(
        "ans-001-state",
        FORMAT,
        "a state of 2, from which the code and the last state follow with a word that was put out too early",
        "ANS-001",
        two,
        with_section(early, 1, section(u32(2) + u16(0))),
    )
    last = Freq(14, (bytes([240, 230, 235, 1]),))  # the last code has one slot, the last
    pair = tensor("a", "f32", [2], Trellis(np.array([[3, 2]]), last, (1, 2), step=0.5))
    before = int.from_bytes(pair.sections[1].stored[:4], "little") >> 14  # what the first code was coded into
    yield one(
        "ans-001-state-65535",
        FORMAT,
        "a state of 65,535, from which the codes and the last state follow with a word that was put out too early",
        "ANS-001",
        last,
        with_section(pair, 1, section(u32(2**16 - 1) + u16(before % 2**16) + pair.sections[1].stored[4:])),
    )
    yield wordless("ans-001-state-0", "states of 0", "ANS-001", bytes(80))
    yield bad("ans-002-word", "the last word is missing", "ANS-002", good[:-2])
    yield bad("ans-002-no-words", "there are no words", "ANS-002", good[: 4 * n])
    for name, made in [("zero", line), ("zero-last-block", lines)]:
        yield one(
            f"ans-002-{name}",
            FORMAT,
            "the last word is missing: it is 0, as what stands behind an array may be",
            "ANS-002",
            zeros.freq,
            with_section(made, -1, section(plain[:-2])),
        )
    yield bad(
        "ans-002-next-block",
        "the last word of a block is the first one of the next block",
        "ANS-002",
        first[:-2],
        second[:8] + first[-2:] + second[8:],
    )
    yield bad("ans-003-word", "a word is left", "ANS-003", good + u16(0))
    yield bad(
        "ans-003-word-first-block", "a word is left of the first of two blocks", "ANS-003", first + u16(7), second
    )
    yield bad("ans-003-word-last-block", "a word is left of the last of two blocks", "ANS-003", first, second + u16(7))
    yield wordless("ans-003-word-none", "a word, and the codes need none", "ANS-003", states + u16(0))
    off = replace(stage, ends=2**16 + 1)
    yield one(
        "ans-003-end",
        FORMAT,
        "the sequences end at 65,537",
        "ANS-003",
        of,
        tensor("a", "f32", [2, 7], off, layout=ROWS),
    )
    yield wordless("ans-003-end-last", "the last sequence ends at 2^17", "ANS-003", states[:-4] + u32(2**17))
    yield wordless("ans-003-end-large", "a sequence ends at 2^32 - 1", "ANS-003", u32(2**32 - 1) + states[4:])
    yield bad(
        "sec-001-trellis",
        "another CRC of a payload",
        "SEC-001",
        section(good, crc=0),
        error=CHECKSUM,
    )
    great = edit(edit(edit(item, (2,), [2**20]), (3,), None), (4, 0, 7), [1, 2**13])
    yield one(
        "lim-payload-not-there",
        TRUNCATED,
        "a payload of 4,094 bytes is announced for 2^20 codes, and the file is shorter",
        "REA-001 REA-002",
        of,
        with_section(great, 1, section(good, length=4_094)),
    )
