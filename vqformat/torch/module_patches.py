"""Changes to the modules of a streamed model, for the code of PyTorch that does not work with streamed weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import Tensor, nn

from ..forks import ForkSafeLock
from .streamed_weight import StreamedWeight, WeightTensor


def patch(module: nn.Module) -> None:
    """Make ``to()`` work for a module with streamed weights, and refuse its conversion to TorchScript."""
    _renew_flat_weights(module)
    module._apply = partial(_apply, module)  # type: ignore[method-assign]
    module.__prepare_scriptable__ = _refuse_script  # type: ignore[assignment]


class WeightSwap:
    """Puts decoded weights in the place of streamed ones during calls of a module. Several threads may call it.

    It is for modules that hand their weights to fused code of PyTorch, which inspects them first.
    """

    def __init__(self, modules: list[nn.Module], lock: ForkSafeLock) -> None:
        self._modules, self._lock = modules, lock
        self._places: list[tuple[Any, str, StreamedWeight]] = [
            (members, key, tensor.weight) for module in modules for members in (module._parameters, module._buffers)
            for key, tensor in members.items() if isinstance(tensor, WeightTensor)]  # fmt: skip

    @classmethod
    def around_calls(cls, module: nn.Module, lock: ForkSafeLock) -> None:
        """Wrap ``module.forward``, if the module is of a kind that needs decoded weights."""
        match module:
            case nn.TransformerEncoder():
                modules = list(module.layers[0].modules())  # it inspects the weights of its first layer
            case nn.TransformerEncoderLayer() | nn.MultiheadAttention() | nn.RNNBase():
                modules = list(module.modules())
            case _:
                return
        swap = cls(modules, lock)
        if swap._places:
            # Not by hooks: with hooks PyTorch does not take its fast path
            module.forward = _Swapping(swap, module.forward)  # type: ignore[method-assign]

    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``forward`` with decoded weights in place."""
        held: list[tuple[Any, str, StreamedWeight]] = []
        try:
            self._enter(held)
            return forward(*args, **kwargs)
        finally:
            self._leave(held)

    def _enter(self, held: list[tuple[Any, str, StreamedWeight]]) -> None:
        with self._lock:
            for members, key, weight in self._places:
                if weight.is_in(members.get(key)):
                    members[key] = weight.hold()
                    held.append((members, key, weight))
            self._renew()

    def _leave(self, held: list[tuple[Any, str, StreamedWeight]]) -> None:
        with self._lock:
            for members, key, weight in held:
                members[key] = weight.release()
            self._renew()

    def _renew(self) -> None:
        for module in self._modules:
            _renew_flat_weights(module)


class _Swapping:
    """A ``forward`` that calls another one with decoded weights. An object, since pickle takes no closures."""

    def __init__(self, swap: WeightSwap, forward: Callable[..., Any]) -> None:
        update_wrapper(self, forward)  # takes the attributes of another _Swapping, too
        self._swap, self._forward = swap, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._swap.call(self._forward, *args, **kwargs)


def _renew_flat_weights(module: nn.Module) -> None:
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Replacement of ``module._apply``, which ``to()`` calls. Streamed weights change dtype and device undecoded."""
    kept: list[tuple[Any, str, WeightTensor]] = []
    for members in (module._parameters, module._buffers):
        for key, tensor in members.items():
            if isinstance(tensor, WeightTensor):
                kept.append((members, key, tensor))
    for members, key, _ in kept:
        members[key] = None
    try:
        type(module)._apply(module, function, recurse)  # type: ignore[no-untyped-call]
    finally:
        for members, key, tensor in kept:
            members[key] = tensor
    for members, key, tensor in kept:
        probe = function(torch.empty(0, dtype=tensor.weight.dtype, device=tensor.weight.device))
        members[key] = tensor.weight.change(probe.dtype, probe.device)
    _renew_flat_weights(module)
    return module


def _refuse_script() -> None:
    raise RuntimeError("a streamed model cannot become TorchScript, which would have no weights; script a model that"
                       " load_model fills")  # fmt: skip
