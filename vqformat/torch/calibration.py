"""Statistics of a PyTorch model, gathered by running it on some inputs.

They are: how much an error of each tensor changes the outputs, and the second moments of the inputs of each layer. With
the moments the encoder compensates the error of one weight by other weights. No labels are needed.
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

_KEPT_NBYTES = 1 << 26  # of the batches (with their outputs) that are kept for corrections, which run the model


def calibrate(
    model: nn.Module, batches: Iterable[Any], *, loss: Loss = "values", seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Calibration:  # fmt: skip
    """Gather the statistics for ``save_model(…, calibration=…)``.

    Some hundreds of inputs are enough, if they are like those that the model will get in use. Layers of thousands of
    inputs profit from thousands. Give at least ten batches: corrections are made with some of the batches and judged
    by the others. The calibration takes about two to three times as long as running the model on the inputs.

    Besides the model it needs memory for: at most 16 MB of second moments for each layer (more for layers of over
    16,384 inputs), a batch, the activations of some inputs, and 64 MB of batches that are kept with their outputs.

    Args:
        model: It is run in evaluation mode. Its parameters and their gradients do not change.
        batches: Inputs, without labels. A tensor is the model's only argument; a tuple or list has its arguments; a
            mapping has its keyword arguments.
        loss: Which errors of the outputs matter. ``"values"``: squared errors of all floating-point outputs.
            ``"logits"``: the outputs are logits of classes, on the last axis; the inputs should not be those that the
            model was trained on. Or a function from the model's output to a scalar, whose gradient tells which errors
            matter; corrections then use ``"values"``.
        seed: Seed of the random directions in the space of outputs.
        progress: Called with ``"batch"``, the number of batches done, and the number of all batches (0 if unknown).

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
    """Raise ValueError unless ``loss`` is a known name or a function."""
    if not callable(loss) and loss not in ("values", "logits"):
        raise ValueError(f"loss is {loss!r}; 'values', 'logits' or a function of the model's output is allowed")


def _names(model: nn.Module) -> dict[int, str]:
    """The first name of each parameter, by the ``id`` of the parameter."""
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    return names


def _with_tied(model: nn.Module, tensors: dict[str, TensorStatistics]) -> dict[str, TensorStatistics]:
    """Add the statistics of tied parameters under all their names.

    An embedding that is also the weight of a layer is treated as a weight: all its rows matter, even those that are
    rarely looked up.
    """
    first = _names(model)
    every = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    for name, original in every.items():
        known = tensors.get(name)
        if name != original and known is not None and known.moments is not None:
            tensors[original] = _together(tensors[original], known)
    return tensors | {name: tensors[original] for name, original in every.items() if original in tensors}


def _together(one: TensorStatistics, other: TensorStatistics) -> TensorStatistics:
    """Merge the statistics of a weight that two layers use."""
    if one.moments is None or other.moments is None:
        return replace(one if other.moments is None else other, importance=one.importance)
    n = one.n_observed + other.n_observed
    share = np.float32(one.n_observed / n)
    moments = tuple(tuple(share * a + (1 - share) * b for a, b in zip(of_one, of_other, strict=True))
                    for of_one, of_other in zip(one.moments, other.moments, strict=True))  # fmt: skip
    return TensorStatistics(one.importance, moments, n)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Context with the model in evaluation mode and gradients enabled for all parameters. Both are restored."""
    fast = torch.backends.mha.get_fastpath_enabled()
    modes = [(module, module.training) for module in model.modules()]
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path does not call hooks
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
