"""Hooks on layers that collect the second moments of the vectors by which their weights are multiplied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ..encode.calibration import TensorStatistics
from ..encode.moments import Chosen, Moments, VectorSampler, by_group

_MOST_SEQUENCES = 16  # of each call; a recurrent layer is run again on them
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Take = Callable[[Tensor], Tensor]


class Observer:
    """Observes the inputs of one layer while the model runs. It is a context manager that sets a hook on the layer.

    Args:
        prefix: Name of the layer with a dot, the prefix of the names of its parameters.
        sampler: Chooses the vectors; one for all observers of a model.

    Attributes:
        arguments: Names of the arguments of ``forward`` that ``observe`` gets.
        met_nbytes: Bytes of the first argument of all calls since the context was entered.
    """

    arguments: tuple[str, ...] = ("input",)

    def __init__(self, module: nn.Module, prefix: str, sampler: VectorSampler) -> None:
        self.module, self.prefix = module, prefix
        self.met_nbytes = 0
        self._sampler = sampler
        self._moments: dict[str, Moments] = {}

    def __enter__(self) -> Observer:
        self.met_nbytes = 0
        self._hook = self.module.register_forward_pre_hook(self._on_call, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *(kwargs.get(name) for name in self.arguments[len(args) :])]
        if given[0] is None:  # a subclass of the user, whose argument has another name
            given[0] = next(iter(kwargs.values()))
        if isinstance(given[0], Tensor):
            self.met_nbytes += given[0].nbytes
        with torch.no_grad(), torch.autocast(next(module.parameters()).device.type, enabled=False):
            self.observe(*given[: len(self.arguments)])

    def observe(self, *given: Any) -> None:
        """Process the arguments of a call."""
        raise NotImplementedError

    def _note(self, parameter: str, n: int, take: Take, groups: int = 1) -> None:
        """Add some of the n vectors of a call to the moments of a parameter.

        Args:
            parameter: Name of the parameter in the layer.
            take: Returns the vectors with given numbers, ``(chosen, groups, inputs)``.
        """
        if not n:
            return
        outputs, *inputs = getattr(self.module, parameter).shape
        if parameter not in self._moments:
            self._moments[parameter] = Moments(groups, prod(inputs), prod(inputs[1:]))

        def vectors(chosen: Chosen) -> Tensor:
            return take(torch.from_numpy(chosen)).detach().float()

        self._sampler.note(self._moments[parameter], n, vectors, outputs // groups)

    def _note_all(self, parameter: str, vectors: Tensor) -> None:
        """Add vectors, which lie along the last axis, to the moments of a parameter."""
        rows = vectors.reshape(-1, vectors.shape[-1])
        self._note(parameter, len(rows), lambda chosen: (rows if len(chosen) == len(rows) else rows[chosen])[:, None])

    def statistics(self, known: Mapping[str, TensorStatistics]) -> dict[str, TensorStatistics]:
        """Statistics of the layer's parameters by name. It can be called only once.

        Args:
            known: Statistics gathered elsewhere, to which the moments are added.
        """
        return {self.prefix + name: replace(known.get(self.prefix + name, TensorStatistics()),
                                            moments=by_group([block.cpu().numpy() for block in moments.mean()]),
                                            n_observed=moments.n_observed)
                for name, moments in self._moments.items()}  # fmt: skip


class LinearObserver(Observer):
    """A linear layer: each input is a vector."""

    def observe(self, x: Any) -> None:
        if x.numel():
            self._note_all("weight", x)


class ConvolutionObserver(Observer):
    """A convolution of any rank: a vector is a patch of the channels of a group."""

    module: nn.modules.conv._ConvNd

    def observe(self, x: Any) -> None:
        module = self.module
        rank = len(module.kernel_size)
        if x.ndim == rank + 1:
            x = x[None]
        if any(module._reversed_padding_repeated_twice):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        for axis, (size, step, spacing) in enumerate(
            zip(module.kernel_size, module.stride, module.dilation, strict=True), 2
        ):
            x = x.unfold(axis, (size - 1) * spacing + 1, step)[..., ::spacing]
        # x: (batch, channels, places…, taps…)
        places = x.shape[2 : 2 + rank]
        x = x.movedim(1, 1 + rank)  # (batch, places…, channels, taps…)

        def take(chosen: Tensor) -> Tensor:
            patches: Tensor = x[torch.unravel_index(chosen, (x.shape[0], *places))]  # (chosen, channels, taps…)
            return patches.reshape(len(chosen), module.groups, -1)

        self._note("weight", x.shape[0] * prod(places), take, module.groups)


class EmbeddingObserver(Observer):
    """An embedding: it counts how often each row is looked up."""

    module: nn.Embedding | nn.EmbeddingBag

    def __init__(self, module: nn.Module, prefix: str, sampler: VectorSampler) -> None:
        super().__init__(module, prefix, sampler)
        self._counts = torch.zeros(self.module.num_embeddings, dtype=torch.int64)

    def observe(self, x: Any) -> None:
        self._counts += torch.bincount(x.reshape(-1).cpu(), minlength=self.module.num_embeddings)

    def statistics(self, known: Mapping[str, TensorStatistics]) -> dict[str, TensorStatistics]:
        if not self._counts.any():  # not called; a tied layer may have used its weight
            return {}
        name = self.prefix + "weight"
        return {name: replace(known.get(name, TensorStatistics()), row_counts=self._counts.numpy())}


class RecurrentObserver(Observer):
    """A recurrent layer. Its layers and directions are run again one by one, to get the inputs and states of each."""

    module: nn.RNNBase
    arguments = ("input", "hx")

    def observe(self, x: Any, start: Any) -> None:
        """Process a call.

        Args:
            x: The input: a tensor or a ``PackedSequence``.
            start: Initial states of all layers and directions, as ``forward`` takes them; None for zeros.
        """
        module = self.module
        states: list[Tensor] = [] if start is None else list(start) if isinstance(start, tuple) else [start]
        lengths = None
        if isinstance(x, PackedSequence):
            x, lengths = pad_packed_sequence(x)
        elif x.ndim == 2:
            x, states = x[:, None], [state[:, None] for state in states]
        elif module.batch_first:
            x = x.transpose(0, 1)
        lengths = torch.full((x.shape[1],), x.shape[0]) if lengths is None else lengths
        if x.shape[1] > _MOST_SEQUENCES:
            some = torch.linspace(0, x.shape[1] - 1, _MOST_SEQUENCES).long()
            lengths = lengths[some]
            x, states = x[:, some.to(x.device)], [state[:, some.to(x.device)] for state in states]
        weight = next(module.parameters())  # under autocast, inputs may have another dtype
        x, states = x.to(weight), [state.to(weight) for state in states]
        steps = torch.arange(x.shape[0])[:, None]
        is_valid = (steps < lengths).to(x.device)  # (time, batch)
        backward = torch.where(steps < lengths, lengths - 1 - steps, steps).to(x.device)
        directions = ["", "_reverse"] if module.bidirectional else [""]
        for layer in range(module.num_layers):  # x: (time, batch, inputs)
            found = []
            for i, direction in enumerate(directions, layer * len(directions)):
                turned = _at(x, backward) if direction else x
                hidden = self._run(turned, f"_l{layer}{direction}", is_valid, [state[i : i + 1] for state in states])
                found.append(_at(hidden, backward) if direction else hidden)
            x = torch.cat(found, dim=2)

    def _run(self, x: Tensor, suffix: str, is_valid: Tensor, states: list[Tensor]) -> Tensor:
        """Run one direction of one layer, and add its inputs and states to the moments.

        Args:
            x: Inputs, ``(time, batch, inputs)``.
            suffix: Suffix of the names of its parameters.
            is_valid: Steps that are not padding, ``(time, batch)``.
            states: Its initial states, ``(1, batch, …)`` each.

        Returns:
            Outputs, ``(time, batch, outputs)``.
        """
        module = self.module
        single = _SINGLE[module.mode](x.shape[2], module.hidden_size, bias=module.bias, **_options(module))
        for name in [name for name, _ in single.named_parameters()]:
            weight = getattr(module, name.replace("_l0", suffix))
            setattr(single, name, nn.Parameter(weight.detach(), requires_grad=False))
        hidden: Tensor = single(x, tuple(states) if len(states) > 1 else states[0] if states else None)[0]
        before = torch.cat([states[0] if states else torch.zeros_like(hidden[:1]), hidden[:-1]])
        for name, vectors in ((f"weight_ih{suffix}", x), (f"weight_hh{suffix}", before)):
            self._note_all(name, vectors[is_valid])
        return hidden


_SINGLE: dict[str, Any] = {"RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}


def _at(sequences: Tensor, steps: Tensor) -> Tensor:
    """The steps ``(time, batch)`` of sequences ``(time, batch, inputs)``."""
    return sequences[steps, torch.arange(sequences.shape[1], device=sequences.device)]


def _options(module: nn.RNNBase) -> dict[str, Any]:
    """Keyword arguments for a single layer like this one. It is made on the meta device; then weights are assigned."""
    options: dict[str, Any] = {"device": "meta", "dtype": next(module.parameters()).dtype}
    if isinstance(module, nn.RNN):
        options["nonlinearity"] = module.nonlinearity
    if isinstance(module, nn.LSTM):
        options["proj_size"] = module.proj_size
    return options


class AttentionObserver(Observer):
    """Multi-head attention of a sequence to itself: the three projections of the same input share a weight."""

    module: nn.MultiheadAttention
    arguments = ("query", "key", "value")

    def observe(self, query: Any, key: Any, value: Any) -> None:
        if self.module.in_proj_weight is not None and query is key is value:
            self._note_all("in_proj_weight", query)


_KINDS: Sequence[tuple[Any, type[Observer]]] = (
    (nn.Linear, LinearObserver),
    (CONVOLUTIONS, ConvolutionObserver),
    ((nn.Embedding, nn.EmbeddingBag), EmbeddingObserver),
    ((nn.RNN, nn.LSTM, nn.GRU), RecurrentObserver),
    (nn.MultiheadAttention, AttentionObserver),
)


class InputObservers:
    """Observers of all layers of a model of a supported kind. As a context manager it sets and removes their hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.observers: list[Observer] = []
        sampler = VectorSampler()
        for name, module in model.named_modules():
            kind = next((observer for types, observer in _KINDS if isinstance(module, types)), None)
            if kind is not None:
                self.observers.append(kind(module, f"{name}." if name else "", sampler))

    def __enter__(self) -> InputObservers:
        self._hooks = ExitStack()
        for observer in self.observers:
            self._hooks.enter_context(observer)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    @property
    def met_nbytes(self) -> int:
        """Bytes of the inputs of all observed layers since the context was last entered."""
        return sum(observer.met_nbytes for observer in self.observers)
