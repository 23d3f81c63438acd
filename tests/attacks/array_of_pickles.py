"""An array of objects is pickled and calls a function when it is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .common import Attack, convert, outcome

RULE = "arrays of objects are not read"


def write(folder: Path) -> Path:
    path = folder / "model.npz"
    np.savez(path, w=np.array([Attack(folder / "ran")], object))
    return path


def others(folder: Path) -> dict[str, str]:
    path = write(folder)
    found = {"numpy.load": outcome(lambda: np.load(path)["w"])}
    outcome(lambda: np.load(path, allow_pickle=True)["w"])
    return {**found, "numpy.load(allow_pickle=True)": "runs the code" if (folder / "ran").exists() else "reads it"}


def ours(folder: Path) -> str:
    return outcome(lambda: convert(write(folder)))
