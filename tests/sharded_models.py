"""Models in several files, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import vqformat

Arrays = dict[str, np.ndarray[Any, Any]]
INDEX = "model.vqm.index.json"
N_LAYERS = 5
LIMIT = 30_000  # bytes of a shard: one layer of ``arrays``


def arrays() -> Arrays:
    """Five layers of two tensors, a tie of the first weight, a copy of the second, and an empty tensor."""
    random = np.random.default_rng(0)
    found: Arrays = {}
    for i in range(N_LAYERS):
        found[f"layers.{i}.weight"] = random.standard_normal((80, 90), np.float32)
        found[f"layers.{i}.bias"] = random.standard_normal(80, np.float32)
    found["layers.4.copy"] = found["layers.1.weight"].copy()
    found["head.tied"] = found["layers.0.weight"]
    found["head.none"] = np.zeros((0, 3), np.float32)
    return found


def write(path: Path, max_shard_size: int | str = LIMIT, **options: Any) -> list[str]:
    """Write the model without loss, and return the names of its files."""
    options = {"lossless": True, **options}
    return vqformat.save_file(arrays(), path, {"of": "tests"}, max_shard_size=max_shard_size, **options).files


def edit(index: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an index."""
    document = json.loads(index.read_text("utf-8"))
    change(document)
    index.write_text(json.dumps(document), "utf-8")


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array), name
