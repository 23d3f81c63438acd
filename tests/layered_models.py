"""Models in layers, written to memory or to a stream that only takes bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

import vqformat

Model = dict[str, dict[str, np.ndarray[Any, Any]]]


def model(n_layers: int = 4, n_rows: int = 96) -> Model:
    rng = np.random.default_rng(0)
    return {f"layers.{i}": {f"layers.{i}.weight": rng.standard_normal((n_rows, 80)).astype(np.float32),
                            f"layers.{i}.bias": rng.standard_normal(n_rows).astype(np.float32),
                            f"layers.{i}.steps": np.arange(3)} for i in range(n_layers)}  # fmt: skip


def flat(layers: Model) -> dict[str, np.ndarray[Any, Any]]:
    return {name: array for tensors in layers.values() for name, array in tensors.items()}


def written(layers: Model, **options: Any) -> bytes:
    stream = io.BytesIO()
    with vqformat.writer(stream, **options) as w:
        for name, tensors in layers.items():
            w.add_layer(name, tensors)
    return stream.getvalue()


class Recorder(io.RawIOBase):
    """A stream that only takes bytes."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)
