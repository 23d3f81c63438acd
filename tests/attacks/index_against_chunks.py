"""The index describes a tensor otherwise than its chunk, so that two readers see two models."""

from __future__ import annotations

from pathlib import Path

import vqmbuilder
import vqmtensors

from .common import load, outcome

RULE = "every field of the index equals what the chunks say (IDX-001, IDX-003)"


def others(folder: Path) -> dict[str, str]:
    return {}


def ours(folder: Path) -> str:
    layer = vqmbuilder.layr("", vqmtensors.raw("w", "u8", [4], bytes(4)))
    (folder / "model.vqm").write_bytes(vqmbuilder.file(layer, index={5: b"\2"}).build())
    return outcome(lambda: load(folder / "model.vqm"))
