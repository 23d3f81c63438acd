"""How sensitive the outputs of a model are to errors of its parameters, from derivatives for some inputs.

Computing derivatives takes two to three times as long as computing outputs, and needs memory for all activations. A
part of the inputs is enough, because the result is one number for each tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .batches import count_inputs, floating_outputs, part_of, run

Loss = Literal["values", "logits"] | Callable[[Any], Tensor]
_SHARE = 1 / 8  # of all inputs that are used
_TOGETHER = 8  # inputs in a backward pass; each pass takes some time for all parameters, however few inputs it has
_GRAPH_NBYTES = 1 << 27  # most memory, about, of activations that are kept for derivatives
_ALIKE = 1e-3  # largest difference of equal outputs from rounding, relative to the largest output


class Sensitivity:
    """Sums of squared derivatives of a model's outputs in random directions.

    Args:
        model: In evaluation mode, with gradients enabled for all floating-point parameters.
        names: Name of each parameter, by its ``id``.
        loss: Which errors of the outputs matter, see ``calibrate``.
        seed: Seed of the directions.
    """

    def __init__(self, model: nn.Module, names: dict[int, str], loss: Loss, seed: int) -> None:
        self._model, self._names, self._loss = model, names, loss
        self._random = torch.Generator().manual_seed(seed)
        self._parameters = [p for p in model.parameters() if p.is_floating_point()]
        self._squares = dict.fromkeys(names.values(), 0.0)
        self._is_divisible: bool | None = None
        self._n_inputs = 0
        self._last: Any = None  # the batch of the last backward pass, if that was the model's last run
        self._due = 0.0  # number of inputs that should have been used and were not

    def add(self, batch: Any, output: Any, nbytes: int) -> None:
        """Use some inputs of a batch; all if the model mixes its inputs; none if enough have been used.

        Args:
            output: The model's output for the batch.
            nbytes: Bytes of the inputs of all layers for the batch.
        """
        self._last = None
        n = count_inputs(batch)
        if self._is_divisible is None:
            self._is_divisible = _is_divisible(self._model, batch, output)
            self._due = _TOGETHER  # so that the first batch is used
        self._due = min(self._due + n * _SHARE, n)
        if self._due < min(n, _TOGETHER):
            return
        n_taken = n
        if self._is_divisible:
            most = _GRAPH_NBYTES * n // max(2 * nbytes, 1)  # 2: layers that are not observed keep activations, too
            n_taken = max(1, min(int(self._due), most, n))
        self._due -= n_taken
        self._last = batch if n_taken == n else part_of(batch, _spread(n_taken, n))
        self._differentiate(self._last)
        self._n_inputs += n_taken

    @torch.no_grad()
    def forget(self) -> None:
        """Run the model without gradients, so that tensors which it keeps from its last run do not hold a graph."""
        if self._last is not None:
            run(self._model, self._last)

    def _differentiate(self, batch: Any) -> None:
        """Add the squared derivatives for a batch. Gradients that the user has stay unchanged."""

        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            flat = parameter.grad.to_dense().float().reshape(-1)
            self._squares[self._names[id(parameter)]] += float(flat.dot(flat)) / max(flat.numel(), 1)
            parameter.grad = None  # at once, so that only one gradient is in memory at a time

        kept = [p.grad for p in self._parameters]
        try:
            with ExitStack() as hooks:
                for parameter in self._parameters:
                    parameter.grad = None
                    hooks.enter_context(parameter.register_post_accumulate_grad_hook(take))  # type: ignore[no-untyped-call]
                direction = _direction(run(self._model, batch), self._loss, self._random)
                torch.autograd.backward(direction, inputs=self._parameters)
        finally:
            for parameter, gradient in zip(self._parameters, kept, strict=True):
                parameter.grad = gradient

    def importances(self) -> dict[str, float]:
        """For each name the mean squared derivative with respect to the elements of the parameter, for one input."""
        return {name: total / self._n_inputs if math.isfinite(total) else 0.0
                for name, total in self._squares.items()}  # fmt: skip


def _spread(n: int, n_all: int) -> Tensor:
    """``n`` numbers below ``n_all``, evenly spread."""
    return ((torch.arange(n) + 0.5) * n_all / n).long()


@torch.no_grad()
def _is_divisible(model: nn.Module, batch: Any, output: Any) -> bool:
    """Whether the model treats inputs independently: the last input of a batch alone gives the same outputs."""
    n = count_inputs(batch)
    if n == 1:
        return False
    try:
        alone = floating_outputs(run(model, part_of(batch, torch.tensor([n - 1]))))
    except Exception:  # the user's model may raise anything for a batch of another size
        return False
    among = floating_outputs(output)
    return bool(among) and len(alone) == len(among) and all(
        one.shape[:1] == (1,) and every.shape[:1] == (n,) and one.shape[1:] == every.shape[1:]
        and bool((one[0] - every[-1]).abs().max() <= _ALIKE * every[-1].abs().max())
        for one, every in zip(alone, among, strict=True) if every.numel()
    )  # fmt: skip


def _direction(output: Any, loss: Loss, random: torch.Generator) -> Tensor:
    """A scalar whose squared gradient, on average over random directions, is what squared errors cost."""
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
        total = total + tensor.flatten().dot(noise.flatten()) / (scale or 1.0)
    return total


def _sampled_loss(logits: Tensor, random: torch.Generator) -> Tensor:
    """Cross-entropy of classes drawn from the model's own distribution: its mean squared gradient is the Fisher
    information."""
    flat = logits.reshape(-1, logits.shape[-1]).float()
    chances = flat.detach().softmax(1).cpu()
    drawn = torch.multinomial(chances, 1, generator=random)[:, 0].to(flat.device)
    return nn.functional.cross_entropy(flat, drawn, reduction="sum")
