"""A header announces far more bytes than the file has."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from vqmbuilder import chunk, file

from .common import load, outcome

RULE = "lengths are compared with the bytes that are there before memory is taken (REA-002)"


def others(folder: Path) -> dict[str, str]:
    from safetensors.numpy import load as load_safetensors

    path = folder / "model.npy"
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    return {"numpy.load": outcome(lambda: np.load(path)),
            "safetensors": outcome(lambda: load_safetensors(struct.pack("<Q", 1 << 40) + b"{}"))}  # fmt: skip


def ours(folder: Path) -> str:
    path = folder / "model.vqm"
    path.write_bytes(file(chunk(b"META", b"", meta_stored=1 << 24, meta_plain=1 << 24)).build())
    return outcome(lambda: load(path))
