"""The level of a fixture: core files need no more than raw and codebook stages, with codes of fixed width."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence

import msgpack
import zstandard

_MAX_META_NBYTES = 1 << 24
_FULL_STAGES = {2, 4, 5}  # low-rank, trellis, sparse raw; core has raw and codebook stages, with codes of fixed width
FULL_CLAUSES = ("FRQ", "LOW", "TRL", "ANS", "SPA")


def level_of(data: bytes, clauses: Sequence[str]) -> str:
    """The level of a file. One that is damaged is read as far as possible."""
    if any(clause.startswith(FULL_CLAUSES) for clause in clauses):
        return "full"
    with contextlib.suppress(Exception):  # whatever a damaged file makes of it
        for type, meta in _chunks(data):
            if type == b"FREQ":
                return "full"
            if type == b"LAYR" and _stage_ids(meta) & _FULL_STAGES:
                return "full"
    return "core"


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and plain meta of each chunk (SPEC 2 to 4), without any test."""
    at = 16
    while data[at : at + 4] != b"INDX":
        type, flags, stored, _, n_sections = struct.unpack_from("<4s4I", data, at)
        table = at + 24 + stored
        meta = data[at + 24 : table]
        if flags & 1:
            meta = zstandard.ZstdDecompressor().decompress(meta, max_output_size=_MAX_META_NBYTES)
        yield type, meta
        at = table + 8 * n_sections + 4
        for length, _ in struct.iter_unpack("<2I", data[table : at - 4]):
            if 4096 <= length < 1 << 31:
                at += -at % 64
            at += length & 0x7FFFFFFF


def _stage_ids(meta: bytes) -> set[int]:
    _, records = msgpack.unpackb(meta)
    return {stage[0] for record in records if len(record) == 5 for stage in record[4]}
