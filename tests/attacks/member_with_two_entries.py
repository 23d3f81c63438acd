"""An archive has two central entries of one name: readers see different members."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np

from .common import convert, outcome

RULE = "members of one name are refused"


def write(folder: Path) -> Path:
    path = folder / "model.npz"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in (1, 2):
            array = io.BytesIO()
            np.save(array, np.full(2, value))
            archive.writestr("w.npy", array.getvalue())
    return path


def others(folder: Path) -> dict[str, str]:
    return {"numpy.load": outcome(lambda: np.load(write(folder))["w"].tolist())}


def ours(folder: Path) -> str:
    return outcome(lambda: convert(write(folder)))
