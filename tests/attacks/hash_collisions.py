"""Many names have one hash, so that a table of names takes quadratic time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import vqformat

RULE = "Python seeds the hashes of texts by chance"


def others(folder: Path) -> dict[str, str]:
    step = sys.hash_info.modulus
    return {"a dict of integers": f"{len({hash(i * step) for i in range(100)})} hash of 100 keys"}


def ours(folder: Path) -> str:
    # These names collide in FNV-1a of 32 bits and in hashes of the sum of the bytes
    names = ["costarring", "liquid", "declinate", "macallums", "ab", "ba"]
    vqformat.save_file({name: np.full(1, i) for i, name in enumerate(names)}, folder / "model.vqm")
    with vqformat.safe_open(folder / "model.vqm") as f:
        is_right = [int(f[name][0]) for name in names] == list(range(len(names)))
    return "opens it safely: each name has its tensor" if is_right else "opens it: a name has another tensor"
