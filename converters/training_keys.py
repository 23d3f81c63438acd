"""Which parts of a checkpoint are training state and not weights, by the key of the part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from vqformat.encode.source import SourceTensor

# Whole words: "scaler_net" and "amplitude" are networks
_KEYS = re.compile(r"(optim(izer)?s?|opt|(lr_)?sched(uler)?s?|(grad_)?scaler|amp|rng)(_?states?)?(_?dicts?)?[_\d]*")


def is_training_key(key: object) -> bool:
    """Whether a checkpoint keeps its optimizer, schedule or the like under this key."""
    return _KEYS.fullmatch(str(key).lower()) is not None


def is_training_path(keys: Sequence[object]) -> bool:
    """Whether these keys lead to the state of training. An optimizer may lie deeper; ``state`` follows its key."""
    texts = [str(key).lower() for key in keys[:4]]
    if any(key.startswith("opt") and is_training_key(key) and inner in ("state", "param_groups")
           for key, inner in pairwise(texts)):  # fmt: skip
        return True
    return is_training_key(texts[0]) and not texts[0].startswith("opt")


def without_state(tensors: list[SourceTensor], notes: list[str], *, include_optimizer: bool) -> list[SourceTensor]:
    """The tensors, of which the state of training is marked as exact; without it, and a note, unless it is wanted."""
    if include_optimizer:
        return tensors
    weights = [tensor for tensor in tensors if not tensor.is_exact]
    if len(weights) < len(tensors):
        notes.append(f"left out the state of training ({len(tensors) - len(weights)} tensors);"
                     " --include-optimizer keeps it")  # fmt: skip
    return weights
