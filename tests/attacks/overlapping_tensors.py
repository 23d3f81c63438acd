"""Two tensors share the same bytes of the file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from .common import convert, outcome

RULE = "offsets are not stored in a .vqm (SEC-002); those of a checkpoint must not overlap"


def write(folder: Path) -> Path:
    tensor = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"a": tensor, "b": tensor}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return folder / "model.safetensors"


def others(folder: Path) -> dict[str, str]:
    from safetensors.numpy import load_file

    return {"safetensors": outcome(lambda: load_file(write(folder)))}


def ours(folder: Path) -> str:
    return outcome(lambda: convert(write(folder)))
