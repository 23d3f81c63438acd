"""Batches of inputs of a model, and its outputs, in any nesting of containers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


def run(model: nn.Module, batch: Any) -> Any:
    """Run the model on a batch.

    Args:
        batch: A mapping of keyword arguments, a tuple or list of arguments, or the only argument.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    # A subclass of tuple, such as PackedSequence, is one argument
    return model(*batch) if type(batch) in (tuple, list) else model(batch)


def floating_outputs(output: Any) -> list[Tensor]:
    """The floating-point tensors in the output of a model, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [tensor for key, value in output.items() if key != "past_key_values"  # a cache, not an output
                for tensor in floating_outputs(value)]  # fmt: skip
    if isinstance(output, (tuple, list)):
        return [tensor for value in output for tensor in floating_outputs(value)]
    if dataclasses.is_dataclass(output):
        return floating_outputs({field.name: getattr(output, field.name) for field in dataclasses.fields(output)})
    return []


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of a batch, without those in nested containers."""
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    return [value for value in values if isinstance(value, Tensor)]


def count_inputs(batch: Any) -> int:
    """The number of inputs of a batch: the length of the first axis of its first tensor; 1 if there is none."""
    return next((max(tensor.shape[0], 1) for tensor in tensors_of(batch) if tensor.ndim), 1)


def count_bytes(batch: Any) -> int:
    """Bytes of the tensors of a batch."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(batch))


def copied(batch: Any) -> Any:
    """A copy of the batch with copies of its tensors: a data loader may overwrite its own."""
    return _mapped(lambda tensor: tensor.detach().clone(), batch)


def part_of(batch: Any, chosen: Tensor) -> Any:
    """Some inputs of a batch: rows of all tensors whose first axis has as many rows as the batch has inputs.

    Args:
        chosen: Numbers of the inputs, int64.
    """
    n = count_inputs(batch)
    return _mapped(lambda tensor: tensor[chosen.to(tensor.device)] if tensor.shape[:1] == (n,) else tensor, batch)


def _mapped(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _mapped(change, value) for key, value in batch.items()}
    return type(batch)(_mapped(change, value) for value in batch) if type(batch) in (tuple, list) else batch
