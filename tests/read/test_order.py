"""The steps of SPEC 15.1: of several broken rules that of the earliest step decides, for both decoders (REA-006)."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import minidecoder
import pytest
from fixture_cases.bases import base, base_raw
from vqmbuilder import File, chunk, frame, layr, meta, section

import vqformat
from vqformat import VqmError
from vqformat.format import limits

LARGE_WINDOW = frame(bytes(300), window=(14 << 3) | 1, size_bytes=2)  # above 8 MiB: SEC-007, a limit


def wide_meta(type: bytes) -> object:
    """A chunk whose compressed meta asks for too large a window: step F1."""
    return chunk(type, bytes(300), is_compressed=True, meta_frame=LARGE_WINDOW)


def with_chunks(*chunks: object) -> File:
    return replace(base(), chunks=tuple(chunks))  # type: ignore[arg-type]


BROKEN_TWICE = {
    "CHK-002 before CHK-003": (lambda: with_chunks(meta(), chunk(b"A1BC", [])), "format"),
    "CHK-004 before CHK-006": (lambda: with_chunks(replace(meta(), flags=4, n_sections=2**32 - 1)), "unsupported"),
    "FIL-001 before SEC-007": (lambda: with_chunks(wide_meta(b"LAYR")), "format"),
    "a second META before SEC-007": (lambda: with_chunks(meta(), wide_meta(b"META")), "format"),
    "CHK-008 before SEC-007": (
        lambda: with_chunks(meta(), replace(wide_meta(b"INDX"), sections=(section(b"x"),))), "format"),  # type: ignore[type-var]
    "SEC-007 before LYR-001": (lambda: with_chunks(meta(), wide_meta(b"LAYR")), "limit"),
    "LYR-002 before SEC-001": (
        lambda: with_chunks(meta(), replace(layr("", base_raw()), sections=(section(b"abcd", crc=0),) * 2)), "format"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error_class"), BROKEN_TWICE.values(), ids=BROKEN_TWICE)
def test_the_earliest_step_decides(make: Callable[[], File], error_class: str) -> None:
    data = make().build()

    with pytest.raises(VqmError) as ours:
        vqformat.verify(io.BytesIO(data))
    with pytest.raises(minidecoder.Refused) as theirs:
        minidecoder.decode(io.BytesIO(data))
    assert (ours.value.error_class, theirs.value.error_class) == (error_class, error_class), ours.value


def test_chunks_are_counted_when_the_header_of_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = base()
    monkeypatch.setattr(limits, "MAX_CHUNKS", len(whole.chunks))  # INDX is one more
    cut = whole.build()[: whole.offsets()[-1] + 24]  # after the header of INDX

    with pytest.raises(VqmError) as caught:
        vqformat.load(cut)
    assert (caught.value.error_class, caught.value.clause) == ("limit", "LIM-001")

    monkeypatch.setattr(limits, "MAX_CHUNKS", len(whole.chunks) + 1)
    vqformat.load(whole.build())
