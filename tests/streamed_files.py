"""Files of several layers, for tests of readers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from arrays import Arrays, weights

import vqformat


def layers() -> Arrays:
    tied = weights(90, 64)
    return {"embed.weight": tied, "body.0.weight": weights(64, 90, seed=1), "body.0.bias": weights(64),
            "body.1.weight": weights(8, 4, 3, 3, seed=2), "body.1.steps": np.array(7),
            "head.weight": tied, "head.none": np.zeros((0, 3))}  # fmt: skip


def written(model: Arrays, **options: Any) -> bytes:
    """A file with a layer for each tensor of more than one axis."""
    target = io.BytesIO()
    seen: dict[int, str] = {}
    with vqformat.writer(target, {"of": "tests"}, **options) as w:
        for name, array in model.items():
            if id(array) in seen:
                w.add_alias(name, seen[id(array)])
            else:
                w.add_layer(name.rpartition(".")[0], {name: array})
            seen.setdefault(id(array), name)
    return target.getvalue()
