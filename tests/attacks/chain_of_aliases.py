"""An alias names an alias, or itself, so that a reader follows it for ever."""

from __future__ import annotations

from pathlib import Path

import vqmbuilder
import vqmtensors

from .common import load, outcome

RULE = "a target is an earlier tensor that is not an alias (ALI-001)"


def others(folder: Path) -> dict[str, str]:
    import h5py

    with h5py.File(folder / "model.h5", "w") as file:
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
        return {"h5py": outcome(lambda: file["a"])}


def ours(folder: Path) -> str:
    first = vqmtensors.raw("w", "u8", [1], b"\1")
    second = vqmtensors.alias("x", first)
    chain = [first, second, vqmtensors.alias("y", second)]
    (folder / "model.vqm").write_bytes(vqmbuilder.file(vqmbuilder.layr("", *chain)).build())
    return outcome(lambda: load(folder / "model.vqm"))
