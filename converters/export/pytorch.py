"""Tensors as a PyTorch state dict."""

from __future__ import annotations

from collections import OrderedDict
from typing import BinaryIO

from vqformat.encode.source import SourceTensor

from ..source import Source

try:
    import torch
except ImportError as err:
    raise ImportError("PyTorch checkpoints need PyTorch; run: pip install 'vqformat[torch]'") from err

from vqformat.torch import from_numpy


def write_pytorch(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for tensor in tensors:
        if tensor.alias_of is not None:
            state[tensor.name] = state[tensor.alias_of]
            continue
        state[tensor.name] = from_numpy(tensor.load())
        if tensor.dtype in ("u4", "i4"):
            notes.append(f"{tensor.name!r} has dtype {tensor.dtype}, which PyTorch does not have: stored as"
                         f" {state[tensor.name].dtype}")  # fmt: skip
    torch.save(state, stream)
    if source.metadata:
        notes.append("a state dict has no metadata: left out")
