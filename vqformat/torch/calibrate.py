"""Statistics of a model's inputs and of its sensitivity, gathered by running it on some of its inputs.

They say how much the outputs mind an error of each tensor, and which inputs of a layer go together, so that the error
of one weight can be made up for by another. Inputs are enough, no labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..encode.calibration import Calibration, TensorStatistics
from .observe import observers

Loss = Literal["values", "logits"] | Callable[[Any], Tensor]
_KEPT_NBYTES = 1 << 26  # of inputs and their outputs, for corrections that need to run the model


def calibrate(
    model: nn.Module, batches: Iterable[Any], *, loss: Loss = "values", seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Calibration:  # fmt: skip
    """Gather what ``save_model(…, calibration=…)`` makes use of.

    Some hundreds of inputs like those that the model will meet do; thousands help layers of thousands of inputs. Give
    them in ten batches or more, so that corrections can be judged by batches that they were not made with. Memory is
    that of the model, of its gradients, of some 64 MB of second moments for each layer, and of a batch; and as many
    batches are kept as have 64 MB together with their outputs.

    Args:
        model: Run in evaluation mode; neither its parameters nor their gradients change.
        batches: Inputs, without labels. A tensor is the model's only argument, a tuple or list its arguments, a mapping
            its keywords.
        loss: Which errors of the outputs matter: ``"values"``, squared errors of all its floating-point outputs;
            ``"logits"`` where they are logits of classes, on the last axis, and inputs are none that the model was
            trained on; or a function from the model's output to a scalar whose gradient says it (corrections go by
            ``"values"`` then).
        seed: Of random directions in the space of outputs.
        progress: Called with ``"batch"``, batches done, and batches in all (or 0 where that is not known).

    Returns:
        Statistics of every parameter, and some of the inputs.

    Raises:
        ValueError: There are no batches, the model has no floating-point parameters or outputs, or the loss has an
            unknown name.
    """
    check_loss(loss)
    if isinstance(batches, (Tensor, Mapping)):
        raise ValueError(f"batches is one {type(batches).__name__}; an iterable of batches is allowed, such as [batch]")
    random = torch.Generator().manual_seed(seed)
    names = _names(model)
    watched = observers(model)
    squares = dict.fromkeys(names.values(), 0.0)
    kept: list[object] = []
    n_inputs = kept_nbytes = n_batches = 0
    n_all = operator.length_hint(batches)
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    if not parameters:
        raise ValueError("the model has no floating-point parameters")
    with _evaluating(model), contextlib.ExitStack() as stack:
        for observer in watched:
            stack.enter_context(observer)
        for batch in batches:
            output = run(model, batch)
            direction = _direction(output, loss, random)
            gradients = torch.autograd.grad(direction, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    squares[names[id(parameter)]] += float(gradient.detach().to_dense().double().square().mean())
            n_inputs += _n_inputs(batch)
            n_batches += 1
            nbytes = batch_nbytes(batch) + batch_nbytes(floating_outputs(output))
            if kept_nbytes + nbytes <= _KEPT_NBYTES:
                kept.append(_copied(batch))
                kept_nbytes += nbytes
            if progress is not None:
                progress("batch", n_batches, n_all)
        if not n_batches:
            raise ValueError("there are no batches to calibrate with")
    with _evaluating(model), torch.no_grad():  # what the model keeps of its last run shall hold no graph
        run(model, batch)
    tensors = {name: TensorStatistics(total / n_inputs if math.isfinite(total) else 0.0)
               for name, total in squares.items()}  # fmt: skip
    for observer in watched:
        tensors |= observer.statistics(tensors)
    return Calibration(_with_tied(model, tensors), kept, "values" if callable(loss) else loss)


def check_loss(loss: Loss) -> None:
    """Raise ValueError unless it is a loss."""
    if not callable(loss) and loss not in ("values", "logits"):
        raise ValueError(f"loss is {loss!r}; 'values', 'logits' or a function of the model's output is allowed")


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


def _direction(output: Any, loss: Loss, random: torch.Generator) -> Tensor:
    """A scalar whose gradient is, on average over random directions, what errors of the output cost."""
    if callable(loss):
        return loss(output)
    tensors = [tensor for tensor in floating_outputs(output) if tensor.requires_grad]
    if not tensors:
        raise ValueError(f"the model returned {type(output).__name__}, which has no floating-point tensor that depends"
                         " on its parameters")  # fmt: skip
    if loss == "logits":
        return sum((_sampled_loss(tensor, random) for tensor in tensors), torch.zeros(()))
    total = torch.zeros((), device=tensors[0].device)
    for tensor in tensors:
        noise = torch.randn(tensor.shape, generator=random).to(tensor)
        scale = float(tensor.detach().float().std(unbiased=False)) if len(tensors) > 1 and tensor.numel() else 1.0
        total = total + (tensor * noise).sum() / (scale or 1.0)
    return total


def _sampled_loss(logits: Tensor, random: torch.Generator) -> Tensor:
    """Cross-entropy of classes drawn from the model itself: the gradient of its Fisher information."""
    flat = logits.reshape(-1, logits.shape[-1]).float()
    chances = flat.detach().softmax(1).cpu()
    drawn = torch.multinomial(chances, 1, generator=random)[:, 0].to(flat.device)
    return nn.functional.cross_entropy(flat, drawn, reduction="sum")


def _names(model: nn.Module) -> dict[int, str]:
    """The first name of each parameter, by identity."""
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    return names


def _with_tied(model: nn.Module, tensors: dict[str, TensorStatistics]) -> dict[str, TensorStatistics]:
    """The same, under every name of a tied parameter.

    A table that is a layer's weight too is treated as that: all its rows matter, however seldom one is looked up.
    """
    first = _names(model)
    every = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    for name, original in every.items():
        known = tensors.get(name)
        if name != original and known is not None and known.moments is not None:
            tensors[original] = _together(tensors[original], known)
    return tensors | {name: tensors[original] for name, original in every.items() if original in tensors}


def _together(one: TensorStatistics, other: TensorStatistics) -> TensorStatistics:
    """What is known of a weight of two layers."""
    if one.moments is None or other.moments is None:
        return replace(one if other.moments is None else other, importance=one.importance)
    n = one.n_observed + other.n_observed
    share = np.float32(one.n_observed / n)
    moments = tuple(tuple(share * a + (1 - share) * b for a, b in zip(of_one, of_other, strict=True))
                    for of_one, of_other in zip(one.moments, other.moments, strict=True))  # fmt: skip
    return TensorStatistics(one.importance, moments, n)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, gradients enabled; afterwards as it was."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    model.eval()
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        # Hooks do not run in compiled code
        with torch.inference_mode(False), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in frozen:
            parameter.requires_grad_(False)


def _copied(batch: Any) -> Any:
    """The batch with tensors of its own: loaders may use theirs again."""
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    if isinstance(batch, Mapping):
        return {key: _copied(value) for key, value in batch.items()}
    return type(batch)(map(_copied, batch)) if type(batch) in (tuple, list) else batch


def _tensors(batch: Any) -> list[Tensor]:
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    return [value for value in values if isinstance(value, Tensor)]


def _n_inputs(batch: Any) -> int:
    """The length of the first axis of the first tensor."""
    return next((max(tensor.shape[0], 1) for tensor in _tensors(batch) if tensor.ndim), 1)


def batch_nbytes(batch: Any) -> int:
    """Of its tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(batch))
