"""PyTorch models saved and filled again, and inputs for them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vqformat[torch]'")

from torch import Tensor, nn  # noqa: E402

from vqformat import torch as vt  # noqa: E402


class Calling(nn.Module):
    """Layers, and a function that says what is done with them."""

    def __init__(self, call: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self._call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self, *args, **kwargs)


def correlated(*shape: int, seed: int = 0, rank: int = 8) -> Tensor:
    """Vectors that are nearly in a space of few dimensions, the same for any seed."""
    mixed = torch.randn(rank, shape[-1], generator=torch.Generator().manual_seed(77))
    random = torch.Generator().manual_seed(seed)
    few = torch.randn(*shape[:-1], rank, generator=random)
    return few @ mixed + 0.1 * torch.randn(*shape, generator=random)


def saved(model: nn.Module, **options: Any) -> bytes:
    stream = io.BytesIO()
    vt.save_model(model, stream, **options)
    return stream.getvalue()


def filled(model: nn.Module, data: bytes) -> nn.Module:
    """A copy of the model, from a file."""
    other = copy.deepcopy(model)
    vt.load_model(other, io.BytesIO(data))
    return other.eval()


def output_error(model: nn.Module, data: bytes, *inputs: Tensor) -> float:
    """Of the model's first output, when it is loaded from a file; relative to the output's energy."""
    with torch.no_grad():
        aim, found = (run(*inputs) for run in (copy.deepcopy(model).eval(), filled(model, data)))
    if isinstance(aim, tuple):
        aim, found = aim[0], found[0]
    return float((found - aim).square().sum() / aim.square().sum())
