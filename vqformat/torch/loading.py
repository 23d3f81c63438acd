"""``load_model``: filling a model from a file, with one decoded tensor in memory at a time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch

from ..files import Path
from ..read.safe_open import safe_open
from ..read.torch_arrays import identity, memory_format
from .checkpoint import saved_state

Device = str | int | torch.device
Members = dict[str, torch.Tensor | None]


def load_model(model: torch.nn.Module, filename: Path | BinaryIO, strict: bool = True,
               device: Device = "cpu") -> tuple[list[str], list[str]]:  # fmt: skip
    """Fill a model in place from a file, with one decoded tensor in memory at a time.

    It calls ``model.load_state_dict``, with its hooks: tensors are converted to the dtypes of the model and copied to
    its devices. Parameters and buffers on the meta device are created on ``device``. Those that the file does not have
    stay on the meta device. Versions of modules and extra states come from the file. If an extra state could not be
    kept when the file was written, a warning says so, and the model keeps its own.

    Args:
        filename: Path, or a binary file that can seek.
        strict: Whether the names in the file and in the model must be the same.
        device: Device of parameters and buffers that are on the meta device.

    Returns:
        Names that only the model has, and names that only the file has. A further name of a tied weight that was
        filled is not counted, nor is a buffer in the file that is not persistent in the model, such as
        ``position_ids``.

    Raises:
        RuntimeError: A shape differs, or names differ and ``strict`` is true.
        VqmError: The file is refused.
    """
    with safe_open(filename, framework="pt") as file:
        return load_opened(model, file, strict, device)


def load_opened(model: torch.nn.Module, file: safe_open[torch.Tensor], strict: bool = True,
                device: Device = "cpu") -> tuple[list[str], list[str]]:  # fmt: skip
    """Fill a model from a file that is open. See ``load_model``."""
    state, lost = saved_state(file, model)
    return load_state(model, state, lost, leave_meta(model, device), strict=strict, device=device)


def load_state(model: torch.nn.Module, state: dict[str, Any], lost: set[str],
               replaced: dict[str, tuple[Members, str, torch.Tensor]], *, strict: bool,
               device: Device) -> tuple[list[str], list[str]]:  # fmt: skip
    """Fill a model with a state.

    Args:
        lost: See ``saved_state``.
        replaced: See ``leave_meta``. Those that the state lacks are put back.

    Returns:
        Names of tensors that are only in the model, and names that are only in the state.

    Raises:
        RuntimeError: With ``strict``, there are such names.
    """
    result = model.load_state_dict(state, strict=False)
    missing = really_missing(model, without_lost(result.missing_keys, lost))
    unexpected = without_not_persistent(model, result.unexpected_keys, state, device)
    for name in missing:
        if name in replaced:
            members, key, original = replaced[name]
            members[key] = original
    if strict and (missing or unexpected):
        raise RuntimeError(mismatch(type(model).__name__, missing, unexpected))
    return missing, unexpected


def without_lost(missing: list[str], lost: set[str]) -> list[str]:
    """The names that are missing, but for extra states that the file says it could not keep; a warning names those."""
    told = [name for name in missing if name in lost]
    if told:
        warnings.warn(f"the file does not have {', '.join(map(repr, told))}: an extra state that is no plain value was"
                      " left out when it was written", stacklevel=4)  # fmt: skip
    return [name for name in missing if name not in lost]


def without_not_persistent(model: torch.nn.Module, unexpected: list[str], state: Mapping[str, Any],
                           device: Device) -> list[str]:  # fmt: skip
    """The names that are unexpected, but for those of buffers that are not persistent, such as ``position_ids``.

    Files of older versions of a model have such buffers. The model makes its own; one on the meta device is taken from
    the file.
    """
    strange = []
    for name in unexpected:
        path, _, key = name.rpartition(".")
        try:
            module = model.get_submodule(path)
        except AttributeError:
            module = None
        if module is None or key not in module._non_persistent_buffers_set:
            strange.append(name)
            continue
        own, stored = module._buffers.get(key), state[name]
        if own is not None and own.is_meta and own.shape == stored.shape:
            module._buffers[key] = stored.to(device=device, dtype=own.dtype)
    return strange


def leave_meta(model: torch.nn.Module, device: Device) -> dict[str, tuple[Members, str, torch.Tensor]]:
    """Replace parameters and persistent buffers on the meta device by uninitialised ones. Ties are kept.

    Returns:
        For each full name of a replaced tensor: the dict that holds it, its key in that, and the original.
    """
    replaced: dict[str, tuple[Members, str, torch.Tensor]] = {}
    made: dict[int, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        members: Any
        for members in (module._parameters, module._buffers):
            for key, tensor in members.items():
                if tensor is None or torch.nn.parameter.is_lazy(tensor) or key in module._non_persistent_buffers_set:
                    continue
                name = f"{prefix}.{key}" if prefix else key
                if not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    # Not empty_like, which imports SymPy (35 MB of memory) for a meta tensor
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device,
                                        memory_format=memory_format(tensor))  # fmt: skip
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                replaced[name] = members, key, tensor
                members[key] = made[id(tensor)]
    return replaced


def really_missing(model: torch.nn.Module, names: list[str]) -> list[str]:
    """Of these names, which were not filled, those that are not further names of a tied tensor that was filled."""
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    keys = {name: identity(tensor) for name, tensor in tensors.items() if _has_memory(tensor)}
    filled = {key for name, key in keys.items() if name not in set(names)}
    return [name for name in names if keys.get(name) not in filled]


def _has_memory(tensor: torch.Tensor) -> bool:
    is_lazy = torch.nn.parameter.is_lazy(tensor)
    return not (is_lazy or tensor.is_meta or tensor.layout != torch.strided) and tensor.numel() > 0


def mismatch(model: str, missing: list[str], unexpected: list[str]) -> str:
    """The error text for names that only the model (``missing``) or only the file (``unexpected``) has.

    Args:
        model: Name of the model's class.
    """
    lines = [f"Error(s) in loading state_dict for {model}:"]
    if missing:
        lines.append(f"Missing key(s): {', '.join(map(repr, missing))}")
    if unexpected:
        lines.append(f"Unexpected key(s): {', '.join(map(repr, unexpected))}")
    for prefix in ("module.", "_orig_mod."):
        for ours, theirs, side in ((missing, unexpected, "file"), (unexpected, missing, "model")):
            if theirs and {prefix + name for name in ours} & set(theirs):
                lines.append(f"The names in the {side} begin with {prefix!r}, the other ones do not.")
    return "\n    ".join(lines)
