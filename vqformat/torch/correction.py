"""Correction of biases and normalizations after weights have been quantized, so that outputs change less.

First the means and variances of each layer are corrected (bias correction: Nagel et al. 2019; batch-norm statistics:
Finkelstein et al. 2019). Then gradient descent on the difference of the outputs tunes all one-dimensional parameters
together. No labels are needed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encode.calibration import Calibration
from ..encode.progress import advance_share
from .batches import count_bytes, floating_outputs, run
from .observers import CONVOLUTIONS

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CORRECTED = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_EPOCHS = 3  # more fit the inputs too well: MiniLM loses a little on held-out inputs
_FEWEST_STEPS = 60
_RATE = 0.003  # learning rate, relative to the root mean square of a parameter
_HELD_OUT = 5  # every fifth batch is held out, to judge a correction

Arrays = dict[str, np.ndarray]


class Corrector:
    """Corrects the short tensors of a model for given quantized weights.

    Args:
        model: The original model.
        calibration: Its calibration, whose ``inputs`` are used.
    """

    def __init__(self, model: nn.Module, calibration: Calibration) -> None:
        self._teacher, self._batches, self._loss = model, calibration.inputs, calibration.loss

    def __call__(self, weights: Iterable[tuple[str, np.ndarray]]) -> Arrays:
        """Correct the tensors that are not quantized weights.

        Args:
            weights: Names and values of the quantized weights.

        Returns:
            New values of the other floating-point tensors of the state dict, by name; empty without inputs.
        """
        from ..read.torch_arrays import to_numpy

        if not self._batches:
            return {}
        student = copy.deepcopy(self._teacher).eval()
        for parameter in student.parameters():
            parameter.requires_grad_(False)
        state = student.state_dict()
        given = set()
        for name, array in weights:  # one in memory at a time
            state[name].copy_(torch.from_numpy(array))
            given.add(name)
        was_training = [module for module in self._teacher.modules() if module.training]
        self._teacher.eval()
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # the fast path gives other outputs for padded inputs
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                aims = [_detached(run(self._teacher, batch)) for batch in self._batches]
                if aims[0]:
                    self._correct(student, aims, given)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module in was_training:
                module.training = True
        return {name: to_numpy(tensor) for name, tensor in student.state_dict().items()
                if name not in given and tensor.dtype in _CORRECTED}  # fmt: skip

    def _correct(self, student: nn.Module, aims: list[list[Tensor]], given: set[str]) -> None:
        """Apply the corrections one after another. Each is undone if it does not reduce the loss on held-out batches.

        Args:
            student: The model with quantized weights.
            aims: For each batch the outputs of the original model.
            given: Names of the quantized weights.
        """
        n_batches = len(self._batches)
        judges = range(0, n_batches, _HELD_OUT if n_batches >= _HELD_OUT else 1)
        learned = [i for i in range(n_batches) if i not in judges]
        largest = max(self._batches, key=count_bytes)
        ways: list[Callable[[], None]] = [lambda: _match_moments(self._teacher, student, largest)]
        if learned:
            ways.append(lambda: self._tune(student, aims, learned, given))
        loss = self._total(student, aims, judges)
        for way in ways:
            before = {name: tensor.clone() for name, tensor in student.state_dict().items() if name not in given}
            way()
            news = self._total(student, aims, judges)
            if news < loss:
                loss = news
            else:
                student.load_state_dict(before, strict=False)

    def _tune(
        self, student: nn.Module, aims: list[list[Tensor]], learned: list[int], given: set[str]
    ) -> None:
        """Tune all one-dimensional parameters by gradient descent.

        Args:
            learned: Numbers of the batches to learn from.
        """
        tuned = [parameter for name, parameter in student.named_parameters()
                 if parameter.ndim == 1 and name not in given and parameter.is_floating_point()]  # fmt: skip
        if not tuned:
            return
        groups = [{"params": [p.requires_grad_(True)], "lr": _RATE * _size(p)} for p in tuned]
        optimizer = torch.optim.Adam(groups)
        n_steps = max(_EPOCHS * len(learned), _FEWEST_STEPS)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        random = torch.Generator().manual_seed(0)
        for done in range(n_steps):
            if done % len(learned) == 0:
                order = torch.randperm(len(learned), generator=random).tolist()
            i = learned[order[done % len(learned)]]
            with torch.enable_grad():
                loss = self._difference(student, self._batches[i], aims[i])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            advance_share(1 / n_steps)
        for parameter in tuned:
            parameter.requires_grad_(False)

    def _total(self, student: nn.Module, aims: list[list[Tensor]], batches: Iterable[int]) -> float:
        return sum(float(self._difference(student, self._batches[i], aims[i])) for i in batches)

    def _difference(self, student: nn.Module, batch: Any, aims: list[Tensor]) -> Tensor:
        """The loss between the student's outputs for a batch and those of the original model, a scalar."""
        total = torch.zeros(())
        for found, aim in zip(floating_outputs(run(student, batch)), aims, strict=True):
            if self._loss == "logits":
                logs = found.float().log_softmax(-1), aim.float().log_softmax(-1)
                part = nn.functional.kl_div(*logs, log_target=True, reduction="none").sum(-1).mean()
            else:
                part = (found - aim).float().square().sum() / aim.float().square().sum().clamp_min(1e-12)
            total = total + part.cpu()
        return total


def _size(parameter: Tensor) -> float:
    """Root mean square of a parameter, at least 0.001."""
    return max(float(parameter.detach().float().square().mean().sqrt()), 1e-3)


def _detached(output: Any) -> list[Tensor]:
    return [tensor.detach() for tensor in floating_outputs(output)]


def _match_moments(teacher: nn.Module, student: nn.Module, batch: Any) -> None:
    """Correct biases so that outputs of layers have the means that they have in the teacher, and batch-norm statistics.

    One run of the student corrects all layers: a layer is corrected before the next layer gets its output.
    """
    kinds = (nn.Linear, *CONVOLUTIONS, *_NORMS)
    targets = {name for name, module in student.named_modules() if isinstance(module, kinds)}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in targets}

    def note(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            values = (args or (None,))[0] if isinstance(module, _NORMS) else output
            # An expert of a mixture may have got no inputs; a user's own layer may return anything
            if isinstance(values, Tensor) and values.numel():
                seen[name].append(_moments(module, values))

        return hook

    def correct(name: str, module: nn.Module) -> Callable[..., Any]:
        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            if not args[0].numel():
                return
            mean, variance = _moments(module, args[0])
            aim_mean, aim_variance = seen[name][0]
            module.running_mean += (mean - aim_mean).to(module.running_mean)  # type: ignore[operator, arg-type]
            ratio = (variance + 1e-12) / (aim_variance + 1e-12)
            module.running_var *= ratio.clamp(0.1, 10.0).to(module.running_var)  # type: ignore[operator, arg-type]

        def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            if not output.numel():
                return output
            shift = (seen[name][0][0] - _moments(module, output)[0]).to(output)
            module.bias += shift  # type: ignore[operator]
            axis = _channel_axis(module, output)
            return output + shift.reshape([-1 if i == axis else 1 for i in range(output.ndim)])

        return before if isinstance(module, _NORMS) else after

    with contextlib.ExitStack() as hooks:
        for name, module in teacher.named_modules():
            if name in targets:
                hooks.enter_context(module.register_forward_hook(note(name, module)))
        run(teacher, batch)
    once = {name for name, moments in seen.items() if len(moments) == 1}  # a layer that runs twice has two means
    with contextlib.ExitStack() as hooks:
        for name, module in student.named_modules():
            if name not in once:
                continue
            if isinstance(module, _NORMS) and module.track_running_stats:
                hooks.enter_context(module.register_forward_pre_hook(correct(name, module)))
            elif isinstance(module, (nn.Linear, *CONVOLUTIONS)) and module.bias is not None:
                hooks.enter_context(module.register_forward_hook(correct(name, module)))
        run(student, batch)


def _channel_axis(module: nn.Module, values: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return values.ndim - 1
    is_single = isinstance(module, CONVOLUTIONS) and values.ndim == len(module.kernel_size) + 1
    return 0 if is_single else 1


def _moments(module: nn.Module, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, ``(channels,)`` float64."""
    axes = [i for i in range(values.ndim) if i != _channel_axis(module, values)]
    doubles = values.detach().double()
    return doubles.mean(axes), doubles.var(axes, unbiased=False)
