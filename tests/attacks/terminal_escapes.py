"""A name has control characters that take over the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .common import vqm

RULE = "the command line escapes every text of a file"
NAME = "w\x1b]0;owned\x07\u202egnp"


def others(folder: Path) -> dict[str, str]:
    from safetensors.numpy import load, save

    return {"print of safetensors' names": "sends them" if "\x1b" in next(iter(load(save({NAME: np.ones(1)})))) else ""}


def ours(folder: Path) -> str:
    import vqformat

    vqformat.save_file({NAME: np.ones(3, np.float32)}, folder / "model.vqm")
    _, text = vqm("info", folder / "model.vqm")
    if "\x1b" in text or "\u202e" in text:
        return "sends them"
    return f"opens it safely: {next(line for line in text.splitlines() if 'owned' in line)[:40]}"
