"""Biases and normalizations of a model whose weights have been quantized, set so that its outputs are as before.

First means and variances, layer by layer (bias correction: Nagel et al. 2019; batch-norm statistics: Finkelstein et al.
2019), then all short parameters together, by gradient descent on the difference of the outputs. Inputs are enough.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encode.calibration import Calibration
from .calibrate import Loss, floating_outputs, run

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_EPOCHS = 6
_RATE = 0.003  # of learning, of the size that a parameter has
_HELD_OUT = 5  # every so-manieth batch judges

Arrays = dict[str, np.ndarray]


class Corrector:
    """Corrects a model to what its quantized weights make of it.

    Args:
        model: As it was.
        calibration: With inputs.
        loss: Which errors of the outputs matter, as for ``calibrate``.
        progress: Called with ``"correction"``, batches done and batches in all.
    """

    def __init__(
        self, model: nn.Module, calibration: Calibration, loss: Loss = "values",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:  # fmt: skip
        self._teacher, self._batches, self._loss, self._progress = model, calibration.inputs, loss, progress

    def __call__(self, weights: Mapping[str, np.ndarray]) -> Arrays:
        """New values of the other tensors of the state dict, for these values of weights, by name."""
        if not self._batches:
            return {}
        student = copy.deepcopy(self._teacher).eval()
        given = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
        student.load_state_dict(given, strict=False)
        was_training = [module for module in self._teacher.modules() if module.training]
        self._teacher.eval()
        try:
            with torch.no_grad():
                _match_moments(self._teacher, student, self._batches[0])
                aims = [_detached(run(self._teacher, batch)) for batch in self._batches]
        finally:
            for module in was_training:
                module.training = True
        self._tune(student, aims, given)
        return {name: tensor.detach().cpu().numpy() for name, tensor in student.state_dict().items()
                if name not in given and tensor.is_floating_point() and tensor.dtype != torch.bfloat16}  # fmt: skip

    def _tune(self, student: nn.Module, aims: list[list[Tensor]], given: Mapping[str, Tensor]) -> None:
        """Gradient descent on all short parameters; undone if batches held out say that it did no good."""
        tuned = [parameter for name, parameter in student.named_parameters()
                 if parameter.ndim == 1 and name not in given and parameter.is_floating_point()]  # fmt: skip
        for parameter in student.parameters():
            parameter.requires_grad_(False)
        judges = range(0, len(self._batches), _HELD_OUT) if len(self._batches) >= _HELD_OUT else range(0)
        learned = [i for i in range(len(self._batches)) if i not in judges]
        if not tuned or not judges or not aims[0]:
            return
        before = [parameter.detach().clone() for parameter in tuned]
        loss_before = self._total(student, aims, judges)
        groups = [{"params": [p.requires_grad_(True)], "lr": _RATE * _size(p)} for p in tuned]
        optimizer = torch.optim.Adam(groups)
        n_steps = _EPOCHS * len(learned)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        random = torch.Generator().manual_seed(0)
        done = 0
        for _ in range(_EPOCHS):
            for j in torch.randperm(len(learned), generator=random).tolist():
                i = learned[j]
                with torch.enable_grad():
                    loss = self._difference(student, self._batches[i], aims[i])
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                done += 1
                if self._progress is not None:
                    self._progress("correction", done, n_steps)
        for parameter in tuned:
            parameter.requires_grad_(False)
        if not self._total(student, aims, judges) < loss_before:
            with torch.no_grad():
                for parameter, original in zip(tuned, before, strict=True):
                    parameter.copy_(original)

    @torch.no_grad()
    def _total(self, student: nn.Module, aims: list[list[Tensor]], batches: range) -> float:
        return sum(float(self._difference(student, self._batches[i], aims[i])) for i in batches)

    def _difference(self, student: nn.Module, batch: Any, aims: list[Tensor]) -> Tensor:
        """How far the student's outputs are from those of the model."""
        total = torch.zeros(())
        for found, aim in zip(floating_outputs(run(student, batch)), aims, strict=True):
            if self._loss == "logits":
                logs = found.float().log_softmax(-1), aim.float().log_softmax(-1)
                part = nn.functional.kl_div(*logs, log_target=True, reduction="none").sum(-1).mean()
            else:
                scale = (aim - aim.mean(0)).float().square().sum().clamp_min(1e-12)
                part = (found - aim).float().square().sum() / scale
            total = total + part.cpu()
        return total


def _size(parameter: Tensor) -> float:
    """Root mean square."""
    return max(float(parameter.detach().float().square().mean().sqrt()), 1e-3)


def _detached(output: Any) -> list[Tensor]:
    return [tensor.detach() for tensor in floating_outputs(output)]


def _match_moments(teacher: nn.Module, student: nn.Module, batch: Any) -> None:
    """Give the outputs of the student's layers the means that the teacher's have, and its batch norms their statistics.

    One run does it for all layers: each is corrected before its output goes on.
    """
    kinds = (nn.Linear, *_CONVOLUTIONS, *_NORMS)
    targets = {name for name, module in student.named_modules() if isinstance(module, kinds)}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in targets}

    def note(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            values = args[0] if isinstance(module, _NORMS) else output
            seen[name].append(_moments(module, values))

        return hook

    def correct(name: str, module: nn.Module) -> Callable[..., Any]:
        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            mean, variance = _moments(module, args[0])
            aim_mean, aim_variance = seen[name][0]
            module.running_mean += (mean - aim_mean).to(module.running_mean)  # type: ignore[operator, arg-type]
            ratio = (variance + 1e-12) / (aim_variance + 1e-12)
            module.running_var *= ratio.clamp(0.1, 10.0).to(module.running_var)  # type: ignore[operator, arg-type]

        def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            shift = (seen[name][0][0] - _moments(module, output)[0]).to(output)
            module.bias += shift  # type: ignore[operator]
            axis = _channel_axis(module, output)
            return output + shift.reshape([-1 if i == axis else 1 for i in range(output.ndim)])

        return before if isinstance(module, _NORMS) else after

    handles = [module.register_forward_hook(note(name, module))
               for name, module in teacher.named_modules() if name in targets]  # fmt: skip
    run(teacher, batch)
    for handle in handles:
        handle.remove()
    once = {name for name, moments in seen.items() if len(moments) == 1}  # what runs twice has two means
    handles = []
    for name, module in student.named_modules():
        if name not in once:
            continue
        if isinstance(module, _NORMS) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(correct(name, module)))
        elif isinstance(module, (nn.Linear, *_CONVOLUTIONS)) and module.bias is not None:
            handles.append(module.register_forward_hook(correct(name, module)))
    run(student, batch)
    for handle in handles:
        handle.remove()


def _channel_axis(module: nn.Module, values: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return values.ndim - 1
    is_single = isinstance(module, _CONVOLUTIONS) and values.ndim == len(module.kernel_size) + 1
    return 0 if is_single else 1


def _moments(module: nn.Module, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel."""
    axes = [i for i in range(values.ndim) if i != _channel_axis(module, values)]
    doubles = values.detach().double()
    return doubles.mean(axes), doubles.var(axes, unbiased=False)
