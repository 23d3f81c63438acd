"""Invalid files that break two rules: that of the earliest step decides (REA-006).

In each of them metadata breaks a rule, which a decoder may miss there and then meet in what the sections hold. The CRC
of the first section, which is tested between the two, is wrong as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from vqmbuilder import MAGIC, Chunk, File, file, layr, u16, u32
from vqmtensors import F32, Codebook, Tensor, edit, raw, sparse, tensor, with_section
from vqmtrellis import Trellis

from fixture_cases import Case, invalid
from fixture_cases.bases import ROWS, base_raw, codes
from fixture_cases.trellis_bases import freq

FORMAT = "format"


def cases() -> list[Case]:
    return list(records())


def records() -> Iterator[Case]:
    def one(name: str, minor: int, comment: str, clauses: str, chunks: tuple[Chunk, ...], *tensors: Tensor) -> Case:
        first = with_section(tensors[0], 0, replace(tensors[0].sections[0], crc=0))
        whole: File = file(*chunks, layr("", first, *tensors[1:]), header=MAGIC + u16(1) + u16(minor) + u32(0))
        return invalid(f"rea-006-{name}", FORMAT, f"{comment}, and another CRC of a section", clauses, whole)

    again = raw("a", "u8", [1], b"\5")
    yield one("name", 0, "a name twice in a layer", "REA-006 TEN-002 SEC-001", (), base_raw(), again)
    stage = Codebook(codes(6, (1, 5), 5), steps=np.array([0.5], F32), zero=2, entries=5)
    yield one("entries", 0, "no entries", "REA-006 CBK-001 SEC-001", (),
              edit(tensor("a", "f32", [1, 5], stage, layout=ROWS), (4, 0, 2), 0))  # fmt: skip
    of = freq(1, 2, 4)
    coded = tensor("a", "f32", [5], Trellis(codes(1, (1, 5), 4), of, (1, 2), step=0.5, zero=2, trellis=(11, 4)))
    yield one("first", 1, "one table for two codebooks", "REA-006 TRL-004 SEC-001", (of.chunk(),),
              edit(coded, (4, 0, 6), 1))  # fmt: skip
    yield one("count", 2, "a count of five of four words", "REA-006 SPA-002 SEC-001", (),
              edit(sparse("a", "c64", [2], bytes(16)), (4, 0, 2), bytes([5])))  # fmt: skip
