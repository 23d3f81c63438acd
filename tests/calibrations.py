"""What a calibration finds of a model, in a form that tests compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from vqformat.encode.calibration import TensorStatistics

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from torch import nn  # noqa: E402

from vqformat import torch as vt  # noqa: E402


def only_moments(found: TensorStatistics) -> np.ndarray:
    """The moments where there is one group of one block."""
    assert found.moments is not None
    ((block,),) = found.moments
    return block


def statistics(model: nn.Module, *batches: Any, **options: Any) -> Mapping[str, TensorStatistics]:
    return vt.calibrate(model, batches, **options).tensors


def importances(model: nn.Module, *batches: Any, **options: Any) -> dict[str, float]:
    return {name: found.importance for name, found in statistics(model, *batches, **options).items()}


def products(vectors: Any) -> np.ndarray:
    """Mean of the products of vectors ``(n, inputs)``."""
    x = vectors.detach().double().numpy()
    return x.T @ x / len(x)
