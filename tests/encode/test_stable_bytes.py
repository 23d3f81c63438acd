"""The encoder's bytes stay what they were, unless somebody means to change them.

Where an encoder gets better its digests change. ``python tests/encode/test_stable_bytes.py`` writes them anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqformat
from vqformat.format.dtypes import BY_NAME

DIGESTS = Path(__file__).parent / "stable_bytes.json"
METHODS = (
    "raw", "lossless", "fine", "uniform", "uniform:bits=3", "uniform:step=0.1", "binary", "binary:scale=column",
    "kmeans", "kmeans:entries=7,scale=row", "kmeans:entries=300,axis=columns", "pq", "pq:dim=3,entries=16,segments=2",
    "vq:dim=8,entries=64", "vq:dim=2,scale=row", "rq:stages=3,entries=16", "rq:dim=0,entries=8,shared=0",
    "svd:rank=4", "svd:rank=4+pq:dim=4,entries=16", "svd:rank=2+uniform:bits=2", "binary+binary",
)  # fmt: skip
PRESETS = ("fast", "default", "small")
GOALS: tuple[dict[str, Any], ...] = ({}, {"bits": 3}, {"ratio": 9}, {"sqnr": 25}, {"step": 0.3})
DTYPES = sorted(name for name, dtype in BY_NAME.items() if dtype.arithmetic)


def model(dtype: str = "f32") -> dict[str, np.ndarray]:
    """Layers of a small network: matrices, a convolution, a table, a recurrent kernel, short tensors."""
    random = np.random.default_rng(12)

    def values(*shape: int) -> np.ndarray:
        rows = np.exp(0.5 * random.standard_normal((shape[0], *(1 for _ in shape[1:]))))
        found = 0.1 * rows * random.standard_normal(shape)
        if BY_NAME[dtype].is_complex:
            found = found + 0.1j * random.standard_normal(shape)
        return found.astype(BY_NAME[dtype].numpy)

    mask = np.triu(np.full((20, 20), -6e4)).astype(BY_NAME[dtype].numpy)
    return {
        "conv.weight": values(32, 8, 3, 3), "conv.bias": values(32), "embedding.weight": values(300, 24),
        "lstm.weight_hh_l0": values(64, 16), "lstm.weight_ih_l0": values(64, 24), "fc.weight": values(48, 100),
        "fc.bias": values(48), "scale": values(48, 1, 1), "mask": mask,
    }  # fmt: skip


def encodings() -> dict[str, dict[str, Any]]:
    """Arguments of ``vqformat.save`` by name."""
    found: dict[str, dict[str, Any]] = {f"method {method}": {"recipe": method} for method in METHODS}
    found |= {f"preset {preset} {goal}": {"preset": preset, **goal} for preset in PRESETS for goal in GOALS}
    found |= {f"dtype {dtype} {preset}": {"preset": preset, "dtype": dtype} for dtype in DTYPES for preset in PRESETS}
    return found | {"lossless": {"lossless": True}, "layers share a codebook": {"recipe": "kmeans:entries=8,share=one"}}


def digest(dtype: str = "f32", **options: Any) -> str:
    return hashlib.sha256(vqformat.save(model(dtype), **options)).hexdigest()


@pytest.mark.parametrize("name", encodings())
def test_the_bytes_of_an_encoding_are_what_they_were(name: str) -> None:
    assert digest(**encodings()[name]) == json.loads(DIGESTS.read_text())[name]


if __name__ == "__main__":
    digests = {name: digest(**options) for name, options in encodings().items()}
    DIGESTS.write_text(json.dumps(digests, indent=1) + "\n")
    print(len(digests), "encodings", file=sys.stderr)
