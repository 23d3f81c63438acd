"""What a model takes and gives: batches of inputs, parts of them, and outputs of any structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


def run(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if type(batch) in (tuple, list) else model(batch)  # others, such as PackedSequence, are one


def floating_outputs(output: Any) -> list[Tensor]:
    """The floating-point tensors of whatever a model returns, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [tensor for key, value in output.items() if key != "past_key_values"  # caches are no outputs
                for tensor in floating_outputs(value)]  # fmt: skip
    if isinstance(output, (tuple, list)):
        return [tensor for value in output for tensor in floating_outputs(value)]
    if dataclasses.is_dataclass(output):
        return floating_outputs({field.name: getattr(output, field.name) for field in dataclasses.fields(output)})
    return []


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of a batch, without those inside of further containers."""
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    return [value for value in values if isinstance(value, Tensor)]


def count_inputs(batch: Any) -> int:
    """The length of the first axis of the first tensor."""
    return next((max(tensor.shape[0], 1) for tensor in tensors_of(batch) if tensor.ndim), 1)


def count_bytes(batch: Any) -> int:
    """Of its tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(batch))


def copied(batch: Any) -> Any:
    """The batch with tensors of its own: loaders may use theirs again."""
    return _mapped(lambda tensor: tensor.detach().clone(), batch)


def part_of(batch: Any, chosen: Tensor) -> Any:
    """Some inputs of a batch: rows of all tensors whose first axis is as long as that of the first one."""
    n = count_inputs(batch)
    return _mapped(lambda tensor: tensor[chosen.to(tensor.device)] if tensor.shape[:1] == (n,) else tensor, batch)


def _mapped(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _mapped(change, value) for key, value in batch.items()}
    return type(batch)(_mapped(change, value) for value in batch) if type(batch) in (tuple, list) else batch
