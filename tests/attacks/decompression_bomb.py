"""A file of 33 kB decodes to tables of 1 GB."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import vqm_attacks

import vqformat

from .common import outcome

RULE = "callers bound what is held together, tables included (LIM-002)"


def others(folder: Path) -> dict[str, str]:
    with zipfile.ZipFile(folder / "model.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        array = io.BytesIO()
        np.save(array, np.zeros(1 << 24, np.uint8))
        archive.writestr("w.npy", array.getvalue())
    n = (folder / "model.npz").stat().st_size
    return {"numpy.load": f"{n} bytes become {np.load(folder / 'model.npz')['w'].nbytes}, without a bound"}


def ours(folder: Path) -> str:
    return outcome(lambda: vqformat.load(vqm_attacks.large_tables(), max_total_bytes=100_000_000))
