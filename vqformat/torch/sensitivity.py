"""How much a model's outputs mind errors of its parameters, from derivatives for some of its inputs.

A derivative takes two to three times as long as an output, and the memory of all activations. A part of the inputs is
enough, since what is wanted is one number for each tensor.
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
_SHARE = 1 / 8  # of the inputs
_TOGETHER = 8  # inputs at a time, since any number takes as long as all parameters take
_GRAPH_NBYTES = 1 << 27  # of activations that are kept for derivatives, about
_ALIKE = 1e-3  # of the largest output: so much may outputs differ by the order of sums


class Sensitivity:
    """Squared derivatives of a model's outputs in random directions, summed up.

    Args:
        model: In evaluation mode, all its floating-point parameters with gradients enabled.
        names: Of its parameters, by identity.
        loss: Which errors of the outputs matter, see ``calibrate``.
        seed: Of the directions.
    """

    def __init__(self, model: nn.Module, names: dict[int, str], loss: Loss, seed: int) -> None:
        self._model, self._names, self._loss = model, names, loss
        self._random = torch.Generator().manual_seed(seed)
        self._parameters = [p for p in model.parameters() if p.is_floating_point()]
        self._squares = dict.fromkeys(names.values(), 0.0)
        self._is_divisible: bool | None = None
        self._n_inputs = 0
        self._last: Any = None  # what was differentiated, unless the model has been run since
        self._due = 0.0  # inputs that are still to be taken

    def add(self, batch: Any, output: Any, nbytes: int) -> None:
        """Take some inputs of a batch, or all where the model mixes them, or none if it is not its turn.

        Args:
            output: What the model returned for the batch.
            nbytes: Of the inputs of layers for it.
        """
        self._last = None
        n = count_inputs(batch)
        if self._is_divisible is None:
            self._is_divisible = _is_divisible(self._model, batch, output)
            self._due = _TOGETHER  # that there are some from the first batch on
        self._due = min(self._due + n * _SHARE, n)
        if self._due < min(n, _TOGETHER):
            return
        n_taken = n
        if self._is_divisible:
            most = _GRAPH_NBYTES * n // max(2 * nbytes, 1)  # norms and activations keep theirs too
            n_taken = max(1, min(int(self._due), most, n))
        self._due -= n_taken
        self._last = batch if n_taken == n else part_of(batch, _spread(n_taken, n))
        self._differentiate(self._last)
        self._n_inputs += n_taken

    @torch.no_grad()
    def forget(self) -> None:
        """See that what the model keeps of its last run holds no graph."""
        if self._last is not None:
            run(self._model, self._last)

    def _differentiate(self, batch: Any) -> None:
        """Add the squares of the parameters' derivatives; what gradients users have stays."""

        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            flat = parameter.grad.to_dense().float().reshape(-1)
            self._squares[self._names[id(parameter)]] += float(flat.dot(flat)) / max(flat.numel(), 1)
            parameter.grad = None  # at once, so that those of all parameters are never in memory together

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
        """The mean of the squared derivatives to a parameter's elements, for one input; by name."""
        return {name: total / self._n_inputs if math.isfinite(total) else 0.0
                for name, total in self._squares.items()}  # fmt: skip


def _spread(n: int, n_all: int) -> Tensor:
    """So many of so many, evenly spread."""
    return ((torch.arange(n) + 0.5) * n_all / n).long()


@torch.no_grad()
def _is_divisible(model: nn.Module, batch: Any, output: Any) -> bool:
    """Whether the outputs of a batch's last input are the same without those before it."""
    n = count_inputs(batch)
    if n == 1:
        return False
    try:
        alone = floating_outputs(run(model, part_of(batch, torch.tensor([n - 1]))))
    except Exception:  # a model of one's own may refuse a smaller batch in any way
        return False
    among = floating_outputs(output)
    return bool(among) and len(alone) == len(among) and all(
        one.shape[:1] == (1,) and every.shape[:1] == (n,) and one.shape[1:] == every.shape[1:]
        and bool((one[0] - every[-1]).abs().max() <= _ALIKE * every[-1].abs().max())
        for one, every in zip(alone, among, strict=True) if every.numel()
    )  # fmt: skip


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
        total = total + tensor.flatten().dot(noise.flatten()) / (scale or 1.0)
    return total


def _sampled_loss(logits: Tensor, random: torch.Generator) -> Tensor:
    """Cross-entropy of classes drawn from the model itself: the gradient of its Fisher information."""
    flat = logits.reshape(-1, logits.shape[-1]).float()
    chances = flat.detach().softmax(1).cpu()
    drawn = torch.multinomial(chances, 1, generator=random)[:, 0].to(flat.device)
    return nn.functional.cross_entropy(flat, drawn, reduction="sum")
