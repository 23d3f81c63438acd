"""Which parts of a checkpoint are training state and not weights, by the key of the part."""

from __future__ import annotations

from vqformat.encode.source import SourceTensor

_PREFIXES = ("optim", "sched", "lr_sched", "scaler", "amp", "rng")


def is_training_key(key: object) -> bool:
    """Whether a checkpoint keeps its optimizer, schedule or the like under this key."""
    return str(key).lower().startswith(_PREFIXES)


def without_state(tensors: list[SourceTensor], notes: list[str], *, include_optimizer: bool) -> list[SourceTensor]:
    """The tensors, of which the state of training is marked as exact; without it, and a note, unless it is wanted."""
    if include_optimizer:
        return tensors
    weights = [tensor for tensor in tensors if not tensor.is_exact]
    if len(weights) < len(tensors):
        notes.append(f"left out the state of training ({len(tensors) - len(weights)} tensors);"
                     " --include-optimizer keeps it")  # fmt: skip
    return weights
