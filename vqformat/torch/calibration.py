"""Statistics of a model's inputs and of its sensitivity, gathered by running it on some of its inputs.

They say how much the outputs mind an error of each tensor, and which inputs of a layer go together, so that the error
of one weight can be made up for by another. Inputs are enough, no labels.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encode.calibration import Calibration, TensorStatistics
from .batches import copied, count_bytes, floating_outputs, run
from .observers import InputObservers
from .sensitivity import Loss, Sensitivity

_KEPT_NBYTES = 1 << 26  # of inputs and their outputs, for corrections that need to run the model


def calibrate(
    model: nn.Module, batches: Iterable[Any], *, loss: Loss = "values", seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Calibration:  # fmt: skip
    """Gather what ``save_model(…, calibration=…)`` makes use of.

    Some hundreds of inputs like those that the model will meet do; thousands help layers of thousands of inputs. Give
    them in ten batches or more, so that corrections can be judged by batches that they were not made with. It takes
    about two to three times as long as running the model on them. Memory is that of the model, of at most 16 MB of
    second moments for each layer (more for layers of over 16,384 inputs), of a batch, and of the activations of some
    inputs; and as many batches are kept as have 64 MB together with their outputs.

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
    names = _names(model)
    observers = InputObservers(model)
    kept: list[object] = []
    kept_nbytes = n_batches = 0
    n_all = operator.length_hint(batches)
    if not any(p.is_floating_point() for p in model.parameters()):
        raise ValueError("the model has no floating-point parameters")
    sensitivity = Sensitivity(model, names, loss, seed)
    with _evaluating(model):
        for batch in batches:
            with observers, torch.no_grad():
                output = run(model, batch)
            sensitivity.add(batch, output, observers.met_nbytes)
            n_batches += 1
            nbytes = count_bytes(batch) + count_bytes(floating_outputs(output))
            if kept_nbytes + nbytes <= _KEPT_NBYTES:
                kept.append(copied(batch))
                kept_nbytes += nbytes
            if progress is not None:
                progress("batch", n_batches, n_all)
        if not n_batches:
            raise ValueError("there are no batches to calibrate with")
        sensitivity.forget()
    tensors = {name: TensorStatistics(importance) for name, importance in sensitivity.importances().items()}
    for observer in observers.observers:
        tensors |= observer.statistics(tensors)
    return Calibration(_with_tied(model, tensors), kept, "values" if callable(loss) else loss)


def check_loss(loss: Loss) -> None:
    """Raise ValueError unless it is a loss."""
    if not callable(loss) and loss not in ("values", "logits"):
        raise ValueError(f"loss is {loss!r}; 'values', 'logits' or a function of the model's output is allowed")


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
    fast = torch.backends.mha.get_fastpath_enabled()
    modes = [(module, module.training) for module in model.modules()]
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # it calls no hooks
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        # Hooks do not run in compiled code
        with torch.inference_mode(False), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes:
            module.training = mode
        for parameter in frozen:
            parameter.requires_grad_(False)
