"""The index is that of another file of the same length."""

from __future__ import annotations

from pathlib import Path

import vqmbuilder
import vqmtensors

from .common import load, outcome

RULE = "what is read by the index is compared with the record in the chunk (IDX-003)"


def write(folder: Path) -> Path:
    one, two = (vqmbuilder.file(vqmbuilder.layr("", vqmtensors.raw("w", dtype, [4], bytes(4)))).build()
                for dtype in ("u8", "i8"))  # fmt: skip
    at = one.index(b"INDX")
    (folder / "model.vqm").write_bytes(one[:at] + two[at:])
    return folder / "model.vqm"


def others(folder: Path) -> dict[str, str]:
    return {}


def ours(folder: Path) -> str:
    return outcome(lambda: load(write(folder)))
