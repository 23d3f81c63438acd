"""A member of an archive has a name that leads out of the folder."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from .common import load, outcome

RULE = "a tensor's name becomes a path only inside an archive, and only if it stays there"


def write(folder: Path) -> Path:
    import vqformat

    vqformat.save_file({"../../ran": np.ones(3, np.float32)}, folder / "model.vqm")
    return folder / "model.vqm"


def others(folder: Path) -> dict[str, str]:
    path = folder / "model.npz"
    array = io.BytesIO()
    np.save(array, np.ones(3))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../ran.npy", array.getvalue())
    return {"numpy.load": outcome(lambda: np.load(path).files)}


def ours(folder: Path) -> str:
    from .common import vqm

    path = write(folder)
    load(path)
    code, text = vqm("extract", path, "-o", folder / "model.npz")
    return f"refuses it: {text.strip()}" if code else "opens it"
