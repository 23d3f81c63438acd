"""PyTorch models that the command line fills with the weights of a file of any format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqformat.converters import open_source

from ..encode.calibration import Calibration
from ..text import one_line
from ..torch import from_numpy, to_numpy
from ..torch.batches import tensors_of
from ..torch.correction import Corrector
from ..torch.loading import leave_meta, really_missing
from .files import label, naming
from .text import FileError
from .user_code import call, load_object, running

_SHOWN = 3  # names that an error lists
_EXTRA = "_extra_state"


class FilledModel:
    """A model with the weights of a file.

    Args:
        model: The model, of any weights; it is filled.
        file: The file, as on the command line.
        path: The path from which it is read.
        device: Where the model shall run.
        ignored: Patterns, as of ``re``, of tensors that may be in the file only: the model has no use for them.

    Attributes:
        model: The model, in evaluation mode.

    Raises:
        FileError: Names or shapes in the file are not those of the model.
        VqmError: The file cannot be read.
    """

    def __init__(self, model: nn.Module, file: str, path: Path, device: str, ignored: Iterable[str] = ()) -> None:
        self._file, self._device = file, device
        self._ignored: set[str] = set()
        tensors: dict[str, torch.Tensor] = {}
        with naming(file, path), open_source(path) as source:
            for tensor in source.tensors:
                if tensor.is_exact:  # what lies beside the weights
                    self._ignored.add(tensor.name)
                    continue
                known = tensors.get(tensor.alias_of) if tensor.alias_of is not None else None
                tensors[tensor.name] = from_numpy(tensor.load()) if known is None else known
        self._dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        self._in_model = _names_in_model(list(tensors), [name for name, value in model.state_dict().items()
                                                         if isinstance(value, torch.Tensor)])  # fmt: skip
        patterns = list(ignored)
        self._ignored |= {name for name in tensors if name not in self._in_model
                          and any(re.search(pattern, name) for pattern in patterns)}  # fmt: skip
        self.model = model
        self.fill(model, tensors)
        with running(f"moving the model to {device}"):
            model.to(device).eval()

    def fill(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill a model like this one in place.

        Args:
            tensors: By their names in the file.

        Raises:
            FileError: Names or shapes are not those of the model.
        """
        leave_meta(model, "cpu")
        # A model may take other names, too: those that it had in earlier versions
        names = {name: self._in_model.get(name, name) for name in tensors if name not in self._ignored}
        state = {ours: tensors[name] for name, ours in names.items()}
        try:
            result = model.load_state_dict(state, strict=False)
        except RuntimeError as err:  # the first line says what failed, the next ones name the tensors
            raise FileError(f"{label(self._file)} does not fit the model:"
                            f" {one_line(str(err).partition(chr(10))[2] or str(err))}") from err  # fmt: skip
        missing = [name for name in really_missing(model, result.missing_keys) if not name.endswith(_EXTRA)]
        unexpected = [name for name, ours in names.items() if ours in result.unexpected_keys]
        if missing or unexpected:
            sides = [f"only the {side} has {_listed(names)}" for side, names in (("model", missing),
                                                                                 ("file", unexpected)) if names]
            raise FileError(f"{label(self._file)} does not fit the model: {'; '.join(sides)}")

    def moved(self, batch: Any) -> Any:
        """A batch with its tensors on the device of the model."""
        if all(tensor.device.type == self._device for tensor in tensors_of(batch)):
            return batch
        if isinstance(batch, torch.Tensor):
            return batch.to(self._device)
        if isinstance(batch, Mapping):
            return {key: self.moved(value) for key, value in batch.items()}
        return type(batch)(self.moved(value) for value in batch) if type(batch) in (tuple, list) else batch

    def calibrate(self, batches: Iterable[Any], what: str, *, loss: Any, seed: int, progress: Any) -> Calibration:
        """Calibrate the model. The statistics have the names in the file.

        Args:
            batches: As for ``vqformat.torch.calibrate``.
            what: Where the batches come from, for error texts.
            loss, seed, progress: As for ``vqformat.torch.calibrate``.

        Raises:
            UserCodeError: The model or the batches raise an error.
            FileError: The batches are not such as ``vqformat.torch.calibrate`` takes.
        """
        from ..torch import calibrate

        with running(f"the model, with inputs of {what},", _hint_at_labels):
            found = calibrate(self.model, batches, loss=loss, seed=seed, progress=progress)
        tensors = {name: found.tensors[ours] for name, ours in self._in_model.items() if ours in found.tensors}
        return replace(found, tensors=tensors)

    def corrector(self, calibration: Calibration) -> Any:
        """What corrects biases and normalizations by the inputs of a calibration, by names in the file."""
        correct = Corrector(self.model, calibration)
        in_file = {ours: name for name, ours in self._in_model.items()}

        def corrected(weights: Iterable[tuple[str, Any]]) -> dict[str, Any]:
            found = correct((self._in_model[name], array) for name, array in weights if name in self._in_model)
            return {in_file[ours]: to_numpy(from_numpy(array).to(self._dtypes[in_file[ours]]))
                    for ours, array in found.items() if ours in in_file}  # fmt: skip

        return corrected


def made_model(place: str) -> nn.Module:
    """The model that a function of the user returns, or that has the name.

    Raises:
        FileError: It is no model of PyTorch.
        UserCodeError: The function raises an error.
    """
    found = load_object(place)
    if isinstance(found, nn.Module):
        return found
    model = call(place, found) if callable(found) else found
    if not isinstance(model, nn.Module):
        gave = "returned" if callable(found) else "is"
        raise FileError(f"{one_line(place)} {gave} a {type(model).__name__}; a torch.nn.Module is allowed")
    return model


def _names_in_model(of_file: list[str], of_model: list[str]) -> dict[str, str]:
    """For each tensor of a file its name in the model; those without one are left out.

    All names of one side may have a prefix more, such as ``module.`` or ``model.``.
    """
    known = set(of_model)
    none = {name: name for name in of_file if name in known}
    best = none
    for prefix, _ in Counter(f"{name.partition('.')[0]}." for name in of_file).most_common(_SHOWN):
        shorter = {name: name[len(prefix):] for name in of_file if name.startswith(prefix)}
        best = max(best, {name: ours for name, ours in shorter.items() if ours in known}, key=len)
    for prefix, _ in Counter(f"{name.partition('.')[0]}." for name in of_model).most_common(_SHOWN):
        best = max(best, {name: prefix + name for name in of_file if prefix + name in known}, key=len)
    return best


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(map(repr, names[:_SHOWN]))}{more}"


def _hint_at_labels(err: Exception) -> str:
    is_call = isinstance(err, TypeError) and "argument" in str(err)
    return "; a batch that is a tuple or list has the model's arguments: leave labels out" if is_call else ""

