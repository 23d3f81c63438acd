"""Valid files: FREQ chunks (SPEC 6), of minor version 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from vqmbuilder import (
    layr,
    zstd_section,
)
from vqmtensors import (
    Codebook,
    tensor,
)
from vqmtrellis import (
    Freq,
    Trellis,
    frequencies,
)

from fixture_cases import Case, valid
from fixture_cases.bases import (
    ROWS,
    book_chunk,
    codes,
    table,
)
from fixture_cases.trellis_bases import books, freq, model


def cases() -> list[Case]:
    return [*freqs()]


def freqs() -> list[Case]:
    text = Freq(3, (bytes([33, 17, 0, 1]),))
    assert frequencies(3, text.tables[0]) == (5, 2, 0, 1)
    every = Freq(14, (bytes(range(256)),))
    assert max(frequencies(14, every.tables[0])) == frequencies(14, every.tables[0])[255] > 512
    ties = Freq(4, (bytes([9, 40, 40, 1, 40]), bytes([7] * 5)))
    assert frequencies(4, ties.tables[0]) == (1, 6, 4, 1, 4)
    lone = Freq(5, (bytes([0, 0, 1, 0]),))
    full = Freq(3, (bytes([1, 255, 3, 20, 80, 7, 90, 2]),))
    assert frequencies(3, full.tables[0]) == (1,) * 8
    fine = Freq(14, (bytes([1, 1, 113, 240]),))
    assert frequencies(14, fine.tables[0])[:2] == (1, 1)
    many = Freq(14, (b"\1" * 16_384,) * 2)
    limit = Freq(14, (b"\5\5",) * 256)
    shared = freq(4, 5, 3)
    one, two, unused = freq(5, 1, 6), freq(6, 2, 3), Freq(1, (b"\1",))
    book = table(7, 1, 3, 2)

    def alone(
        name: str, comment: str, clauses: str, of: Freq, chosen: object, *, seal: Any = None, **fields: Any
    ) -> Case:
        stage = Trellis(np.array(chosen), of, fields.pop("tile", (1, 2)), **{"step": 0.5, "zero": 2, **fields})
        item = tensor("a", "f32", stage.codes.shape, stage, layout=ROWS)
        return valid(name, comment, clauses, model(of.chunk(seal) if seal else of.chunk(), layr("", item)))

    return [
        alone("freq-of-the-text", "the example of SPEC 6: frequencies 5 2 0 1", "FRQ-001", text, [[3, 0, 1, 0, 0, 1]]),
        alone(
            "freq-all-weights",
            "a code for each byte; weight times spare slots exceeds 32 bits, their sum does not",
            "FRQ-001",
            every,
            [[1, 255, 128, 17, 16, 254, 33, 2, 240]],
        ),
        alone(
            "freq-ties",
            "of several largest weights the first gets what is missing",
            "FRQ-001",
            ties,
            [[0, 1, 2, 3, 4, 1], [4, 3, 2, 1, 0, 0]],
            trellis=(11, 4),
            tile=(2, 3),
        ),
        alone("freq-one-weight", "one code of four has a weight: no words", "FRQ-003 ANS-003", lone, [[2] * 7]),
        alone("freq-one-entry", "a table of one code: no words", "FRQ-001 ANS-003", Freq(7, (b"\xff",)), [[0] * 5]),
        alone(
            "freq-full",
            "2^precision codes: each has frequency 1, whatever its weight",
            "FRQ-001",
            full,
            [[0, 1, 7, 5, 6, 2, 4, 3]],
        ),
        alone("freq-precision-1", "precision 1, two codes", "FRQ-001", Freq(1, (b"\x09\x90",)), [[0, 1, 1, 0, 1]]),
        alone(
            "freq-precision-14",
            "precision 14; codes of frequency 1 take 14 bits each",
            "FRQ-001",
            fine,
            [[0, 1, 2, 3, 3, 1, 0], [3, 3, 3, 2, 0, 0, 1]],
            tile=(1, 3),
        ),
        alone(
            "freq-entries-300",
            "300 codes, without trellis",
            "FRQ-001",
            freq(8, 1, 300),
            [[299, 0, 255, 256, 100, 298, 299]],
            zero=150,
        ),
        alone(
            "freq-entries-16384",
            "the most entries: 16,384, with trellis; two tables compressed with zstd",
            "FRQ-001 TRL-005",
            many,
            [[16_383, 0, 255, 256, 257, 9_999, 16_382, 16_383]],
            seal=zstd_section,
            zero=8_192,
            trellis=(11, 4),
            tile=(1, 3),
        ),
        alone(
            "freq-limit",
            "tables · 2^precision is 4,194,304; the last tables are used",
            "FRQ-001 LIM-001",
            limit,
            [[0, 1, 1, 0]],
            seal=zstd_section,
            first=255,
        ),
        valid(
            "freq-shared",
            "two layers use one FREQ, each from another table on",
            "FRQ-004 TRL-004",
            model(
                shared.chunk(),
                layr(
                    "one",
                    tensor("a", "f32", [7], Trellis(codes(1, (1, 7), 3), shared, (1, 4), books(2, 1, 3))),
                    tensor("b", "f32", [7], Trellis(codes(2, (1, 7), 3), shared, (1, 4), books(3, 1, 3), first=4)),
                ),
                layr(
                    "two",
                    tensor(
                        "c",
                        "f32",
                        [7],
                        Trellis(codes(3, (1, 7), 3), shared, (1, 2), step=0.3, zero=1, trellis=(11, 4), first=2),
                    ),
                ),
            ),
        ),
        valid(
            "freqs",
            "FREQs are numbered in file order, apart from BOOKs; one unused, one between layers",
            "FRQ-004 BOK-001",
            model(
                one.chunk(),
                book_chunk(book),
                layr(
                    "one",
                    tensor("a", "f32", [5], Trellis(codes(1, (1, 5), 6), one, (1, 2), books(2, 1, 6))),
                    tensor("b", "f32", [6], Codebook(codes(2, (1, 3), 3), book, book=0)),
                ),
                unused.chunk(),
                two.chunk(),
                layr(
                    "two",
                    tensor(
                        "c",
                        "f32",
                        [5],
                        Trellis(codes(3, (1, 5), 3), two, (1, 2), books(4, 2, 3), trellis=(11, 4), number=2),
                    ),
                    tensor("d", "f32", [4], Trellis(codes(4, (1, 4), 6), one, (1, 4), step=-0.7)),
                ),
            ),
        ),
    ]
