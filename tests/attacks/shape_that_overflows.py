"""The product of a shape overflows 64 bits and seems to be small."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import vqmbuilder
import vqmtensors

from .common import load, outcome

RULE = "the product of a shape is limited and computed exactly (TEN-003)"
SHAPE = [1 << 32, 1 << 32]


def others(folder: Path) -> dict[str, str]:
    import numpy as np
    from safetensors.numpy import load as load_safetensors

    header = json.dumps({"w": {"dtype": "U8", "shape": SHAPE, "data_offsets": [0, 0]}}).encode()
    return {"numpy.prod": f"says {int(np.prod(np.array(SHAPE)))} elements",
            "safetensors": outcome(lambda: load_safetensors(struct.pack("<Q", len(header)) + header))}  # fmt: skip


def ours(folder: Path) -> str:
    tensor = vqmtensors.edit(vqmtensors.raw("w", "u8", [1], b"\1"), [2], SHAPE)
    (folder / "model.vqm").write_bytes(vqmbuilder.file(vqmbuilder.layr("", tensor)).build())
    return outcome(lambda: load(folder / "model.vqm"))
