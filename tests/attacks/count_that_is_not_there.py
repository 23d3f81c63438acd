"""A GGUF file announces 2^60 tensors."""

from __future__ import annotations

import struct
from pathlib import Path

from .common import convert, outcome

RULE = "counts are compared with the bytes that are there"


def write(folder: Path) -> Path:
    (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0) + bytes(64))
    return folder / "model.gguf"


def others(folder: Path) -> dict[str, str]:
    import gguf

    return {"gguf": outcome(lambda: gguf.GGUFReader(write(folder)))}


def ours(folder: Path) -> str:
    return outcome(lambda: convert(write(folder)))
