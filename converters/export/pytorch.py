"""Writing tensors to a PyTorch checkpoint: a state dict under the keys that it had in the source (SPEC section 18)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, BinaryIO

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError, missing_package
from vqformat.format.checkpoint import MAX_DEPTH

from ..source import Source

try:
    import torch
except ImportError as err:
    raise missing_package("writing PyTorch checkpoints needs", "torch", err) from err

from vqformat.torch import from_numpy
from vqformat.torch.checkpoint import read_checkpoint


def write_pytorch(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
    """Write a checkpoint. If only some tensors are selected, it is a plain state dict.

    Raises:
        ConversionError: ``vqm.source`` is malformed.
    """
    is_whole = len(tensors) == len(source.tensors) and source.origin.get("format") == "pytorch"
    nesting = _nesting(source.origin) if is_whole else []  # checked before tensors are decoded
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for tensor in tensors:
        if tensor.alias_of is not None:
            state[tensor.name] = state[tensor.alias_of]
            continue
        state[tensor.name] = from_numpy(tensor.load())
        if tensor.dtype in ("u4", "i4"):
            notes.append(f"{tensor.name!r} has dtype {tensor.dtype}, which PyTorch does not have: stored as"
                         f" {state[tensor.name].dtype}")  # fmt: skip
    checkpoint: Any = state
    if is_whole and "checkpoint" in source.origin:
        left_out: list[tuple[str, str]] = []
        checkpoint = read_checkpoint(source.origin["checkpoint"], state, left_out)
        notes.extend(f"left out {path!r}: {what}" for path, what in left_out)
    else:
        for key in reversed(nesting):
            checkpoint = {key: checkpoint}
    if nesting:
        notes.append(f"the state dict lies under {', '.join(map(repr, nesting))}, as in the source: torch.load(…)"
                     + "".join(f"[{key!r}]" for key in nesting))  # fmt: skip
    torch.save(checkpoint, stream)
    if source.metadata:
        notes.append("a state dict has no metadata: left out")


def _nesting(origin: dict[str, Any]) -> list[str]:
    """The keys that lead to the state dict, from ``vqm.source``."""
    nesting = origin.get("nesting", [])
    if not isinstance(nesting, list) or len(nesting) > MAX_DEPTH or not all(isinstance(key, str) for key in nesting):
        raise ConversionError("the nesting of the PyTorch checkpoint in vqm.source is no array of at most"
                              f" {MAX_DEPTH} strings; extract to .safetensors or .npz")  # fmt: skip
    return nesting
