"""The index of a sharded model names a file outside its folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .common import convert, outcome

RULE = "only regular files of the folder of the checkpoint, or of the download cache around it, are opened"


def write(folder: Path) -> Path:
    from safetensors.numpy import save_file

    (folder / "model").mkdir()
    save_file({"w": np.full(3, 666.0)}, folder / "secret.safetensors")
    path = folder / "model" / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": {"w": "../secret.safetensors"}}))
    return path


def others(folder: Path) -> dict[str, str]:
    path = write(folder)
    shard = json.loads(path.read_text())["weight_map"]["w"]
    return {"a loop over weight_map": "opens it: ../secret.safetensors" if (path.parent / shard).exists() else "fails"}


def ours(folder: Path) -> str:
    return outcome(lambda: convert(write(folder)))
