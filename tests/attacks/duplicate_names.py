"""Two tensors have the same name: readers disagree about which one counts."""

from __future__ import annotations

import struct
from pathlib import Path

import vqmbuilder
import vqmtensors

from .common import load, outcome

RULE = "names are unique in a file (TEN-002)"


def others(folder: Path) -> dict[str, str]:
    from safetensors.numpy import load as load_safetensors

    tensor = '"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    header = f"{{{tensor},{tensor}}}".encode()
    return {"safetensors": outcome(lambda: load_safetensors(struct.pack("<Q", len(header)) + header + b"\1"))}


def ours(folder: Path) -> str:
    tensors = (vqmtensors.raw("w", "u8", [1], bytes([i])) for i in (1, 2))
    (folder / "model.vqm").write_bytes(vqmbuilder.file(vqmbuilder.layr("", *tensors)).build())
    return outcome(lambda: load(folder / "model.vqm"))
