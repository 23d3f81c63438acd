"""Metadata is nested so deeply that a parser runs out of stack."""

from __future__ import annotations

import json
from pathlib import Path

import vqmbuilder

from .common import load, outcome

RULE = "depth is limited (MET-006)"


def others(folder: Path) -> dict[str, str]:
    import msgpack

    return {"json": outcome(lambda: json.loads("[" * 200_000)),
            "msgpack": outcome(lambda: msgpack.unpackb(b"\x91" * 2000 + b"\0"))}  # fmt: skip


def ours(folder: Path) -> str:
    meta = vqmbuilder.chunk(b"META", b"\x92\xa0\x81\xa1k" + b"\x91" * 2000 + b"\0")
    (folder / "model.vqm").write_bytes(vqmbuilder.file(meta).build())
    return outcome(lambda: load(folder / "model.vqm"))
