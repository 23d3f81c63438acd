"""Models for tests of the encoder: made, saved, loaded and compared."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from conftest import CHECKPOINT

import vqformat.numpy as vqm
from vqformat.encode.report import Report

Model = dict[str, np.ndarray]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save(model: Model, **options: Any) -> tuple[bytes, Report]:
    stream = io.BytesIO()
    report = vqm.save_file(model, stream, **options)
    return stream.getvalue(), report


def saved_and_loaded(model: Model, **options: Any) -> tuple[Model, Report]:
    data, report = save(model, **options)
    return vqm.load(data), report


def sqnr_db(original: np.ndarray, decoded: np.ndarray) -> float:
    a, b = original.astype(np.float64), decoded.astype(np.float64)
    scale = np.abs(a).max()  # squares of 1e-200 would be 0
    return float(10 * np.log10(np.square(a / scale).sum() / np.square((a - b) / scale).sum()))


@pytest.fixture(scope="module")
def lenet() -> Model:
    torch = pytest.importorskip("torch")
    state = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}
