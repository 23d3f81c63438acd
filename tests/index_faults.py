"""Files of which one field of INDX is wrong, with right CRCs, and what each way of reading has to say of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from fixture_cases.bases import base
from vqmbuilder import column, index_fields

NAMES = ("digest", "metadata", "chunk_types", "chunk_lengths", "names", "dtypes", "ranks", "dims", "chunks", "targets")
HUGE = 2**64 - 1
# A sequential reader that tests the digest finds the class "format" in all of them, but for "checksum" in this one
OTHER_DIGEST = "digest-other"
# What a reader by index finds in place of "format"; None: it may also give the right tensors
BY_INDEX = {
    OTHER_DIGEST: None, "metadata-other": None, "chunk_types-book": None, "chunk_types-critical": "unsupported",
    "chunk_lengths-exchanged": "checksum", "names-long": "limit", "dtypes-unknown": "unsupported",
    "ranks-limit": "limit", "ranks-most": "limit", "dims-huge": "limit", "dims-limit": "limit",
}  # fmt: skip


def index_faults() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file.

    The base has the chunks META, BOOK, LAYR, note and LAYR, the tensors a, b and d with one axis, and c, an alias of a.
    """
    model = base()
    offsets = model.offsets()
    lengths = [end - start for start, end in pairwise(offsets)]
    right = index_fields(model.chunks, lengths, model.build()[: offsets[-1]])
    values: dict[str, dict[str, object]] = {
        "digest": {"other": bytes(32), "short": bytes(31), "long": bytes(33), "empty": b"", "text": "\0" * 32},
        "metadata": {
            "other": b"\x92\xa0\x80", "missing": b"", "malformed": b"\xc1", "large": bytes(65_537), "nil": None},
        "chunk_types": {
            "empty": b"", "short": b"METABOOKLAYRLAYR", "odd": b"METABOOKLAYRnoteLAY", "text": "METABOOKLAYRnoteLAYR",
            "long": b"METABOOKLAYRnoteLAYRnote", "critical": b"METABOOKLAYRNOTELAYR",
            "no-letters": b"METABOOKLAYRn0teLAYR", "two-meta": b"METABOOKLAYRMETALAYR",
            "index": b"METABOOKLAYRINDXLAYR", "no-meta": b"noteBOOKLAYRnoteLAYR", "book": b"METABOOKLAYRBOOKLAYR",
            "no-book": b"METAnoteLAYRnoteLAYR"},
        "chunk_lengths": {
            "empty": b"", "short": column(lengths[:-1]), "long": column([*lengths, 28]),
            "exchanged": column([lengths[1], lengths[0], *lengths[2:]]),
            "sum": column([*lengths[:-1], lengths[-1] + 1]),
            "zero": column([0, lengths[0] + lengths[1], *lengths[2:]]), "huge": column([*lengths[:-1], HUGE]),
            "over": column([HUGE, 1 + lengths[0] + lengths[1], *lengths[2:]]), "array": lengths,
            "wide": b"".join(n.to_bytes(2, "little") for n in lengths)},
        "names": {
            "other": b"a\0b\0x\0d\0", "missing": b"a\0b\0c\0", "more": b"a\0b\0c\0d\0e\0", "no-end": b"a\0b\0c\0d",
            "twice": b"a\0a\0c\0d\0", "empty-name": b"\0b\0c\0d\0", "no-utf-8": b"a\0\xff\0c\0d\0",
            "surrogate": b"a\0\xed\xa0\x80\0c\0d\0", "long": b"a\0b\0c\0" + b"d" * 1025 + b"\0", "empty": b"",
            "text": "a\0b\0c\0d\0"},
        "dtypes": {
            "other": bytes([1, 10, 1, 4]), "alias": bytes([1, 11, 2, 4]), "unknown": bytes([1, 11, 1, 200]),
            "short": bytes([1, 11, 1]), "long": bytes([1, 11, 1, 4, 4]), "array": [1, 11, 1, 4]},
        "ranks": {
            "other": bytes([1, 1, 0, 2]), "limit": bytes([1, 1, 1, 33]), "most": b"\xff" * 4,
            "less": bytes([1, 1, 1, 0]),
            "short": bytes([1, 1, 1]), "long": bytes([1, 1, 1, 1, 0]), "nil": None},
        "dims": {
            "other": bytes([64, 3, 64, 3]), "alias": bytes([64, 3, 65, 2]), "huge": column([64, 3, 64, HUGE]),
            "limit": column([64, 3, 64, 2**58]), "zero": bytes([64, 3, 64, 0]), "short": bytes([64, 3, 64]),
            "wide": b"".join(n.to_bytes(2, "little") for n in (64, 3, 64, 2)), "empty": b"", "text": "@\3@\2"},
        "chunks": {
            "other": bytes([2, 2, 2, 4]), "descend": bytes([4, 2, 2, 4]), "book": bytes([1, 2, 4, 4]),
            "ancillary": bytes([2, 2, 3, 4]), "range": bytes([2, 2, 4, 5]), "huge": column([2, 2, 4, HUGE]),
            "short": bytes([2, 2, 4]), "empty": b"", "array": [2, 2, 4, 4]},
        "targets": {
            "other": bytes([0, 0, 2, 0]), "itself": bytes([0, 0, 3, 0]), "later": bytes([0, 0, 4, 0]),
            "alias": bytes([0, 1, 2, 0]), "range": bytes([0, 0, 9, 0]), "huge": column([0, 0, HUGE, 0]),
            "more": bytes([0, 0, 1, 1]), "zeros": bytes(4), "short": bytes([0, 0, 1]), "missing": b"", "nil": None},
    }  # fmt: skip
    for field, faults in values.items():
        for fault, value in faults.items():
            assert value != right[NAMES.index(field)]
            yield f"{field}-{fault}", replace(model, index={NAMES.index(field): value}).build()
