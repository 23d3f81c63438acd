"""A checkpoint is a pickle that calls a function when it is loaded."""

from __future__ import annotations

import pickle
from pathlib import Path

from .common import Attack, convert, outcome

RULE = "a pickle is read by an interpreter of its own that calls nothing"


def write(folder: Path) -> Path:
    path = folder / "model.pt"
    path.write_bytes(pickle.dumps({"w": Attack(folder / "ran")}, 2))
    return path


def others(folder: Path) -> dict[str, str]:
    import torch

    found = {"torch.load": outcome(lambda: torch.load(write(folder)))}
    for name, read in {"torch.load(weights_only=False)": lambda: torch.load(write(folder), weights_only=False),
                       "pickle.load": lambda: pickle.loads(write(folder).read_bytes())}.items():  # fmt: skip
        outcome(read)
        found[name] = "runs the code" if (folder / "ran").exists() else "does not run it"
        if (folder / "ran").exists():
            (folder / "ran").rmdir()
    return found


def ours(folder: Path) -> str:
    return outcome(lambda: convert(write(folder)))
