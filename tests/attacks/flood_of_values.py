"""A few bytes of metadata stand for millions of objects."""

from __future__ import annotations

from pathlib import Path

import vqmbuilder

from .common import load, outcome

RULE = "the number of values is limited and they are counted before objects are made (MET-007)"
FLOOD = b"\xdd" + (1 << 22).to_bytes(4, "big") + b"\x80" * (1 << 22)


def others(folder: Path) -> dict[str, str]:
    import msgpack

    return {"msgpack": f"makes {len(msgpack.unpackb(FLOOD)):,} objects"}


def ours(folder: Path) -> str:
    meta = vqmbuilder.chunk(b"META", b"\x92\xa0\x81\xa1k" + FLOOD, is_compressed=True, meta_frame=vqmbuilder.libzstd)
    (folder / "model.vqm").write_bytes(vqmbuilder.file(meta).build())
    return outcome(lambda: load(folder / "model.vqm"))
