"""A file of a model folder is a link to a file elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .common import convert, outcome

RULE = "only regular files of the folder of the checkpoint, or of the download cache around it, are opened"


def write(folder: Path) -> Path:
    from safetensors.numpy import save_file

    model = folder / "model"
    model.mkdir()
    save_file({"w": np.full(3, 666.0)}, folder / "secret.safetensors")
    (model / "a.safetensors").symlink_to("../secret.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    return model


def others(folder: Path) -> dict[str, str]:
    from safetensors.numpy import load_file

    return {"safetensors": outcome(lambda: load_file(write(folder) / "a.safetensors"))}


def ours(folder: Path) -> str:
    return outcome(lambda: convert(write(folder)))
