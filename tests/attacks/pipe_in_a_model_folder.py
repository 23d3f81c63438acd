"""A file of a model folder is a pipe, which is waited for without end."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from .common import convert, outcome

RULE = "only regular files are opened"


def write(folder: Path) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    os.mkfifo(folder / "a.safetensors")
    return folder


def others(folder: Path) -> dict[str, str]:
    is_pipe = stat.S_ISFIFO(os.stat(write(folder) / "a.safetensors").st_mode)
    return {"open": "waits for ever" if is_pipe else "reads it"}


def ours(folder: Path) -> str:
    return outcome(lambda: convert(write(folder)))
